"""Roles of the heads of SmolLM2's circuit for indirect object identification, their worth, and the cost of naming.

Cost is a ratio to the bare Hugging Face forward of the same prompts in the same process. Knock-outs of the named name
movers stand beside knock-outs of as many heads drawn from the rest of the circuit.
"""

import argparse
import json
import statistics
import time
from datetime import date
from random import Random

import torch
from speed import HERE, bare_forward, machine, one_thread

import circuitome as cm
from circuitome.engine.ablation import AblationValues
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline
from circuitome.engine.knock_out import KnockOut
from circuitome.heads.roles.explanation import explain
from circuitome.heads.roles.narrative import summary

DRAWS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=32)
    parser.add_argument("--edges", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    task = cm.tasks.ioi(model, n=options.n, seed=0)
    circuit = cm.eap_ig(model, task, steps=5).top(options.edges)
    before = bare_seconds(model, task)
    start = time.process_time()
    found = explain(model, circuit, task)
    seconds = time.process_time() - start
    forward = statistics.mean([before, bare_seconds(model, task)])
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "prompts": options.n,
        "edges": options.edges,
        "heads": len(found.heads),
        "bare_forwards": round(seconds / forward, 1),
        "seconds": round(seconds, 1),
        "roles": {found.title(role): names for role, names in found.by_role.items() if role != "unclear"},
        "unclear": len(found.by_role.get("unclear", ())),
        "movers_attention_removed": {
            name: round(found.features[found.place(name)].movers_attention_removed.value, 3)
            for name in found.by_role.get("inhibition", ())
        },
        "knock_out": knock_outs(model, task, found),
        "summary": summary(found, task.name),
    }
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"roles-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def bare_seconds(model: cm.Model, task: cm.Task) -> float:
    """One bare forward over the clean prompts, prompt lengths apart."""
    groups: dict[int, list[tuple[int, ...]]] = {}
    for pair in task.pairs:
        groups.setdefault(len(pair.clean), []).append(pair.clean)
    start = time.process_time()
    for rows in groups.values():
        bare_forward(model, torch.tensor(rows))
    return time.process_time() - start


def knock_outs(model: cm.Model, task: cm.Task, found: cm.heads.Explanation) -> dict[str, object]:
    """Logit difference without the named name movers, and without as many other heads of the circuit."""
    movers = found.by_role.get("mover", ())
    others, rng = [name for name in found.heads if name not in movers], Random(0)
    sets = [(), movers, *(tuple(rng.sample(others, len(movers))) for _ in range(DRAWS))]
    chosen = torch.zeros(len(sets), len(model.graph.writers), dtype=torch.bool)
    for row, names in enumerate(sets):
        chosen[row, [model.graph.row(name) for name in names]] = True
    metric, replacement = torch.zeros(len(sets), len(task)), AblationValues.of(model, task, "corrupted")
    with torch.no_grad():
        for batch in batches(model, task):
            run = KnockOut(model, baseline(model, task, batch, replacement))
            for i, one in enumerate(chosen):
                logits = model.unembed(run.final(one[None])[0])
                metric[i, list(batch.rows)] = task.score(logits, batch.rows)
    clean, without, *drawn = metric.mean(1).tolist()
    return {
        "clean": round(clean, 3),
        "without_movers": round(without, 3),
        "without_random_mean": round(statistics.mean(drawn), 3),
        "without_random_lowest": round(min(drawn), 3),
        "draws": DRAWS,
        "draws_that_lower_it_as_much": sum(one <= without for one in drawn),
    }


if __name__ == "__main__":
    main()
