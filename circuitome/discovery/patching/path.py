"""Path patching: what reaches a receiver from a sender without passing through any other head.

The published algorithm runs the model once more for every sender to see what its receivers get. With all other heads
held at their clean values that needs no run: positions do not mix any more, so only the MLPs between the two matter,
and only at the receivers' positions. Then the model runs on from the first receiver.
Source: Wang et al. 2022, arXiv:2211.00593, appendix B; Goldowsky-Dill et al. 2023, arXiv:2304.05969.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues, corrupted_values
from circuitome.engine.batches import Batch
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import Node
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

    effect = metric(patched) - metric(clean), per prompt, in the metric's unit: negative where the path helps. Rows of
    the map are layers, columns heads and "mlp", and there is a row for `embed`. Other heads stay clean on the way from
    sender to receivers; MLPs react, unless `freeze_mlps`, and then one sender and one receiver are one edge of the
    graph, and the effect is that of corrupting it. Where a norm follows the attention, a head sends its share of the
    normed output. With `together` all senders are corrupted at once and the map is one cell.

    `receivers` are readers ("a9.h6.q", "a9.kv2.v", "m7.in", "logits"); their default positions are the one read for
    queries and logits, all for others. Patched receivers keep their value whatever happens before them; what comes
    after recomputes.

    Raises `UnknownNameError` for names of the graph that do not exist, `InputError` for logits beside other receivers,
    no receiver, a role that a prompt has not, or positions outside a prompt, `NumericsError` where the metric is not
    finite.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> effects = cm.path_patch(model, task, "a2.h0.q", senders=["a1.h0", "a1.h1"])
    >>> effects.top(1)[0][0]
    'a1.h0'
    """
    task, graph = setting.task, setting.model.graph
    columns = _columns(graph, [receivers] if isinstance(receivers, str) else receivers, receiver_positions)
    rows = list(range(len(graph.writers))) if senders is None else [graph.row(name) for name in senders]
    sets = torch.zeros(1 if together else len(rows), len(graph.writers), dtype=torch.bool)
    sets[0 if together else torch.arange(len(rows)), rows] = True
    upstream = (sets & graph.mask[:, columns].any(1)).any(1).nonzero().flatten()
    samples, plain, done = torch.zeros(len(task), len(sets)), torch.empty(2, len(task)), 0
    with torch.no_grad():
        for batch in setting.but(ablation="corrupted").batches():
            paths = _Paths(setting, batch, columns, sender_positions, receiver_positions, freeze_mlps)
            plain[:, list(batch.rows)] = paths.plain.cpu()
            for index, effect in paths.effects(sets, upstream):
                samples[list(batch.rows), index] = effect.cpu()
                done += len(batch.rows)
                setting.progress("patching paths", done, len(upstream) * len(task))
    name = f"path patching into {', '.join(graph.readers[column] for column in columns)}"
    whole = (("senders",), ("together",)), samples[..., None]
    axes, cells = whole if together else _by_layer(graph, rows, samples)
    return EffectMap(
        name=name,
        axes=axes,
        samples=cells,
        clean=plain[0],
        corrupted=plain[1],
        unit=task.unit,
        groups=task.groups,
    )


def _columns(graph: Graph, receivers: Sequence[str], positions: Positions | None) -> list[int]:
    """Columns of the receivers. Raises `InputError` for receivers that do not go together, or with their positions."""
    columns = sorted({graph.column(name) for name in receivers})
    logits = len(graph.readers) - 1
    if not columns or (logits in columns and len(columns) > 1):
        raise InputError(
            f"Receivers are either the logits or inputs of heads and MLPs; got {', '.join(receivers) or 'none'}."
        )
    if logits in columns and positions not in (None, "end"):
        raise InputError(f"The logits are read at one position, the end; got {positions!r}.")
    return columns


def _by_layer(
    graph: Graph, rows: Sequence[int], samples: Float[Tensor, "prompts sender"]
) -> tuple[tuple[tuple[str, ...], ...], Float[Tensor, "prompts row column"]]:
    """Labels of rows and columns, and the effects of single senders laid out by layer and head; NaN elsewhere."""
    cells = torch.full((len(samples), graph.n_layers + 1, graph.n_heads + 1), torch.nan)
    for sender, row in enumerate(rows):
        node = graph.writer_nodes[row]
        column = node.index if node.kind == "head" else graph.n_heads
        cells[:, graph.layer_of[row] + 1, column] = samples[:, sender]
    layers = ("embed", *(str(Node("attention", layer)) for layer in range(graph.n_layers)))
    return (layers, (*(f"h{head}" for head in range(graph.n_heads)), "mlp")), cells


class _Paths:
    """Path patching on one batch of prompts.

    What receivers get is computed at the positions that any of them reads: `at`, indices into [batch * pos].
    """

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
        self.clean = model.record(batch.clean, logits=False)
        assert batch.corrupted is not None
        self.delta = corrupted_values(model, batch).minus(WriterValues.of(model, self.clean))
        self.readout = setting.readout(batch)
        ends = torch.stack([run.resid_post(self.graph.n_layers - 1) for run in (self.clean, batch.corrupted)])
        self.plain = -self.readout(batch.clean.at_read(ends))
        self.where = {c: self._positions(task, receiver_positions or self._default(c)) for c in columns}
        self.at = torch.stack(list(self.where.values())).any(0).flatten().nonzero().flatten()
        self.sends = self._positions(task, sender_positions).flatten()[self.at][:, None].float()
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
                elif (index := position_of(pair, position)) >= start:
                    mask[i, index - start] = True
        return mask

    def effects(
        self, sets: Bool[Tensor, "copies writers"], upstream: Tensor
    ) -> Iterator[tuple[int, Float[Tensor, " batch"]]]:
        """For each set of senders in `upstream`, its index and the change of the metric with it patched."""
        step = max(1, SWEEP_NUMBERS // (len(self.at) * self.model.d_model * (1 + len(self.columns))))
        for some in upstream.split(step) if len(upstream) else ():
            received = self._received(sets[some])
            for part in torch.arange(len(some)).split(self.copies):
                final = self._run_on({column: x[part] for column, x in received.items()})
                yield from zip(some[part].tolist(), -self.readout(final) - self.plain[0], strict=True)

    def _received(self, sets: Bool[Tensor, "copies writers"]) -> dict[int, Float[Tensor, "copies at d_model"]]:
        """By column, what each receiver gets from each set of senders."""
        graph, blocks = self.graph, self.model.blocks
        weights = sets.float().to(self.sends.device)  # sums over senders run in float32 whatever the model's dtype
        change = weights[:, :1, None] * (self._rows(self.delta.embed) * self.sends)
        received: dict[int, Tensor] = {}
        for layer in range(min(graph.n_layers, max(graph.reader_layer[c] for c in self.columns) + 1)):
            before, rows, mlp_column = change, graph.head_rows(layer), graph.mlp_column(layer)
            for column in self.columns:
                if graph.reader_layer[column] == layer and column != mlp_column:
                    received[column] = self._rows(self.clean.resid_pre[layer]) + before
            if sets[:, rows].any():
                z = self._rows(self.delta.heads[layer]).transpose(0, 1)
                vectors = torch.bmm(z, blocks[layer].head_weights()) * self.sends
                change = change + torch.einsum("kh,hnd->knd", weights[:, rows], vectors)
            resid_mid = self._rows(self.clean.resid_mid[layer]) + (before if graph.parallel else change)
            if mlp_column in self.columns:
                received[mlp_column] = resid_mid
            change = change + self._mlp_change(layer, resid_mid, sets)
        if self.logits in self.columns:
            received[self.logits] = self._rows(self.clean.resid_post(graph.n_layers - 1)) + change
        return received

    def _mlp_change(
        self, layer: int, resid_mid: Float[Tensor, "copies at d_model"], sets: Bool[Tensor, "copies writers"]
    ) -> Float[Tensor, "copies at d_model"]:
        """How the MLP of a block differs from its clean output: as it reacts to `resid_mid`, or as a sender."""
        row = self.graph.mlp_row(layer)
        change = torch.zeros_like(resid_mid)
        reacts = torch.zeros(len(sets), dtype=torch.bool) if self.freeze_mlps else sets[:, :row].any(1)
        if reacts.any():
            online = self.model.blocks[layer].run_mlp(resid_mid[reacts].to(self.model.dtype)).float()
            change[reacts] = online - self._rows(self.clean.mlp_out[layer])
        if sets[:, row].any():
            change[sets[:, row]] = torch.where(
                self.sends.bool(), self._rows(self.delta.mlps[layer]), change[sets[:, row]]
            )
        return change

    def _rows(self, whole: Float[Tensor, "batch pos ..."]) -> Float[Tensor, "at ..."]:
        return whole.flatten(0, 1)[self.at].float()

    def _run_on(self, received: dict[int, Float[Tensor, "copies at d_model"]]) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the position read when the receivers get this and the rest of the model follows."""
        if self.logits in received:
            return received[self.logits]  # its positions are the one read, prompt after prompt
        reads = {column: self.where[column].flatten()[self.at] for column in received}
        inputs = {column: x[:, reads[column]] for column, x in received.items()}
        return self.rest.seen(inputs, {column: self.at[reads[column]] for column in received})


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
