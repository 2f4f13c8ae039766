"""Damaged weights are told, work of another model is not taken over, and means keep to the memory budget."""

import pytest
import torch
from families import random_task, tiny

from circuitome.discovery.patching.edge import exact
from circuitome.engine.ablation import AblationValues
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import MemoryBudgetError, NumericsError, RunError
from circuitome.graph.circuits import Circuit

TASK = random_task(3, lengths=(5, 6))


def test_weights_that_are_no_numbers_are_told():
    model = tiny("llama")
    with torch.no_grad():
        model.blocks[1].output.weight[0, 0] = torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        run_circuit(model, TASK, Circuit.full(model.graph))


def test_work_of_another_model_or_ablation_is_refused(tmp_path):
    model, path = tiny("llama"), tmp_path / "exact.safetensors"
    edges = Circuit.of(model.graph, ["a0.h0->m1.in", "m2->logits"])
    exact(model, TASK, edges=edges, checkpoint=path)
    for other, ablation in ((tiny("llama", seed=1), "corrupted"), (model, "zero")):
        with pytest.raises(RunError, match="another exact run"):
            exact(other, TASK, edges=edges, checkpoint=path, ablation=ablation)


def test_means_keep_to_the_memory_budget():
    model = tiny("llama")
    budget = model.bytes_per_token(gradients=False) * 9
    whole, small = (AblationValues.of(model, TASK, "mean", memory) for memory in (None, budget))
    for a, b in zip(*(next(iter(values.means.values())).tensors() for values in (whole, small)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    with pytest.raises(MemoryBudgetError, match="budget"):
        AblationValues.of(model, TASK, "mean", budget // 9)
