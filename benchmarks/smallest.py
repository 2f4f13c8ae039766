"""The smallest circuit of every task in SmolLM2-135M: its size, its share on held-out prompts, its verdict, its cost.

Half an hour on two cores; name tasks to measure some of them.
"""

import argparse
import json
import time
from datetime import date

import torch
from speed import HERE, bare_forward, machine, one_thread

import circuitome as cm
from circuitome.runs.draw import Origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(cm.tasks.TASKS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=64, help="prompt pairs that are searched")
    parser.add_argument("--full", action="store_true", help="the whole verdict and not the quick one")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    path = HERE / "results" / f"smallest-{date.today()}.json"
    before = json.loads(path.read_text()) if options.write and path.is_file() else {}
    result = {"machine": machine(), "seed": options.seed, "tasks": before.get("tasks", {})}
    for name in options.tasks:
        result["tasks"][name] = measured(model, name, options)
        print(name, json.dumps(result["tasks"][name]), flush=True)
        if options.write:
            path.write_text(json.dumps(result, indent=1) + "\n")


def measured(model: cm.Model, name: str, options: argparse.Namespace) -> dict[str, object]:
    """One task, as `circuitome find` draws and searches it."""
    seed, apart = options.seed, ("held_out", "sizing")
    origin = Origin(task=name, model="smollm2-135m", n=options.n, seed=seed, data=None, apart=apart)
    parts = origin.parts(model)
    forward = seconds_of_forward(model, parts.search)
    start, began = time.process_time(), time.perf_counter()
    found = cm.smallest(model, parts.search, sizing=parts.sizing, held_out=parts.held_out, seed=seed)
    searched = time.process_time() - start
    verdict = cm.validate(model, found.circuit, parts.held_out, quick=not options.full, seed=seed)
    own = cm.faithfulness(model, found.circuit, parts.search)
    return {
        "n": options.n,
        "full": options.full,
        "seconds": round(time.perf_counter() - began, 1),
        "edges": len(found.circuit),
        "nodes": len(found.circuit.nodes),
        "reached": found.reached,
        "held_out": found.faithfulness.share.to_dict(),
        "own": own.value,
        "walk": [(len(circuit), round(share.value, 3)) for circuit, share in found.front],
        "verdict": {line.name: line.verdict for line in verdict.criteria},
        "nulls": {name: max(values) for name, values in verdict.nulls.items()},
        "answer": verdict.answer,
        "forwards": round(searched / forward, 1),
        "forwards_with_verdict": round((time.process_time() - start) / forward, 1),
    }


def seconds_of_forward(model: cm.Model, task: cm.Task) -> float:
    """Processor seconds of a bare forward pass over all clean prompts, one length at a time."""
    lengths = {len(pair.clean) for pair in task.pairs}
    groups = [torch.tensor([pair.clean for pair in task.pairs if len(pair.clean) == length]) for length in lengths]
    total = 0.0
    for _ in range(3):
        start = time.process_time()
        for ids in groups:
            bare_forward(model, ids)
        total = min(total, time.process_time() - start) if total else time.process_time() - start
    return total


if __name__ == "__main__":
    main()
