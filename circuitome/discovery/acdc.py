"""ACDC: go through the readers from the logits back, and drop every edge whose loss hardly tells that it is gone.

Edge after edge, exactly as published; what makes it fast is only how the questions are asked. A reader's edges are
asked about many at a time, each question on the assumption that earlier ones end as a gradient predicts; where one ends
otherwise, the rest are asked again. Source: Conmy et al. 2023, arXiv:2304.14997, algorithm 1.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitome.errors import InputError, NumericsError, unknown_name
from circuitome.graph import Circuit, EdgeScores, Graph
from circuitome.interventions import (
    Ablation,
    AblationValues,
    LiveCircuit,
    Readout,
    baseline,
    batches,
    copies_within,
)
from circuitome.models import Model
from circuitome.tasks import LOSSES, Task

Progress = Callable[[int, int], None]
"""Called with the edges decided and the edges in all."""

ORDERS = ("reverse", "normal")
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


def acdc(
    model: Model,
    task: Task,
    *,
    threshold: float,
    loss: str = "metric",
    order: str = "reverse",
    absolute: bool = False,
    ablation: Ablation = "corrupted",
    max_memory: int | None = None,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Acdc:
    """The circuit that is left when every edge whose removal raises the mean loss by less than `threshold` is gone.

    Readers are visited from the logits back, the senders of each in `order`: "reverse", latest first, or "normal". With
    `absolute` the size of the change counts, not its sign. `loss` is a name in `LOSSES`: "kl" and "l2" against the
    clean model, or "metric", minus the task's metric, which removals can also improve. `checkpoint` is a file in which
    the state is kept from time to time; where it exists already, the run goes on from there with the same result.
    Raises `InputError` for a threshold not above 0, `UnknownNameError` for other names, `NumericsError` at NaN.
    """
    if not threshold > 0:
        raise InputError(f"The threshold must be above 0, got {threshold}: each edge's removal changes the loss a bit.")
    if order not in ORDERS:
        raise unknown_name("sender order", order, ORDERS)
    if loss not in LOSSES:
        raise unknown_name("loss", loss, LOSSES)
    search = _Search(model, task, threshold, loss, order, absolute, ablation, max_memory)
    with torch.no_grad(), model.frozen_parameters():
        return search.run(progress, checkpoint)


class _Search:
    """One run of ACDC: the mask so far, and a live circuit for every batch of prompts."""

    def __init__(
        self,
        model: Model,
        task: Task,
        threshold: float,
        loss: str,
        order: str,
        absolute: bool,
        ablation: Ablation,
        max_memory: int | None,
    ) -> None:
        self.model, self.task, self.graph = model, task, model.graph
        self.threshold, self.order, self.absolute = threshold, order, absolute
        self.key = [task.data_hash(), loss, order, absolute, threshold, ablation, repr(model.graph)]
        replacement = AblationValues.of(model, task, ablation)
        corrupted = replacement.from_prompts
        with torch.no_grad():
            made = list(batches(model, task, shared_prefix=corrupted, corrupted=corrupted, max_memory=max_memory))
            self.bases = [baseline(model, task, batch, replacement) for batch in made]
            self.readouts = [
                Readout(model, task, batch.rows, loss, None if loss == "metric" else model.logits(batch.clean))
                for batch in made
            ]
        self.copies = copies_within(model, [base.batch for base in self.bases], max_memory)
        self.mask = self.graph.mask.clone()
        self.steps: list[Step] = []
        self.column = len(self.graph.readers) - 1
        self.evaluations = 0
        self.live: list[LiveCircuit] = []
        self.loss = self.full_loss = float("nan")

    def run(self, progress: Progress | None, checkpoint: Path | None) -> Acdc:
        """All readers' turns."""
        if checkpoint is not None and checkpoint.exists():
            self.load(checkpoint)
        since = REFRESH
        while self.column >= 0:
            if since >= REFRESH:
                self.refresh()
                if checkpoint is not None:
                    self.save(checkpoint)
                since = 0
            since += self.visit(self.column)
            self.column -= 1
            if progress:
                progress(len(self.steps), self.graph.n_edges)
        circuit = Circuit(self.graph, self.mask)
        return Acdc(circuit, tuple(self.steps), self.loss, self.full_loss, self.threshold, self.evaluations)

    def refresh(self) -> None:
        """Compute every value of the present circuit afresh."""
        self.live.clear()
        circuit = Circuit(self.graph, self.mask)
        self.live = [LiveCircuit(self.model, base, circuit, self.column + 1) for base in self.bases]
        if self.column == len(self.graph.readers) - 1:
            for live in self.live:  # nothing is settled yet: read the logits' input as it is
                live.inputs[self.column] = live.input_of(self.column)
        last = len(self.graph.readers) - 1
        self.loss = float(self.losses(last, [live.inputs[last][None] for live in self.live])[0])
        if last == self.column:
            self.full_loss = self.loss

    def visit(self, column: int) -> bool:
        """One reader's turn; whether its edges had to be asked about."""
        rows = self.graph.mask[:, column].nonzero().flatten().tolist()
        rows = rows[::-1] if self.order == "reverse" else rows
        asked = all(live.alive(column) for live in self.live)
        if asked:
            for live in self.live:
                live.inputs[column] = live.input_of(column)
            dropped = self.ask(column, rows)
            for live in self.live:
                live.change(column, dropped)
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
        expected = self.predict(column, rows)
        present = [live.inputs[column] for live in self.live]
        done = 0
        while done < len(rows):
            some = rows[done : done + self.copies]
            some = some[: 1 << (len(some).bit_length() - 1)]
            differences = [torch.stack([self._rows(live, row, column) for row in some]) for live in self.live]
            going = torch.tensor([float(expected[row]) for row in some])
            # state k: all edges before k that are expected to go are gone, and k itself
            gone = torch.tril(going.expand(len(some), -1), -1) + torch.eye(len(some))
            states = [
                x - torch.einsum("kj,j...->k...", gone.to(d), d) for x, d in zip(present, differences, strict=True)
            ]
            losses = self.losses(column, states).tolist()
            self.evaluations += len(losses)
            asked = 0
            for row, value in zip(some, losses, strict=True):
                change = value - self.loss
                goes = (abs(change) if self.absolute else change) < self.threshold
                self.steps.append(Step(row, column, change, not goes))
                asked += 1
                if goes:
                    self.loss = value
                    dropped.append(row)
                    present = [x - d[asked - 1] for x, d in zip(present, differences, strict=True)]
                if goes != expected[row]:
                    break
            done += asked
        return dropped

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

    def predict(self, column: int, rows: Sequence[int]) -> dict[int, bool]:
        """For each edge, whether it goes if the loss is linear in what the reader sees."""
        changes = torch.zeros(len(rows))
        for live, readout in zip(self.live, self.readouts, strict=True):
            with torch.enable_grad():
                state = live.inputs[column][None].detach().requires_grad_(True)
                total = readout(live.outcome(column, state)).sum() / len(self.task)
                (gradient,) = torch.autograd.grad(total, state)
            for i, row in enumerate(rows):
                changes[i] -= float((self._rows(live, row, column) * gradient[0]).sum())
        sizes = changes.abs() if self.absolute else changes
        return dict(zip(rows, (sizes < self.threshold).tolist(), strict=True))

    @staticmethod
    def _rows(live: LiveCircuit, row: int, column: int) -> Tensor:
        return live.difference(row, column).expand_as(live.inputs[column])

    def save(self, path: Path) -> None:
        """Write the state, all of it or nothing."""
        state: dict[str, Any] = {
            "key": self.key,
            "column": self.column,
            "full_loss": self.full_loss,
            "evaluations": self.evaluations,
            "steps": [[step.row, step.column, step.change, step.kept] for step in self.steps],
        }
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(state))
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Go on from a saved state. Raises `InputError` if it belongs to another search."""
        state = json.loads(path.read_text())
        if state["key"] != self.key:
            raise InputError(
                f"{path} belongs to another ACDC run (other prompts, model, threshold, loss, order or ablation). "
                "Repeat that command to resume it, or choose another folder."
            )
        self.steps = [Step(*step) for step in state["steps"]]
        self.column, self.full_loss = state["column"], state["full_loss"]
        self.evaluations = state["evaluations"]
        for step in self.steps:
            self.mask[step.row, step.column] = step.kept


def roc_sweep(
    model: Model, task: Task, thresholds: Sequence[float], **options: Any
) -> "tuple[EdgeScores, dict[float, Circuit]]":
    """ACDC at several thresholds: the circuit at each, and as a score the largest threshold that keeps an edge.

    Scores are negative for kept edges (they help), 0 for those that no threshold keeps.
    """
    graph: Graph = model.graph
    values = torch.zeros(graph.mask.shape)
    found: dict[float, Circuit] = {}
    for threshold in sorted(thresholds):
        found[threshold] = acdc(model, task, threshold=threshold, **options).circuit
        values[found[threshold].mask] = -threshold
    return EdgeScores(graph, values, "threshold", "acdc sweep"), found
