"""One block of a model, step by step: norm, q/k/v, attention, output, post-norm, MLP.

All that the engine computes of a block goes through `BlockStep`; circuit runs, masked runs, partial forwards and
knock-outs differ only in what they give it. A block has two kinds of nodes:

heads  read the stream of `Streams.resid_pre`, normed, through q and through k and v of their key/value head; attention
       turns these into z. A head writes z / divisor @ `Block.head_weights`, with the divisor of the block's post-norm
       (Gemma 2 and 3, OLMo 2) or 1.
MLPs   read the stream of `resid_mid`, and write what `Block.run_mlp` makes of it, post-norm included.

Heads of a block share the post-norm's divisor, the root mean square of all that the attention gave. To ablate or patch
a head is to replace its share, z / divisor; the divisor stays that of the heads' online outputs, the ablated ones
included. So shares add up, and a knocked-out head is a head all of whose outgoing edges are cut.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.ablation import scaled_heads
from circuitome.graph.model_graph import Graph, Stage
from circuitome.models.block import Block, weight_of
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Call, Model
from circuitome.models.parked import Tensors

Change = Callable[[Tensor], Tensor]
"""Given a value of all copies of a batch, gives it changed."""


@runtime_checkable
class Streams(Protocol):
    """The residual stream of a pass, as activations and baselines hold it."""

    @property
    def resid_pre(self) -> Tensors:
        """Per block [batch, pos, d_model], what its heads read."""

    @property
    def resid_mid(self) -> Tensors:
        """Per block [batch, pos, d_model], what its MLP reads."""

    @property
    def final(self) -> Tensor | None:
        """What the logits read [batch, pos, d_model]."""


def stream_read(streams: Streams, graph: Graph, column: int) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream of a pass where a reader reads it."""
    layer = graph.reader_layer[column]
    if layer == graph.n_layers:
        assert streams.final is not None, "the pass was recorded without its end"
        return streams.final
    return (streams.resid_mid if column >= graph.mlp_column(layer) else streams.resid_pre)[layer]


@dataclass(frozen=True)
class Edit:
    """What is changed inside a block, in each copy of the batch; None for what is left as it is."""

    values: Change | None = None
    """Q, k and v [copies, batch, pos, reader, d_head]."""
    heads: Change | None = None
    """Scaled outputs of the heads [copies, batch, pos, head, d_head], see `scaled_heads`."""
    middle: Change | None = None
    """The stream behind the attention [copies, batch, pos, d_model]; the MLP reads it unless it reads beside it."""
    mlp_in: Change | None = None
    """The residual that the MLP reads [copies, batch, pos, d_model]."""
    mlp_out: Change | None = None
    """What the MLP adds to the stream [copies, batch, pos, d_model]; where neurons are nodes, what the others add."""
    neurons: Change | None = None
    """Scaled outputs of the neurons or features that are nodes [copies, batch, pos, neuron]."""
    stream: Change | None = None
    """The stream behind the block [copies, batch, pos, d_model]."""


UNCHANGED = Edit()


class BlockStep:
    """The blocks of a model on one batch, or on several copies of it."""

    def __init__(self, model: Model, inputs: Inputs, calls: list[Call] | None = None) -> None:
        """Of `inputs` masks, positions, prefix and `read` matter. `calls` are those of a single copy, where known."""
        self.model, self.inputs, self.graph = model, inputs, model.graph
        self._calls: dict[int, list[Call]] = {} if calls is None else {1: calls}

    def calls(self, copies: int) -> list[Call]:
        """How each block calls its attention on several copies of the batch, which follow one another."""
        if copies not in self._calls:  # besides a single copy's, those of one size stay: their prefixes are large
            self._calls = {size: calls for size, calls in self._calls.items() if size == 1}
            self._calls[copies] = self.model.attention_calls(self.inputs.joined(*[self.inputs] * (copies - 1)))
        return self._calls[copies]

    # What nodes make of what they read

    def read(
        self, layer: int, readers: Sequence[int], x: Float[Tensor, "reader rows d_model"]
    ) -> Float[Tensor, "reader rows d_head"]:
        """What some of a block's q, k and v readers make of a residual x, which may be another for each."""
        block = self.model.blocks[layer]
        weights, biases = block.reader_weights(readers), block.reader_biases()[readers]
        return torch.baddbmm(biases[:, None], block.attend_inputs(x.to(self.model.dtype)), weights.transpose(1, 2))

    def z(
        self, layer: int, values: Float[Tensor, "copies_batch pos reader d_head"]
    ) -> Float[Tensor, "copies_batch pos heads_d_head"]:
        """What the attention of a block mixes for given q, k and v, all heads side by side."""
        call = self.calls(len(values) // len(self.inputs.ids))[layer]
        return self.model.attend(layer, values, call).flatten(-2)

    def heads(
        self, layer: int, values: Float[Tensor, "copies_batch pos reader d_head"]
    ) -> Float[Tensor, "copies_batch pos head d_head"]:
        """Scaled outputs of a block's heads for given q, k and v, float32; see `scaled_heads`."""
        z, block = self.z(layer, values), self.model.blocks[layer]
        return scaled_heads(self.model, layer, z, block.output(z) if block.attention_post else None)

    def mlp(self, layer: int, x: Float[Tensor, "copies rows d_model"]) -> Float[Tensor, "copies rows d_model"]:
        """What a block's MLP writes for a residual x, float32."""
        with self.model.reserved():
            return self.model.blocks[layer].run_mlp(x.to(self.model.dtype)).float()

    def parts(
        self, stage: Stage, parts: Sequence[int], x: Float[Tensor, "part rows d_model"]
    ) -> Float[Tensor, "part rows d_model"]:
        """What an MLP (part 0) and its neurons that are nodes (1, 2, ...) write, each for a residual x of its own.

        The MLP is then its other neurons; float32. Under a post-norm the divisor is that of all together: give all.
        The same of an MLP or a stream some of whose features are nodes; see `Described`.
        """
        layer = stage.layer
        if stage.described:
            seen = x if stage.stream else x.to(self.model.dtype)
            with self.model.reserved():
                return self.model.described[layer, stage.stream].parts(self.model.blocks[layer], parts, seen)
        nodes, block = self.graph.neurons_of(layer), self.model.blocks[layer]
        if not nodes:
            return self.mlp(layer, x)
        with self.model.reserved():
            x, vectors = x.to(self.model.dtype), list[Tensor]()
            if parts[0] == 0:
                vectors.append(self._rest(block, nodes, x[0]))
            if neurons := [nodes[part - 1] for part in parts if part]:
                values = block.neuron_values(neurons, x[-len(neurons) :])
                weights = weight_of(block.mlp_writer).detach().T[neurons].float()
                vectors += list(values.float()[..., None] * weights[:, None])
        written = torch.stack(vectors)
        if block.mlp_post is None:
            return written
        return written * block.mlp_post.gain / block.mlp_post.sigma(written.sum(0))

    @staticmethod
    def _rest(block: Block, nodes: Sequence[int], x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
        """What an MLP without the neurons `nodes` writes, in front of a post-norm; float32."""
        gone = torch.tensor(nodes, device=x.device)

        def without(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0].index_fill(-1, gone, 0.0), *args[1:])

        with hooked(block.mlp_writer.register_forward_pre_hook, without):
            for part in (block.mlp_norm, *block.mlp):
                x = x if part is None else part(x)
        return x.float()

    # Whole blocks, in the model's dtype

    def run(
        self, x: Float[Tensor, "copies batch pos d_model"], start: int = 0, edits: Mapping[int, Edit] | None = None
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the position read for a stream `x` in front of block `start`, with `edits` by block."""
        for layer in range(start, self.graph.n_layers):
            x = self.block(layer, x, (edits or {}).get(layer, UNCHANGED))
        return self.at_read(x)

    def block(
        self, layer: int, x: Float[Tensor, "copies batch pos d_model"], edit: Edit = UNCHANGED
    ) -> Float[Tensor, "copies batch some d_model"]:
        """The stream behind a block for the stream `x` in front of it; as `behind_attention` at the last block."""
        block, flat, added = self.model.blocks[layer], x.flatten(0, 1), None
        with self.model.reserved():
            normed = block.attend_inputs(flat)
            if edit.values is None and edit.heads is None:
                args, kwargs = self.calls(len(x))[layer]
                out = block.attention(normed, *args, **kwargs)[0]
            else:
                values = block.split([module(normed) for module in block.projections])
                z = self.z(layer, values if edit.values is None else self._changed(edit.values, values))
                out = block.output(z)
                added = None if edit.heads is None else self._shares_added(layer, z, out, edit.heads)
            middle = flat + (out if block.attention_post is None else block.attention_post(out))
        middle = (middle if added is None else middle + added).unflatten(0, x.shape[:2])
        middle = middle if edit.middle is None else edit.middle(middle)
        return self.behind_attention(layer, middle, x if self.graph.parallel else middle, edit)

    def behind_attention(
        self,
        layer: int,
        middle: Float[Tensor, "copies batch pos d_model"],
        seen: Float[Tensor, "copies batch pos d_model"],
        edit: Edit = UNCHANGED,
    ) -> Float[Tensor, "copies batch some d_model"]:
        """The stream behind a block whose attention has written `middle`, and whose MLP reads `seen`.

        Of the last block, unless its MLP is edited, there is only the position read: nothing else is needed of it.
        """
        changed = edit.mlp_in or edit.mlp_out or edit.neurons or edit.stream
        if layer == self.graph.n_layers - 1 and changed is None:
            middle, seen = self.at_read(middle)[:, :, None], self.at_read(seen)[:, :, None]
        seen = seen if edit.mlp_in is None else edit.mlp_in(seen)
        if self.graph.neurons_of(layer) and (edit.mlp_out or edit.neurons):
            behind = middle + self._mlp_changed(layer, seen, edit)
        else:
            with self.model.reserved():
                written = self.model.blocks[layer].run_mlp(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
            behind = middle + (written if edit.mlp_out is None else edit.mlp_out(written))
        return behind if edit.stream is None else edit.stream(behind)

    def _mlp_changed(self, layer: int, x: Float[Tensor, "copies batch pos d_model"], edit: Edit) -> Tensor:
        """What an MLP adds to the stream some of whose neurons or features are nodes, these or the rest changed."""
        block, nodes, shares = self.model.blocks[layer], list(self.graph.neurons_of(layer)), list[Tensor]()
        described, weights = self.model.described.get((layer, False)), self.model.part_weights(layer)

        def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            shares.append(block.neuron_shares(args[0][..., nodes], output))

        with self.model.reserved(), ExitStack() as stack:
            if described is None:
                stack.enter_context(hooked(block.mlp_writer.register_forward_hook, note))
            written = block.run_mlp(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            if described is not None:
                shares.append(described.values(block, x, written))
        neurons = shares[0].reshape(*x.shape[:3], -1)
        rest = written.float() - neurons @ weights
        neurons = neurons if edit.neurons is None else edit.neurons(neurons)
        rest = rest if edit.mlp_out is None else edit.mlp_out(rest)
        return (rest + neurons @ weights).to(written.dtype)

    def at_read(self, x: Float[Tensor, "copies batch pos d_model"]) -> Float[Tensor, "copies batch d_model"]:
        """A stream at the position read; it may be there already, as the only one."""
        return x[:, :, 0] if x.shape[2] == 1 else self.inputs.at_read(x)

    def _changed(self, change: Change, value: Tensor) -> Tensor:
        return change(value.unflatten(0, (-1, len(self.inputs.ids)))).flatten(0, 1)

    def _shares_added(self, layer: int, z: Tensor, out: Tensor, change: Change) -> Tensor:
        """What a change of heads' scaled outputs adds behind the post-norm, whose divisor stays."""
        scaled = scaled_heads(self.model, layer, z, out)
        weights = self.model.blocks[layer].head_weights().flatten(0, 1)
        return ((self._changed(change, scaled) - scaled).flatten(-2) @ weights).to(z.dtype)
