"""A training watched from the inside: curves of all measures over steps, their onsets, and which comes first."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.dynamics.freezing import FROZEN
from circuitome.dynamics.measures import CIRCUITS, MEASURES, TASK_MEASURES, Measure, Measures
from circuitome.dynamics.onsets import SHORTEST, Onset, onset, precedes
from circuitome.dynamics.task_circuits import TaskCircuits
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.progress import Progress, silent
from circuitome.results import Estimate, Shown, mean
from circuitome.training.loop import BeforeStep, train
from circuitome.training.objectives import Objective, next_token
from circuitome.training.schedule import Schedule, log_steps
from circuitome.training.streams import Stream

ATTENTION = "attention"
"""The entry of a row that holds attention in the example."""
A_DOUBLING = 3
"""Watched steps from a step to its double."""


@dataclass(frozen=True, eq=False)
class Development(Shown):
    """Measures of a model at steps of its training."""

    name: str
    """What was trained."""
    steps: tuple[int, ...]
    """The steps, rising."""
    values: dict[str, tuple[Tensor | None, ...]]
    """By name: at each step the samples [n] or [n, layer, head]; None where it could not be measured."""
    attention: tuple[Tensor | None, ...] = ()
    """At each step the attention of all heads in one example [layer, head, query, key], if it was kept."""
    circuits: Mapping[str, TaskCircuits] = field(default_factory=dict)
    """By task: its circuit at each step, whose curves are among `values`."""
    frozen: tuple[str, ...] = ()
    """Heads that were frozen on the way."""

    def __repr__(self) -> str:
        return f"Development({self.name}, {len(self.steps)} steps to {self.steps[-1]:,}, {', '.join(self.values)})"

    def since(self, step: int) -> "Development":
        """The same from a step on: onsets are then those of later changes.

        The first steps of a training teach how frequent tokens are, which is the largest fall of most losses.
        Raises `InputError` where no step is left.
        """
        first = bisect_left(self.steps, step)
        if first == len(self.steps):
            raise InputError(f"There is no step from {step} on; the last is {self.steps[-1]}.")
        later = {name: every[first:] for name, every in self.values.items()}
        return replace(self, steps=self.steps[first:], values=later, attention=self.attention[first:])

    def about(self, name: str) -> Measure:
        """What the curve of a name shows. Raises `UnknownNameError` for a name that is none."""
        kind, _, task = name.partition(":")
        if task in self.circuits and kind in TASK_MEASURES:
            made = TASK_MEASURES[kind]
            unit = made.unit or self.circuits[task].at[-1].unit
            return replace(made, title=made.title.format(task), about=made.about.format(task), unit=unit)
        if name not in MEASURES:
            raise unknown_name("measure of this development", name, self.values)
        return MEASURES[name]

    def _kept(self, name: str) -> tuple[list[int], Tensor]:
        if name not in self.values:
            raise unknown_name("measure of this development", name, self.values)
        kept = [(step, value) for step, value in zip(self.steps, self.values[name], strict=True) if value is not None]
        return [step for step, _ in kept], torch.stack([value for _, value in kept])

    def heads(self, name: str) -> Float[Tensor, "step layer head"]:
        """Means of a measure of heads at every step that has it. Raises `InputError` for one that is none of heads."""
        if not self.about(name).heads:
            raise InputError(f"{name} is no measure of single heads.")
        return self._kept(name)[1].mean(1)

    def best_head(self, name: str) -> tuple[int, int]:
        """Layer and head with the largest value of a measure at the last step."""
        last = self.heads(name)[-1]
        return divmod(int(last.argmax()), last.shape[1])

    def curve(self, name: str) -> tuple[list[int], Float[Tensor, "n step"]]:
        """Steps, and a row of values for each sample; of a measure of heads, those of the best head at the end.

        Raises `UnknownNameError` for a measure that was not made.
        """
        steps, values = self._kept(name)
        if self.about(name).heads:
            layer, head = self.best_head(name)
            values = values[:, :, layer, head]
        return steps, values.T

    def title(self, name: str) -> str:
        """What the curve of a measure shows, with the head if it is that of one."""
        head = f" {Node.head(*self.best_head(name))}" if self.about(name).heads else ""
        return self.about(name).title + head

    def at_end(self, name: str) -> Estimate:
        """The value of a curve at the last step."""
        return mean(self.curve(name)[1][:, -1], self.about(name).unit)

    @cached_property
    def onsets(self) -> dict[str, Onset]:
        """The onset of each curve that has enough steps and changes at all."""
        found = {}
        for name in self.values:
            steps, rows = self.curve(name)
            kept = [i for i in range(len(steps)) if bool(rows[:, i].isfinite().all())]
            if sum(steps[i] > 0 for i in kept) >= SHORTEST and float(rows[:, kept].mean(0).std()) > 0:
                found[name] = onset([steps[i] for i in kept], rows[:, kept])
        return found

    def order(self) -> list[tuple[str, str, float]]:
        """Sudden changes in the order of their onsets, each with the next one and how sure it is to come first."""
        sudden = sorted((found.step, name) for name, found in self.onsets.items() if found.sudden)
        names = [name for _, name in sudden]
        return [(a, b, precedes(self.onsets[a], self.onsets[b])) for a, b in pairwise(names)]

    def to_dict(self) -> dict[str, Any]:
        """Means, intervals and onsets of all curves, as plain JSON values."""
        curves = {}
        for name in self.values:
            steps, rows = self.curve(name)
            about = self.about(name)
            estimates = [mean(row, about.unit) for row in rows.T]
            curves[name] = {
                "title": self.title(name),
                "about": about.about,
                "unit": about.unit,
                "steps": steps,
                **{end: [_finite(getattr(e, end)) for e in estimates] for end in ("value", "low", "high")},
            }
        onsets = {
            name: {key: getattr(found, key) for key in ("step", "low", "high", "end", "size", "share", "p", "sudden")}
            for name, found in self.onsets.items()
        }
        order = [list(pair) for pair in self.order()]
        circuits = {task: found.to_dict() for task, found in self.circuits.items()}
        return {"name": self.name, "curves": curves, "onsets": onsets, "order": order} | (
            {CIRCUITS: circuits} if circuits else {}
        )


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None


def develop(
    model: Model,
    data: Stream,
    schedule: Schedule,
    measures: Measures,
    *,
    objective: Objective = next_token,
    folder: str | Path | None = None,
    at: Iterable[int] | None = None,
    checkpoints: Iterable[int] = (),
    before_step: Sequence[BeforeStep] = (),
    after_step: Sequence[Callable[[Model, int], None]] = (),
    max_memory: int | None = None,
    progress: Progress = silent,
) -> Development:
    """Train the live model and measure it on the way, at three steps a doubling (or at the steps `at`).

    `data`, `schedule`, `objective`, `before_step`, `after_step`, `folder` and `checkpoints` are those of
    `cm.training.train`, so that a training that was killed goes on, and ends with the same bytes. `measures` are made
    by `Measures.of`.

    >>> tokenizer = cm.dynamics.grammar_tokenizer()
    >>> model = cm.dynamics.small_model("attention", tokenizer)
    >>> stream = cm.dynamics.GrammarStream(model)
    >>> measures = cm.dynamics.Measures.of(model, stream, rows=4, length=24, seed=9)
    >>> watched = cm.dynamics.develop(model, stream, cm.training.Schedule(steps=8, batch=4, length=24), measures)
    >>> watched.curve("held_out_loss")[0]
    [0, 1, 2, 3, 4, 5, 6, 8]

    Raises what `cm.training.train` raises.
    """
    training = train(
        model,
        data,
        schedule,
        objective=objective,
        folder=folder,
        watch=[measures],
        at=log_steps(schedule.steps, A_DOUBLING) if at is None else at,
        checkpoints=checkpoints,
        before_step=before_step,
        after_step=after_step,
        max_memory=max_memory,
        progress=progress,
    )
    frozen = next((row[FROZEN] for row in training.history if FROZEN in row), ())
    grown = of_rows(model.name, [(row["step"], row) for row in training.history])
    return replace(grown, frozen=tuple(frozen))


def of_rows(name: str, rows: Sequence[tuple[int, Any]]) -> Development:
    """A development from steps and what was measured there by name, as lists or tensors; other names are left out."""
    known = {*MEASURES, CIRCUITS}
    watched = sorted(((step, row) for step, row in rows if known & {*row}), key=lambda x: x[0])
    names = [measure for measure in MEASURES if any(measure in row for _, row in watched)]
    values = {measure: _over_steps(measure, watched) for measure in names}
    attention = _over_steps(ATTENTION, watched) if any(ATTENTION in row for _, row in watched) else ()
    circuits = dict[str, TaskCircuits]()
    for task in dict.fromkeys(task for _, row in watched for task in row.get(CIRCUITS, {})):
        with_task = [(step, row[CIRCUITS][task]) for step, row in watched if task in row.get(CIRCUITS, {})]
        circuits[task] = TaskCircuits.of_rows(task, with_task)
        for kind, curve in circuits[task].values.items():
            by_step = dict(zip(circuits[task].steps, curve, strict=True))
            if any(value is not None for value in curve):
                values[f"{kind}:{task}"] = tuple(by_step.get(step) for step, _ in watched)
    return Development(name, tuple(step for step, _ in watched), values, attention, circuits)


def _over_steps(name: str, rows: Sequence[tuple[int, Any]]) -> tuple[Tensor | None, ...]:
    return tuple(_tensor(row[name]) if name in row else None for _, row in rows)


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float32)
