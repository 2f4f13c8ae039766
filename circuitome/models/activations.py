"""What one forward pass showed of every block, and the hooks that write it down."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from circuitome.models.block import Block
from circuitome.models.hooks import hooked
from circuitome.models.parked import Parked, Tensors, like


@dataclass
class ActivationCache:
    """What one forward pass showed: tensors of the pass itself, or where these wait. Lists are indexed by layer."""

    resid_pre: Tensors = field(default_factory=list)
    """Residual [batch, pos, d_model] that each attention reads, before its norm."""
    projected: list[Tensors] = field(default_factory=list)
    """Outputs [batch, pos, out] of the q, k, v (or fused) projections."""
    z: Tensors = field(default_factory=list)
    """Input [batch, pos, head * d_head] of the output projection: all heads side by side."""
    attention_out: Tensors = field(default_factory=list)
    """Output [batch, pos, d_model] of the output projection where a post-norm follows; else empty."""
    resid_mid: Tensors = field(default_factory=list)
    """Residual [batch, pos, d_model] that each MLP reads, before its norm."""
    mlp_out: Tensors = field(default_factory=list)
    """What each MLP adds to the stream [batch, pos, d_model]."""
    neurons: Tensors = field(default_factory=list)
    """Where neurons are nodes: what those of each block write with, over a post-norm's divisor [batch, pos, neuron]."""
    batch: int = 0
    """Prompts of the pass."""
    final: Tensor | None = None
    """Residual [batch, pos, d_model] in front of the final norm."""
    logits: Tensor | None = None
    """Logits [batch, vocab] at the position that was asked for."""

    @classmethod
    def parked(cls, place: str, device: torch.device) -> "ActivationCache":
        """An empty one whose lists wait elsewhere (see `Place`), as do gradients at what q, k, v and MLPs read."""

        def new(*, with_gradients: bool = False) -> Parked:
            return Parked(place, device, with_gradients=with_gradients)

        return cls(new(), [], new(), new(), new(with_gradients=True), new(), new())

    def resid_post(self, layer: int) -> Tensor:
        """Residual [batch, pos, d_model] behind a block; -1 for in front of the first."""
        assert self.final is not None, "the pass was recorded without its end"
        return self.resid_pre[layer + 1] if layer + 1 < len(self.resid_pre) else self.final


@contextmanager
def recording(
    blocks: Sequence[Block],
    final_norm: nn.Module,
    activations: ActivationCache,
    start: int = 0,
    neurons: Sequence[Sequence[int]] = (),
) -> Iterator[None]:
    """Inside, a forward pass writes what it shows on `activations`, from position `start` on; but for the logits.

    `neurons` are those of each block that are nodes.

    What q, k, v, the MLPs and the final norm read is recorded as views of their own, so that a gradient taken with
    respect to one of them comes through that reader alone and not through the residual connection beside it.
    """

    def final(module: nn.Module, args: tuple[Any, ...]) -> Any:
        resid = args[0].view_as(args[0])
        activations.final = _from(start, resid)
        return (resid, *args[1:])

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_record_input(block, activations, start))
            for register, hook in _record_block(block, activations, start):
                stack.enter_context(hooked(register, hook))
        for block, which in zip(blocks, neurons, strict=False):
            hook = _record_neurons(block, which, activations, start)
            stack.enter_context(hooked(block.mlp_writer.register_forward_hook, hook))
        stack.enter_context(hooked(final_norm.register_forward_pre_hook, final, prepend=True))
        yield


def _from(start: int, t: Tensor) -> Tensor:
    """`t` [batch, pos, ...] from a position on; a copy, so that the rest can be freed, unless it is all."""
    return t[:, start:].clone() if start else t


def _record_input(block: Block, activations: ActivationCache, start: int) -> AbstractContextManager[None]:
    """Notes the stream in front of a block, where it is what attention and residual connection share."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        resid = args[0] if args else kwargs["hidden_states"]
        activations.batch = len(resid)
        activations.resid_pre.append(_from(start, resid))

    return hooked(block.layer.register_forward_pre_hook, note, with_kwargs=True)


def _record_block(block: Block, activations: ActivationCache, start: int) -> list[tuple[Any, Callable[..., Any]]]:
    """Where to install which hook, so that one block's values are written on the activations."""

    def reads(values: Tensors) -> Callable[..., None]:
        """Notes what a module is given."""
        return lambda module, args: values.append(_from(start, args[0]))

    def gives(values: Tensors) -> Callable[..., None]:
        """Notes what a module gives."""
        return lambda module, args, output: values.append(_from(start, output))

    def projection(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if module is block.projections[0]:
            activations.projected.append(like(activations.resid_mid))
        activations.projected[-1].append(_from(start, output))

    def apart(x: Tensor) -> Tensor:
        return x.view(activations.batch, -1, x.shape[-1])  # OPT's MLP has joined batch and position to one axis

    def resid_mid(module: nn.Module, args: tuple[Any, ...]) -> Any:
        resid = apart(args[0])
        activations.resid_mid.append(_from(start, resid))
        return (resid.view_as(args[0]), *args[1:])

    def mlp_out(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        activations.mlp_out.append(_from(start, apart(output.contiguous())))

    first_mlp, last_mlp = block.mlp_ends
    return [
        *((module.register_forward_hook, projection) for module in block.projections),
        (block.output.register_forward_pre_hook, reads(activations.z)),
        *([(block.output.register_forward_hook, gives(activations.attention_out))] if block.attention_post else []),
        (first_mlp.register_forward_pre_hook, resid_mid),
        (last_mlp.register_forward_hook, mlp_out),
    ]


def _record_neurons(
    block: Block, which: Sequence[int], activations: ActivationCache, start: int
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A hook of the MLP's last projection that writes down what some neurons write with."""
    index = list(which)

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        values = block.neuron_shares(args[0][..., index], output)
        batch = activations.batch
        values = values.reshape(batch, args[0][..., 0].numel() // batch, len(index))
        # An MLP that runs at one position alone has its values put in place by whoever asked for that.
        activations.neurons.append(values if values.shape[1] == 1 else _from(start, values))

    return note
