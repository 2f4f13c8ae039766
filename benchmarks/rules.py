"""Rules of the backward pass and conductance on SmolLM2-135M: processor seconds, and faithfulness of circuits by size.

Two sets of 32 IOI pairs choose the edges: ioi32.jsonl (one template) and seed 0 of the generator. Faithfulness is
measured on them and on held-out ones: ioi32-held-out.jsonl, and seed 1. Circuits are the edges with the largest
scores. Values above 1 occur, so what counts is the distance from 1.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import date

from speed import HERE, SIZES, machine, one_thread

import circuitome as cm

NAMES = ("plain", "norm", "relp", "gim")
CONSERVING = cm.Rules(norm=True, gate=True, half=True, pattern=True)
METHODS: dict[str, Callable[[cm.Model, cm.Task], cm.EdgeScores]] = {
    **{f"eap {rules}": lambda m, t, rules=rules: cm.eap(m, t, rules=rules) for rules in NAMES},
    "eap relp and pattern": lambda m, t: cm.eap(m, t, rules=CONSERVING),
    **{f"eap-ig {rules}": lambda m, t, rules=rules: cm.eap_ig(m, t, rules=rules) for rules in NAMES},
    "conductance plain": lambda m, t: cm.eap_ig(m, t, path="conductance"),
    "conductance norm": lambda m, t: cm.eap_ig(m, t, path="conductance", rules="norm"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    files = tuple(cm.tasks.from_file(model, HERE / f"{name}.jsonl") for name in ("ioi32", "ioi32-held-out"))
    drawn = tuple(cm.tasks.ioi(model, n=32, seed=seed) for seed in (0, 1))
    result: dict[str, object] = {"date": date.today().isoformat(), "machine": machine(), "sizes": SIZES}
    result["ioi32.jsonl"] = of_all(model, *files)
    result["generator"] = of_all(model, *drawn)
    if options.write:
        path = HERE / "results" / f"rules-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def of_all(model: cm.Model, own: cm.Task, held_out: cm.Task) -> dict[str, object]:
    """Seconds and faithfulness of every method."""
    cm.eap(model, own)
    found: dict[str, object] = {}
    for name, method in METHODS.items():
        start = time.process_time()
        scores = method(model, own)
        seconds = round(time.process_time() - start, 2)
        shares = {"own": faithfulness(model, scores, own), "held_out": faithfulness(model, scores, held_out)}
        found[name] = {"seconds": seconds, **shares}
        print(own.name, name, json.dumps(found[name]), flush=True)
    return found


def faithfulness(model: cm.Model, scores: cm.EdgeScores, task: cm.Task) -> list[float]:
    """Faithfulness of the strongest edges at every size."""
    curve = cm.faithfulness_curve(model, scores, task, sizes=SIZES, draws=0)
    return [round(circuit.value, 3) for circuit in curve.circuits]


if __name__ == "__main__":
    main()
