"""Prompts from one named position on, to be changed there: all tokens before it stand in a cache.

Under causal attention a change at a position reaches no earlier one. So only the tokens from there to the one that is
read run again, and of the blocks only those behind the change. At the last token, that is one token a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache

from circuitome.engine.batches import make_batch
from circuitome.engine.partial_forward import PartialForward
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import FrozenLayer, Inputs
from circuitome.models.model import Model
from circuitome.tasks.task import Task


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
    """Recorded prompts, each from a position of its own on; `final` runs them on from a change there."""

    def __init__(
        self, model: Model, run: Passes, at: Int[Tensor, " batch"], blocks: Sequence[int] | None = None
    ) -> None:
        """`at` is the position in each prompt where it is changed; none lies behind the one that is read.

        Only in some `blocks` will there be changes; None: in all.
        """
        self.model, whole = model, run.inputs
        at = at.to(whole.ids.device)
        cut = at if model.causal else torch.zeros_like(at)
        ends = whole.read + 1 if model.causal else whole.mask.sum(1)
        index = cut[:, None] + torch.arange(int((ends - cut).max()), device=cut.device)
        real, index = index < ends[:, None], torch.minimum(index, ends[:, None] - 1)
        width = int(cut.max())
        early = cut[:, None] - width + torch.arange(width, device=cut.device)
        mask = torch.cat([early >= 0, real], 1).long()
        cache = _cache(run.before, early.clamp(min=0)) if width else None
        inputs = Inputs(whole.ids.gather(1, index), mask, whole.positions.gather(1, index), whole.read - cut, cache)
        steps = torch.arange(index.shape[1], device=cut.device)
        self.here = (steps == (at - cut)[:, None]).float()[..., None]
        self.activations = _picked(run.activations, index, range(len(model.blocks)) if blocks is None else blocks)
        self.rest = PartialForward(model, inputs, self.activations)

    def final(
        self, kind: str, layer: int, change: Float[Tensor, "copies batch d_model"]
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the token that is read when `change` is added at a site of this kind, at the position."""
        placed = change[:, :, None] * self.here
        if kind == "resid":
            resid = (self.activations.resid_post(layer - 1) + placed).to(self.model.dtype)
            last = layer == len(self.model.blocks)
            return self.rest.steps.at_read(resid) if last else self.rest.resid(layer, resid)
        return self.rest.written(Node.mlp(layer) if kind == "mlps" else Node("attention", layer), placed)


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
