"""Prompts from one named position on, to be changed there: all tokens before it stand in a cache.

Under causal attention a change at a position reaches no earlier one. So only the tokens from there to the one that is
read run again, and of the blocks only those behind the change. At the last token, that is one token a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from circuitome.causal.sites import NEURONS, Site, places_of, reader
from circuitome.engine.batches import make_batch
from circuitome.engine.block_step import UNCHANGED, Edit
from circuitome.engine.partial_forward import PartialForward
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import FrozenLayer, Inputs
from circuitome.models.model import Model
from circuitome.tasks.task import Task

Replace = Callable[[Float[Tensor, "batch most width"]], Float[Tensor, "batch most width"]]
"""What is added to the value of a site at the tokens of a role, given that value; float32."""
Slots = Float[Tensor, "batch most pos"]
"""1.0 where a token of a role stands among the tokens that run."""


@dataclass(frozen=True)
class Passes:
    """A recorded pass over whole prompts, with its keys and values."""

    rows: tuple[int, ...]
    """Which prompts of the task."""
    inputs: Inputs
    """The prompts, padded on the right."""
    activations: ActivationCache
    """What the pass showed."""
    before: list[tuple[Tensor, Tensor]]
    """Keys and values [batch, kv head, pos, d_head] of every block; none of a model that is not causal."""


def passed(model: Model, task: Task, rows: Sequence[int]) -> Passes:
    """The clean prompts `rows`, run and recorded."""
    inputs = make_batch(model, task, rows, shared_prefix=False, corrupted=False).clean
    with torch.no_grad():
        if not model.causal:
            return Passes(tuple(rows), inputs, model.record(inputs, logits=False), [])
        cache = model.new_cache()
        activations = model.record(replace(inputs, cache=cache), logits=False)
    return Passes(tuple(rows), inputs, activations, [(layer.keys, layer.values) for layer in cache.layers])


class Suffixes:
    """Recorded prompts, each from a position of its own on; `final` and `changed` run them on from a change there."""

    def __init__(
        self, model: Model, run: Passes, at: Int[Tensor, "batch most"], blocks: Sequence[int] | None = None
    ) -> None:
        """`at` are the positions in each prompt where it is changed, -1 where it has fewer; see `slots`.

        Only in some `blocks` will changes begin; None: in all.
        """
        self.model, whole = model, run.inputs
        at = at.to(whole.ids.device)
        first = at.masked_fill(at < 0, whole.ids.shape[1]).min(1).values
        self.cut = torch.minimum(first, whole.read) if model.causal else torch.zeros_like(first)
        ends = whole.read + 1 if model.causal else whole.mask.sum(1)
        index = self.cut[:, None] + torch.arange(int((ends - self.cut).max()), device=at.device)
        real, index = index < ends[:, None], torch.minimum(index, ends[:, None] - 1)
        width = int(self.cut.max())
        early = self.cut[:, None] - width + torch.arange(width, device=at.device)
        mask = torch.cat([early >= 0, real], 1).long()
        cache = _cache(run.before, early.clamp(min=0)) if width else None
        positions = whole.positions.expand_as(whole.ids).gather(1, index)
        inputs = Inputs(whole.ids.gather(1, index), mask, positions, whole.read - self.cut, cache)
        self.here = self.slots(at, index.shape[1])
        self.activations = _picked(run.activations, index, range(len(model.blocks)) if blocks is None else blocks)
        self.rest = PartialForward(model, inputs, self.activations)

    def slots(self, at: Int[Tensor, "batch most"], length: int | None = None) -> Slots:
        """Where positions of the whole prompts, -1 for none, stand among the tokens that run."""
        length = self.here.shape[2] if length is None else length
        at = at.to(self.cut.device)
        steps = torch.arange(length, device=at.device)
        return ((steps == (at - self.cut[:, None])[..., None]) & (at >= 0)[..., None]).float()

    def final(
        self, kind: str, layer: int, change: Float[Tensor, "copies batch most width"], heads: Sequence[int] = ()
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the token that is read when `change` is added at a site of this kind, at the positions.

        Of q, k and v, each copy changes the one of its head in `heads`; else `change` is what the stream gets.
        """
        placed = torch.einsum("bmp,cbmw->cbpw", self.here, change)
        if kind in ("q", "k", "v"):
            return self._reading(layer, [reader(self.model.graph, kind, head) for head in heads], placed)
        if kind == "resid":
            resid = (self.activations.resid_post(layer - 1) + placed).to(self.model.dtype)
            last = layer == len(self.model.blocks)
            return self.rest.steps.at_read(resid) if last else self.rest.resid(layer, resid)
        return self.rest.written(Node.mlp(layer) if kind == "mlps" else Node("attention", layer), placed)

    def _reading(self, layer: int, readers: list[int], placed: Tensor) -> Float[Tensor, "copies batch d_model"]:
        """When each copy's q, k or v is `placed` more."""
        copies = torch.arange(len(placed), device=placed.device)

        def values(whole: Tensor) -> Tensor:
            changed = whole.clone()
            changed[copies, :, :, readers] += placed.to(whole.dtype)
            return changed

        before = self.activations.resid_pre[layer].expand(len(placed), -1, -1, -1)
        return self.rest.steps.run(before, layer, {layer: Edit(values=values)})

    def changed(self, changes: Sequence[tuple[Site, Slots, Replace]]) -> Float[Tensor, "batch d_model"]:
        """Final residual at the token that is read when the values of some sites change one after another.

        Each change is given the value that its site has after the changes in front of it, at the positions of its
        slots; so a site that is set has the value that it is set to, whatever was changed before.
        """
        steps, last = self.rest.steps, len(self.model.blocks)
        start = min(site.layer for site, _, _ in changes)
        x = (self.activations.resid_post(last - 1) if start == last else self.activations.resid_pre[start])[None]
        for layer in range(start, last + 1):
            here = [change for change in changes if change[0].layer == layer]
            for _, slots, replaced in (change for change in here if change[0].kind == "resid"):
                x = _put(x, slots, replaced)
            if layer < last:
                whole = layer == last - 1 and any(site.layer == last for site, _, _ in changes)
                x = steps.block(layer, x, self._edit([change for change in here if change[0].kind != "resid"], whole))
        return steps.at_read(x)[0]

    def _edit(self, changes: Sequence[tuple[Site, Slots, Replace]], whole: bool) -> Edit:
        """The changes inside one block; `whole` keeps all positions of the last block."""
        kinds = {
            "middle": [c for c in changes if c[0].kind == "mid"],
            "heads": [c for c in changes if c[0].kind == "heads"],
            "values": [c for c in changes if c[0].kind in ("q", "k", "v")],
            "mlp_out": [c for c in changes if c[0].kind == "mlps"],
            "neurons": [c for c in changes if c[0].kind == NEURONS],
        }
        edits = {name: self._change(some) for name, some in kinds.items() if some}
        if whole and "mlp_out" not in edits:
            edits["mlp_out"] = lambda written: written
        return Edit(**edits) if edits else UNCHANGED

    def _change(self, changes: Sequence[tuple[Site, Slots, Replace]]) -> Callable[[Tensor], Tensor]:
        def change(values: Tensor) -> Tensor:
            for site, slots, replaced in changes:
                values = self._one(site, values, slots, replaced)
            return values

        return change

    def _one(self, site: Site, values: Tensor, slots: Slots, replaced: Replace) -> Tensor:
        """The values of a block with one site's changed."""
        if site.kind in ("mid", "mlps"):
            return _put(values, slots, replaced)
        index: list[int] | int = site.head
        if site.kind == NEURONS:
            index = places_of(self.model, site)
        elif site.kind != "heads":
            index = reader(self.model.graph, site.kind, site.head)
        copy = values.clone()
        if site.kind == NEURONS:
            copy[..., index] = _put(values[..., index], slots, replaced)
        else:
            copy[..., index, :] = _put(values[..., index, :], slots, replaced)
        return copy


def _put(x: Float[Tensor, "1 batch pos width"], slots: Slots, replaced: Replace) -> Tensor:
    """Values with the change made at the slots."""
    change = replaced(torch.einsum("bmp,bpw->bmw", slots, x[0].float()))
    return (x + torch.einsum("bmp,bmw->bpw", slots, change)).to(x.dtype)


def _cache(before: Sequence[tuple[Tensor, Tensor]], index: Int[Tensor, "batch pos"]) -> Cache:
    """Keys and values at some positions of each prompt."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    picked = [[part[rows, :, index].transpose(1, 2) for part in layer] for layer in before]
    return Cache([FrozenLayer(keys, values) for keys, values in picked])


def _picked(activations: ActivationCache, index: Int[Tensor, "batch pos"], blocks: Sequence[int]) -> ActivationCache:
    """The stream of a recorded pass in front of, inside and behind some blocks at some positions of each prompt."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    assert activations.final is not None, "the pass was recorded without its end"
    return ActivationCache(
        resid_pre=[
            resid[rows, index] if {layer, layer - 1} & {*blocks} else resid[:0]
            for layer, resid in enumerate(activations.resid_pre)
        ],
        resid_mid=[
            resid[rows, index] if layer in blocks else resid[:0] for layer, resid in enumerate(activations.resid_mid)
        ],
        final=activations.final[rows, index],
    )
