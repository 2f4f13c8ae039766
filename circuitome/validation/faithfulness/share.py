"""How much of the behaviour a circuit carries, and how that grows with its size, beside random circuits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.results import Estimate, Shown
from circuitome.validation.faithfulness.evaluator import Evaluator

SHARE = "share of the clean-ablated gap"


@dataclass(frozen=True, repr=False)
class Faithfulness(Shown):
    """Normalised faithfulness (F(C) - F(0)) / (F(M) - F(0)) of one circuit, and the means it is made of.

    F is the mean metric over prompts: of the circuit C, the whole model M, and the empty circuit 0 (all ablated).
    """

    share: Estimate
    """The normalised faithfulness, a ratio of means: 1 is the whole model, 0 the empty circuit; may leave [0, 1]."""
    circuit: Estimate
    """F(C)."""
    model: Estimate
    """F(M)."""
    empty: Estimate
    """F(0)."""
    n_edges: int
    """Edges of the circuit."""
    ablation: str
    """What the other edges carry."""
    samples: Float[Tensor, "prompts 3"]
    """Metric of every prompt: circuit, model, empty."""

    @property
    def value(self) -> float:
        """The normalised faithfulness."""
        return self.share.value

    @property
    def interval(self) -> tuple[float, float]:
        """Its bootstrap interval over prompts."""
        return self.share.low, self.share.high

    @property
    def unit(self) -> str:
        """Its unit."""
        return self.share.unit

    def __repr__(self) -> str:
        return f"Faithfulness({self})"

    def __str__(self) -> str:
        return (
            f"{self.n_edges:,} edges: {self.share} {self.unit}; metric {self.circuit} of {self.model} {self.model.unit}"
        )


@dataclass(frozen=True)
class Curve(Shown):
    """Faithfulness at several sizes, beside random circuits of the same sizes."""

    sizes: tuple[int, ...]
    """Edges asked for."""
    circuits: tuple[Faithfulness, ...]
    """The circuit chosen from the scores at each size."""
    random: tuple[Estimate, ...]
    """Mean faithfulness of `draws` random circuits at each size; the interval is over prompts."""
    random_range: tuple[tuple[float, float], ...]
    """Smallest and largest faithfulness among these random circuits."""
    draws: int
    """Random circuits a size."""


@method
@on_neurons
def faithfulness(setting: Setting, circuit: Circuit) -> Faithfulness:
    """Normalised faithfulness of `circuit`: (F(C) - F(0)) / (F(M) - F(0)), F the mean metric (Hanna et al. 2024).

    Ratio of means, not mean of ratios; 95 % bootstrap interval over prompts. Raises `InputError` if the circuit belongs
    to another model or the model does not do the task (F(M) <= F(0)): then there is no behaviour to explain.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> round(cm.faithfulness(model, cm.ground_truth.true_circuit(model, task), task).value, 3)
    1.0
    """
    return evaluate(Evaluator(setting), [circuit])[0]


@method
@on_neurons
def faithfulness_curve(
    setting: Setting,
    scores: EdgeScores,
    *,
    sizes: Sequence[int] = (),
    draws: int = 3,
    select: Callable[[int], Circuit] | None = None,
) -> Curve:
    """Faithfulness of the circuits that `scores` gives at each of `sizes`, and of `draws` random circuits of each size.

    `select` maps a size to a circuit (default `scores.top`); `sizes` defaults to a log-spaced range of the graph.
    Everything that does not depend on the circuit runs once. Raises as `faithfulness`.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> curve = cm.faithfulness_curve(model, cm.eap(model, task), task, sizes=(5, 20), draws=1)
    >>> [round(result.value, 2) for result in curve.circuits]
    [-0.33, 1.0]
    """
    chosen = tuple(sizes) or default_sizes(scores.graph)
    pick = select or scores.top
    circuits = [pick(size) for size in chosen]
    generator = torch.Generator().manual_seed(setting.seed)
    nulls = [random_circuit(scores.graph, len(circuit), generator) for circuit in circuits for _ in range(draws)]
    results = evaluate(Evaluator(setting), [*circuits, *nulls])
    of_scores, random = results[: len(circuits)], results[len(circuits) :]
    groups = [random[i : i + draws] for i in range(0, len(random), draws)] if draws else []
    means = [torch.stack([result.samples for result in group]).mean(0) for group in groups]
    values = [[result.value for result in group] for group in groups]
    return Curve(
        sizes=chosen,
        circuits=tuple(of_scores),
        random=tuple(normalised(setting, samples) for samples in means),
        random_range=tuple((min(group), max(group)) for group in values),
        draws=draws,
    )


def default_sizes(graph: Graph) -> tuple[int, ...]:
    """About eight sizes, three a decade, from 100 (or a hundredth of a small graph) to a third of the graph."""
    low = min(100, max(1, graph.n_edges // 100))
    sizes = [round(low * 10 ** (k / 2)) for k in range(20)]
    return tuple(dict.fromkeys(_rounded(size) for size in sizes if size <= graph.n_edges / 3)) or (graph.n_edges,)


def _rounded(size: int) -> int:
    """To one digit: 316 becomes 300."""
    unit = 10 ** (len(str(size)) - 1)
    return size // unit * unit


def random_circuit(graph: Graph, n: int, generator: torch.Generator, among: Circuit | None = None) -> Circuit:
    """`n` edges of `graph`, or of the circuit `among`, drawn without replacement; all where there are fewer."""
    edges = (graph.mask if among is None else among.mask).nonzero()
    drawn = edges[torch.randperm(len(edges), generator=generator)[:n]]
    mask = torch.zeros_like(graph.mask)
    mask[drawn[:, 0], drawn[:, 1]] = True
    return Circuit(graph, mask)


def evaluate(evaluator: Evaluator, circuits: Sequence[Circuit]) -> list[Faithfulness]:
    """Faithfulness of several circuits on the same prompts; one clean run and one baseline a batch."""
    metrics = evaluator.circuits([Circuit.empty(evaluator.model.graph), *circuits])[1:]
    evaluator.checked_gap()
    return [_result(evaluator, circuit, metric) for circuit, metric in zip(circuits, metrics, strict=True)]


def _result(evaluator: Evaluator, circuit: Circuit, metric: Tensor) -> Faithfulness:
    setting, samples, unit = evaluator.setting, evaluator.samples(metric), evaluator.task.unit
    return Faithfulness(
        share=normalised(setting, samples),
        circuit=setting.mean(metric, unit),
        model=setting.mean(evaluator.clean, unit),
        empty=setting.mean(evaluator.empty, unit),
        n_edges=len(circuit),
        ablation=setting.ablation,
        samples=samples,
    )


def normalised(setting: Setting, samples: Float[Tensor, "prompts columns"]) -> Estimate:
    """(F(C) - F(0)) / (F(M) - F(0)) from per-prompt metrics, whose first columns are circuit, model, empty circuit."""
    return setting.estimate(samples, lambda means: (means[:, 0] - means[:, 2]) / (means[:, 1] - means[:, 2]), SHARE)
