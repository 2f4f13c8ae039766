"""ACDC: go through the readers from the logits back, and drop every edge whose loss hardly tells that it is gone.

Edge after edge, exactly as published; what makes it fast is only how the questions are asked. A reader's edges are
tested many at a time, each test on the assumption that earlier ones end as a gradient predicts; where one ends
otherwise, the rest are asked again. Source: Conmy et al. 2023, arXiv:2304.14997, algorithm 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.incremental import IncrementalCircuit, copies_within
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, NumericsError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.tasks.losses import LOSSES, loss_of

ORDERS = ("reverse", "normal")
SURE = 0.25
"""Share of the threshold below which a predicted change is taken for small where edges are grouped."""
SLACK = 0.5
"""By how much of the threshold the change of a group may differ from its prediction."""
WIDE_SHARE = 4
"""By how much fewer states are computed together where all positions matter."""
LARGEST_GROUP = 64
"""Edges tested at once, at most."""
REFRESH = 8
"""Readers after which all values are computed afresh: a run that resumes there goes on bit for bit."""


@dataclass(frozen=True)
class Step:
    """One edge's turn."""

    row: int
    """Its writer."""
    column: int
    """Its reader."""
    change: float
    """Loss without the edge minus loss with it, in the circuit of that moment; 0 for edges that lead nowhere."""
    kept: bool
    """Whether it stays."""


@dataclass(frozen=True, eq=False)
class Acdc:
    """What ACDC found, and the way there."""

    circuit: Circuit
    """The edges that stay."""
    steps: tuple[Step, ...]
    """All edges in the order of their turns."""
    loss: float
    """Mean loss of the circuit."""
    full_loss: float
    """Mean loss of the full graph."""
    threshold: float
    """The threshold, in the loss's unit."""
    evaluations: int
    """Forward runs of all prompts that were asked for; the published algorithm takes one for every edge."""

    def scores(self, unit: str) -> EdgeScores:
        """Minus the change of loss on each edge's turn: negative helps, as everywhere. Edges that stay rank first.

        So that `top(len(circuit))` is the circuit, dropped edges' scores are scaled below the weakest one kept.
        """
        values = torch.zeros(self.circuit.graph.mask.shape)
        kept = [abs(step.change) for step in self.steps if step.kept]
        dropped = [abs(step.change) for step in self.steps if not step.kept]
        weakest, strongest = min(kept, default=1.0), max(dropped, default=0.0)
        scale = 1.0 if strongest < weakest else 0.5 * weakest / strongest
        for step in self.steps:
            values[step.row, step.column] = -step.change * (1.0 if step.kept else scale)
        return EdgeScores(self.circuit.graph, values, unit, f"acdc, threshold {self.threshold:g}")


@method
def acdc(
    setting: Setting,
    *,
    threshold: float,
    loss: str = "metric",
    order: str = "reverse",
    absolute: bool = False,
    grouped: bool = False,
) -> Acdc:
    """The circuit that is left when every edge whose removal raises the mean loss by less than `threshold` is gone.

    Readers are visited from the logits back, the senders of each in `order`: "reverse", latest first, or "normal". With
    `absolute` the size of the change counts, not its sign. `loss` is a name in `LOSSES`: "kl" and "l2" against the
    clean model, or "metric", minus the task's metric, which removals can also improve.

    With `grouped`, runs of edges whose predicted change is far below the threshold are tested at once, and one by
    one only where their joint change is not what was predicted: several times faster. Edges that make up for one
    another can then be dropped together, so the circuit may differ in a few edges; the changes that steps report are
    estimates within groups, the losses exact.

    The state is kept in the setting's checkpoint from time to time; where that exists already, the run goes on from
    there with the same result.
    Raises `InputError` for a threshold not above 0, `UnknownNameError` for other names, `NumericsError` at NaN,
    `RunError` if the checkpoint belongs to another run.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> found = cm.acdc(model, task, threshold=1e-3, loss="l2")
    >>> found.circuit == cm.ground_truth.true_circuit(model, task), len(found.circuit)
    (True, 13)
    """
    if not threshold > 0:
        raise InputError(f"The threshold must be above 0, got {threshold}: each edge's removal changes the loss a bit.")
    if order not in ORDERS:
        raise unknown_name("sender order", order, ORDERS)
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    with torch.no_grad(), setting.model.frozen_parameters():
        return _Search(setting, threshold, loss, order, absolute, grouped).run()


class _Search:
    """One run of ACDC: the mask so far, and a live circuit for every batch of prompts."""

    def __init__(
        self, setting: Setting, threshold: float, loss: str, order: str, absolute: bool, grouped: bool
    ) -> None:
        self.setting, self.threshold = setting, threshold
        self.model, self.task, self.graph = model, task, _ = setting.model, setting.task, setting.model.graph
        self.order, self.absolute, self.grouped = order, absolute, grouped
        self.checkpoint = setting.kept("ACDC", loss, order, absolute, grouped, threshold)
        self.bases = list(setting.baselines())
        made = [base.batch for base in self.bases]
        self.readouts = [
            Readout(model, task, batch.rows, loss, None if loss == "metric" else model.logits(batch.clean))
            for batch in made
        ]
        self.copies = copies_within(model, made, setting.max_memory)
        self.mask = self.graph.mask.clone()
        self.steps: list[Step] = []
        self.column = len(self.graph.readers) - 1
        self.evaluations = 0
        self.live: list[IncrementalCircuit] = []
        self.loss = self.full_loss = float("nan")

    def run(self) -> Acdc:
        """All readers' turns."""
        self.load()
        since = REFRESH
        while self.column >= 0:
            if since >= REFRESH:
                self.refresh()
                self.save()
                since = 0
            since += self.visit(self.column)
            self.column -= 1
            self.setting.progress("deciding on edges", len(self.steps), self.graph.n_edges)
        self.save()
        circuit = Circuit(self.graph, self.mask)
        return Acdc(circuit, tuple(self.steps), self.loss, self.full_loss, self.threshold, self.evaluations)

    def refresh(self) -> None:
        """Compute every value of the present circuit afresh."""
        self.live.clear()
        circuit = Circuit(self.graph, self.mask)
        self.live = [IncrementalCircuit(self.model, base, circuit, self.column + 1) for base in self.bases]
        last = len(self.graph.readers) - 1
        self.loss = float(self.losses(last, [live.inputs[last][None] for live in self.live])[0])
        if last == self.column:
            self.full_loss = self.loss

    def visit(self, column: int) -> bool:
        """One reader's turn; whether its edges had to be tested."""
        rows = self.graph.mask[:, column].nonzero().flatten().tolist()
        rows = rows[::-1] if self.order == "reverse" else rows
        asked = all(live.alive[column] for live in self.live)
        if asked:
            for live in self.live:
                live.inputs[column] = live.input_of(column)
            dropped = self.ask(column, rows)
            for live in self.live:
                live.drop(column, dropped)
        else:
            dropped = rows
            self.steps += [Step(row, column, 0.0, False) for row in rows]
        self.mask[dropped, column] = False
        for live in self.live:
            live.settle(column)
        return asked

    def ask(self, column: int, rows: Sequence[int]) -> list[int]:
        """The edges from `rows` into `column` that go."""
        dropped: list[int] = []
        known: dict[frozenset[int], float] = {}  # losses by what is gone: what a surprise left undecided comes again
        predicted = self.predict(column, rows)
        waiting = self.groups(rows, predicted)
        # Large states fill the processor sooner, and after a surprise the rest of a batch has been in vain.
        at_once = max(1, self.copies // WIDE_SHARE) if self.live[0].everywhere[column] else self.copies
        while waiting:
            some = waiting[: 1 << (min(len(waiting), at_once).bit_length() - 1)]
            # state k: all edges in front of group k that are expected to go are gone, and group k itself
            going = [[row for row in group if len(group) > 1 or self.small(predicted[row])] for group in some]
            gone = [[*dropped, *(row for before in going[:k] for row in before), *some[k]] for k in range(len(some))]
            states = [frozenset(rows) for rows in gone]
            new = [k for k, state in enumerate(states) if state not in known]
            if new:
                losses = self.losses(column, [live.without(column, [gone[k] for k in new]) for live in self.live])
                known |= {states[k]: value for k, value in zip(new, losses.tolist(), strict=True)}
                self.evaluations += len(new)
            for group, state in zip(some, states, strict=True):
                surprised = self.decide(column, group, known[state], predicted, dropped)
                waiting = waiting[1:]
                if surprised and len(group) > 1:  # nothing of it is decided
                    middle = len(group) // 2
                    waiting = [group[:middle], group[middle:], *waiting]
                if surprised:
                    break
        return dropped

    def decide(
        self, column: int, group: Sequence[int], value: float, predicted: Mapping[int, float], dropped: list[int]
    ) -> bool:
        """Decide on a group whose removal gives the loss `value`; whether that is not what was expected."""
        change = value - self.loss
        off = change - sum(predicted[row] for row in group)
        if len(group) > 1 and abs(off) > SLACK * self.threshold:
            return True
        goes = len(group) > 1 or self.small(change)
        for row in group:
            each = change if len(group) == 1 else predicted[row] + off / len(group)
            self.steps.append(Step(row, column, each, not goes))
        if goes:
            self.loss = value
            dropped += group
        return goes != (len(group) > 1 or self.small(predicted[group[0]]))

    def small(self, change: float) -> bool:
        """Whether an edge with this change goes."""
        return (abs(change) if self.absolute else change) < self.threshold

    def surely_goes(self, predicted: float) -> bool:
        """Whether an edge with this predicted change may be tested together with others."""
        least = -SURE if self.absolute else -2.0
        return least * self.threshold < predicted < SURE * self.threshold

    def groups(self, rows: Sequence[int], predicted: Mapping[int, float]) -> list[list[int]]:
        """`rows` in their order, cut into what is tested at once: one edge, or a run of edges that surely go."""
        groups: list[list[int]] = []
        sure_rows: set[int] = set()
        for row in rows:
            sure = self.grouped and self.surely_goes(predicted[row])
            if sure and groups and len(groups[-1]) < LARGEST_GROUP and groups[-1][-1] in sure_rows:
                groups[-1].append(row)
            else:
                groups.append([row])
            if sure:
                sure_rows.add(row)
        return groups

    def losses(self, column: int, states: Sequence[Tensor]) -> Tensor:
        """Mean loss over all prompts in each state."""
        total = torch.zeros(len(states[0]), dtype=torch.float64)
        for live, readout, some in zip(self.live, self.readouts, states, strict=True):
            total += readout(live.outcome(column, some)).double().sum(1).cpu()
        mean = total / len(self.task)
        if not bool(torch.isfinite(mean).all()):
            raise NumericsError(
                f"The loss is not finite while edges into {self.graph.readers[column]} are switched off. Try the model "
                "in float32."
            )
        return mean

    def predict(self, column: int, rows: Sequence[int]) -> dict[int, float]:
        """The change of the loss without each edge, from its gradient before this reader's turn and after it.

        "After" is the state in which all edges have gone that the first gradient lets go. In between the gradient is
        taken to change in step with what has gone already.
        """
        present = [live.inputs[column][None] for live in self.live]
        before = self.slopes(column, rows, present)[0]
        going = (before.abs() if self.absolute else before) < self.threshold
        gone = [row for row, goes in zip(rows, going.tolist(), strict=True) if goes]
        after = self.slopes(column, rows, [live.without(column, [gone]) for live in self.live])[0]
        weight = before.abs() * going
        share = (weight.cumsum(0) - weight / 2) / weight.sum().clamp(min=1e-30)
        return dict(zip(rows, (before + share * (after - before)).tolist(), strict=True))

    def slopes(self, column: int, rows: Sequence[int], states: Sequence[Tensor]) -> Tensor:
        """For each state, minus the derivative of the mean loss along each edge's difference."""
        slopes = torch.zeros(len(states[0]), len(rows), dtype=torch.float64)
        for live, readout, some in zip(self.live, self.readouts, states, strict=True):
            with torch.enable_grad():
                state = some.detach().requires_grad_(True)
                total = readout(live.outcome(column, state)).sum() / len(self.task)
                (gradient,) = torch.autograd.grad(total, state)
            slopes -= torch.stack([live.products(column, rows, one) for one in gradient]).double().cpu()
        return slopes

    def save(self) -> None:
        """Keep the state."""
        steps = {
            "rows": torch.tensor([step.row for step in self.steps]),
            "columns": torch.tensor([step.column for step in self.steps]),
            "changes": torch.tensor([step.change for step in self.steps], dtype=torch.float64),
            "kept": torch.tensor([step.kept for step in self.steps]),
        }
        names = ("column", "loss", "full_loss", "evaluations")
        self.checkpoint.write(steps, {name: getattr(self, name) for name in names})

    def load(self) -> None:
        """Go on from a state that was kept, if there is one."""
        if before := self.checkpoint.read():
            steps, state = before
            columns = (steps[name].tolist() for name in ("rows", "columns", "changes", "kept"))
            self.steps = [Step(*step) for step in zip(*columns, strict=True)]
            for name, value in state.items():
                setattr(self, name, value)
            for step in self.steps:
                self.mask[step.row, step.column] = step.kept


@method
def loss_gap(setting: Setting, loss: str) -> float:
    """Mean loss with everything ablated minus that of the clean model: what any threshold is to be compared with."""
    model, task = setting.model, setting.task
    measure, total = loss_of(task, loss), 0.0
    with torch.no_grad():
        for base in setting.baselines():
            batch, clean = base.batch, model.logits(base.batch.clean)
            at_read = base.final[torch.arange(len(batch.rows), device=clean.device), batch.clean.read]
            ablated = model.unembed(at_read.to(model.dtype))
            total += float((measure(ablated, clean, batch.rows) - measure(clean, clean, batch.rows)).sum())
    return total / len(task)


@method
def roc_sweep(
    setting: Setting, /, thresholds: Sequence[float], **options: Any
) -> tuple[EdgeScores, dict[float, Circuit]]:
    """ACDC at several thresholds: the circuit at each, and as a score the largest threshold that keeps an edge.

    Scores are negative for kept edges (they help), 0 for those that no threshold keeps.
    """
    graph = setting.model.graph
    values = torch.zeros(graph.mask.shape)
    found: dict[float, Circuit] = {}
    for threshold in sorted(thresholds):
        found[threshold] = acdc(setting, threshold=threshold, **options).circuit
        values[found[threshold].mask] = -threshold
    return EdgeScores(graph, values, "threshold", "acdc sweep"), found
