"""What backups, stability and circuits across tasks cost in bare forward passes, and what they find in SmolLM2-135M.

64 IOI prompts of the generator; the bare forward runs the prompts in groups of equal length.
"""

import argparse
import json
from collections.abc import Callable
from datetime import date

import torch
from speed import HERE, bare_forward, machine, medians, one_thread

import circuitome as cm
from circuitome.validation.robustness.backup_heads import backups
from circuitome.validation.robustness.rediscovery import rediscovery
from circuitome.validation.robustness.shuffled_labels import shuffled_null
from circuitome.validation.robustness.stability import bootstrap_stability
from circuitome.validation.robustness.transfer import transfer, variants_of

SIZE = 500
TASKS = ("seed 1", "paraphrase", "greater-than", "gendered-pronoun")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n", type=int, default=64, help="prompts")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    task = cm.tasks.ioi(model, n=options.n, seed=0)
    result: dict[str, object] = {"date": date.today().isoformat(), "machine": machine(), "prompts": options.n}
    result |= costs(model, task, options.repeats)
    result |= found(model, task)
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"stability-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def costs(model: cm.Model, task: cm.Task, repeats: int) -> dict[str, object]:
    """Seconds of each, and how many bare forward passes that is."""
    scores = cm.eap_ig(model, task)
    heads = list(backups(model, task, top=0).ablated)
    rest = {"ioi": task, "seed": cm.tasks.ioi(model, n=len(task), seed=1)}
    known = dict.fromkeys(rest, scores)
    jobs: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(model, task),
        "backups_direct_only": lambda: backups(model, task, top=0),
        "backups": lambda: backups(model, task),
        "rediscovery": lambda: rediscovery(model, task, heads, edges=SIZE, before=scores),
        "bootstrap_stability": lambda: bootstrap_stability(scores, SIZE),
        "shuffled_null": lambda: shuffled_null(scores, SIZE),
        "transfer_of_two_scored_tasks": lambda: transfer(model, rest, size=SIZE, scores=known),
    }
    seconds = medians(jobs, repeats)
    ratios = {name: round(value / seconds["forward"], 1) for name, value in seconds.items() if name != "forward"}
    return {"seconds": {name: round(value, 2) for name, value in seconds.items()}, "in_bare_forwards": ratios}


def forward(model: cm.Model, task: cm.Task) -> None:
    """The bare forward of all prompts."""
    groups: dict[int, list[tuple[int, ...]]] = {}
    for pair in task.pairs:
        groups.setdefault(len(pair.clean), []).append(pair.clean)
    for group in groups.values():
        bare_forward(model, torch.tensor(group))


def found(model: cm.Model, task: cm.Task) -> dict[str, object]:
    """Backups, stability and the matrix of tasks."""
    scores = cm.eap_ig(model, task)
    without = backups(model, task)
    again = rediscovery(model, task, without.ablated, edges=SIZE, before=scores)
    others = {name: one for name, one in variants_of(model, task).items() if name in TASKS}
    matrix = transfer(model, {"ioi": task, **others}, size=SIZE, scores={"ioi": scores})
    return {
        "backups": {
            "ablated": without.ablated,
            **{name: str(getattr(without, name)) for name in ("intact", "left", "effect", "direct", "repaired")},
            "backups": [part.name for part in without.backups],
            "harm_less": [part.name for part in without.relieved],
            "changes": {part.name: str(part.change) for part in without.reactions[:6]},
        },
        "rediscovery": {
            "risen_and_new": [part.name for part in again.risen if part.joined],
            "edges_kept": again.to_dict()["kept"],
        },
        "stability": bootstrap_stability(scores, SIZE).to_dict(),
        "shuffled": shuffled_null(scores, SIZE).to_dict(),
        "transfer": {"names": matrix.names, "faithfulness": matrix.matrix.tolist()},
    }


if __name__ == "__main__":
    main()
