"""The circuit of induction over training: when its edges settle, and what repeated text, sparsity and freezing do.

    python benchmarks/circuits_over_training.py --write [--parts circuits,sparse,repeated,freeze] [--seeds 3]

circuits: attention-only models of two layers, the circuit of induction at each watched step. sparse: the same with a
quarter and a tenth of each weight matrix kept. repeated: other shares of repeated rows. freeze: the head that attends
most to the token before is frozen at a step, before or while it forms. A result is written after each run.
"""

import argparse
import json
import time
from datetime import date
from typing import Any

from development import together, write
from speed import HERE, machine, one_thread

import circuitome as cm

SINCE = 40
"""Onsets are those after this step: before, the loss falls as models learn which tokens there are."""
LOSSES = (4.0, 3.0, 2.0, 1.0)
"""Losses on repeats at which circuits are compared."""
CIRCUIT = {"tasks": ["induction"]}
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "circuits": {"dense": CIRCUIT},
    "sparse": {
        f"{share} kept": {**CIRCUIT, "kept_weights": share, **more}
        for share, more in ((0.5, {}), (0.25, {"steps": 3000}))
    },
    "repeated": {str(share): {"repeated": share} for share in (0.9, 0.5, 0.25)},
    "freeze": {
        f"{kind} at {step}": {"freeze": [kind, step]}
        for kind, step in (("previous", 200), ("previous", 400), ("induction", 400))
    },
}
"""By part and name: choices of `cm.dynamics.recipe`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--names", default="", help="some of the runs of a part, semicolons between; all by default")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    path = HERE / "results" / f"circuits-over-training-{date.today()}.json"
    result = json.loads(path.read_text()) if options.write and path.is_file() else {}
    result |= {"machine": machine(), "steps": options.steps}
    for part in options.parts.split(","):
        for seed in range(options.seeds):
            for name in options.names.split(";") if options.names else PARTS[part]:
                choices = PARTS[part][name]
                runs = result.setdefault(part, {}).setdefault(name, {})
                if str(seed) not in runs:
                    runs[str(seed)] = measured({"steps": options.steps, **choices}, seed)
                    print(part, name, seed, f"{runs[str(seed)]['seconds']:.0f} s", told(runs[str(seed)]), flush=True)
                if options.write:
                    write(path, result | {"summary": summary(result)})
    print(json.dumps(summary(result), indent=1))


def measured(choices: dict[str, Any], seed: int) -> dict[str, Any]:
    """One training, watched: curves, onsets, circuits."""
    start = time.monotonic()
    kind, at = choices.get("freeze", ("", 0))
    frozen = cm.dynamics.Freezing((kind,), at) if kind else None
    watched = cm.dynamics.recipe(**{**choices, "freeze": frozen}, seed=seed).develop()
    later = watched.since(SINCE).to_dict()
    curves = {
        key: {"steps": watched.curve(key)[0], "value": [round(v, 4) for v in watched.curve(key)[1].mean(0).tolist()]}
        for key in watched.values
    }
    best = {
        name: [f"a{i // h}.h{i % h} {float(v):.2f}" for v, i in zip(*heads.flatten(1).max(1), strict=True)]
        for name in ("previous", "induction")
        for heads in [watched.heads(name)]
        for h in [heads.shape[2]]
    }
    kept = ("steps", "metric", "sizes", "faithfulness", "size_for_.9", "jaccard", "jaccard_of_strongest", "since")
    circuits = {
        task: {key: found[key] for key in kept} | {"last": found["edges"][-1]}
        for task, found in later.get("circuits", {}).items()
    }
    choices = {**choices, "frozen": list(watched.frozen)}
    found = {"choices": choices, "curves": curves, "best heads": best, "onsets": later["onsets"], "circuits": circuits}
    return {**found, "seconds": time.monotonic() - start}


def told(found: dict[str, Any]) -> str:
    names = ("repeat_loss", "induction", "in_context", "previous", "task_metric:induction")
    onsets = [
        f"{key} {found['onsets'][key]['step']}{'' if found['onsets'][key]['sudden'] else '?'}"
        for key in names
        if key in found["onsets"]
    ]
    sizes = [f"{task} {circuit['size_for_.9']}" for task, circuit in found["circuits"].items()]
    return "; ".join(["onsets " + ", ".join(onsets), f"loss on repeats {last(found, 'repeat_loss')}", *sizes])


def last(found: dict[str, Any], curve: str) -> float:
    return float(found["curves"][curve]["value"][-1])


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """By part and kind of run, a list over seeds each: the phase change, where curves end, circuits at equal losses."""
    return {
        part: {name: of_runs(list(runs.values())) for name, runs in result[part].items()}
        for part in PARTS
        if part in result
    }


def of_runs(runs: list[dict[str, Any]]) -> dict[str, Any]:
    onsets = [
        [found["onsets"].get(key, {}).get("step") for key in ("repeat_loss", "induction", "previous")] for found in runs
    ]
    ends = {
        key: [last(found, key) for found in runs] for key in ("held_out_loss", "repeat_loss", "induction", "previous")
    }
    told = {"seeds": len(runs), "phase change": sum(map(together, runs)), "onsets": onsets, **ends}
    if all(found["circuits"] for found in runs):
        told["circuits"] = [of_circuit(found) for found in runs]
    return told


def of_circuit(found: dict[str, Any]) -> dict[str, Any]:
    """Sizes over steps, and at the first step whose loss on repeats is at most each of `LOSSES`."""
    circuit, curve = found["circuits"]["induction"], found["curves"]["repeat_loss"]
    sizes = dict(zip(circuit["steps"], circuit["size_for_.9"], strict=True))
    reached = {
        loss: next((s for s, v in zip(curve["steps"], curve["value"], strict=True) if v <= loss), None)
        for loss in LOSSES
    }
    return {
        "size for .9 by step": {step: size for step, size in sizes.items() if size is not None},
        "step, size at loss": {loss: [step, sizes.get(step)] for loss, step in reached.items() if step is not None},
        "Jaccard by step": dict(zip(circuit["steps"], circuit["jaccard_of_strongest"], strict=True)),
    }


if __name__ == "__main__":
    main()
