"""Exact methods on SmolLM2-135M: speed in bare forward passes, agreement of estimates, quality of learned circuits.

Half an hour on two cores; with `--skip acdc` ten minutes.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import date

import torch
from speed import HERE, bare_forward, machine, medians, one_thread

import circuitome as cm
from circuitome.validation.robustness.score_agreement import agreement, spread_edges

ACDC_THRESHOLD = 0.02
"""In logits; keeps about 1,000 edges."""
PARTS = ("patching", "agreement", "learned", "known", "acdc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=PARTS)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    task = cm.tasks.from_file(model, HERE / "ioi32.jsonl")
    result: dict[str, object] = {"date": date.today().isoformat(), "machine": machine()}
    path = HERE / "results" / f"exact-{result['date']}.json"
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "patching": lambda: patching(model, task, options.repeats),
        "agreement": lambda: correlations(model, task),
        "learned": lambda: learned(model, task),
        "known": known,
        "acdc": lambda: whole_acdc(model, task),
    }
    for name, part in parts.items():
        if name not in options.skip:
            result |= part()
            print(json.dumps(result, indent=1), flush=True)
            if options.write:
                path.write_text(json.dumps(result, indent=1) + "\n")


def patching(model: cm.Model, task: cm.Task, repeats: int) -> dict[str, object]:
    """Patching every head, and path patching from every sender into the logits, in bare forward passes."""
    ids = torch.tensor([pair.clean for pair in task.pairs])
    jobs: dict[str, Callable[[], object]] = {
        "forward": lambda: bare_forward(model, ids),
        "patch_heads": lambda: cm.patch(model, task, "heads"),
        "path_patch_logits": lambda: cm.path_patch(model, task, "logits"),
    }
    seconds = medians(jobs, repeats)
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "patch_270_heads_ratio": round(seconds["patch_heads"] / seconds["forward"], 1),
        "path_patch_300_senders_ratio": round(seconds["path_patch_logits"] / seconds["forward"], 1),
    }


def correlations(model: cm.Model, task: cm.Task) -> dict[str, object]:
    """EAP and EAP-IG against exact scores of 300 edges, half of them the strongest by EAP-IG."""
    found: dict[str, object] = {}
    years = cm.tasks.greater_than(model, n=16, seed=0)
    for name, these in (("ioi", task), ("greater_than", years)):
        ig, plain = cm.eap_ig(model, these), cm.eap(model, these)
        among = spread_edges(ig, 300)
        reference = cm.exact(model, these, edges=among)
        for method, scores in (("eap", plain), ("eap_ig_5", ig)):
            near = agreement(scores, reference, among)
            found[f"{name}_{method}_to_exact"] = {
                "pearson": round(near.pearson, 3),
                "pearson_abs": round(near.pearson_abs, 3),
                "spearman": round(near.spearman, 3),
            }
    return {"agreement": found}


def learned(model: cm.Model, task: cm.Task) -> dict[str, object]:
    """Edge Pruning to 1,000 edges: faithfulness on its own prompts and on held-out ones of the same task."""
    start = time.process_time()
    circuit = cm.edge_pruning(model, task, edges=1_000).top(1_000)
    seconds = time.process_time() - start
    own = cm.tasks.from_file(model, HERE / "ioi32-held-out.jsonl")
    shares = {
        "own": cm.faithfulness(model, circuit, task),
        "held_out_same_template": cm.faithfulness(model, circuit, own),
        "held_out_generator": cm.faithfulness(model, circuit, cm.tasks.ioi(model, n=64, seed=7)),
    }
    return {
        "edge_pruning_1000": {"seconds": round(seconds), **{name: round(one.value, 3) for name, one in shares.items()}}
    }


def known() -> dict[str, object]:
    """The pessimistic ROC area of ACDC on two compiled models with zero ablation; edges found with resampling."""
    from circuitome.studies.context import Context
    from circuitome.studies.known import Known, run

    settings = Known(models=("tracr-reverse", "tracr-frac-prevs"), methods=("acdc",))
    rows = run(settings, Context(settings)).results["rows"]
    return {
        "known_acdc": {
            f"{row['model']} {row['ablation']}": {key: row[key] for key in ("true_edges", "ROC area", "recall")}
            for row in rows
        }
    }


def whole_acdc(model: cm.Model, task: cm.Task) -> dict[str, object]:
    """Whole runs of ACDC, in groups and edge by edge, against one bare forward pass for every edge."""
    ids = torch.tensor([pair.clean for pair in task.pairs])
    found: dict[str, object] = {}
    for name, grouped in (("acdc_grouped", True), ("acdc_edge_by_edge", False)):
        forward = medians({"forward": lambda: bare_forward(model, ids)}, 5)["forward"]
        start = time.process_time()
        run = cm.acdc(model, task, threshold=ACDC_THRESHOLD, grouped=grouped)
        seconds = time.process_time() - start
        found[name] = {
            "threshold": ACDC_THRESHOLD,
            "edges": len(run.circuit),
            "seconds": round(seconds),
            "evaluations": run.evaluations,
            "times_faster_than_a_forward_an_edge": round(model.graph.n_edges * forward / seconds, 1),
            "faithfulness": round(cm.faithfulness(model, run.circuit, task).value, 3),
        }
        print(json.dumps(found, indent=1), flush=True)
    return found


if __name__ == "__main__":
    main()
