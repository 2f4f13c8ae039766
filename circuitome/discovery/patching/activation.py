"""Activation patching: put one part's activation from one prompt into the run on the other, and see what it does.

Two directions: "noise" breaks the clean run with corrupted activations (what is needed), "denoise" repairs the
corrupted run with clean ones (what is enough). Source: Wang et al. 2022, arXiv:2211.00593; Heimersheim & Nanda 2024,
arXiv:2404.15255.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitome.engine.batches import Batch, check_aligned, first_difference
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.model import Model
from circuitome.results import EffectMap
from circuitome.tasks.task import Task

WHAT = ("heads", "mlps", "resid")
DIRECTIONS = ("noise", "denoise")


@dataclass(frozen=True)
class Site:
    """One place to patch, and its cell of the map."""

    layer: int
    """Block."""
    head: int | None
    """Head of the block; None for an MLP or the residual stream in front of the block."""
    offset: int | None
    """Position, counted back from the one that is read (0); None for all."""
    cell: tuple[int, int]
    """Row and column of the map."""


@method
def patch(
    setting: Setting, what: str = "heads", *, direction: str = "noise", by_position: bool | None = None
) -> EffectMap:
    """The change of the metric when one part's output is patched, for every head, MLP or place of the residual stream.

    Rows are layers; columns are heads, "mlp", or, with `by_position` (always for "resid"; with heads, rows are heads),
    positions counted back from the one that is read: 0, -1, ... effect = metric(patched) - metric(unpatched), per
    prompt: negative in direction "noise" where the part helps, positive in "denoise". Everything after the patch
    recomputes. Raises `UnknownNameError` for another part or direction, `InputError` for "resid" without positions.
    """
    if what not in WHAT:
        raise unknown_name("part", what, WHAT)
    if direction not in DIRECTIONS:
        raise unknown_name("direction", direction, DIRECTIONS)
    if what == "resid" and by_position is False:
        raise InputError("Patching the whole residual stream swaps the prompts; patch it by position.")
    model, task = setting.model, setting.task
    check_aligned(task)
    positions = what == "resid" or bool(by_position)
    offsets = _offsets(model, task) if positions else [None]
    sites, rows, columns = _layout(model, what, offsets)
    samples = torch.zeros(len(task), len(rows), len(columns))
    plain = torch.empty(2, len(task))
    done = 0
    with torch.no_grad():
        for batch in setting.but(ablation="corrupted").batches():
            clean = model.record(batch.clean)
            assert batch.corrupted is not None and clean.final is not None and batch.corrupted.final is not None
            readout = Readout(model, task, batch.rows, "metric")
            at = torch.arange(len(batch.rows)), batch.clean.read
            finals = torch.stack([clean.final[at], batch.corrupted.final[at]])
            both = -readout(finals).cpu()
            plain[:, list(batch.rows)] = both
            base, donor = (clean, batch.corrupted) if direction == "noise" else (batch.corrupted, clean)
            unpatched = both[0 if direction == "noise" else 1]
            run = PartialForward(model, batch.clean)
            for some, final in _runs(model, run, batch, base, donor, what, sites, setting.max_memory):
                effects = -readout(final).cpu() - unpatched
                for site, effect in zip(some, effects, strict=True):
                    samples[list(batch.rows), site.cell[0], site.cell[1]] = effect
                done += len(some) * len(batch.rows)
                setting.progress(f"patching {what}, {direction}", done, len(sites) * len(task))
    name = f"patching {what}, {direction}"
    return EffectMap(
        name=name,
        axes=(rows, columns),
        samples=samples,
        clean=plain[0],
        corrupted=plain[1],
        unit=task.unit,
        groups=task.groups,
    )


def _offsets(model: Model, task: Task) -> list[int | None]:
    """Positions that can differ, counted back from the one read, first to last."""
    first = min(first_difference(pair) - pair.answer_position for pair in task.pairs)
    last = 0 if model.causal else max(len(pair.clean) - 1 - pair.answer_position for pair in task.pairs)
    first = first if model.causal else min(-pair.answer_position for pair in task.pairs)
    return list(range(min(first, 0), last + 1))


def _layout(
    model: Model, what: str, offsets: Sequence[int | None]
) -> tuple[list[Site], tuple[str, ...], tuple[str, ...]]:
    """The places to patch, and the labels of the map's rows and columns."""
    layers, heads = range(len(model.blocks)), range(model.heads.q)
    labels = tuple(str(offset) for offset in offsets)
    if what == "heads" and offsets == [None]:
        sites = [Site(layer, head, None, (layer, head)) for layer in layers for head in heads]
        return sites, tuple(str(Node("attention", layer)) for layer in layers), tuple(f"h{head}" for head in heads)
    if what == "heads":
        names = tuple(str(Node.head(layer, head)) for layer in layers for head in heads)
        return (
            [
                Site(layer, head, offset, (layer * len(heads) + head, i))
                for layer in layers
                for head in heads
                for i, offset in enumerate(offsets)
            ],
            names,
            labels,
        )
    rows = tuple((str(Node.mlp(layer)) if what == "mlps" else f"resid{layer}") for layer in layers)
    columns = ("mlp",) if offsets == [None] else labels
    return (
        [Site(layer, None, offset, (layer, i)) for layer in layers for i, offset in enumerate(offsets)],
        rows,
        columns,
    )


def _runs(
    model: Model,
    run: PartialForward,
    batch: Batch,
    base: ActivationCache,
    donor: ActivationCache,
    what: str,
    sites: Sequence[Site],
    max_memory: int | None,
) -> Iterator[tuple[Sequence[Site], Tensor]]:
    """Sites in groups, with the final residual [site, batch, d_model] of each patched run."""
    copies = dense_copies(model, batch.clean, max_memory)
    pos = batch.clean.ids.shape[1]
    where = torch.arange(pos, device=model.device)[None] - batch.clean.read[:, None]
    for layer in range(len(model.blocks)):
        here = [site for site in sites if site.layer == layer]
        for start in range(0, len(here), copies):
            some = here[start : start + copies]
            masks = torch.stack(
                [torch.ones_like(where, dtype=torch.bool) if s.offset is None else where == s.offset for s in some]
            )[..., None]
            yield some, _final(model, run, layer, base, donor, what, some, masks)


def _final(
    model: Model,
    run: PartialForward,
    layer: int,
    base: ActivationCache,
    donor: ActivationCache,
    what: str,
    some: Sequence[Site],
    masks: Tensor,
) -> Tensor:
    """Final residual with one site patched in each copy."""
    if what == "resid":
        return run.from_block(layer, torch.where(masks, donor.resid_pre[layer], base.resid_pre[layer]))
    if what == "mlps":
        out = torch.where(masks, donor.mlp_out[layer], base.mlp_out[layer])
        after = base.resid_pre[layer + 1] if layer + 1 < len(model.blocks) else base.final
        assert after is not None
        return run.from_block(layer + 1, after + (out - base.mlp_out[layer]))
    heads = torch.tensor([site.head for site in some], device=masks.device)
    own = torch.arange(model.heads.q, device=masks.device) == heads[:, None]
    z = [t.z[layer].unflatten(-1, (model.heads.q, -1)) for t in (donor, base)]
    mixed = torch.where((masks & own[:, None, None])[..., None], *z)
    return run.from_z(layer, base.resid_pre[layer], base.mlp_out[layer], mixed.flatten(-2))
