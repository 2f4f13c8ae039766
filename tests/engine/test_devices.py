"""Models on another device than the CPU: results are the same, and come back where they can be read."""

from collections.abc import Callable

import pytest
import torch
from families import random_task, tiny
from other_device import DEVICE, Elsewhere, moved, other_device
from torch import Tensor

import circuitome as cm
from circuitome.errors import InputError

METHODS: dict[str, Callable[[cm.Model, cm.Task], Tensor]] = {
    "eap": lambda model, task: cm.eap(model, task).values,
    "eap_ig": lambda model, task: cm.eap_ig(model, task, steps=2).values,
    "relp": lambda model, task: cm.eap(model, task, rules="relp").values,
    "atp": lambda model, task: cm.atp(model, task).writers,
    "patch": lambda model, task: cm.patch(model, task).samples,
    "path_patch": lambda model, task: cm.path_patch(model, task, ["logits"]).samples,
    "run_circuit": lambda model, task: cm.run_circuit(model, task, cm.eap(model, task).top(60)).cpu(),
    "mean": lambda model, task: cm.run_circuit(model, task, cm.eap(model, task).top(60), ablation="mean").cpu(),
    "mattr": lambda model, task: cm.mattr(model, task, steps=2).values,
    "route_scores": lambda model, task: cm.route_scores(model, task).values,
    "neurons": lambda model, task: cm.neurons.graph_scores(model.with_neurons(["m1.n0", "m1.n3"]), task).values,
}
"""What gives tensors on the CPU, or is brought there."""


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_results_are_those_of_the_cpu(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = random_task()
    expected = METHODS[method](tiny(name), task)
    with other_device(cm.load, monkeypatch):
        model = moved(tiny(name))
        assert model.device == DEVICE
        found = METHODS[method](model, task)
    assert type(found) is Tensor
    size = float(expected.nan_to_num().abs().max())
    torch.testing.assert_close(found, expected, atol=2e-5 * size, rtol=0, equal_nan=True)


def test_the_other_device_refuses_what_cuda_refuses() -> None:
    there, here = Elsewhere(torch.ones(3)), torch.ones(3)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.zeros(()).add_(there.sum())
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there + torch.tensor(1.0)).tolist() == [2.0, 2.0, 2.0]
    assert there[torch.tensor([0])].tolist() == there[[0]].tolist() == [1.0]


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda:77", "gpu"):
        with pytest.raises(InputError, match=f"The device '{name}' cannot be used: .*Here are: cpu"):
            cm.load("known-ioi", device=name)
    monkeypatch.setenv("CIRCUITOME_DEVICE", "cuda:77")
    with pytest.raises(InputError, match="The device 'cuda:77' cannot be used"):
        cm.load("known-ioi")


def test_weights_that_nothing_brings_inputs_to_are_refused() -> None:
    hf = tiny("llama").hf
    hf.lm_head.to("meta")
    with pytest.raises(InputError, match=r"lie on cpu, meta, and nothing brings inputs to those of lm_head"):
        cm.load(hf)
