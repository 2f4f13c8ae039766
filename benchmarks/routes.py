"""Information flow routes on SmolLM2-135M, as ratios to the bare forward pass of the same tokens, and peak memory."""

import argparse
import json
import random
import resource
from datetime import date
from pathlib import Path

import torch
from speed import HERE, bare_forward, machine, medians, one_thread

import circuitome as cm

LENGTHS = (64, 128, 1024)
"""Tokens of single prompts."""
CORPUS = (256, 32)
"""Prompts and their tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=CORPUS[0], help="prompts of the corpus")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    ids = model.encode("\n".join(path.read_text() for path in sorted(Path(cm.__file__).parent.glob("models/*.py"))))
    result: dict[str, object] = {"date": date.today().isoformat(), "machine": machine()}
    for length in LENGTHS:
        result |= single(model, ids[:length], options.repeats)
        print(json.dumps(result, indent=1), flush=True)
    result["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    result |= corpus(model, ids, options.prompts)
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"routes-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def single(model: cm.Model, ids: list[int], repeats: int) -> dict[str, object]:
    """One prompt, routes into its last token."""
    tokens = torch.tensor([ids])
    jobs = {"forward": lambda: bare_forward(model, tokens), "routes": lambda: cm.routes(model, ids)}
    seconds = medians(jobs, repeats)
    return {
        f"routes_{len(ids)}_seconds": round(seconds["routes"], 3),
        f"routes_{len(ids)}_ratio": round(seconds["routes"] / seconds["forward"], 2),
        f"routes_{len(ids)}_nodes": len(cm.routes(model, ids).nodes),
    }


def corpus(model: cm.Model, ids: list[int], count: int) -> dict[str, object]:
    """Importances of every head and MLP over a corpus against the bare passes over the same batches of 64 prompts."""
    length, draw = CORPUS[1], random.Random(0)
    starts = [draw.randrange(len(ids) - length) for _ in range(count)]
    texts = [ids[start : start + length] for start in starts]

    def forward() -> None:
        for start in range(0, count, 64):
            bare_forward(model, torch.tensor(texts[start : start + 64]))

    seconds = medians({"forward": forward, "importance": lambda: cm.route_importance(model, texts)}, 1)
    return {
        "importance_prompts": count,
        "importance_seconds": round(seconds["importance"], 1),
        "importance_ratio": round(seconds["importance"] / seconds["forward"], 2),
    }


if __name__ == "__main__":
    main()
