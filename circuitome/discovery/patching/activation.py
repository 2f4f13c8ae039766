"""Activation patching: put one part's activation from one prompt into the run on the other, and see what it does.

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
from circuitome.engine.batches import check_aligned, first_difference
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import Inputs
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
    recomputes, but for the divisor of a post-norm, which stays when heads in front of it are patched (`BlockStep`).
    Raises `UnknownNameError` for another part or direction, `InputError` for "resid" without positions.
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
            both = -readout(batch.clean.at_read(torch.stack([clean.final, batch.corrupted.final]))).cpu()
            plain[:, list(batch.rows)] = both
            base, donor = (clean, batch.corrupted) if direction == "noise" else (batch.corrupted, clean)
            unpatched = both[0 if direction == "noise" else 1]
            run = PartialForward(model, batch.clean, base)
            copies = dense_copies(model, batch.clean, setting.max_memory)
            for some, final in _runs(run, batch.clean, donor, what, sites, copies):
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
    run: PartialForward, inputs: Inputs, donor: ActivationCache, what: str, sites: Sequence[Site], copies: int
) -> Iterator[tuple[Sequence[Site], Float[Tensor, "site batch d_model"]]]:
    """Sites in groups of up to `copies`, with the final residual of each patched run."""
    offsets = torch.arange(inputs.ids.shape[1], device=inputs.read.device) - inputs.read[:, None]
    for layer in range(run.graph.n_layers):
        change = _change(run, donor, what, layer)
        here = [site for site in sites if site.layer == layer]
        for start in range(0, len(here), copies):
            some = here[start : start + copies]
            patched = torch.stack([torch.ones_like(offsets) if s.offset is None else offsets == s.offset for s in some])
            moved = change[[site.head or 0 for site in some]] * patched[..., None]
            if what == "resid":
                yield some, run.resid(layer, (run.activations.resid_pre[layer] + moved).to(run.model.dtype))
            else:
                yield some, run.written(Node.mlp(layer) if what == "mlps" else Node("attention", layer), moved)


def _change(
    run: PartialForward, donor: ActivationCache, what: str, layer: int
) -> Float[Tensor, "head batch pos d_model"]:
    """What each head writes in the donor minus what it writes in the run; of MLPs and the stream as if of one head."""
    if what != "heads":
        new, old = (a.mlp_out[layer] if what == "mlps" else a.resid_pre[layer] for a in (donor, run.activations))
        return (new.float() - old.float())[None]
    new, old = (recorded_heads(run.model, a, layer) for a in (donor, run.activations))
    return torch.einsum("bphe,hed->hbpd", new - old, run.model.blocks[layer].head_weights())
