"""Knock-outs against circuit runs without the edges that leave the nodes."""

import pytest
import torch
from families import CONFIGS, random_task, tiny

from circuitome.engine.ablation import AblationValues
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline
from circuitome.engine.knock_out import KnockOut
from circuitome.engine.run_circuit import run_circuit
from circuitome.graph.circuits import Circuit

TASK = random_task(3, lengths=(5, 6))
QUICK = ("gpt2", "gemma2", "neox-parallel")


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_a_knock_out_is_a_circuit_without_the_edges_that_leave_it(name, ablation):
    model = tiny(name)
    writers = len(model.graph.writers)
    sets = torch.rand(4, writers, generator=torch.Generator().manual_seed(1)) < 0.3
    sets[0], sets[1] = False, torch.arange(writers) == 0
    replacement = AblationValues.of(model, TASK, ablation)
    corrupted = replacement.from_prompts
    found = torch.zeros(len(sets), len(TASK), 61)
    with torch.no_grad():
        for batch in batches(model, TASK, shared_prefix=corrupted, corrupted=corrupted):
            final = KnockOut(model, baseline(model, TASK, batch, replacement)).final(sets)
            found[:, list(batch.rows)] = model.unembed(final.flatten(0, 1)).unflatten(0, final.shape[:2])
    for one, logits in zip(sets, found, strict=True):
        circuit = Circuit(model.graph, model.graph.mask & ~one[:, None])
        torch.testing.assert_close(logits, run_circuit(model, TASK, circuit, ablation=ablation), atol=2e-5, rtol=2e-5)
