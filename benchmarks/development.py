"""How circuits are acquired: the phase change of induction, and syntax in masked models, over seeds.

    python benchmarks/development.py --write [--device cuda] [--workers 12] [--parts phase,syntax,masked]

phase: attention-only models of two layers and of one, on repeated random tokens with text; and two layers with
attention to the previous token, or behind earlier copies, suppressed. syntax: decoders on sentences of the grammar,
plain, with attention along arcs suppressed for good or to a tenth of the steps, and encouraged; masked: the same with
masked language models. Every run is a process of its own with one thread; the result is written after each, so that a
stop loses only what runs, and runs that today's result has are not made again.
"""

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from speed import HERE, machine, one_thread

import circuitome as cm

SINCE = 40
"""Onsets of phase are those after this step: before, the loss falls as models learn which tokens there are."""
PHASE: dict[str, dict[str, Any]] = {
    "two layers": {"layers": 2},
    "one layer": {"layers": 1},
    "no previous-token": {"layers": 2, "suppress": "previous", "strength": 3.0},
    "no induction": {"layers": 2, "suppress": "induction", "strength": 3.0},
}
GRAMMAR: dict[str, dict[str, Any]] = {
    "syntax": {"kind": "decoder", "layers": 2, "width": 64, "batch": 48, "steps": 600},
    "masked": {"kind": "masked", "layers": 3, "width": 96, "batch": 64, "steps": 1500, "hidden": 0.3},
}
"""By part: a decoder, which learns from every token, and a masked language model, which takes four times as long."""
SYNTAX: dict[str, dict[str, Any]] = {
    "plain": {},
    "SAS-": {"suppress": "arcs"},
    "staged": {"suppress": "arcs", "until": 0.1},
    "SAS+": {"encourage": "arcs", "strength": 0.5},
}
"""`until` is a share of the steps."""
BEFORE = ("held_out_loss", "uas", "subjects")
"""Curves whose onset is compared with that of minimal pairs."""
COMPARED = ("repeat_loss", "induction", "in_context")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="phase,syntax")
    parser.add_argument("--phase-steps", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of two layers and one; others take three at most")
    parser.add_argument("--device", default="cpu", help="for the masked models; the tiny ones are faster on a CPU")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    path = HERE / "results" / f"development-{date.today()}.json"
    result = json.loads(path.read_text()) if options.write and path.is_file() else {}
    result["device"] = options.device
    result.setdefault("machines", {}).update(dict.fromkeys(options.parts.split(","), machine()))
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        futures = [pool.submit(run, *job) for job in jobs(options) if not done(result, *job)]
        for future in as_completed(futures):
            try:
                part, name, seed, found = future.result()
            except Exception as error:  # of whatever type: the other runs go on
                print(f"A run failed: {error!r}", flush=True)
                continue
            result.setdefault(part, {}).setdefault(name, {})[str(seed)] = found
            print(part, name, seed, f"{found['seconds']:.0f} s", shown(found), flush=True)
            if options.write:
                write(path, result | {"summary": summary(result)})
    print(json.dumps(summary(result), indent=1))


def jobs(options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Part, name, seed, recipe: what matters most first."""
    found = list[tuple[Any, ...]]()
    parts = options.parts.split(",")
    for seed in range(options.seeds):
        for name, choices in PHASE.items() if "phase" in parts else ():
            if seed < 3 or "suppress" not in choices:
                found.append(("phase", name, seed, {**choices, "steps": options.phase_steps}))
    for part, seed in product([part for part in GRAMMAR if part in parts], range(min(3, options.seeds))):
        for name, choices in SYNTAX.items():
            recipe = {"data": "grammar", "heads": 4, "length": 16, **GRAMMAR[part], **choices}
            until = {"until": round(choices["until"] * recipe["steps"])} if "until" in choices else {}
            found.append((part, name, seed, {**recipe, **until, "device": options.device}))
    return found


def done(result: dict[str, Any], part: str, name: str, seed: int, choices: dict[str, Any]) -> bool:
    """Whether the result that is gone on with has this run."""
    return bool(result.get(part, {}).get(name, {}).get(str(seed), {}).get("choices") == choices)


def run(part: str, name: str, seed: int, choices: dict[str, Any]) -> tuple[str, str, int, dict[str, Any]]:
    """One training, watched."""
    one_thread()
    start = time.monotonic()
    watched = cm.dynamics.recipe(**choices, seed=seed).develop()
    numbers = (watched.since(min(SINCE, choices["steps"] // 8)) if part == "phase" else watched).to_dict()
    curves = {
        key: {"steps": watched.curve(key)[0], "value": [round(v, 4) for v in watched.curve(key)[1].mean(0).tolist()]}
        for key in watched.values
    }
    found = {"choices": choices, "curves": curves, "onsets": numbers["onsets"], "order": numbers["order"]}
    if part in GRAMMAR:
        found["comes_before_pairs"] = {
            key: cm.dynamics.precedes(watched.onsets[key], watched.onsets["pairs"])
            for key in BEFORE
            if {key, "pairs"} <= set(watched.onsets)
        }
    return part, name, seed, {**found, "seconds": time.monotonic() - start}


def shown(found: dict[str, Any]) -> str:
    onsets = [f"{key} {at['step']}{'' if at['sudden'] else '?'}" for key, at in found["onsets"].items()]
    ends = [f"{key} {curve['value'][-1]}" for key, curve in found["curves"].items()]
    return "; ".join(("onsets " + ", ".join(onsets), "ends " + ", ".join(ends)))


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Of each kind of run: how many show the phase change within one checkpoint, and where curves end."""
    told = dict[str, Any]()
    for name, runs in result.get("phase", {}).items():
        told[name] = {"seeds": len(runs), "phase change": sum(together(found) for found in runs.values()), **ends(runs)}
        told[name]["onsets"] = [
            [found["onsets"].get(key, {}).get("step") for key in COMPARED] for found in runs.values()
        ]
    for part, name in [(kind, which) for kind in GRAMMAR for which in result.get(kind, {})]:
        runs = result[part][name]
        told[f"{part}: {name}"] = summed = {"seeds": len(runs), **ends(runs)}
        for key in (*BEFORE, "pairs"):
            at = [found["onsets"].get(key, {}) for found in runs.values()]
            summed[f"onset of {key}"] = [[one.get(end) for end in ("step", "low", "high", "sudden")] for one in at]
        summed["comes before pairs"] = [found["comes_before_pairs"] for found in runs.values()]
    return told


def together(found: dict[str, Any]) -> bool:
    """Whether the three changes are sudden and begin within one watched step of each other."""
    steps, onsets = found["curves"]["induction"]["steps"], found["onsets"]
    if not all(key in onsets and onsets[key]["sudden"] for key in COMPARED):
        return False
    places = [steps.index(onsets[key]["step"]) for key in COMPARED]
    return max(places) - min(places) <= 1


def ends(runs: dict[str, Any]) -> dict[str, list[float]]:
    names = ("held_out_loss", "repeat_loss", "induction", "previous", "uas", "uas_offsets", "subjects", "pairs")
    first = next(iter(runs.values()))["curves"]
    return {name: [found["curves"][name]["value"][-1] for found in runs.values()] for name in names if name in first}


def write(path: Path, result: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    main()
