"""What the neurons of MLPs do while texts run: what each is given and writes with, and which are active.

A neuron writes with a = act(z) (ReLU, GELU), or with a = act(gate) * up where the MLP is gated. It is active, by
default, where what goes into the activation function is positive: after ReLU that is a > 0 (Voita et al. 2023,
arXiv:2309.04827); for a smooth or gated MLP no exact zero exists, and the sign of z or of the gate is what LAPE takes
(Tang et al. 2024, arXiv:2402.16438). The other rule counts a neuron as active where |a| exceeds a quantile of its MLP.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.errors import InputError
from circuitome.models.block import Block
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model

Look = Callable[[int, Float[Tensor, "token neuron"], Float[Tensor, "token neuron"]], None]
"""Called with a layer, what its activation function is given, and what its neurons write with; padding included."""


@contextmanager
def watching_activity(model: Model, look: Look, layers: Sequence[int] | None = None) -> Iterator[None]:
    """Inside, every pass shows the neurons of each block (or of `layers`) to `look`, batch and position as one axis."""
    with torch.no_grad(), model.reserved(), ExitStack() as stack:
        for layer in range(len(model.blocks)) if layers is None else layers:
            read, write = _hooks(layer, model.blocks[layer], look)
            first = model.blocks[layer].mlp_readers[0]
            stack.enter_context(hooked(first.register_forward_hook, read))
            stack.enter_context(hooked(model.blocks[layer].mlp_writer.register_forward_pre_hook, write))
        yield


def _hooks(layer: int, block: Block, look: Look) -> tuple[Callable[..., None], Callable[..., None]]:
    """One hook that keeps the input of the activation function, and one that shows it with the neurons' activations."""
    width, kept = block.n_neurons, list[Tensor]()

    def read(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        kept.append(output[..., :width])  # of a fused projection, the gate comes first

    def write(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        look(layer, kept.pop().reshape(-1, width).float(), args[0].reshape(-1, width).float())

    return read, write


def check_mlps(model: Model) -> None:
    """Raises `InputError` for a model without MLPs."""
    if not model.graph.mlps:
        raise InputError(f"{model.name} has no MLPs, so it has no neurons.")


@dataclass(frozen=True)
class Rule:
    """When a neuron counts as active."""

    thresholds: tuple[float, ...] = ()
    """By layer, what |activation| must exceed; empty where the sign decides."""
    quantile: float | None = None
    """Which quantile the thresholds are; None where the sign decides."""

    def fires(self, layer: int, given: Tensor, written: Tensor) -> Float[Tensor, "token neuron"]:
        """1.0 where a neuron is active, 0.0 elsewhere."""
        if self.quantile is None:
            return (given > 0).float()
        return (written.abs() > self.thresholds[layer]).float()

    def words(self, model: Model) -> str:
        """The rule in words."""
        if self.quantile is not None:
            return f"|activation| above the {self.quantile:g} quantile of its MLP on the first tokens"
        if isinstance(model.blocks[0].activation, nn.ReLU):
            return "activation above 0"
        return "gate above 0, in front of the activation function" if model.blocks[0].gated else "input above 0"


def rule_of(model: Model, quantile: float | None, sample: Inputs) -> Rule:
    """The sign rule, or with a `quantile` the thresholds that it is on `sample`, from one pass.

    Raises `InputError` for a quantile outside 0 to 1.
    """
    if quantile is None:
        return Rule()
    if not 0 < quantile < 1:
        raise InputError(f"quantile must lie between 0 and 1, got {quantile}; or leave it out for the sign rule.")
    thresholds, real = list[float](), sample.real().flatten().bool()

    def look(layer: int, given: Tensor, written: Tensor) -> None:
        values = written[real].abs().flatten()
        thresholds.append(float(values.kthvalue(max(1, round(quantile * len(values)))).values))

    with watching_activity(model, look):
        model.logits(sample)
    return Rule(tuple(thresholds), quantile)
