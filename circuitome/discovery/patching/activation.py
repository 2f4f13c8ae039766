"""Activation patching: put one part's activation from one prompt into the run on the other, and see what it does.

    effect = metric(patched) - metric(unpatched), per prompt.

Two directions: "noise" breaks the clean run with corrupted activations (what is needed), "denoise" repairs the
corrupted run with clean ones (what is enough). Source: Wang et al. 2022, arXiv:2211.00593; Heimersheim & Nanda 2024,
arXiv:2404.15255.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import recorded_heads
from circuitome.engine.batches import Batch, check_aligned, first_difference
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
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

    `what` is heads, mlps or resid. Rows of the map are layers; columns are heads, "mlp", or, with `by_position` (always
    for resid; with heads, rows are heads), positions counted back from the one that is read: 0, -1, ...
    Effects are per prompt, in the metric's unit: negative in direction "noise" where the part helps, positive in
    "denoise". Everything after the patch recomputes, but for the divisor of a post-norm, which stays when heads in
    front of it are patched (`BlockStep`). Costs a part of a forward pass for every cell.

    Raises `UnknownNameError` for another part or direction, `InputError` for resid without positions or prompts of a
    pair that differ in length, `NumericsError` where the metric is not finite.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> effects = cm.patch(model, task, "heads", direction="denoise")
    >>> effects.top(1)[0][0], round(float(effects.share()[2, 0]), 2)
    ('a2.h0', 1.67)
    """
    if what not in WHAT:
        raise unknown_name("part", what, WHAT)
    if direction not in DIRECTIONS:
        raise unknown_name("direction", direction, DIRECTIONS)
    if what == "resid" and by_position is False:
        raise InputError("Patching the whole residual stream swaps the prompts; patch it by position.")
    model, task = setting.model, setting.task
    check_aligned(task)
    sites, rows, columns = _layout(model, what, _offsets(model, task) if what == "resid" or by_position else [None])
    name, done = f"patching {what}, {direction}", 0
    samples, plain = torch.zeros(len(task), len(rows), len(columns)), torch.empty(2, len(task))
    with torch.no_grad():
        for batch in setting.but(ablation="corrupted").batches():
            runs = _Patching(setting, batch, what, direction)
            plain[:, list(batch.rows)] = runs.plain.cpu()
            for site, effect in runs.effects(sites):
                samples[list(batch.rows), site.cell[0], site.cell[1]] = effect.cpu()
                done += len(batch.rows)
                setting.progress(name, done, len(sites) * len(task))
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
    if model.causal:
        first, last = min(first_difference(pair) - pair.answer_position for pair in task.pairs), 0
    else:
        first = min(-pair.answer_position for pair in task.pairs)
        last = max(len(pair.clean) - 1 - pair.answer_position for pair in task.pairs)
    return list(range(min(first, 0), last + 1))


def _layout(
    model: Model, what: str, offsets: Sequence[int | None]
) -> tuple[list[Site], tuple[str, ...], tuple[str, ...]]:
    """The places to patch layer by layer, and the labels of the map's rows and columns."""
    layers, heads = range(len(model.blocks)), range(model.heads.q)
    if what == "heads" and offsets == [None]:
        sites = [Site(layer, head, None, (layer, head)) for layer in layers for head in heads]
        return sites, tuple(str(Node("attention", layer)) for layer in layers), tuple(f"h{head}" for head in heads)
    parts: list[tuple[int, int | None, str]]
    if what == "heads":
        parts = [(layer, head, str(Node.head(layer, head))) for layer in layers for head in heads]
    else:
        parts = [(layer, None, str(Node.mlp(layer)) if what == "mlps" else f"resid{layer}") for layer in layers]
    sites = [
        Site(layer, head, offset, (row, column))
        for row, (layer, head, _) in enumerate(parts)
        for column, offset in enumerate(offsets)
    ]
    columns = ("mlp",) if offsets == [None] else tuple(str(offset) for offset in offsets)
    return sites, tuple(label for _, _, label in parts), columns


class _Patching:
    """The clean and the corrupted run on one batch, one of which gets parts of the other."""

    def __init__(self, setting: Setting, batch: Batch, what: str, direction: str) -> None:
        self.model, self.what = setting.model, what
        clean, corrupted, read = self.model.record(batch.clean), batch.corrupted, batch.clean.read
        assert corrupted is not None
        ends = torch.stack([run.resid_post(len(self.model.blocks) - 1) for run in (clean, corrupted)])
        self.readout = setting.readout(batch)
        self.plain = -self.readout(batch.clean.at_read(ends))
        noise = direction == "noise"
        self.base, self.donor = (clean, corrupted) if noise else (corrupted, clean)
        self.unpatched = self.plain[0 if noise else 1]
        self.rest = PartialForward(self.model, batch.clean, self.base)
        self.copies = dense_copies(self.model, batch.clean, setting.max_memory)
        self.offsets = torch.arange(batch.clean.ids.shape[1], device=read.device) - read[:, None]

    def effects(self, sites: Sequence[Site]) -> Iterator[tuple[Site, Float[Tensor, " batch"]]]:
        """Every site with the change of the metric when it is patched; several sites of a block run at once."""
        for layer in range(len(self.model.blocks)):
            here, change = [site for site in sites if site.layer == layer], self._change(layer)
            for start in range(0, len(here), self.copies):
                some = here[start : start + self.copies]
                yield from zip(some, -self.readout(self._final(layer, some, change)) - self.unpatched, strict=True)

    def _change(self, layer: int) -> Float[Tensor, "head batch pos d_model"]:
        """What each head writes in the donor minus what it writes in the run; MLP and stream as if of one head."""
        if self.what != "heads":
            new, old = (run.mlp_out if self.what == "mlps" else run.resid_pre for run in (self.donor, self.base))
            return (new[layer].float() - old[layer].float())[None]
        new_z, old_z = (recorded_heads(self.model, run, layer) for run in (self.donor, self.base))
        return torch.einsum("bphe,hed->hbpd", new_z - old_z, self.model.blocks[layer].head_weights())

    def _final(self, layer: int, sites: Sequence[Site], change: Tensor) -> Float[Tensor, "site batch d_model"]:
        """Final residual at the position read, with one site of a block patched in each copy."""
        everywhere = torch.ones_like(self.offsets, dtype=torch.bool)
        where = torch.stack([everywhere if s.offset is None else self.offsets == s.offset for s in sites])
        patched = change[[site.head or 0 for site in sites]] * where[..., None]
        if self.what == "resid":
            return self.rest.resid(layer, (self.base.resid_pre[layer] + patched).to(self.model.dtype))
        return self.rest.written(Node.mlp(layer) if self.what == "mlps" else Node("attention", layer), patched)
