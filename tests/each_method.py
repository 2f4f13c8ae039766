"""Methods that read a model, and comparison of what they give on models that should give the same."""

from collections.abc import Callable

import torch
from families import random_task
from torch import Tensor

import circuitome as cm

METHODS: dict[str, Callable[[cm.Model, cm.Task], Tensor]] = {
    "eap": lambda model, task: cm.eap(model, task).values,
    "gim": lambda model, task: cm.eap(model, task, rules="gim").values,
    "run_circuit": lambda model, task: cm.run_circuit(model, task, cm.eap(model, task).top(60)),
    "ablate": lambda model, task: _ablated(model, task),
    "eap_ig": lambda model, task: cm.eap_ig(model, task, steps=2).values,
    "relp": lambda model, task: cm.eap(model, task, rules="relp").values,
    "exact": lambda model, task: cm.exact(model, task).values,
    "atp": lambda model, task: cm.atp(model, task).writers,
    "patch": lambda model, task: cm.patch(model, task).samples,
    "path_patch": lambda model, task: cm.path_patch(model, task, ["logits"]).samples,
    "mean": lambda model, task: cm.run_circuit(model, task, cm.eap(model, task).top(60), ablation="mean"),
    "mattr": lambda model, task: cm.mattr(model, task, steps=2).values,
    "route_scores": lambda model, task: cm.route_scores(model, task).values,
    "neurons": lambda model, task: cm.neurons.graph_scores(model.with_neurons(["m1.n0", "m1.n3"]), task).values,
    "neuron_scores": lambda model, task: cm.neurons.scores(model, task).values,
    "neuron_edges": lambda model, task: cm.neurons.edges(model, task).values.sort().values,  # near ties swap places
    "ov": lambda model, task: cm.weights.ov_circuit(model, "a1.h1").full(),
    "unembed": lambda model, task: model.unembed(torch.ones(1, model.d_model, device=model.device)),
}
FIRST = ("eap", "gim", "run_circuit", "ablate")
"""What is tried on every architecture; the rest on two."""


def _ablated(model: cm.Model, task: cm.Task) -> Tensor:
    with cm.ablate(model, ["a1.h0", "m1"]):
        logits: Tensor = model.hf(torch.tensor([task.pairs[0].clean], device=model.device)).logits
    return logits


def results(model: cm.Model, names: tuple[str, ...]) -> dict[str, Tensor]:
    """What some methods give."""
    return {name: METHODS[name](model, random_task()).detach().cpu() for name in names}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """Equal to the last bit, or up to a share of the largest number."""
    for name, values in expected.items():
        size = tolerance * float(values.nan_to_num().abs().max())
        try:
            torch.testing.assert_close(found[name], values, atol=size, rtol=0, equal_nan=True)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None
