"""Attention computed by a function of ours, between the model's own projections, norms and rotations."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from circuitome.errors import UnsupportedModelError
from circuitome.models.inputs import Inputs
from circuitome.models.model import Call, Model
from circuitome.models.placement import at_home

NAME = "circuitome"
"""What transformers knows our attention by."""


@dataclass(frozen=True)
class AttentionCall:
    """How a block wants its attention computed."""

    layer: int
    """The block."""
    scaling: float
    """What q . k is multiplied by."""
    softcap: float | None
    """Scores are softcap * tanh(score / softcap), where there is one."""
    window: int | None
    """Keys further back than this many positions, the query's own included, are not seen; None for no limit."""
    mask: Float[Tensor, "batch 1 query key"] | None
    """Added to the scores by the model's own rules; None where nothing is hidden."""

    def capped(self, scores: Tensor) -> Tensor:
        """Products q . k as the scores that the softmax is taken of, before any mask."""
        scores = scores * self.scaling
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


Attend = Callable[[AttentionCall, Tensor, Tensor, Tensor], Tensor]
"""From q [batch, head, query, d_head], k and v [batch, kv head, key, d_head] to z [batch, head, query, d_head]."""

Table = tuple[Float[Tensor, "1 pos rotary"], Float[Tensor, "1 pos rotary"]]
"""Cosines and sines of some positions."""

_OWN: "WeakKeyDictionary[nn.Module, tuple[int, Attend]]" = WeakKeyDictionary()


@contextmanager
def attending(model: Model, attend: Attend) -> Iterator[None]:
    """Inside, every forward pass has `attend` compute what the heads of each block mix.

    q and k arrive normed and rotated, as the model has them. Raises `UnsupportedModelError` for a model whose attention
    does not go through transformers' attention interface.
    """
    check_replaceable(model)
    AttentionInterface.register(NAME, _dispatch)
    AttentionMaskInterface.register(NAME, eager_mask)
    with model.reserved(), ExitStack() as stack:
        before = model.hf.config._attn_implementation
        model.hf.set_attn_implementation(NAME)
        stack.callback(model.hf.set_attn_implementation, before)
        for layer, block in enumerate(model.blocks):
            _OWN[block.attention] = layer, attend
            stack.callback(_OWN.pop, block.attention)
        yield


def check_replaceable(model: Model) -> None:
    """Raises `UnsupportedModelError` unless the model's attention can be computed by a function of ours."""
    if not replaceable(model):
        raise UnsupportedModelError(
            f"{model.name} ({model.hf.config.model_type}) computes its attention itself, outside of transformers' "
            "attention interface, so its cache and its attention weights cannot be changed. Use another model."
        )


def replaceable(model: Model) -> bool:
    """Whether the model's attention can be computed by a function of ours."""
    return hasattr(_code(model), "ALL_ATTENTION_FUNCTIONS")


def attention_rows(
    model: Model, layer: int, values: Float[Tensor, "batch pos reader d_head"], call: Call, rows: Int[Tensor, " row"]
) -> Float[Tensor, "batch head row key"]:
    """The attention probabilities of some queries of a block for given q, k and v; `call` as `attention_pattern` takes.

    Nothing is computed for the other queries. Raises as `attending`.
    """
    patterns: list[Tensor] = []

    def attend(how: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = None if how.mask is None else how.mask.expand(-1, -1, query.shape[2], -1)[:, :, rows]
        patterns.append(plain_attention(replace(how, mask=mask), query[:, :, rows], key, value)[1])
        return torch.zeros_like(query)

    with attending(model, attend):
        model.attend(layer, values, call)
    return patterns[0]


def rotation(model: Model) -> Callable[..., tuple[Tensor, Tensor]]:
    """The architecture's own rotary function (q, k, cos, sin) -> rotated q and k."""
    return _code(model).apply_rotary_pos_emb


def rotary_tables(model: Model, positions: Int[Tensor, " pos"]) -> list[Table | None]:
    """Cosines and sines of each block at some positions, as the model makes them; None without rotations."""
    at = positions.to(model.device)[None]
    calls = model.attention_calls(Inputs(torch.zeros_like(at), torch.ones_like(at), at, torch.zeros_like(at[:, 0])))
    return [kwargs.get("position_embeddings") for _, kwargs in calls]


def _code(model: Model) -> Any:
    """The module of transformers in which the model's attention is written."""
    return sys.modules[type(model.blocks[0].attention).__module__]


def mix(
    pattern: Float[Tensor, "batch head query key"], values: Float[Tensor, "batch kv key d_head"]
) -> Float[Tensor, "batch head query d_head"]:
    """Values mixed by attention probabilities, with each key/value head serving its group of heads."""
    return by_group(pattern, values.shape[1], values)


def by_group(x: Tensor, kv: int, other: Tensor) -> Tensor:
    """`x` [batch, head, query, a] times `other` [batch, kv head, a, b], group by group, without copies of `other`."""
    grouped = x.unflatten(1, (kv, -1))
    return (grouped.flatten(2, 3) @ other).unflatten(2, grouped.shape[2:4]).flatten(1, 2)


def plain_attention(
    call: AttentionCall,
    query: Float[Tensor, "batch head query d_head"],
    key: Float[Tensor, "batch kv key d_head"],
    value: Float[Tensor, "batch kv key d_head"],
) -> tuple[Float[Tensor, "batch head query d_head"], Float[Tensor, "batch head query key"]]:
    """The model's attention in the open: z and the probabilities; softmax in float32."""
    scores = call.capped(by_group(query, key.shape[1], key.transpose(-1, -2)))
    if call.mask is not None:
        scores = scores + call.mask
    pattern = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return mix(pattern, value), pattern


def _dispatch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    layer, attend = _OWN[module]
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        call = AttentionCall(layer, scaling, options.get("softcap"), options.get("sliding_window"), mask)
        return attend(call, query, key, value)

    return at_home(module, run)(query, key, value, attention_mask).transpose(1, 2).contiguous(), None
