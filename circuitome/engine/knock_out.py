"""The whole model with some writers' outputs ablated for all their readers at once, everything else reacting.

Cutting every edge that leaves a writer is one change to the residual stream, so the model's own pass does it, many sets
of writers at a time: no sum over edges. Source: Wang et al. 2022, arXiv:2211.00593, section 2.1 (knock-outs).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.ablation import scaled_heads
from circuitome.engine.circuit_run import Baseline
from circuitome.models.model import Call, Model


class KnockOut:
    """Knock-outs on one batch of prompts."""

    def __init__(self, model: Model, base: Baseline) -> None:
        """`base` gives the prompts and what an ablated writer writes."""
        self.model, self.base, self.graph = model, base, model.graph
        self.calls: dict[int, list[Call]] = {1: base.calls}
        read = base.batch.clean.read
        self.at_read = torch.arange(len(read), device=read.device), read

    def final(self, sets: Bool[Tensor, "copies writers"]) -> Float[Tensor, "copies batch d_model"]:
        """Residual in front of the final norm, at the position read, with each set of writers ablated.

        The same as a circuit run of all edges but those that leave the set.
        """
        base, copies = self.base, len(sets)
        sets = sets.to(base.clean_embed.device)
        gone = sets[:, 0].view(-1, 1, 1, 1)
        x = torch.where(gone, base.ablated.embed, base.clean_embed).to(self.model.dtype).flatten(0, 1)
        for layer in range(self.graph.n_layers):
            x = self._block(layer, x, sets)
        return x.unflatten(0, (copies, -1))[:, *self.at_read].float()

    def _block(self, layer: int, x: Tensor, sets: Bool[Tensor, "copies writers"]) -> Tensor:
        block, copies = self.model.blocks[layer], len(sets)
        out, extra = self._attention(layer, x, sets[:, self.graph.head_rows(layer)])
        written = out if block.attention_post is None else block.attention_post.module(out)
        middle = x + written if extra is None else x + written + extra
        mlp = block.run_mlp(x if self.graph.parallel else middle)
        gone = sets[:, self.graph.mlp_row(layer)]
        if bool(gone.any()):
            ablated = self.base.ablated.mlps[layer].to(mlp.dtype)
            mlp = torch.where(gone.view(-1, 1, 1, 1), ablated, mlp.unflatten(0, (copies, -1))).flatten(0, 1)
        return middle + mlp

    def _attention(self, layer: int, x: Tensor, gone: Bool[Tensor, "copies head"]) -> tuple[Tensor, Tensor | None]:
        """What the attention gives in front of its post-norm, and what the ablated heads change behind it."""
        block, copies = self.model.blocks[layer], len(gone)
        call, normed = self._calls(copies)[layer], block.attend_inputs(x)
        if not bool(gone.any()):
            return block.attention(normed, *call[0], **call[1])[0], None
        values = block.split([module(normed) for module in block.projections])
        z = self.model.attend(layer, values, call).flatten(-2)
        out = block.output(z)
        change = self.base.ablated.heads[layer] - scaled_heads(self.model, layer, z, out).unflatten(0, (copies, -1))
        change = change * gone[:, None, None, :, None]
        return out, (change.flatten(0, 1).flatten(-2) @ block.head_weights().flatten(0, 1)).to(x.dtype)

    def _calls(self, copies: int) -> list[Call]:
        """How each block calls its attention on several copies of the prompts."""
        if copies not in self.calls:
            clean = self.base.batch.clean
            self.calls[copies] = self.model.attention_calls(clean.joined(*[clean] * (copies - 1)))
        return self.calls[copies]
