"""Streaming as a ratio to the bare Hugging Face forward of the same tokens, and what it gives; prints JSON.

The bare pass runs the plain model once over the whole text, dense, and gives the logits of every token, as a loss needs
them. The definition, a token at a time, is timed on a part of the text, as a ratio to the same bare pass per token.
"""

import argparse
import json
from datetime import date

import torch
from speed import HERE, machine, medians, one_thread

import circuitome as cm
from circuitome.heads.long_context.needles import own_text

SINKS, WINDOW = 4, 256
SHARE = 16
"""The token-by-token form runs on one token of so many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    ids = torch.tensor(model.encode(own_text())[: options.tokens])
    result = {"date": date.today().isoformat(), "machine": machine(), **measure(model, ids, options.repeats)}
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"stream-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def measure(model: cm.Model, ids: torch.Tensor, repeats: int) -> dict[str, object]:
    few = ids[: len(ids) // SHARE]
    size = SINKS + WINDOW
    seconds = medians(
        {
            "forward": lambda: bare(model, ids),
            "stream": lambda: cm.stream_losses(model, ids, sinks=SINKS, window=WINDOW),
            "dense": lambda: cm.dense_losses(model, ids),
            "one_by_one": lambda: cm.stream_losses(model, few, sinks=SINKS, window=WINDOW, chunk=1),
        },
        repeats,
    )
    dense = cm.dense_losses(model, ids)
    window = cm.stream_losses(model, ids, sinks=0, window=size)
    kept = cm.stream_losses(model, ids, sinks=SINKS, window=WINDOW)
    return {
        "tokens": len(ids),
        "sinks": SINKS,
        "window": WINDOW,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "stream_ratio": round(seconds["stream"] / seconds["forward"], 3),
        "dense_ratio": round(seconds["dense"] / seconds["forward"], 3),
        "one_by_one_ratio": round(SHARE * seconds["one_by_one"] / seconds["forward"], 2),
        "loss_after_first_eviction": {
            name: round(float(losses[size:].mean()), 4)
            for name, losses in (("dense", dense), ("window", window), ("sinks and window", kept))
        },
        "largest_difference_before": float((kept[:size] - dense[:size]).abs().max()),
    }


def bare(model: cm.Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(ids[None], use_cache=False).logits


if __name__ == "__main__":
    main()
