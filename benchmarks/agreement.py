"""Scores of edges against exact ones on SmolLM2-135M, and faithfulness by size: every backward rule, path, and mattr.

IOI and Greater-Than, 32 pairs each. Exact scores of all 70,651 edges would take hours: patched are all edges into a
random sample of readers, which stand for all edges, and the 2,000 edges that any of the methods ranks highest, so that
no method chooses alone. Correlations are over either and over both; see `agreement`. Faithfulness is measured on the
prompts that the scores are from and on held-out ones, with circuits of the largest |score|. An hour on one core.
"""

import argparse
import json
import math
import time
from datetime import date
from pathlib import Path

import torch
from rules import METHODS, faithfulness
from speed import HERE, SIZES, machine, one_thread

import circuitome as cm
from circuitome.validation.robustness.score_agreement import agreement

COMPARED = {**METHODS, "mattr": cm.mattr}
GENERATORS = {"ioi": cm.tasks.ioi, "greater-than": cm.tasks.greater_than}
SECONDS_BETWEEN_LINES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(GENERATORS), help="ioi, greater-than")
    parser.add_argument("--n", type=int, default=32, help="prompt pairs")
    parser.add_argument("--ioi", type=Path, help="JSONL file of IOI pairs in place of the generator's")
    parser.add_argument("--ioi-held-out", type=Path, help="the same of held-out pairs")
    parser.add_argument("--readers", type=int, default=12, help="readers whose edges are all patched")
    parser.add_argument("--strongest", type=int, default=2_000, help="edges that a method ranks highest")
    parser.add_argument("--kept", type=Path, help="folder in which exact scores are kept, to go on from after a stop")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    path = HERE / "results" / f"agreement-{date.today()}.json"
    result = json.loads(path.read_text()) if options.write and path.is_file() else {}
    result |= {"date": date.today().isoformat(), "machine": machine(), "sizes": SIZES}
    for name in options.tasks:
        result[name] = of_task(model, *prompts(model, name, options), options)
        if options.write:
            path.write_text(json.dumps(result, indent=1) + "\n")


def prompts(model: cm.Model, name: str, options: argparse.Namespace) -> tuple[cm.Task, cm.Task]:
    """Pairs for the scores, and held-out ones."""
    own, held_out = (GENERATORS[name](model, n=options.n, seed=seed) for seed in (0, 1))
    if name == "ioi" and options.ioi:
        own = cm.tasks.from_file(model, options.ioi)
    if name == "ioi" and options.ioi_held_out:
        held_out = cm.tasks.from_file(model, options.ioi_held_out)
    return own, held_out


def of_task(model: cm.Model, own: cm.Task, held_out: cm.Task, options: argparse.Namespace) -> dict[str, object]:
    """Every method's seconds, faithfulness, and correlations with exact scores."""
    scores, rows = dict[str, cm.EdgeScores](), dict[str, dict[str, object]]()
    for name, method in COMPARED.items():
        start = time.process_time()
        scores[name] = method(model, own)
        seconds = round(time.process_time() - start, 2)
        shares = {
            "own": faithfulness(model, scores[name], own),
            "held_out": faithfulness(model, scores[name], held_out),
        }
        rows[name] = {"seconds": seconds, **shares}
        print(own.name, name, json.dumps(rows[name]), flush=True)
    sampled, strongest = into_sampled_readers(model, options.readers), highest(scores, options.strongest)
    kept = None if options.kept is None else options.kept / f"exact-{own.name}.safetensors"
    start = time.process_time()
    exact = cm.exact(model, own, edges=sampled | strongest, checkpoint=kept, progress=Lines())
    about = {"prompts": len(own), "seconds_of_exact": round(time.process_time() - start)}
    for name, row in rows.items():
        for what, among in {"sampled": sampled, "strongest": strongest, "both": sampled | strongest}.items():
            near = agreement(scores[name], exact, among)
            values = {key: getattr(near, key) for key in ("pearson", "pearson_abs", "spearman")}
            row[what] = {key: None if math.isnan(value) else round(value, 3) for key, value in values.items()}
        print(own.name, name, json.dumps(row), flush=True)
    return {**about, "sampled_edges": len(sampled), "edges": len(sampled | strongest), "methods": rows}


def into_sampled_readers(model: cm.Model, count: int) -> cm.Circuit:
    """All edges into readers drawn at random."""
    graph, chosen = model.graph, torch.zeros(len(model.graph.readers), dtype=torch.bool)
    chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))[:count]] = True
    return cm.Circuit(graph, graph.mask & chosen)


def highest(scores: dict[str, cm.EdgeScores], count: int) -> cm.Circuit:
    """The edges with the best rank that any method gives them."""
    graph = next(iter(scores.values())).graph
    sizes = torch.stack([each.values[graph.mask].abs() for each in scores.values()])
    best = sizes.argsort(1, descending=True).argsort(1).min(0).values
    return cm.EdgeScores(graph, graph.matrix(-1.0 / (1 + best))).top(count)


class Lines:
    """Progress as a line a minute."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Print how far it is, unless that was done within the minute."""
        if time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(f"{what}: {done / total:.0%}", flush=True)


if __name__ == "__main__":
    main()
