"""Neurons held at a value, in any pass of the model: switched off, or set to what they are elsewhere."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from circuitome.errors import InputError, NumericsError
from circuitome.graph.node import Node
from circuitome.models.hooks import hooked
from circuitome.models.model import Model


@contextmanager
def control(model: Model, *, off: Sequence[str] = (), set_to: Mapping[str, float] | None = None) -> Iterator[None]:
    """Inside, neurons write with 0 (`off`) or with a given value (`set_to`) in every pass of `model.hf`.

    That holds at every position, of prompts and of what `generate` makes. The value stands for a, the input of the
    MLP's last projection; for a gated MLP that is act(gate) * up. A neuron in both is set to its value. Contexts nest;
    at one neuron the inner one decides. Other threads that use `model` wait.

    >>> model = cm.load("known-ioi")
    >>> prompt = {"input_ids": torch.tensor([model.encode("Ann and Bob met then Bob gave to")])}
    >>> with cm.neurons.control(model, off=["m0.n0"], set_to={"m1.n0": 2.0}):
    ...     logits = model.hf(**prompt).logits
    >>> tuple(logits.shape)
    (1, 9, 14)

    Raises `InputError` for what is no neuron of the model and where nothing is held, `NumericsError` for a value that
    is not finite.
    """
    held = {**dict.fromkeys(off, 0.0), **(set_to or {})}
    if not held:
        raise InputError("No neuron is held; name some in off or set_to, such as off=['m5.n123'].")
    if bad := [name for name, value in held.items() if not torch.isfinite(torch.tensor(float(value)))]:
        raise NumericsError(f"{bad[0]} cannot be set to {held[bad[0]]}; give a finite number.")
    by_layer = dict[int, dict[int, float]]()
    for name, value in held.items():
        node = model.neuron(name)
        by_layer.setdefault(node.layer, {})[node.index] = float(value)
    with model.locked(), ExitStack() as stack:
        for layer, values in by_layer.items():
            hook = _holding(torch.tensor(list(values)), torch.tensor(list(values.values())))
            stack.enter_context(hooked(model.blocks[layer].mlp_writer.register_forward_pre_hook, hook))
        yield


def _holding(index: Tensor, values: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        written = args[0].clone()
        written[..., index.to(written.device)] = values.to(written)
        return (written, *args[1:])

    return hook


def random_neurons(model: Model, neurons: Sequence[str], seed: int) -> list[str]:
    """As many other neurons of the same layers, drawn at random; a seed draws the same.

    >>> cm.neurons.random_neurons(cm.load("smollm2-135m"), ["m0.n1", "m3.n2"], 0)[0].startswith("m0.n")
    True

    Raises `InputError` where a layer has too few others.
    """
    nodes = [model.neuron(name) for name in dict.fromkeys(neurons)]
    generator, drawn = torch.Generator().manual_seed(seed), list[str]()
    for layer, count in sorted(Counter(node.layer for node in nodes).items()):
        taken = torch.tensor([node.index for node in nodes if node.layer == layer])
        others = torch.ones(model.blocks[layer].n_neurons)
        others[taken] = 0.0
        if int(others.sum()) < count:
            raise InputError(
                f"{count} of the {len(others)} neurons of m{layer} are chosen, so there are not as many others to draw."
            )
        picks = others.multinomial(count, generator=generator).tolist()
        drawn += [str(Node("neuron", layer, pick)) for pick in picks]
    return drawn
