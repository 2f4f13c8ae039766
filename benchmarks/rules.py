"""Rules of the backward pass and conductance on SmolLM2-135M: processor seconds, and faithfulness of circuits by size.

IOI pairs of ioi32.jsonl choose the edges; faithfulness is measured on them and on ioi32-held-out.jsonl. Circuits are
the edges with the largest scores. Values above 1 occur, so what counts is the distance from 1.
"""

import argparse
import json
import time
from collections.abc import Callable
from datetime import date

from speed import HERE, SIZES, machine, one_thread

import circuitome as cm

METHODS: dict[str, Callable[[cm.Model, cm.Task], cm.EdgeScores]] = {
    **{
        f"eap {rules}": lambda m, t, rules=rules: cm.eap(m, t, rules=rules)
        for rules in ("plain", "norm", "relp", "gim")
    },
    "eap relp and pattern": lambda m, t: cm.eap(m, t, rules=cm.Rules(norm=True, gate=True, half=True, pattern=True)),
    **{f"eap-ig {rules}": lambda m, t, rules=rules: cm.eap_ig(m, t, rules=rules) for rules in ("plain", "norm")},
    "eap-ig conductance": lambda m, t: cm.eap_ig(m, t, path="conductance"),
    "eap-ig conductance norm": lambda m, t: cm.eap_ig(m, t, path="conductance", rules="norm"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    own, held_out = (cm.tasks.from_file(model, HERE / f"{name}.jsonl") for name in ("ioi32", "ioi32-held-out"))
    result: dict[str, object] = {"date": date.today().isoformat(), "machine": machine(), "sizes": SIZES}
    cm.eap(model, own)
    for name, method in METHODS.items():
        start = time.process_time()
        scores = method(model, own)
        seconds = time.process_time() - start
        shares = {where: faithfulness(model, scores, task) for where, task in (("own", own), ("held_out", held_out))}
        result[name] = {"seconds": round(seconds, 2), **shares}
        print(name, json.dumps(result[name]), flush=True)
    if options.write:
        path = HERE / "results" / f"rules-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def faithfulness(model: cm.Model, scores: cm.EdgeScores, task: cm.Task) -> list[float]:
    """Faithfulness of the strongest edges at every size."""
    curve = cm.faithfulness_curve(model, scores, task, sizes=SIZES, draws=0)
    return [round(circuit.value, 3) for circuit in curve.circuits]


if __name__ == "__main__":
    main()
