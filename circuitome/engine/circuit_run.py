"""Run a model in which every edge outside a circuit carries its ablated value: exactly, and only the parts that matter.

A reader's input is base + sum over writers of mask[writer, reader] (online - ablated), where base is the residual
stream with every writer ablated, and the mask is 1 at the circuit's edges and 0 elsewhere (between them where masks are
learned). A head or MLP that no open edge leaves never runs. Under corrupted ablation neither does one that no open edge
enters: its output is the cached corrupted one. So a sparse circuit costs a sparse pass.
Source: Conmy et al. 2023, arXiv:2304.14997 (what ACDC evaluates), with Hugging Face's attention as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.ablation import AblationValues, WriterValues
from circuitome.engine.batches import Batch
from circuitome.engine.block_step import BlockStep, stream_read
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph, Stage
from circuitome.models.model import Call, Model
from circuitome.models.parked import Tensors, like
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
    resid_pre: Tensors
    """Per block [batch, pos, d_model], the attention's residual input with every writer ablated, float32."""
    resid_mid: Tensors
    """Per block, the MLP's."""
    final: Float[Tensor, "batch pos d_model"]
    """The logits' residual input with every writer ablated."""
    projected: list[Tensors] | None
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
            pre, mid = (like(own, (t.float() for t in own)) for own in (activations.resid_pre, activations.resid_mid))
            ablated, embed = WriterValues.of(model, activations), model.embeddings(batch.clean).float()
            final, projected = activations.final.float(), activations.projected
            return Baseline(batch, calls, embed, ablated, pre, mid, final, projected)
        clean = WriterValues.of(model, model.record(batch.clean, logits=False))
        ablated = replacement.at(batch, clean, task)
        return Baseline(batch, calls, clean.embed, ablated, *_ablated_streams(model, ablated), None)


def _ablated_streams(model: Model, ablated: WriterValues) -> tuple[Tensors, Tensors, Tensor]:
    resid_pre, resid_mid = like(ablated.heads), like(ablated.heads)
    stream = ablated.embed
    for layer, block in enumerate(model.blocks):
        resid_pre.append(stream)
        after = stream + block.join_heads(ablated.heads[layer])
        resid_mid.append(stream if model.graph.parallel else after)
        stream = after + ablated.mlp(model, layer)
    return resid_pre, resid_mid, stream


def circuit_bytes(model: Model, max_memory: int | None = None) -> int:
    """What a token takes at most in a circuit's run beside its baseline: all writers' differences, one block's readers.

    4 d_model (writers + 2 (readers of a block's attention + 1)) bytes. Under a budget that was given, writers count
    three times: so much moves where parts of the circuit are left out (`IncrementalCircuit`).
    """
    writers = len(model.graph.writers) * (1 if max_memory is None else 3)
    return 4 * model.d_model * (writers + 2 * (model.graph.attention_readers + 1))


def circuit_logits(model: Model, base: Baseline, circuit: Circuit) -> Float[Tensor, "batch vocab"]:
    """Logits after the last token of every prompt of the batch, with all edges outside `circuit` ablated."""
    with torch.inference_mode():  # a tenth faster than no_grad: passes this sparse are mostly small operations
        logits = model.unembed(CircuitRun(model, base, circuit.mask.float()).final().to(model.dtype))
    return logits.clone()  # an ordinary tensor again


@dataclass(frozen=True)
class Reach:
    """What of a circuit the logits of the position read depend on: edges that lead nowhere are not in it."""

    columns: Bool[Tensor, " readers"]
    """Readers whose input matters."""
    everywhere: Bool[Tensor, " readers"]
    """Whether it matters at positions before the one read: keys and values are read everywhere, queries and MLP inputs
    only where their own output is."""
    rows: Bool[Tensor, " writers"]
    """Writers whose output matters."""
    wide: Bool[Tensor, " writers"]
    """Whether it matters at positions before the one read."""

    @classmethod
    def of(cls, graph: Graph, open_edges: Bool[Tensor, "writers readers"], *, coupled: bool) -> "Reach":
        """Go back from the logits, block by block.

        `coupled`: heads share a post-norm, so each needs all inputs; the neurons of an MLP that are nodes do as well.
        """
        columns, everywhere = (torch.zeros(len(graph.readers), dtype=torch.bool) for _ in range(2))
        rows, wide = (torch.zeros(len(graph.writers), dtype=torch.bool) for _ in range(2))
        columns[-1] = True

        def visit(part: slice) -> None:
            rows[part] = (open_edges[part] & columns).any(1)
            wide[part] = (open_edges[part] & everywhere).any(1)

        for layer in reversed(range(graph.n_layers)):
            for stage in reversed(graph.stages[layer]):
                visit(stage.rows)
                for needed, part in ((columns, rows), (everywhere, wide)):
                    together = coupled and not stage.described
                    needed[stage.columns] = part[stage.rows].any() if together else part[stage.rows]
            heads, span = graph.head_rows(layer), graph.attention_columns(layer)
            visit(heads)
            inputs = graph.inputs[heads, span]
            used, used_wide = (
                part[heads].any().expand(graph.n_heads) if coupled else part[heads] for part in (rows, wide)
            )
            columns[span] = (inputs & used[:, None]).any(0)
            everywhere[span] = (inputs & used_wide[:, None]).any(0)
            keys = slice(span.start + graph.n_heads, span.stop)
            everywhere[keys] = columns[keys]
        visit(slice(0, len(graph.embeds)))
        return cls(columns, everywhere, rows, wide)


@dataclass
class Ran:
    """One block's heads, or its MLP, in a run: from what their readers see to how their writers differ."""

    columns: list[int]
    """The readers that matter and can differ from their ablated selves."""
    slots: list[int]
    """Rows of the writers in the run's buffer."""
    upto: int
    """Writers in the buffer that its readers can see."""
    seen: Float[Tensor, "reader rows d_model"]
    """What the readers see."""
    out: Float[Tensor, "writer rows d_model"]
    """How the writers differ from their ablated selves, with the autograd graph that leads there."""
    last: bool
    """Whether rows are the prompts, at the position read, instead of all positions of all prompts."""


class CircuitRun:
    """One run on one batch in which each edge is open as far as a mask says.

    Differences of writers, online - ablated, are rows of one buffer, `delta`, in the order of the graph.
    """

    def __init__(
        self,
        model: Model,
        base: Baseline,
        mask: Float[Tensor, "writers readers"],
        note: Callable[[int, Tensor], object] | None = None,
    ) -> None:
        """`note` is told the q, k and v of each block whose heads run."""
        self.model, self.base, self.graph, self.note = model, base, model.graph, note
        self.steps = BlockStep(model, base.batch.clean, base.calls)
        mask = mask.detach().float()
        self.reach = Reach.of(self.graph, (mask != 0).cpu(), coupled=is_coupled(model))
        self.used = self.reach.rows.nonzero().flatten()
        self.before = torch.cat([torch.zeros(1, dtype=torch.long), self.reach.rows.long().cumsum(0)]).tolist()
        open_as_far = mask[self.used.to(mask.device)]
        self.weights, self.weights_here = open_as_far.to(base.clean_embed.device), open_as_far.cpu()
        self.ran = torch.zeros(len(self.used), dtype=torch.bool)
        self.shape = base.clean_embed.shape
        self.delta = base.clean_embed.new_zeros(len(self.used), self.shape[0] * self.shape[1], self.shape[2])
        read = base.batch.clean.read
        self.at_read = torch.arange(self.shape[0], device=read.device) * self.shape[1] + read

    def final(self, *, keep: bool = False) -> Float[Tensor, "batch d_model"]:
        """Residual in front of the final norm at the position read, float32.

        With `keep`, `self.parts` then holds what a backward pass needs.
        """
        self.parts: list[Ran] = []
        if self.reach.rows[0]:
            self._store([0], (self.base.clean_embed - self.base.ablated.embed).flatten(0, 1)[None], last=False)
        for layer in range(self.graph.n_layers):
            stages = (self._stage(stage, keep) for stage in self.graph.stages[layer])
            for part in (self._heads(layer, keep), *stages):
                if part is not None and keep:
                    self.parts.append(part)
        return self._seen(self.base.final, [len(self.graph.readers) - 1], len(self.used), last=True)[0]

    def at(self, rows: Float[Tensor, "*any rows d_model"], *, last: bool) -> Float[Tensor, "*any some d_model"]:
        """All rows, or those of the position read."""
        return rows[..., self.at_read, :] if last else rows

    def _seen(self, stream: Tensor, columns: list[int], upto: int, *, last: bool) -> Tensor:
        """What some readers see: the ablated stream, and the open part of the differences of writers before them."""
        stream = self.at(stream.flatten(0, 1), last=last)
        edges = (self.weights_here[:upto, columns] * self.ran[:upto, None]).nonzero()
        if len(edges) > SUMS_PER_PRODUCT * upto or self.delta.is_cuda:  # there each sum is a launch of its own
            mixed = self.weights[:upto, columns].T @ self.at(self.delta[:upto], last=last).flatten(1)
            return mixed.view(len(columns), *stream.shape) + stream
        seen = stream.expand(len(columns), -1, -1).clone()
        for slot, reader in edges.tolist():
            weight = float(self.weights_here[slot, columns[reader]])
            seen[reader].add_(self.at(self.delta[slot], last=last), alpha=weight)
        return seen

    def _store(self, slots: list[int], difference: Tensor, *, last: bool) -> None:
        where = torch.tensor(slots, device=self.delta.device)
        if last:
            self.delta[where[:, None], self.at_read] = difference
        else:
            self.delta[where] = difference
        self.ran[slots] = True

    def _active(self, columns: slice, upto: int) -> list[int]:
        """Those of some readers that matter and can differ from their ablated selves."""
        moved = self.reach.columns[columns]
        if self.base.cached:
            moved = moved & ((self.weights_here[:upto, columns] != 0) & self.ran[:upto, None]).any(0)
        return [columns.start + i for i in moved.nonzero().flatten().tolist()]

    def _heads(self, layer: int, keep: bool) -> Ran | None:
        """Run the heads of a block that open edges leave, if any of them can differ from its ablated self."""
        base, rows, span = self.base, self.graph.head_rows(layer), self.graph.attention_columns(layer)
        heads, upto = self.reach.rows[rows].nonzero().flatten().tolist(), self.before[rows.start]
        columns = self._active(span, upto) if heads else []
        if not columns:
            return None
        seen = self._seen(base.resid_pre[layer], columns, upto, last=False).requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            values = self._values(layer, [column - span.start for column in columns], seen)
            change = (self.steps.heads(layer, values) - base.ablated.heads[layer]).flatten(0, 1)[:, heads]
            difference = torch.bmm(change.transpose(0, 1), self.model.blocks[layer].head_weights(heads))
        if self.note is not None:
            self.note(layer, values)
        slots = list(range(upto, upto + len(heads)))
        self._store(slots, difference.detach(), last=False)
        return Ran(columns, slots, upto, seen, difference, last=False)

    def _values(self, layer: int, readers: Sequence[int], seen: Tensor) -> Float[Tensor, "batch pos reader d_head"]:
        """Q, k and v of a block: of `readers`, which see `seen`, online; of others what they are with no open edge."""
        online = self.steps.read(layer, readers, seen).transpose(0, 1).unflatten(0, self.shape[:2])
        if self.base.projected is None:  # then every needed reader is active, and the rest is nobody's business
            values = online.new_zeros(*self.shape[:2], self.model.heads.readers, online.shape[-1])
        else:
            values = self.model.blocks[layer].split(self.base.projected[layer], copy=True)
        return values.index_copy(2, torch.tensor(readers, device=values.device), online)

    def _stage(self, stage: Stage, keep: bool) -> Ran | None:
        """Run an MLP, or the features of a stream, with the nodes it is taken apart into, if open edges leave them.

        Only at the position read if no other one matters.
        """
        rows, span = stage.rows, stage.columns
        slot, upto = self.before[rows.start], self.before[stage.upstream]
        used = self.reach.rows[rows].nonzero().flatten().tolist()
        columns = self._active(span, upto) if used else []
        if not columns:
            return None
        if self.model.blocks[stage.layer].mlp_post is not None and not stage.described:
            columns = list(range(span.start, span.stop))  # the post-norm's divisor is that of all
        run = [column - span.start for column in columns]
        written = [part for part in used if part in run]
        last = not bool(self.reach.wide[rows].any())
        stream = stream_read(self.base, self.graph, span.start)
        seen = self._seen(stream, columns, upto, last=last).requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            online = self.steps.parts(stage, run, seen)
            ablated = self.at(ablated_parts(self.model, self.base, stage, written), last=last)
            difference = online[[run.index(part) for part in written]] - ablated
        slots = [slot + used.index(part) for part in written]
        self._store(slots, difference.detach(), last=last)
        return Ran(columns, slots, upto, seen, difference, last=last)


def ablated_parts(
    model: Model, base: Baseline, stage: Stage, parts: Sequence[int]
) -> Float[Tensor, "part rows d_model"]:
    """What the rest of a stage (part 0) and its nodes (1, 2, ...) write when ablated, at all rows of the batch."""
    layer, ablated = stage.layer, base.ablated
    rest, values = ablated.stream(model, layer) if stage.stream else (ablated.mlps[layer], None)
    vectors = [rest.flatten(0, 1) for part in parts if part == 0]
    if nodes := [part - 1 for part in parts if part]:
        values = ablated.neurons[layer] if values is None else values
        weights = model.part_weights(layer, nodes, stream=stage.stream)
        vectors += list(values.flatten(0, 1).T[nodes][..., None] * weights[:, None])
    return torch.stack(vectors)


def is_coupled(model: Model) -> bool:
    """Whether heads share a post-norm, so that what each writes depends on all inputs of the block's heads."""
    return model.blocks[0].attention_post is not None


def check_graph(model: Model, circuit: Circuit) -> None:
    """Raises `InputError` if `circuit` belongs to a graph of another shape than `model`'s."""
    if circuit.graph != model.graph:
        raise InputError(
            f"The circuit belongs to another model: {circuit.graph}. {model.name} has {model.graph}. "
            "Load the model that the circuit was found in."
        )
