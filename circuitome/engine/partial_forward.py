"""The rest of a model's pass from some block on, with everything downstream free to change, for many states at a time.

What a patch does to the whole model needs no pass from the start: up to the patched block the clean values stand.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.batches import DEFAULT_MEMORY
from circuitome.models.inputs import Inputs
from circuitome.models.model import Call, Model
from circuitome.models.norms import Norm

MOST_COPIES = 16
"""States that are computed together at most; more are no faster."""

Override = Callable[[Tensor], Tensor]
"""Given q, k and v of a block [copies, batch, pos, reader, d_head], gives them changed."""


def dense_copies(model: Model, inputs: Inputs, max_memory: int | None) -> int:
    """How many copies of a batch to carry on together."""
    prefix = inputs.mask.numel() * 2 * model.heads.kv * model.heads.width * len(model.blocks)
    width = getattr(model.hf.config, "intermediate_size", None) or 4 * model.d_model
    each = 4 * (inputs.ids.numel() * (8 * model.d_model + 3 * width) + prefix)
    return max(1, min(MOST_COPIES, (DEFAULT_MEMORY if max_memory is None else max_memory) // each))


class PartialForward:
    """Carries several copies of one batch through the later blocks of a model."""

    def __init__(self, model: Model, inputs: Inputs) -> None:
        """Copies of `inputs`, whose token ids no longer matter: only their masks, positions and prefix do."""
        self.model, self.inputs = model, inputs
        self.calls: dict[int, list[Call]] = {}
        self.rows = torch.arange(len(inputs.read), device=inputs.read.device)

    def from_z(
        self,
        layer: int,
        resid: Float[Tensor, "batch pos d_model"],
        mlp_out: Float[Tensor, "batch pos d_model"],
        z: Float[Tensor, "copies batch pos heads_d_head"],
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the position read when the heads of a block put out `z`.

        `resid` is what the block's attention read, `mlp_out` what its MLP wrote before (which stands where blocks are
        parallel).
        """
        block = self.model.blocks[layer]
        out = block.output(z.flatten(0, 1))
        middle = resid + _normed(block.attention_post, out).unflatten(0, z.shape[:2])
        return self.from_middle(layer, middle, mlp_out)

    def from_middle(
        self, layer: int, middle: Float[Tensor, "copies batch pos d_model"], mlp_out: Tensor | None = None
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual when `middle` is the stream after a block's attention.

        `mlp_out`, where given, is what a parallel block's MLP writes, which does not see its attention.
        """
        last = layer == len(self.model.blocks) - 1
        if last:
            middle = middle[:, self.rows, self.inputs.read][:, :, None]
        if self.model.graph.parallel and mlp_out is not None:
            return self.from_block(layer + 1, middle + (self._at_read(mlp_out) if last else mlp_out))
        written = self.model.blocks[layer].run_mlp(middle.flatten(0, 1))
        return self.from_block(layer + 1, middle + written.unflatten(0, middle.shape[:2]))

    def _at_read(self, whole: Tensor) -> Tensor:
        return whole[self.rows, self.inputs.read][:, None]

    def from_block(
        self,
        layer: int,
        resid: Float[Tensor, "copies batch pos d_model"],
        overrides: Mapping[int, Override] | None = None,
        mlps: Mapping[int, Override] | None = None,
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual when `resid` is the stream in front of a block.

        `overrides` change q, k and v, and `mlps` the MLP's input [copies, batch, pos, d_model], of some blocks.
        """
        copies, batch = resid.shape[:2]
        if layer == len(self.model.blocks):
            return resid[:, :, 0] if resid.shape[2] == 1 else resid[:, self.rows, self.inputs.read]
        x = resid.flatten(0, 1)
        for index in range(layer, len(self.model.blocks)):
            x = self._block(index, x, copies, (overrides or {}).get(index), (mlps or {}).get(index))
        return (
            x.view(copies, batch, -1)
            if x.shape[1] == 1
            else x.unflatten(0, (copies, batch))[:, self.rows, self.inputs.read]
        )

    def _block(self, layer: int, x: Tensor, copies: int, override: Override | None, mlp: Override | None) -> Tensor:
        block, call = self.model.blocks[layer], self.calls_for(copies)[layer]
        normed = block.attend_inputs(x)
        if override is None:
            out = block.attention(normed, *call[0], **call[1])[0]
        else:
            values = block.split([module(normed) for module in block.projections])
            values = override(values.unflatten(0, (copies, -1))).flatten(0, 1)
            out = block.output(self.model.attend(layer, values, call).flatten(-2))
        middle = x + _normed(block.attention_post, out)
        seen = x if self.model.graph.parallel else middle
        if layer == len(self.model.blocks) - 1:  # only one position is read from here on
            read, rows = self.inputs.read.repeat(copies), torch.arange(len(x), device=x.device)
            middle, seen = middle[rows, read][:, None], seen[rows, read][:, None] if mlp is None else seen
        if mlp is not None:
            seen = mlp(seen.unflatten(0, (copies, -1))).flatten(0, 1)
            if middle.shape[1] == 1 < seen.shape[1]:
                seen = seen[rows, read][:, None]
        return middle + block.run_mlp(seen)

    def calls_for(self, copies: int) -> list[Call]:
        """How each block calls its attention on several copies of the batch."""
        if copies not in self.calls:
            self.calls[copies] = self.model.attention_calls(self.inputs.joined(*[self.inputs] * (copies - 1)))
        return self.calls[copies]


def _normed(post: Norm | None, out: Tensor) -> Tensor:
    return out if post is None else post.module(out)
