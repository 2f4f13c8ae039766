"""The whole model with some writers' outputs ablated for all their readers at once, everything else reacting.

Cutting every edge that leaves a writer is one change to the residual stream, so the model's own pass does it, many sets
of writers at a time: no sum over edges. Source: Wang et al. 2022, arXiv:2211.00593, section 2.1 (knock-outs).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.block_step import BlockStep, Change, Edit
from circuitome.engine.circuit_run import Baseline
from circuitome.models.model import Model


class KnockOut:
    """Knock-outs on one batch of prompts."""

    def __init__(self, model: Model, base: Baseline) -> None:
        """`base` gives the prompts and what an ablated writer writes."""
        self.model, self.base = model, base
        self.steps = BlockStep(model, base.batch.clean, base.calls)

    def final(self, sets: Bool[Tensor, "copies writers"]) -> Float[Tensor, "copies batch d_model"]:
        """Residual in front of the final norm, at the position read, with each set of writers ablated.

        The same as a circuit run of all edges but those that leave the set.
        """
        sets = sets.to(self.base.clean_embed.device)
        x = torch.where(sets[:, 0].view(-1, 1, 1, 1), self.base.ablated.embed, self.base.clean_embed)
        edits = {layer: self._edit(layer, sets) for layer in range(self.model.graph.n_layers)}
        return self.steps.run(x.to(self.model.dtype), edits=edits).float()

    def _edit(self, layer: int, sets: Bool[Tensor, "copies writers"]) -> Edit:
        """A block's heads and MLP ablated in the copies whose set holds them."""
        graph, ablated = self.model.graph, self.base.ablated
        heads, mlp = sets[:, graph.head_rows(layer)], sets[:, graph.mlp_row(layer)]
        neurons = sets[:, graph.mlp_rows(layer)][:, 1:]
        return Edit(
            heads=_swapped(heads[:, None, None, :, None], ablated.heads[layer]),
            mlp_out=_swapped(mlp[:, None, None, None], ablated.mlps[layer]),
            neurons=_swapped(neurons[:, None, None], ablated.neurons[layer]) if ablated.neurons else None,
            stream=self._stream(layer, sets),
        )

    def _stream(self, layer: int, sets: Bool[Tensor, "copies writers"]) -> Change | None:
        """The stream behind a block with some of its features, or what they leave of it, ablated."""
        described = self.model.described.get((layer, True))
        if described is None:
            return None
        gone = sets[:, self.model.graph.stages[layer][1].rows][:, None, None]
        ablated = self.base.ablated.stream(self.model, layer)
        parts = zip((gone[..., :1], gone[..., 1:]), ablated, strict=True)
        rest, features = (_swapped(which, values) or _same for which, values in parts)

        def change(x: Tensor) -> Tensor:
            values = described.values(self.model.blocks[layer], x, x)
            left = rest(x.float() - values @ described.weights)
            return (left + features(values) @ described.weights).to(x.dtype)

        return change if bool(gone.any()) else None


def _same(online: Tensor) -> Tensor:
    return online


def _swapped(gone: Bool[Tensor, "copies ..."], ablated: Tensor) -> Change | None:
    """Puts the ablated value in place where a writer is gone; None where none is."""
    return (lambda online: torch.where(gone, ablated.to(online.dtype), online)) if bool(gone.any()) else None
