"""A variable set to a value in the model's own passes: the aligned subspace as an intervention."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.sites import NEURONS, Part, Place, Site
from circuitome.causal.subspaces import Subspace
from circuitome.causal.trials import LEAST, trials
from circuitome.engine.interventions.changes import Change, apart, changed_cells, changing_parts
from circuitome.engine.interventions.positions import At, Positions, Where
from circuitome.engine.interventions.sites import site as site_of
from circuitome.engine.interventions.sites import tap
from circuitome.engine.interventions.watching import changing_site
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.hooks import hooked
from circuitome.models.model import Model
from circuitome.tasks.task import Task

Means = list[Float[Tensor, " _"]]
"""Coordinates in a subspace, by part of its place."""


def whole(model: Model, place: str, variable: str) -> Subspace:
    """All of a place as a subspace of it, for what takes a subspace. Raises `InputError` for a place that is none.

    >>> cm.causal.whole(cm.load("known-ioi"), "a1.h0@end", "repeated").k
    28
    """
    widths = {"heads": model.heads.width, "q": model.heads.width, "k": model.heads.width, "v": model.heads.width}
    sites = [part.site for part in Place.parse(place, model).parts]
    sizes = [len(site.neurons) if site.kind == NEURONS else widths.get(site.kind, model.d_model) for site in sites]
    return Subspace(place, variable, tuple(torch.eye(size, device=model.device) for size in sizes), (), "whole")


@method
def value_means(setting: Setting, causal: CausalModel, subspace: Subspace, *, least: float = LEAST) -> dict[Any, Means]:
    """By value of the subspace's variable, the mean coordinates of the prompts on which it has that value.

    Over prompts on which model and causal model agree, and over the tokens of the place's role; for `set_variable`.
    Values that have no hash (lists) cannot be told apart, and raise `InputError`; see `align` for the rest.

    >>> model, task, causal = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32), cm.causal.ready("known-ioi")
    >>> sorted(cm.causal.value_means(model, task, causal, cm.causal.whole(model, "a1.h0@end", "repeated")))[:2]
    ['Ann', 'Bob']
    """
    pairs = trials(setting, causal, [subspace.variable], least=least)
    place = Place.parse(subspace.place, setting.model)
    by_value: dict[Any, list[int]] = {}
    for row in pairs.base.tolist():
        value = pairs.draws.alone[row][subspace.variable]
        try:
            by_value.setdefault(value, []).append(row)
        except TypeError:
            raise InputError(f"The value {value!r} of {subspace.variable!r} has no hash; make it a tuple.") from None
    shown = pairs.values_of(place)
    there = [pairs.positions[:, pairs.column(part.role)] >= 0 for part in place.parts]
    return {
        value: [
            values[rows][real[rows].to(values.device)].mean(0) @ basis
            for values, real, basis in zip(shown, there, subspace.bases, strict=True)
        ]
        for value, rows in by_value.items()
    }


@contextmanager
def set_variable(
    model: Model, subspace: Subspace, to: Means, *, at: At | None = None, task: Task | None = None
) -> Iterator[None]:
    """Inside, every forward pass of `model.hf`, `generate` included, has the variable's part of its place set to `to`.

        x_new = x + (to - x R) R^T,   R the directions of the subspace.

    `to` are coordinates by part of the place, such as `value_means(...)[value]`. `at` says where, as in `cm.ablate`; by
    default at the place's own role, which needs the `task` unless it is end. Tokens that are generated keep their own
    values unless `at` is all. Several nest, and nest with `cm.ablate` and the others.
    Neurons in front of a post-norm are set over its divisor, which stays that of the pass, as all shares are.
    Raises `InputError` for coordinates of another size and a role without task.

    >>> model, task, causal = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32), cm.causal.ready("known-ioi")
    >>> place = cm.causal.whole(model, "a1.h0@end", "repeated")
    >>> means = cm.causal.value_means(model, task, causal, place)
    >>> prompt = {"input_ids": torch.tensor([model.encode("Ann and Bob met then Bob gave to")])}
    >>> with cm.causal.set_variable(model, place, means["Ann"]):
    ...     model.decode([int(model.hf(**prompt).logits[0, -1].argmax())])
    'Bob'
    """
    place = Place.parse(subspace.place, model)
    sizes, given = [basis.shape[1] for basis in subspace.bases], [len(part) for part in to]
    if sizes != given:
        raise InputError(
            f"{subspace.place} takes coordinates {sizes} by part, got {given}. Give value_means(...)[value]."
        )
    with model.locked(), ExitStack() as stack:
        for part, basis, target in zip(place.parts, subspace.bases, to, strict=True):
            positions = Positions.of(part.role if at is None else at, task)
            stack.enter_context(positions.followed(model))
            stack.enter_context(_changing(model, part, positions, _towards(basis, target)))
        yield


def _towards(basis: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Values with their coordinates in a subspace replaced."""

    def changed(values: Tensor) -> Tensor:
        x, directions = values.float(), basis.to(values.device)
        return (x + (target.to(x.device) - x @ directions) @ directions.T).to(values.dtype)

    return changed


def _changing(model: Model, part: Part, positions: Positions, changed: Callable[[Tensor], Tensor]) -> Any:
    """The change of one site, in force."""
    where = part.site

    def change(values: Tensor, _: Where) -> Tensor:
        return changed(values)

    def some(values: Tensor, _: Where) -> Tensor:
        new = values.clone()
        new[..., list(where.neurons)] = changed(values[..., list(where.neurons)])
        return new

    if where.kind in ("heads", "mlps"):
        node = Node.head(where.layer, where.head) if where.kind == "heads" else Node.mlp(where.layer)
        return changing_parts(model, [node], positions, change)
    if where.kind == NEURONS and model.blocks[where.layer].mlp_post is not None:
        return _changing_shares(model, where, positions, change)
    names = {
        "resid": f"a{where.layer}.resid_pre",
        "mid": f"a{where.layer}.resid_mid",
        NEURONS: f"m{where.layer}.hidden",
    }
    name = "final" if where.layer == len(model.blocks) else names.get(where.kind, str(where))
    acts: Change = some if where.kind == NEURONS else change
    return changing_site(model, site_of(model, name), positions, acts)


@contextmanager
def _changing_shares(model: Model, where: Site, positions: Positions, change: Change) -> Iterator[None]:
    """The change of neurons in front of a post-norm, in force: of what they write with over its divisor."""
    block, neurons, shares = model.blocks[where.layer], list(where.neurons), list[Tensor]()
    weights, out = block.neuron_weights(neurons), tap(model, site_of(model, f"m{where.layer}.out"))

    def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        shares[:] = [block.neuron_shares(args[0][..., neurons], output)]

    def put(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        before = apart(shares.pop(), positions)[:, :, None]
        new = changed_cells(before, (0,), positions, change)
        return None if new is None else (output + ((new - before)[:, :, 0] @ weights).view_as(output)).to(output.dtype)

    with hooked(block.mlp_writer.register_forward_hook, look), hooked(out.module.register_forward_hook, put):
        yield
