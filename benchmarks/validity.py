"""The validity suite on SmolLM2-135M and IOI: its cost in bare forward passes of the same prompts, part by part."""

import argparse
import json
import time
from collections import defaultdict
from datetime import date

import torch
from speed import HERE, bare_forward, machine, medians, one_thread

import circuitome as cm

EDGES = 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=64)
    parser.add_argument("--quick-only", action="store_true")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    task = cm.tasks.ioi(model, n=options.n, seed=0)
    abc = cm.tasks.ioi(model, n=options.n, seed=0, corruption="abc")
    scores = cm.eap_ig(model, task, steps=5)
    result: dict[str, object] = {"date": date.today().isoformat(), "machine": machine(), "prompts": options.n}
    for name in ("quick",) if options.quick_only else ("quick", "full"):
        forward = medians({"forward": lambda: bare(model, task)}, 3)["forward"]
        parts: dict[str, float] = defaultdict(float)
        last = [time.process_time()]

        def tell(what: str, done: int, total: int, parts: dict[str, float] = parts, last: list[float] = last) -> None:
            now = time.process_time()
            parts[what] += now - last[0]
            last[0] = now

        start = time.process_time()
        verdict = cm.validate(
            model, scores.top(EDGES), task, scores=scores, others={"ABC": abc}, quick=name == "quick", progress=tell
        )
        result[name] = {
            "bare_forwards": round((time.process_time() - start) / forward, 1),
            "parts": {what: round(seconds / forward, 1) for what, seconds in parts.items()},
            "criteria": {one.name: [round(one.value, 3), one.verdict] for one in verdict.criteria},
        }
        print(json.dumps(result, indent=1), flush=True)
    if options.write:
        path = HERE / "results" / f"validity-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


def bare(model: cm.Model, task: cm.Task) -> None:
    """One forward pass of every clean prompt, prompts of one length together."""
    for length in {len(pair.clean) for pair in task.pairs}:
        bare_forward(model, torch.tensor([pair.clean for pair in task.pairs if len(pair.clean) == length]))


if __name__ == "__main__":
    main()
