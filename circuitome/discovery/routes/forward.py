"""One forward pass seen as sums: for every block, the residual streams and the parts that were added to them.

Sequential blocks have two sums a position, parallel ones (NeoX) one:

    mid  = pre + sum over heads and keys of A v W_O + b_O          post = mid + MLP + b_out
    post = pre + sum over heads and keys of A v W_O + b_O + MLP + b_out

Values hold their bias b_V, once: a head's probabilities sum to 1. Under a post-norm every part is its share under the
norm's divisor at that position, so that parts still sum exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.routes.proximity import VECTOR_NUMBERS
from circuitome.models.activations import ActivationCache
from circuitome.models.attention import attention_rows, replaceable
from circuitome.models.inputs import Inputs
from circuitome.models.model import Call, Model

PATTERN_NUMBERS = 64_000_000
"""Attention probabilities of one block that are computed together: 256 MB. Of more, only the rows that are needed."""


def route_bytes(model: Model, tokens: int) -> int:
    """About what a route through so many tokens takes beside the weights; the rows of attention that it reaches aside.

    tokens (s L (3 d + r + z) + 4 z) + 4 min(q d tokens, 64 million) bytes, for L blocks of width d, q heads, r numbers
    of q, k and v and z of the heads' outputs, of s bytes: all that the pass showed, and what the heads of one block
    write at keys. Within a tenth of the tensors that are made (tests/engine/test_meta.py).
    """
    heads, d = model.heads, model.d_model
    z = heads.q * heads.width
    shown = model.dtype.itemsize * len(model.blocks) * (3 * d + heads.readers * heads.width + z)
    return tokens * (shown + 4 * z) + 4 * min(heads.q * d * tokens, VECTOR_NUMBERS)


@dataclass
class RoutePass:
    """Residual streams, attention patterns and values of a batch, block by block; float32."""

    model: Model
    """The model that ran."""
    inputs: Inputs
    """The batch."""
    activations: ActivationCache
    """What the pass showed."""

    @classmethod
    def of(cls, model: Model, inputs: Inputs) -> "RoutePass":
        """Run a batch once, without gradients. The activations's logits are those at `inputs.read`."""
        with torch.no_grad():
            return cls(model, inputs, model.record(inputs))

    @cached_property
    def calls(self) -> list[Call]:
        """How blocks call their attention when it is computed in the open."""
        with self.model.eager_attention():
            return self.model.attention_calls(self.inputs)

    @property
    def parallel(self) -> bool:
        """Whether a block has one sum in place of two."""
        return self.model.graph.parallel

    def pre(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream in front of a block; `layer` may be the number of blocks."""
        if layer < len(self.model.blocks):
            return self.activations.resid_pre[layer].float()
        assert self.activations.final is not None
        return self.activations.final.float()

    def mid(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream that a sequential block's MLP reads."""
        return self.activations.resid_mid[layer].float()

    def mlp(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP's neurons add to the stream: its output without the bias."""
        out, bias = self.activations.mlp_out[layer].float(), self.model.blocks[layer].mlp_bias()
        return out if bias is None else out - bias

    def mlp_bias(self, layer: int) -> Float[Tensor, " d_model"]:
        """The MLP's bias, 0 without one. No supported family has one under a post-norm."""
        return self._or_zero(self.model.blocks[layer].mlp_bias())

    def attention_bias(self, layer: int) -> Float[Tensor, " d_model"]:
        """The bias of the output projection, 0 without one."""
        return self._or_zero(self.model.blocks[layer].output_bias())

    def _or_zero(self, bias: Tensor | None) -> Tensor:
        return torch.zeros(self.model.d_model, device=self.model.device) if bias is None else bias

    @torch.no_grad()
    def pattern(self, layer: int, places: Sequence[int] | None = None) -> Float[Tensor, "batch query head key"]:
        """Attention probabilities, over the post-norm's divisor at the query where there is one.

        Of all queries, or of those at `places`: of long prompts, whose whole pattern would be large, no others are
        then computed, so that memory grows with the places times the tokens.
        """
        block, values = self.model.blocks[layer], self.model.blocks[layer].split(self.activations.projected[layer])
        where = torch.tensor(range(values.shape[1]) if places is None else places, device=values.device)
        if places is not None and self._long():
            pattern = attention_rows(self.model, layer, values, self.calls[layer], where)
        else:
            pattern = self.model.attention_pattern(layer, values, self.calls[layer])[:, :, where]
        pattern = pattern.float().transpose(1, 2)
        if block.attention_post is None:
            return pattern
        return pattern / block.attention_post.sigma(self.activations.attention_out[layer][:, where])[..., None]

    def _long(self) -> bool:
        batch, pos = self.inputs.ids.shape
        return batch * self.model.heads.q * pos**2 > PATTERN_NUMBERS and replaceable(self.model)

    def values(self, layer: int) -> Float[Tensor, "batch head key d_head"]:
        """What each query head reads at each key; query heads that share a key/value head read the same."""
        heads = self.model.heads
        kv = [self.model.graph.kv_head(head) for head in range(heads.q)]
        split = self.model.blocks[layer].split(self.activations.projected[layer])
        return split[:, :, heads.q + heads.kv :][:, :, kv].float().transpose(1, 2).contiguous()
