"""Run a model in which every edge outside a circuit carries its ablated value: exactly, and only the parts that matter.

A reader's input is base + sum over its kept writers of (online - ablated), where base is the residual stream with every
writer ablated. A head or MLP that no kept edge leaves never runs. Under corrupted ablation neither does one that no
kept edge enters: its output is the cached corrupted one. So a sparse circuit costs a sparse pass.
Source: Conmy et al. 2023, arXiv:2304.14997 (what ACDC evaluates), with Hugging Face's attention as it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import AblationValues, WriterValues, scaled_heads
from circuitome.engine.batches import Batch
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Call, Model
from circuitome.tasks.task import Task

SUMS_PER_PRODUCT = 3
"""Where readers have more kept writers than this times the writers, one matrix product beats single sums."""


@dataclass(frozen=True)
class Baseline:
    """Everything about one batch that does not depend on the circuit. Any number of circuits run on it."""

    batch: Batch
    """The prompts."""
    calls: list[Call]
    """How each block calls its attention on these prompts."""
    clean_embed: Float[Tensor, "batch pos d_model"]
    """What `embed` writes on the clean prompts."""
    ablated: WriterValues
    """What an ablated writer writes."""
    resid_pre: list[Float[Tensor, "batch pos d_model"]]
    """Per block, the attention's residual input with every writer ablated, float32."""
    resid_mid: list[Float[Tensor, "batch pos d_model"]]
    """Per block, the MLP's."""
    final: Float[Tensor, "batch pos d_model"]
    """The logits' residual input with every writer ablated."""
    projected: list[list[Tensor]] | None
    """Under corrupted ablation, per block what its projections gave: what q, k and v without kept inputs give."""

    @property
    def cached(self) -> bool:
        """Whether parts without kept inputs give their ablated value, so that they need not run."""
        return self.projected is not None


def baseline(model: Model, task: Task, batch: Batch, replacement: AblationValues) -> Baseline:
    """One pass over a batch, and the residual stream with every writer ablated."""
    with torch.no_grad():
        calls = model.attention_calls(batch.clean)
        activations = batch.corrupted
        if activations is not None:
            assert activations.final is not None
            streams = [t.float() for t in (*activations.resid_pre, *activations.resid_mid, activations.final)]
            n = len(model.blocks)
            ablated, embed = WriterValues.of(model, activations), model.embeddings(batch.clean).float()
            return Baseline(
                batch, calls, embed, ablated, streams[:n], streams[n:-1], streams[-1], activations.projected
            )
        clean = WriterValues.of(model, model.record(batch.clean, logits=False))
        ablated = replacement.at(batch, clean, task)
        return Baseline(batch, calls, clean.embed, ablated, *_ablated_streams(model, ablated), None)


def _ablated_streams(model: Model, ablated: WriterValues) -> tuple[list[Tensor], list[Tensor], Tensor]:
    resid_pre, resid_mid = [], []
    stream = ablated.embed
    for layer, block in enumerate(model.blocks):
        resid_pre.append(stream)
        after = stream + block.join_heads(ablated.heads[layer])
        resid_mid.append(stream if model.graph.parallel else after)
        stream = after + ablated.mlps[layer]
    return resid_pre, resid_mid, stream


def circuit_logits(model: Model, base: Baseline, circuit: Circuit) -> Float[Tensor, "batch vocab"]:
    """Logits after the last token of every prompt of the batch, with all edges outside `circuit` ablated."""
    with torch.inference_mode():  # a tenth faster than no_grad: passes this sparse are mostly small operations
        run = CircuitRun(model, base, circuit)
        for layer in range(len(model.blocks)):
            run.attention(layer)
            run.mlp(layer)
        logits = run.logits()
    return logits.clone()  # an ordinary tensor again


class CircuitRun:
    """One circuit run on one batch: the differences (online - ablated) of the writers that have run so far."""

    def __init__(self, model: Model, base: Baseline, circuit: Circuit) -> None:
        self.model, self.base, self.graph = model, base, model.graph
        self.coupled = model.blocks[0].attention_post is not None
        needs = demand(circuit, coupled=self.coupled)
        self.parents, self.everywhere = needs.parents, needs.everywhere
        self.slot = {row: i for i, row in enumerate(sorted(self.everywhere))}
        self.shape = base.clean_embed.shape
        self.delta = base.clean_embed.new_zeros(len(self.slot), self.shape[0] * self.shape[1], self.shape[2])
        self.ran: set[int] = set()
        read = base.batch.clean.read
        self.last = torch.arange(self.shape[0], device=read.device) * self.shape[1] + read
        if 0 in self.slot:
            self.keep(0, (base.clean_embed - base.ablated.embed).flatten(0, 1))

    def keep(self, row: int, difference: Float[Tensor, "batch_pos d_model"]) -> None:
        """Note the difference of a writer that has run."""
        self.delta[self.slot[row]] = difference
        self.ran.add(row)

    def seen(self, stream: Tensor, columns: Sequence[int]) -> Float[Tensor, "reader batch_pos d_model"]:
        """What some readers see: the ablated `stream` and the differences of their kept writers."""
        parents = [[row for row in self.parents.get(c, ()) if row in self.ran] for c in columns]
        inputs = stream.flatten(0, 1).expand(len(columns), -1, -1)
        upto = max((self.slot[row] + 1 for row in self.ran), default=0)
        if sum(map(len, parents)) > SUMS_PER_PRODUCT * upto:
            weights = stream.new_zeros(len(columns), upto)
            for reader, rows in enumerate(parents):
                weights[reader, [self.slot[row] for row in rows]] = 1.0
            return inputs + (weights @ self.delta[:upto].flatten(1)).view_as(inputs)
        inputs = inputs.clone()
        for reader, rows in enumerate(parents):
            for row in rows:
                inputs[reader] += self.delta[self.slot[row]]
        return inputs

    def attention(self, layer: int) -> None:
        """Run the heads of a block that kept edges leave, if any of them can differ from its ablated self."""
        base, block = self.base, self.model.blocks[layer]
        rows, columns = self.graph.head_rows(layer), self.graph.attention_columns(layer)
        leaving = [row for row in range(rows.start, rows.stop) if row in self.slot]
        active = [c for c in range(columns.start, columns.stop) if self.parents.get(c) or not base.cached]
        if not leaving or not active:
            return
        inputs = self.seen(base.resid_pre[layer], active)
        readers = [c - columns.start for c in active]
        online = self.project(layer, readers, inputs).transpose(0, 1)
        if base.projected is not None:
            values = block.split(base.projected[layer], copy=True)
            values[:, :, readers] = online.unflatten(0, self.shape[:2])
        else:
            values = online.unflatten(0, self.shape[:2])
        change = self.heads(layer, values, base.calls[layer]) - base.ablated.heads[layer]
        self.note(layer, values, change)
        heads = [row - rows.start for row in leaving]
        first = self.slot[leaving[0]]  # the slots of a block's heads follow one another
        z_change = change.flatten(0, 1)[:, heads].transpose(0, 1)
        torch.bmm(z_change, block.head_weights(heads), out=self.delta[first : first + len(heads)])
        self.ran.update(leaving)

    def project(self, layer: int, readers: Sequence[int], inputs: Tensor) -> Float[Tensor, "reader rows d_head"]:
        """What q, k and v readers of a block make of their inputs [reader, rows, d_model]."""
        block = self.model.blocks[layer]
        weights, biases = block.reader_weights(readers), block.reader_biases()[readers]
        normed = block.attend_inputs(inputs.to(self.model.dtype))
        return torch.baddbmm(biases[:, None], normed, weights.transpose(1, 2))

    def heads(self, layer: int, values: Tensor, call: Call) -> Float[Tensor, "batch pos head d_head"]:
        """Scaled outputs of the heads of a block for given q, k and v; see `scaled_heads`."""
        z = self.model.attend(layer, values, call).flatten(-2)
        out = self.model.blocks[layer].output(z) if self.coupled else None
        return scaled_heads(self.model, layer, z, out)

    def note(self, layer: int, values: Tensor, change: Tensor) -> None:
        """Called with the q, k and v of a block and how its heads differ from their ablated selves."""

    def mlp(self, layer: int) -> None:
        """Run the MLP of a block if a kept edge leaves it and it can differ from its ablated self."""
        row, column = self.graph.mlp_row(layer), self.graph.mlp_column(layer)
        if row not in self.slot or (self.base.cached and not self.parents.get(column)):
            return
        inputs = self.seen(self.base.resid_mid[layer], [column])[0]
        ablated = self.base.ablated.mlps[layer].flatten(0, 1)
        run_mlp, dtype = self.model.blocks[layer].run_mlp, self.model.dtype
        if self.everywhere[row]:
            self.keep(row, run_mlp(inputs[None].to(dtype))[0].float() - ablated)
        else:
            at_last = run_mlp(inputs[self.last][None].to(dtype))[0].float() - ablated[self.last]
            self.keep(row, torch.zeros_like(inputs).index_copy_(0, self.last, at_last))

    def logits(self) -> Float[Tensor, "batch vocab"]:
        """Logits at the position that the metric reads."""
        final = self.seen(self.base.final, [len(self.graph.readers) - 1])[0]
        return self.model.unembed(final[self.last].to(self.model.dtype))


@dataclass(frozen=True)
class Demand:
    """What the logits of the last position need of a circuit: edges that lead nowhere are not in it."""

    parents: dict[int, list[int]]
    """By column: the kept writers of each reader that is needed."""
    everywhere: dict[int, bool]
    """By row of each needed writer: whether positions before the last are needed too. Keys and values are read at all
    positions, queries and MLP inputs only where their own output is."""


def demand(circuit: Circuit, *, coupled: bool) -> Demand:
    """Go from the logits backwards through `circuit`.

    `coupled` says that heads share a post-norm, so that each depends on the inputs of all heads of its block.
    """
    graph = circuit.graph
    readers: dict[int, list[int]] = {}
    for row, column in circuit.mask.nonzero().tolist():
        readers.setdefault(row, []).append(column)
    needed = {len(graph.readers) - 1: False}  # column -> everywhere
    everywhere: dict[int, bool] = {}
    parents: dict[int, list[int]] = {}
    for row in reversed(range(len(graph.writers))):
        wanted = [column for column in readers.get(row, ()) if column in needed]
        for column in wanted:
            parents.setdefault(column, []).append(row)
        if not wanted:
            continue
        everywhere[row] = any(needed[column] for column in wanted)
        inputs: Iterable[int] = graph.inputs_of[row]
        if coupled and len(graph.inputs_of[row]) > 1:
            layer = graph.layer_of[row]
            inputs = range(graph.attention_columns(layer).start, graph.attention_columns(layer).stop)
        for column in inputs:
            is_kv = graph.reader_nodes[column].kind == "kv"
            needed[column] = needed.get(column, False) or everywhere[row] or is_kv
    return Demand({column: rows[::-1] for column, rows in parents.items()}, everywhere)


def check_graph(model: Model, circuit: Circuit) -> None:
    """Raises `InputError` if `circuit` belongs to a graph of another shape than `model`'s."""
    if circuit.graph != model.graph:
        raise InputError(
            f"The circuit belongs to another model: {circuit.graph}. {model.name} has {model.graph}. "
            "Load the model that the circuit was found in."
        )
