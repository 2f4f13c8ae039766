"""Subcircuits of a circuit carried on together against a circuit run of each."""

import pytest
import torch
from families import CONFIGS, random_task, tiny

from circuitome.engine.ablation import AblationValues
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline
from circuitome.engine.incremental import IncrementalCircuit
from circuitome.engine.run_circuit import run_circuit
from circuitome.graph.circuits import Circuit

TASK = random_task(3, lengths=(5, 6))
QUICK = ("gpt2", "gemma2")


def parts_of(circuit, seed=1):
    """Single edges, whole nodes, random halves, nothing and everything gone."""
    draw = torch.Generator().manual_seed(seed)
    halves = torch.rand(3, *circuit.mask.shape, generator=draw) < torch.tensor([0.02, 0.2, 0.5])[:, None, None]
    nodes = torch.zeros(3, *circuit.mask.shape, dtype=torch.bool)
    for k, row in enumerate((0, len(circuit.graph.writers) // 2, -1)):
        nodes[k, row] = True
    none = torch.zeros(1, *circuit.mask.shape, dtype=torch.bool)
    return torch.cat([halves, nodes, none, ~none])


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupted", pytest.param("zero", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_parts_are_circuits(name, ablation):
    model = tiny(name)
    draw = torch.Generator().manual_seed(0)
    circuit = Circuit(model.graph, model.graph.mask & (torch.rand(model.graph.mask.shape, generator=draw) < 0.6))
    gone = parts_of(circuit)
    replacement = AblationValues.of(model, TASK, ablation)
    corrupted = replacement.from_prompts
    found = torch.zeros(len(gone), len(TASK), 61)
    with torch.no_grad():
        for batch in batches(model, TASK, shared_prefix=corrupted, corrupted=corrupted):
            parts = IncrementalCircuit(model, baseline(model, TASK, batch, replacement), circuit)
            final = parts.final_without(gone)
            found[:, list(batch.rows)] = model.unembed(final.flatten(0, 1)).unflatten(0, final.shape[:2])
    for one, logits in zip(gone, found, strict=True):
        part = Circuit(model.graph, circuit.mask & ~one)
        torch.testing.assert_close(logits, run_circuit(model, TASK, part, ablation=ablation), atol=3e-5, rtol=3e-5)
