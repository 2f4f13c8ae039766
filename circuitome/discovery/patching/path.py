"""Path patching: what reaches a receiver from a sender without passing through any other head.

The published algorithm runs the model once more for every sender to see what its receivers get. With all other heads
held at their clean values that needs no run: positions do not mix any more, so only the MLPs between the two matter,
and only at the receivers' positions. Then the model runs on from the first receiver.
Source: Wang et al. 2022, arXiv:2211.00593, appendix B; Goldowsky-Dill et al. 2023, arXiv:2304.05969.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues, corrupted_values
from circuitome.engine.batches import Batch
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.model import Model
from circuitome.progress import silent
from circuitome.results import EffectMap
from circuitome.tasks.task import Pair, Task

Positions = str | int | Sequence[str | int]
"""Token positions: "all", "end" (the one read), names of a task's roles such as "S2", or indices; several in a list."""

SWEEP_NUMBERS = 50_000_000
"""Numbers that the senders' differences may take at once: 200 MB."""


@method
def path_patch(
    setting: Setting,
    receivers: str | Sequence[str] = "logits",
    *,
    senders: Sequence[str] | None = None,
    sender_positions: Positions = "all",
    receiver_positions: Positions | None = None,
    freeze_mlps: bool = False,
    together: bool = False,
) -> EffectMap:
    """The change of the metric when receivers get what a sender writes on the corrupted prompt, sender by sender.

    Rows are layers, columns heads and "mlp", and a row for `embed`. effect = metric(patched) - metric(clean), mean over
    prompts: negative where the path helps. Other heads stay clean on the way from sender to receivers; MLPs react,
    unless `freeze_mlps`, and then one sender and one receiver are one edge of the graph, and the effect is that of
    corrupting it. Where a norm follows the attention, a head sends its share of the normed output. With `together` all
    senders are corrupted at once and the map is one cell.

    `receivers` are readers ("a9.h6.q", "a9.kv2.v", "m7.in", "logits"); their default positions are the one read for
    queries and logits, all for others. Patched receivers keep their value whatever happens before them; what comes
    after recomputes. Raises `UnknownNameError` for names of the graph or roles that do not exist, `InputError` for
    logits beside other receivers, no receiver, or positions outside a prompt.
    """
    task, graph = setting.task, setting.model.graph
    columns = _columns(graph, receivers, receiver_positions)
    rows = list(range(len(graph.writers))) if senders is None else [graph.row(name) for name in senders]
    upstream = graph.mask[:, columns].any(1)
    chosen = torch.zeros(1 if together else len(rows), len(graph.writers), dtype=torch.bool)
    chosen[0 if together else torch.arange(len(rows)), rows] = True
    live = (chosen & upstream).any(1).nonzero().flatten()
    samples = torch.zeros(len(task), len(chosen))
    plain = torch.empty(2, len(task))
    done = 0
    with torch.no_grad():
        for batch in setting.but(ablation="corrupted").batches():
            job = _Paths(setting, batch, columns, sender_positions, receiver_positions, freeze_mlps)
            plain[:, list(batch.rows)] = job.plain.cpu()
            for index, values in job.metrics(chosen, live):
                samples[list(batch.rows), index] = (values - job.plain[0]).cpu()
                done += len(batch.rows)
                setting.progress("patching paths", done, len(live) * len(task))
    name = f"path patching into {', '.join(graph.readers[c] for c in columns)}"
    together_axes = (("senders",), ("together",))
    axes, cells = (together_axes, samples[..., None]) if together else _by_layer(graph, rows, samples)
    return EffectMap(
        name=name,
        axes=axes,
        samples=cells,
        clean=plain[0],
        corrupted=plain[1],
        unit=task.unit,
        groups=task.groups,
    )


def _columns(graph: Graph, receivers: str | Sequence[str], positions: Positions | None) -> list[int]:
    """Columns of the receivers. Raises as `path_patch`."""
    names = [receivers] if isinstance(receivers, str) else list(receivers)
    columns = sorted({graph.column(name) for name in names})
    logits = len(graph.readers) - 1
    if not columns or (logits in columns and len(columns) > 1):
        raise InputError(
            f"Receivers are either the logits or inputs of heads and MLPs; got {', '.join(names) or 'none'}."
        )
    if logits in columns and positions not in (None, "end"):
        raise InputError(f"The logits are read at one position, the end; got {positions!r}.")
    return columns


def _by_layer(
    graph: Graph, rows: Sequence[int], samples: Float[Tensor, "prompts senders"]
) -> tuple[tuple[tuple[str, ...], ...], Float[Tensor, "prompts layers columns"]]:
    """Labels of rows and columns, and the effects of single senders laid out by layer and head."""
    cells = torch.full((len(samples), graph.n_layers + 1, graph.n_heads + 1), torch.nan)
    for i, row in enumerate(rows):
        node = graph.writer_nodes[row]
        head = node.index if node.kind == "head" else graph.n_heads
        cells[:, graph.layer_of[row] + 1, head] = samples[:, i]
    layers = ("embed", *(str(Node("attention", layer)) for layer in range(graph.n_layers)))
    return (layers, (*(f"h{head}" for head in range(graph.n_heads)), "mlp")), cells


class _Paths:
    """Path patching on one batch of prompts."""

    def __init__(
        self,
        setting: Setting,
        batch: Batch,
        columns: Sequence[int],
        sender_positions: Positions,
        receiver_positions: Positions | None,
        freeze_mlps: bool,
    ) -> None:
        model, task = setting.model, setting.task
        self.model, self.graph, self.batch, self.freeze_mlps = model, model.graph, batch, freeze_mlps
        self.columns, self.logits = columns, len(model.graph.readers) - 1
        self.clean: ActivationCache = model.record(batch.clean, logits=False)
        assert self.clean.final is not None and batch.corrupted is not None and batch.corrupted.final is not None
        self.final = self.clean.final
        self.delta = corrupted_values(model, batch).minus(WriterValues.of(model, self.clean))
        self.readout = Readout(model, task, batch.rows, "metric")
        self.plain = -self.readout(batch.clean.at_read(torch.stack([self.final, batch.corrupted.final])))
        self.where = {c: self._positions(task, receiver_positions or self._default(c)) for c in columns}
        needed = torch.stack(list(self.where.values())).any(0).flatten()
        self.at = needed.nonzero().flatten()  # batch * pos that any receiver reads
        self.sent = self._positions(task, sender_positions).flatten()[self.at][:, None].float()
        self.copies = dense_copies(model, batch.clean, setting.max_memory)
        self.rest = PartialForward(model, batch.clean, self.clean)

    def _default(self, column: int) -> str:
        return "end" if column == self.logits or self.graph.reader_nodes[column].input == "q" else "all"

    def _positions(self, task: Task, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Where in the batch's suffixes the positions are; those in a shared prefix cannot differ and fall away."""
        inputs = self.batch.clean
        mask = torch.zeros_like(inputs.ids, dtype=torch.bool)
        wanted = [positions] if isinstance(positions, str | int) else list(positions)
        for i, row in enumerate(self.batch.rows):
            pair = task.pairs[row]
            start = pair.answer_position - int(inputs.read[i])
            for position in wanted:
                if position == "all":
                    mask[i, : len(pair.clean) - start] = True
                elif (at := position_of(pair, position)) >= start:
                    mask[i, at - start] = True
        return mask

    def metrics(self, chosen: Bool[Tensor, "copies writers"], live: Tensor) -> Iterator[tuple[int, Tensor]]:
        """For each live sender set, its index and the metric [batch] with it patched."""
        step = max(1, SWEEP_NUMBERS // (len(self.at) * self.model.d_model * (1 + len(self.columns))))
        for some in live.split(step) if len(live) else ():
            seen = self._received(chosen[some])
            for part in torch.arange(len(some)).split(self.copies):
                final = self._run_on({column: x[part] for column, x in seen.items()})
                yield from zip(some[part].tolist(), -self.readout(final), strict=True)

    def _received(self, chosen: Bool[Tensor, "copies writers"]) -> dict[int, Float[Tensor, "copies at d_model"]]:
        """What each receiver sees at the positions that any receiver reads, for each set of senders."""
        graph, blocks = self.graph, self.model.blocks
        weights = chosen.float().to(self.final.device)  # sums over senders run in float32 whatever the model's dtype
        change = weights[:, :1, None] * (self.delta.embed.flatten(0, 1)[self.at] * self.sent)
        seen: dict[int, Tensor] = {}
        for layer in range(min(graph.n_layers, max(graph.reader_layer[c] for c in self.columns) + 1)):
            for column in self.columns:
                if graph.reader_layer[column] == layer and column != graph.mlp_column(layer):
                    seen[column] = self._rows(self.clean.resid_pre[layer]) + change
            before, rows = change, graph.head_rows(layer)
            if chosen[:, rows].any():
                z = self.delta.heads[layer].flatten(0, 1)[self.at].transpose(0, 1)
                vectors = torch.bmm(z, blocks[layer].head_weights()) * self.sent
                change = change + torch.einsum("kh,hnd->knd", weights[:, rows], vectors)
            resid_mid = self._rows(self.clean.resid_mid[layer])
            x = resid_mid + (before if graph.parallel else change)
            if graph.mlp_column(layer) in self.columns:
                seen[graph.mlp_column(layer)] = x
            change = change + self._mlp_change(layer, x, chosen)
        if self.logits in self.columns:
            seen[self.logits] = self._rows(self.final) + change
        return seen

    def _mlp_change(self, layer: int, x: Tensor, chosen: Bool[Tensor, "copies writers"]) -> Tensor:
        """How the MLP of a block differs from its clean output: as it reacts to `x`, or as a sender."""
        out, row = self._rows(self.clean.mlp_out[layer]), self.graph.mlp_row(layer)
        change = torch.zeros_like(x)
        moved = torch.zeros(len(x), dtype=torch.bool) if self.freeze_mlps else chosen[:, :row].any(1)
        if moved.any():
            change[moved] = self.model.blocks[layer].run_mlp(x[moved].to(self.model.dtype)).float() - out
        if chosen[:, row].any():
            sent = self.delta.mlps[layer].flatten(0, 1)[self.at]
            change[chosen[:, row]] = torch.where(self.sent.bool(), sent, change[chosen[:, row]])
        return change

    def _rows(self, whole: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "at d_model"]:
        return whole.flatten(0, 1)[self.at].float()

    def _run_on(self, seen: dict[int, Float[Tensor, "copies at d_model"]]) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the position read when the receivers see this and the rest of the model follows."""
        if self.logits in seen:
            return seen[self.logits]  # its positions are the one read, prompt after prompt
        mine = {column: self.where[column].flatten()[self.at] for column in seen}
        inputs = {column: x[:, mine[column]] for column, x in seen.items()}
        return self.rest.seen(inputs, {column: self.at[mine[column]] for column in seen})


def position_of(pair: Pair, position: str | int) -> int:
    """Index of a role ("S2"), of "end", or of a number that may count from the end.

    Raises `InputError` where the prompt has no such role or position.
    """
    if position == "end":
        return pair.answer_position
    if isinstance(position, str):
        if position not in pair.roles:
            known = ", ".join(["all", "end", *(r for r in pair.roles if r != "end")])
            raise InputError(f"No position is called {position!r} in {pair.clean_text!r}; there are {known}.")
        return pair.roles[position]
    if not -len(pair.clean) <= position < len(pair.clean):
        raise InputError(f"Position {position} is outside a prompt of {len(pair.clean)} tokens: {pair.clean_text!r}.")
    return position % len(pair.clean)


@dataclass(frozen=True, eq=False)
class Trace:
    """What a trace back from the logits found."""

    circuit: Circuit
    """The edges from each sender that mattered to its receiver."""
    levels: tuple[tuple[EffectMap, ...], ...]
    """By depth, the effects on each receiver that was asked about."""
    receivers: tuple[tuple[str, ...], ...]
    """By depth, the receivers."""
    certain: bool = True
    """Whether intervals over prompts had a say; with one prompt there are none, and only sizes decided."""


@method
def trace_back(
    setting: Setting, *, depth: int = 3, width: int = 5, threshold: float = 0.02, freeze_mlps: bool = True
) -> Trace:
    """Start at the logits, keep the senders that matter, ask who writes into their inputs, and so on to `depth`.

    A sender is kept for a receiver if its effect is at least `threshold` of the gap between clean and corrupted metric,
    its interval does not hold 0, and it is among the `width` strongest. Receivers count at all positions, since heads
    found on the way may act before the end. With `freeze_mlps` effects are those of single edges, so the circuit can be
    run; else MLPs in between are part of an edge. With a single prompt there is no interval: then the size alone
    decides, and `certain` is False. Raises `InputError` for depth or width below 1.
    """
    if depth < 1 or width < 1:
        raise InputError(f"depth and width must be at least 1, got {depth} and {width}.")
    model, graph = setting.model, setting.model.graph
    quiet = setting.but(progress=silent)
    mask = torch.zeros_like(graph.mask)
    levels, asked = [], []
    todo, known = ["logits"], {"logits"}
    done = 0
    for _ in range(depth):
        maps, found = [], list[int]()
        for receiver in todo:
            where = None if receiver == "logits" else "all"
            effects = path_patch(quiet, receiver, receiver_positions=where, freeze_mlps=freeze_mlps)
            for row in _kept(model, effects, width, threshold):
                mask[row, graph.column(receiver)] = True
                found.append(row)
            maps.append(effects)
            done += 1
            setting.progress("tracing receivers back", done, len(known))
        levels.append(tuple(maps))
        asked.append(tuple(todo))
        inputs = dict.fromkeys(graph.readers[c] for row in found for c in graph.inputs_of[row])
        todo = [name for name in inputs if name not in known]
        known |= set(todo)
        if not todo:
            break
    return Trace(Circuit(graph, mask), tuple(levels), tuple(asked), len(setting.task) > 1)


def _kept(model: Model, effects: EffectMap, width: int, threshold: float) -> list[int]:
    """Rows of the senders that matter."""
    rows = []
    for name, estimate in effects.top(width):
        may_be_nothing = estimate.n > 1 and estimate.low <= 0 <= estimate.high
        if not may_be_nothing and abs(estimate.value) >= threshold * abs(effects.gap):
            rows.append(model.graph.row(name))
    return rows
