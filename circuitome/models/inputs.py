"""What a model is given: token ids, masks and positions of a batch, and the keys and values of a prefix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class FrozenLayer(DynamicLayer):
    """A layer of a key/value cache that answers with its prefix and the new states, and keeps only the prefix.

    So one prefix serves any number of forward passes. Sliding windows need no other layer: the mask sees to them.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Prefix and new states, joined along the positions."""
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class OnePassLayer(DynamicLayer):
    """A layer of a cache for one forward pass, which keeps what it is given instead of a copy."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The states themselves."""
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states


@dataclass(frozen=True)
class Inputs:
    """Token ids of a batch, behind an optional prefix that is already in a cache."""

    ids: Int[Tensor, "batch pos"]
    """Token ids, padded on the right."""
    mask: Int[Tensor, "batch total"]
    """1 at real tokens, over prefix and `ids`; the prefix is padded on the left."""
    positions: Int[Tensor, "batch pos"]
    """Position of each token in its prompt."""
    read: Int[Tensor, " batch"]
    """Index into `ids` of the token after which the logits are read."""
    cache: Cache | None = None
    """Frozen keys and values of the prefix."""

    @classmethod
    def whole(cls, ids: Int[Tensor, "batch pos"]) -> "Inputs":
        """Prompts of one length, unpadded, read at the last token."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return cls(ids, torch.ones_like(ids), positions, torch.full_like(ids[:, 0], ids.shape[1] - 1))

    def joined(self, *others: "Inputs") -> "Inputs":
        """This batch and `others` behind it, all of one padded shape."""
        parts = (self, *others)
        if not others:
            return self
        cache = None
        if self.cache is not None:
            layers: list[Any] = list(zip(*(part.cache.layers for part in parts if part.cache), strict=True))
            cache = Cache([FrozenLayer(*(torch.cat(kv) for kv in _keys_values(layer))) for layer in layers])
        return Inputs(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat([part.read for part in parts]),
            cache,
        )

    def at_read(self, x: Float[Tensor, "*any batch pos d_model"]) -> Float[Tensor, "*any batch d_model"]:
        """A stream over `ids` at the token that is read."""
        return x[..., torch.arange(len(self.read), device=self.read.device), self.read, :]

    def real(self) -> Float[Tensor, "batch pos"]:
        """1.0 at real tokens of `ids`, 0.0 at padding."""
        return self.mask[:, -self.ids.shape[1] :].float()


def _keys_values(layers: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    return [layer.keys for layer in layers], [layer.values for layer in layers]
