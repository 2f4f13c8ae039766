"""The rest of a model's pass from where something is changed in it, everything downstream free to change.

What a patch does to the whole model needs no pass from the start: up to the patched block the recorded values stand.
Several changes are carried on together, as copies of the batch.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from circuitome.engine.batches import memory_budget
from circuitome.engine.block_step import BlockStep, Edit
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model

MOST_COPIES = 16
"""States that are computed together at most on the CPU, where more are no faster."""


def most_copies(model: Model) -> int:
    """How many states to compute together at most: on other devices small passes leave most of the device idle."""
    return MOST_COPIES if model.device.type == "cpu" else 8 * MOST_COPIES


def prefix_bytes(model: Model, inputs: Inputs) -> int:
    """Keys and values of one copy of a batch's prefix, at all blocks."""
    return inputs.mask.numel() * 2 * model.heads.kv * model.heads.width * len(model.blocks) * model.dtype.itemsize


def dense_copies(model: Model, inputs: Inputs, max_memory: int | None) -> int:
    """How many copies of a batch to carry on together."""
    each = 4 * inputs.ids.numel() * (8 * model.d_model + 3 * model.mlp_width) + prefix_bytes(model, inputs)
    budget = memory_budget(model, max_memory)
    if max_memory is not None:
        budget -= inputs.ids.numel() * model.bytes_per_token(gradients=False)  # what the batch holds already
    return max(1, min(most_copies(model), budget // each))


class PartialForward:
    """One recorded pass, run on from any change. Each method gives the final residual [copies, batch, d_model]."""

    def __init__(self, model: Model, inputs: Inputs, activations: ActivationCache) -> None:
        """`activations` is a pass over prompts with the masks, positions, prefix and `read` of `inputs`."""
        self.model, self.graph, self.activations = model, model.graph, activations
        self.steps = BlockStep(model, inputs)

    def written(
        self, writer: Node, change: Float[Tensor, "copies batch pos d_model"]
    ) -> Float[Tensor, "copies batch d_model"]:
        """When the heads or the MLP of a block write `change` more than they did.

        `writer` is any head of the block, its attention or its MLP. See `BlockStep` for what a head's share is.
        """
        activations, dtype = self.activations, self.model.dtype
        if writer.kind == "mlp" or self.graph.parallel:
            return self.steps.run((activations.resid_post(writer.layer) + change).to(dtype), writer.layer + 1)
        middle = (activations.resid_mid[writer.layer] + change).to(dtype)
        return self.steps.run(self.steps.behind_attention(writer.layer, middle, middle), writer.layer + 1)

    def resid(
        self, layer: int, resid: Float[Tensor, "copies batch pos d_model"]
    ) -> Float[Tensor, "copies batch d_model"]:
        """When the stream in front of a block is `resid`."""
        return self.steps.run(resid, layer)

    def seen(
        self, inputs: Mapping[int, Float[Tensor, "copies rows d_model"]], where: Mapping[int, Tensor | slice]
    ) -> Float[Tensor, "copies batch d_model"]:
        """When some readers see `inputs`, by column, at the positions `where` (of batch * pos) and the rest follows.

        The logits are no such reader.
        """
        graph, layers = self.graph, {self.graph.reader_layer[column] for column in inputs}
        edits = {layer: self._edit(layer, inputs, where) for layer in layers}
        copies, start = len(next(iter(inputs.values()))), min(layers)
        before = self.activations.resid_pre[start].expand(copies, -1, -1, -1)
        if edits[start].values is not None:
            return self.steps.run(before, start, edits)
        # Only the MLP sees something else: what the attention of its block wrote stands.
        middle = self.activations.resid_post(start) - self.activations.mlp_out[start]
        middle = (middle if graph.parallel else self.activations.resid_mid[start]).expand(copies, -1, -1, -1)
        after = self.steps.behind_attention(start, middle, before if graph.parallel else middle, edits[start])
        return self.steps.run(after, start + 1, edits)

    def _edit(self, layer: int, inputs: Mapping[int, Tensor], where: Mapping[int, Tensor | slice]) -> Edit:
        """What readers of one block make of what they see, in its place."""
        span, mlp = self.graph.attention_columns(layer), self.graph.mlp_column(layer)
        online = {
            column: self.steps.read(layer, [column - span.start], x.flatten(0, 1)[None])[0].unflatten(0, x.shape[:2])
            for column, x in inputs.items()
            if span.start <= column < span.stop
        }

        def values(whole: Tensor) -> Tensor:
            changed = whole.flatten(1, 2).clone()
            for column, new in online.items():
                changed[:, where[column], column - span.start] = new
            return changed.view_as(whole)

        def mlp_in(whole: Tensor) -> Tensor:
            changed = whole.flatten(1, 2).clone()
            changed[:, where[mlp]] = inputs[mlp].to(whole.dtype)
            return changed.view_as(whole)

        return Edit(values=values if online else None, mlp_in=mlp_in if mlp in inputs else None)
