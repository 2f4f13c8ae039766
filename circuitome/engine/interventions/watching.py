"""A function of ours at a site of a model, for sites whose values the model has, and for those it has only in sums."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.ablate_outputs import share_vectors
from circuitome.engine.ablation import scaled_heads
from circuitome.engine.interventions.changes import Change, apart, changed, changed_cells
from circuitome.engine.interventions.changes import changing as changing_tap
from circuitome.engine.interventions.positions import Positions
from circuitome.engine.interventions.sites import Site, tap
from circuitome.engine.interventions.values import check_finite
from circuitome.errors import InputError
from circuitome.models.hooks import hooked
from circuitome.models.model import Model


@contextmanager
def changing_site(model: Model, site: Site, positions: Positions, change: Change) -> Iterator[None]:
    """Inside, the values [rows, some, 1, width] of a site are what `change` makes of them."""
    with ExitStack() as stack:
        if site.what == "pattern":
            stack.enter_context(model.watching_attention(_on_pattern(site, positions, change)))
        elif site.what == "resid_mid":
            stack.enter_context(_changing_middle(model, site, positions, change))
        elif site.what == "out" and site.node.kind == "head":
            stack.enter_context(_changing_share(model, site, positions, change))
        else:
            stack.enter_context(changing_tap(tap(model, site), positions, change))
        yield


def _on_pattern(site: Site, positions: Positions, change: Change) -> Callable[[int, Tensor], None]:
    """What is shown each block's pattern, and shows `change` the rows of one head."""

    def show(layer: int, pattern: Float[Tensor, "batch head query key"]) -> None:
        if layer != site.node.layer:
            return
        rows = pattern[:, site.node.index]
        if changed_cells(rows[:, :, None], (0,), positions, change) is not None:
            raise InputError(
                f"{site.name} can only be looked at: the function must return None. Change {site.node}.z, or the "
                "head's q, k and v."
            )

    return show


@contextmanager
def _changing_middle(model: Model, site: Site, positions: Positions, change: Change) -> Iterator[None]:
    """The stream between attention and MLP: what the MLP reads changes, and what goes past it by as much."""
    where, moved = tap(model, site), list[Tensor]()

    def reads(module: nn.Module, args: tuple[Any, ...]) -> Any:
        new = changed(args[0], where, positions, change)
        if new is None:
            return None
        moved[:] = [apart(new - args[0], positions)]
        return (new, *args[1:])

    def gives(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return output + moved.pop() if moved else None

    layer = model.blocks[site.node.layer].layer
    with (
        hooked(where.module.register_forward_pre_hook, reads),
        hooked(layer.register_forward_hook, gives, prepend=True),
    ):
        yield


@contextmanager
def _changing_share(model: Model, site: Site, positions: Positions, change: Change) -> Iterator[None]:
    """What one head adds to the stream, in the sum of all that the attention adds."""
    block, seen = model.blocks[site.node.layer], list[tuple[Tensor, Tensor]]()

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen[:] = [(args[0], output)]

    def gives(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if not seen:
            return None
        share = share_vectors(model, site.node.layer, site.node.index, *seen.pop()).to(output.dtype)
        new = changed_cells(share[:, :, None], (0,), positions, change)
        return None if new is None else output + (new[:, :, 0] - share)

    with (
        hooked(block.output.register_forward_hook, note),
        hooked(block.attention_end.register_forward_hook, gives),
    ):
        yield


@contextmanager
def z_written(model: Model, site: Site, positions: Positions, change: Change) -> Iterator[None]:
    """As `changing_site` at a head's z, to look at only, with what changes the head behind a post-norm counted in.

    Such a change acts on z over the norm's divisor: shown is the changed share times the divisor.
    """
    layer, block = site.node.layer, model.blocks[site.node.layer]
    post = block.attention_post
    if post is None or not model.held.get(layer):
        with changing_site(model, site, positions, change):
            yield
        return

    def show(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        shares = scaled_heads(model, layer, args[0], output)[:, :, [site.node.index]]
        changed_cells((shares * post.sigma(output)[..., None]).to(output.dtype), (0,), positions, change)

    with hooked(block.output.register_forward_hook, show):
        yield


def as_function(site: Site, function: Callable[[Tensor], Any]) -> Change:
    """A user's function of values [batch, position, width] as a change, with what it gives checked."""

    def call(values: Tensor, where: Any) -> Tensor | None:
        if where.ragged:
            raise InputError(
                f"The function at {site.name} is given values [batch, position, width], but prompts have different "
                "numbers of positions here. Give as many positions for each prompt."
            )
        given = values[:, :, 0]
        new = function(given.clone())  # a function that works in place and gives None has only looked
        return None if new is None else _checked(site, new, given)[:, :, None]

    return call


def _checked(site: Site, new: Any, given: Tensor) -> Tensor:
    """What a function gave, in the dtype of what it was given."""
    if not isinstance(new, Tensor):
        raise InputError(f"The function at {site.name} gave a {type(new).__name__}; it must give a tensor or None.")
    if new.shape != given.shape:
        raise InputError(
            f"The function at {site.name} gave shape {list(new.shape)} for values of shape {list(given.shape)} (batch, "
            "position, width). It must give the same shape, or None."
        )
    if not torch.can_cast(new.dtype, given.dtype):
        raise InputError(f"The function at {site.name} gave {new.dtype}, which cannot be used as {given.dtype}.")
    new = new.to(given)
    check_finite(f"What the function at {site.name} gave", new, given)
    return new
