"""Neurons as nodes in SmolLM2-135M: which scores name the right ones, and how small a circuit of heads and neurons is.

Twenty minutes for a task on one core; name tasks to measure others than subject-verb agreement.
"""

import argparse
import json
import time
from datetime import date

import torch
from smallest import seconds_of_forward
from speed import HERE, machine, one_thread

import circuitome as cm
from circuitome.engine.ablation import WriterValues
from circuitome.engine.setting import Setting
from circuitome.runs.draw import Origin
from circuitome.tasks.held_out import Split
from circuitome.validation.faithfulness.evaluator import Evaluator

COUNTS = (30, 100, 300, 1_000)
"""Neurons that keep their clean values."""
SIZES = (100, 300, 1_000)
"""Edges of the circuits of heads and neurons."""
SCORES = {"atp": (1, "plain"), "ig": (5, "plain"), "relp": (1, "relp"), "gim": (1, "gim")}
"""By name: steps and rules."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=["subject-verb"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=300, help="neurons that can be nodes")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    path = HERE / "results" / f"neuron-circuits-{date.today()}.json"
    before = json.loads(path.read_text()) if options.write and path.is_file() else {}
    result = {"machine": machine(), "seed": options.seed, "tasks": before.get("tasks", {})}
    for name in options.tasks:
        origin = Origin(
            task=name, model="smollm2-135m", n=64, seed=options.seed, data=None, apart=("held_out", "sizing")
        )
        parts = origin.parts(model)
        found = result["tasks"][name] = {"alone": alone(model, parts)}
        found["circuits"] = circuits(model, parts, options.pool, options.seed)
        print(name, json.dumps(found), flush=True)
        if options.write:
            path.write_text(json.dumps(result, indent=1) + "\n")


def alone(model: cm.Model, parts: Split) -> dict[str, object]:
    """Share of the gap where some neurons keep clean values and all others corrupted ones, heads free."""
    rows: dict[str, object] = {}
    for name, (steps, rules) in SCORES.items():
        values = cm.neurons.scores(model, parts.search, steps=steps, rules=rules).values
        # As published, the most helpful; and those with the largest scores of either sign.
        for kind, order in (("helpful", values.flatten().argsort()), ("either", -values.abs().flatten())):
            order = order if kind == "helpful" else order.argsort()
            rows[f"{name}, {kind}"] = kept_alone(model, parts, order, values.shape[1])
            print(name, kind, json.dumps(rows[f"{name}, {kind}"]), flush=True)
    chance = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(0))
    return {**rows, "random": kept_alone(model, parts, chance, values.shape[1])}


def kept_alone(model: cm.Model, parts: Split, order: torch.Tensor, width: int) -> dict[str, list[float]]:
    """By number of neurons, the share on the prompts that chose them and on held-out ones."""
    shares: dict[str, list[float]] = {"own": [], "held out": []}
    for count in COUNTS:
        names = [f"m{i // width}.n{i % width}" for i in order[:count].tolist()]
        view = model.with_neurons(names, apart=range(len(model.blocks)))
        for where, task in (("own", parts.search), ("held out", parts.held_out)):
            assert task is not None
            evaluator = Evaluator(Setting(view, task))
            metric = evaluator.circuits([cm.Circuit.full(view.graph)])[0]
            shares[where].append(round(float((metric - evaluator.empty).mean()) / evaluator.gap, 3))
    return shares


def circuits(model: cm.Model, parts: Split, pool: int, seed: int) -> dict[str, object]:
    """Held-out share of the strongest edges between heads and the neurons of each pool."""
    forward, rows = seconds_of_forward(model, parts.search), {}
    for name, neurons in pools(model, parts, pool, seed).items():
        start = time.process_time()
        view = model.with_neurons(neurons, apart=range(len(model.blocks)))
        scores = cm.mattr(view, parts.search, start=cm.neurons.graph_scores(view, parts.search), seed=seed)
        spent = (time.process_time() - start) / forward
        found = {}
        for size in SIZES:
            circuit = scores.top(size).without_dangling()
            share = cm.faithfulness(view, circuit, parts.held_out).share
            used = sum(".n" in node for node in circuit.nodes)
            found[size] = {"edges": len(circuit), "neurons": used, "held_out": share.to_dict()}
        rows[name] = {"edges_of_graph": view.graph.n_edges, "forwards": round(spent, 1), "sizes": found}
        print(name, json.dumps(rows[name]), flush=True)
    return rows


def pools(model: cm.Model, parts: Split, count: int, seed: int) -> dict[str, list[str]]:
    """Neurons that can be nodes: by RelP, by largest activation, by chance."""
    strongest = [name for name, _ in cm.neurons.scores(model, parts.search, steps=1, rules="relp").top(count)]
    sizes = activations(model, parts)
    largest = sizes.flatten().argsort(descending=True)[:count].tolist()
    chance = torch.randperm(sizes.numel(), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    named = [[f"m{i // sizes.shape[1]}.n{i % sizes.shape[1]}" for i in some] for some in (largest, chance)]
    return {"relp": strongest, "largest activation": named[0], "random": named[1]}


def activations(model: cm.Model, parts: Split) -> torch.Tensor:
    """Mean |activation| of every neuron over the tokens of the search prompts [layer, neuron]."""
    width = model.blocks[0].neuron_weights().shape[0]
    every = model.with_neurons([f"m{layer}.n{i}" for layer in range(len(model.blocks)) for i in range(width)])
    total, tokens = torch.zeros(len(model.blocks), width), 0.0
    for batch in Setting(model, parts.search).clean_batches():
        with torch.no_grad():
            values = WriterValues.of(every, every.record(batch.clean, logits=False))
        real = batch.clean.real()
        total += torch.stack([(layer.abs() * real[..., None]).sum((0, 1)) for layer in values.neurons])
        tokens += float(real.sum())
    return total / tokens


if __name__ == "__main__":
    main()
