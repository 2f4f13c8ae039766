"""Functions that change values where a module is given or gives them, at some positions of a pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.ablate_outputs import change_shares
from circuitome.engine.interventions.positions import Positions, Where
from circuitome.engine.interventions.sites import Tap, tap
from circuitome.engine.interventions.sites import site as site_of
from circuitome.graph.node import Node
from circuitome.models.hooks import hooked
from circuitome.models.model import Model

Change = Callable[[Float[Tensor, "rows some chunk width"], Where], Tensor | None]
"""Given values at the positions that are meant, gives new ones of the same shape, or None to leave them."""


@contextmanager
def changing(where: Tap, positions: Positions, change: Change) -> Iterator[None]:
    """Inside, the values of a tap are what `change` makes of them."""

    def given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = changed(args[0] if args else kwargs["hidden_states"], where, positions, change)
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def gives(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return changed(output, where, positions, change)

    if where.gives:
        with hooked(where.module.register_forward_hook, gives):
            yield
    else:
        with hooked(where.module.register_forward_pre_hook, given, with_kwargs=True):
            yield


def changed(values: Tensor, where: Tap, positions: Positions, change: Change) -> Tensor | None:
    """All that a module is given or gives, with the tap's values changed; None where they stay."""
    whole = apart(values, positions).unflatten(-1, (-1, where.width))
    new = changed_cells(whole, where.chunks, positions, change)
    return None if new is None else new.flatten(-2).view_as(values)


def apart(values: Tensor, positions: Positions) -> Tensor:
    """Values with axes for batch and position, which OPT's MLP has joined to one."""
    if values.ndim > 2:
        return values
    return values.unflatten(0, (1 if positions.run is None else len(positions.run.real), -1))


def changed_cells(
    whole: Float[Tensor, "batch pos all width"], chunks: tuple[int, ...], positions: Positions, change: Change
) -> Float[Tensor, "batch pos all width"] | None:
    """A copy of `whole` with some chunks changed at the positions that are meant; None where they stay."""
    cells = positions.where(whole.shape[:2])
    if cells is None:
        return None
    if cells.row is None or cells.column is None:
        return _everywhere(whole, chunks, cells, change)
    place = (cells.row[..., None], cells.column[..., None], torch.tensor(chunks, device=whole.device))
    new = change(whole[place], cells)
    if new is None:
        return None
    copy = whole.clone()
    copy[place] = new
    return copy


def _everywhere(whole: Tensor, chunks: tuple[int, ...], cells: Where, change: Change) -> Tensor | None:
    in_a_row = chunks == tuple(range(chunks[0], chunks[-1] + 1))
    which = slice(chunks[0], chunks[-1] + 1) if in_a_row else list(chunks)
    new = change(whole[:, :, which], cells)
    if new is None or len(chunks) == whole.shape[2]:
        return new
    copy = whole.clone()
    copy[:, :, which] = new
    return copy


@contextmanager
def changing_parts(model: Model, nodes: list[Node], positions: Positions, change: Change) -> Iterator[None]:
    """Inside, what some heads or neurons of one block, an MLP or the embedding write is what `change` makes of it.

    Heads: z [rows, some, head, d_head] in front of the output projection; under a post-norm z over its divisor, which
    stays. Neurons: what the MLP's last projection reads, [rows, some, neuron, 1]. An MLP and the embedding
    [rows, some, 1, d_model]: what is added to the stream, behind a post-norm.
    """
    first = nodes[0]
    block = model.blocks[first.layer]
    with ExitStack() as stack:
        if first.kind == "neuron":
            where = Tap(block.mlp_writer, False, 1, tuple(node.index for node in nodes))
            stack.enter_context(changing(where, positions, change))
        elif first.kind != "head":
            where = tap(model, site_of(model, "embed" if first.kind == "embed" else f"{first}.out"))
            stack.enter_context(changing(where, positions, change))
        elif block.attention_post is None:
            where = Tap(block.output, False, model.heads.width, tuple(node.index for node in nodes))
            stack.enter_context(changing(where, positions, change))
        else:
            which = [node.index for node in nodes]
            stack.enter_context(change_shares(model, first.layer, which, _on_shares(positions, change)))
        yield


def _on_shares(positions: Positions, change: Change) -> Callable[[Tensor], Tensor]:
    """The same change as a function of all positions' scaled outputs [batch, pos, head, d_head]."""

    def shares(scaled: Tensor) -> Tensor:
        new = changed_cells(scaled, tuple(range(scaled.shape[2])), positions, change)
        return scaled if new is None else new

    return shares
