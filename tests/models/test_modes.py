"""Every method on a model that is in training, and in float64: no dropout, the same numbers."""

from collections.abc import Callable

import pytest
import torch
from families import random_task, tiny
from torch import Tensor

import circuitome as cm
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Model

TASK = random_task(2)


def _circuit(model: Model) -> Circuit:
    mask = model.graph.mask
    return Circuit(model.graph, mask & (torch.arange(mask.numel()).view_as(mask) % 3 > 0))


METHODS: dict[str, Callable[[Model], Tensor]] = {
    "run_circuit": lambda model: cm.run_circuit(model, TASK, _circuit(model)),
    "eap": lambda model: cm.eap(model, TASK).values,
    "atp": lambda model: cm.atp(model, TASK).writers,
    "exact": lambda model: cm.exact(model, TASK).values,
    "acdc": lambda model: cm.acdc(model, TASK, threshold=0.1).circuit.mask.float(),
    "patch": lambda model: cm.patch(model, TASK).mean,
    "path_patch": lambda model: cm.path_patch(model, TASK, ["logits"]).mean.nan_to_num(),
    "masks": lambda model: cm.subnetwork_probing(model, TASK, steps=2, nodes=8).values,
    "routes": lambda model: cm.route_scores(model, TASK).values,
}
CASES = [
    pytest.param(method, id=name, marks=[pytest.mark.slow] * (name in ("exact", "acdc", "masks")))
    for name, method in METHODS.items()
]


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_no_method_draws_dropout(method: Callable[[Model], Tensor]) -> None:
    model = tiny("gpt2")
    expected = method(model)
    model.hf.train()
    assert torch.equal(method(model), expected)
    assert all(module.training for module in model.hf.modules())


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_every_method_works_in_float64(method: Callable[[Model], Tensor]) -> None:
    values = [method(tiny("gemma2", dtype=dtype)).double() for dtype in (torch.float32, torch.float64)]
    torch.testing.assert_close(*values, atol=1e-3, rtol=1e-3)
