"""One neuron on texts: its activation at every token, and which tokens of a context make it fire."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.errors import InputError
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.neurons.activity import watching_activity
from circuitome.neurons.text_windows import Windows


def neuron_activations(model: Model, neuron: str, texts: Windows) -> Float[Tensor, "window pos"]:
    """What a neuron writes with at every token of some windows; NaN where a window has ended.

    >>> model = cm.load("known-ioi")
    >>> cm.neurons.neuron_activations(model, "m0.n0", cm.neurons.packed([[0, 1, 2], [0, 3]])).shape
    torch.Size([2, 3])

    Raises `InputError` for what is no neuron of the model.
    """
    node = model.neuron(neuron)
    values = torch.full(texts.ids.shape, torch.nan)
    for rows in texts.blocks():
        inputs = texts.inputs(model, rows)
        shown = list[Tensor]()

        def look(layer: int, given: Tensor, written: Tensor, shown: list[Tensor] = shown) -> None:
            shown.append(written[:, node.index])

        with watching_activity(model, look, [node.layer]):
            model.logits(inputs)
        some = shown[0].view(inputs.ids.shape).cpu()
        values[rows.start : rows.stop, : some.shape[1]] = torch.where(inputs.real().bool().cpu(), some, torch.nan)
    return values


@dataclass(frozen=True, eq=False)
class NeuronContext:
    """Which tokens of a context make a neuron fire at its end."""

    neuron: str
    """The neuron."""
    value: float
    """What its activation function is given at the last token, the gate of a gated MLP; above 0 it is active."""
    contributions: Float[Tensor, " pos"]
    """By token, its embedding times the gradient of that value: the change to first order if it were not there."""


def neuron_context(model: Model, neuron: str, ids: Sequence[int]) -> NeuronContext:
    """By token of `ids`, how far it raises what the neuron is given at the last one; one backward pass.

    >>> model = cm.load("known-ioi")
    >>> cm.neurons.neuron_context(model, "m0.n0", model.encode("Ann and Bob")).contributions.shape
    torch.Size([4])

    Raises `InputError` for what is no neuron of the model and for no tokens. The contributions are of first order,
    gradient times input, and need not sum to the value.
    """
    node = model.neuron(neuron)
    if not len(ids):
        raise InputError("The context has no tokens; give at least one.")
    block = model.blocks[node.layer]
    inputs = Inputs.whole(torch.tensor([list(ids)], device=model.device))
    with torch.no_grad():
        leaf = model.embeddings(inputs).detach()
    leaf.requires_grad_(True)
    kept = list[Tensor]()

    def read(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output[..., : block.n_neurons].reshape(len(ids), -1)[-1, node.index].float())

    watching = hooked(block.mlp_readers[0].register_forward_hook, read)
    with watching, torch.enable_grad(), model.frozen_parameters(), model.starting_from(leaf):
        model.logits(inputs)
    (gradient,) = torch.autograd.grad(kept[0], leaf)
    contributions = (gradient.float() * leaf.detach().float()).sum(-1)[0]
    return NeuronContext(neuron, float(kept[0].detach()), contributions.cpu())
