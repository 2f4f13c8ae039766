"""The circuit of a task in a model that is learning it: at one checkpoint, and over all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.edges import eap_ig
from circuitome.discovery.search.matryoshka import mattr
from circuitome.engine.setting import Setting, method
from circuitome.errors import unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.results import Shown, plain
from circuitome.tasks.task import Task
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.smallest import LARGE, Judge, walked_sizes, without_useless

FAITHFUL = 0.9
"""The share of the gap that a circuit has to keep, and by which it may not overshoot either."""
STRONGEST = 60
"""Edges that are kept by name; in a small graph a seventh of them are compared."""
EFFECT = 0.5
"""The mean gap in units of its standard deviation over prompts (Cohen's d) from which on a model does a task."""

RANKINGS: dict[str, Callable[[Setting], EdgeScores]] = {"eap-ig": eap_ig, "mattr": mattr}
"""What ranks the edges, by name."""


@dataclass(frozen=True, kw_only=True)
class TaskCircuit:
    """The circuit of a task in one checkpoint; all fields are plain JSON values."""

    unit: str
    """Unit of the metric."""
    metric: list[float]
    """Of each held-out prompt, the metric of the whole model."""
    ablated: list[float]
    """The same with everything ablated."""
    all_edges: int
    """Edges of the graph."""
    sizes: list[int]
    """How many of the strongest edges were measured."""
    faithfulness: list[float] | None
    """Share of the gap that they keep, by size; None where the model does not do the task: there is no gap."""
    circuit: list[str] | None
    """The edges of the smallest circuit whose share is within .1 of 1, by name; None where there is none."""
    edges: list[tuple[str, float]]
    """The strongest edges with their scores; negative: the edge helps."""
    score_unit: str
    """Unit of the scores: that of the metric, or 1 / rank."""

    @property
    def compared(self) -> set[str]:
        """The strongest edges, as many as are compared between checkpoints."""
        return {name for name, _ in self.edges[: min(STRONGEST, max(1, self.all_edges // 7))]}


@method
def task_circuit(
    setting: Setting, *, held_out: Task | None = None, sizes: Sequence[int] = (), ranking: str = "eap-ig"
) -> TaskCircuit:
    """Scores of all edges, and how faithful the strongest are by size, on prompts that the scores did not see.

    `ranking` is eap-ig, or mattr, which takes some hundred passes more and is what finds small circuits in large
    models.

    Faithfulness is (F(C) - F(0)) / (F(M) - F(0)), as in `cm.faithfulness`, of the strongest edges at each of `sizes`
    (by default those that `cm.smallest` walks along, up to all). It is undefined where the model does not do the task:
    where the gap F(M) - F(0) has a mean over held-out prompts that is less than half its standard deviation, or no
    interval above 0. The smallest circuit begins as the first of these sizes whose share is within .1 of 1; then parts
    and edges that it can do without go, by their effects on the task's own prompts, as long as the held-out ones allow
    it: as in `cm.smallest`. Circuits of more than 600 edges stay as they are.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> found = cm.dynamics.task_circuit(model, task)
    >>> len(found.circuit), "a1.h0->a2.h0.q" in found.circuit
    (13, True)

    Raises `UnknownNameError` for another ranking, and what `cm.eap_ig` raises.
    """
    if ranking not in RANKINGS:
        raise unknown_name("ranking of edges", ranking, RANKINGS)
    with torch.enable_grad():
        scores = RANKINGS[ranking](setting)
    judged = setting.but(prompts=held_out or setting.task)
    evaluator = Evaluator(judged)
    count = scores.graph.n_edges
    walked = list(sizes) or [*walked_sizes(count), *walked_sizes(count, beyond=True)]
    clean, empty = evaluator.clean, evaluator.empty
    shares, circuit = None, None
    if _done(judged, clean - empty):
        circuits = [scores.top(size).without_dangling() for size in walked]
        shares = [float((metric - empty).mean()) / evaluator.gap for metric in evaluator.circuits(circuits)]
        circuit = _smallest(setting, Judge(evaluator, FAITHFUL), circuits)
    return TaskCircuit(
        unit=judged.task.unit,
        metric=clean.tolist(),
        ablated=empty.tolist(),
        all_edges=count,
        sizes=walked,
        faithfulness=shares,
        circuit=None if circuit is None else list(circuit),
        edges=scores.ranked(scores.top(min(STRONGEST, count))),
        score_unit=scores.unit,
    )


def _done(setting: Setting, gaps: Float[Tensor, " prompts"]) -> bool:
    """Whether the gap is clear: its interval above 0, and its mean not small beside what prompts differ by."""
    return setting.mean(gaps, setting.task.unit).low > 0 and float(gaps.mean()) >= EFFECT * float(gaps.std())


def _smallest(setting: Setting, judge: Judge, circuits: Sequence[Circuit]) -> Circuit | None:
    """The first of the circuits, by size, that keeps enough, without what it can do without."""
    judge.margin = 0.0
    first = next((circuit for circuit in circuits if judge.keeps(circuit)), None)
    if first is None or len(first) > LARGE:
        return first
    return without_useless(Evaluator(setting), first, judge.keeps)


@dataclass(frozen=True, eq=False)
class TaskCircuits(Shown):
    """The circuits of a task at steps of a training."""

    name: str
    """The task."""
    steps: tuple[int, ...]
    """The steps, rising."""
    at: tuple[TaskCircuit, ...]
    """The circuit at each of them."""

    @classmethod
    def of_rows(cls, name: str, rows: Sequence[tuple[int, Mapping[str, Any]]]) -> "TaskCircuits":
        """From steps and the plain fields of the circuits there."""
        found = [TaskCircuit(**{**row, "edges": [(edge, score) for edge, score in row["edges"]]}) for _, row in rows]
        return cls(name, tuple(step for step, _ in rows), tuple(found))

    def __repr__(self) -> str:
        return f"TaskCircuits({self.name}, {len(self.steps)} steps, {self.sizes[-1]} edges at the end)"

    @cached_property
    def sizes(self) -> list[int | None]:
        """Edges of the smallest circuit that keeps .9 at each step; None where there is none."""
        return [None if found.circuit is None else len(found.circuit) for found in self.at]

    @cached_property
    def jaccard(self) -> list[float | None]:
        """Shared edges over edges of either: of each step's circuit and that of the last step; None without one."""
        last = self.at[-1].circuit
        return [_shared(found.circuit, last) if found.circuit and last else None for found in self.at]

    @cached_property
    def jaccard_of_strongest(self) -> list[float]:
        """The same of an equal number of strongest edges at each step, a seventh of all, 60 at most."""
        return [_shared(found.compared, self.at[-1].compared) for found in self.at]

    @property
    def since(self) -> list[int | None]:
        """For each of the strongest edges of the last step: the step from which on it is in every circuit, if any."""
        circuits = [frozenset(found.circuit or ()) for found in self.at]
        return [
            next((step for i, step in enumerate(self.steps) if all(edge in here for here in circuits[i:])), None)
            for edge, _ in self.at[-1].edges
        ]

    @property
    def values(self) -> dict[str, tuple[Tensor | None, ...]]:
        """By kind of curve in `KINDS`: samples at each step, or None where there are none."""
        return {
            "task_metric": tuple(torch.tensor(found.metric) for found in self.at),
            "circuit_size": _single(self.sizes),
            "circuit_jaccard": _single(self.jaccard),
            "strongest_jaccard": _single(self.jaccard_of_strongest),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but prompts as plain JSON values, a list over steps each."""
        return {
            "steps": list(self.steps),
            "unit": self.at[-1].unit,
            "score_unit": self.at[-1].score_unit,
            "metric": [_mean(found.metric) for found in self.at],
            "ablated": [_mean(found.ablated) for found in self.at],
            "all_edges": self.at[-1].all_edges,
            "sizes": self.at[-1].sizes,
            "faithfulness": [found.faithfulness for found in self.at],
            "size_for_.9": self.sizes,
            "jaccard": self.jaccard,
            "strongest": len(self.at[-1].compared),
            "jaccard_of_strongest": self.jaccard_of_strongest,
            "edges": plain([found.edges for found in self.at]),
            "since": self.since,
        }


def _single(values: Sequence[float | None]) -> tuple[Tensor | None, ...]:
    return tuple(None if value is None else torch.tensor([float(value)]) for value in values)


def _shared(a: "Sequence[str] | set[str]", b: "Sequence[str] | set[str]") -> float:
    return len({*a} & {*b}) / len({*a} | {*b})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
