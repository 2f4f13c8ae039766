"""How much of the behaviour a circuit carries, and how that grows with its size, beside random circuits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import Ablation
from circuitome.errors import InputError, NumericsError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.models.model import Model
from circuitome.results import Estimate, bootstrap, mean
from circuitome.tasks.task import Task
from circuitome.validation.faithfulness.evaluator import Evaluator

SHARE = "share of the clean-ablated gap"
Progress = Callable[[int, int], None]
"""Called with the circuit runs done and the circuit runs in all."""


@dataclass(frozen=True)
class Faithfulness:
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

    def __str__(self) -> str:
        return (
            f"{self.n_edges:,} edges: {self.share} {self.unit}; metric {self.circuit} of {self.model} {self.model.unit}"
        )


@dataclass(frozen=True)
class Curve:
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


def faithfulness(
    model: Model,
    circuit: Circuit,
    task: Task,
    *,
    ablation: Ablation = "corrupted",
    seed: int = 0,
    max_memory: int | None = None,
) -> Faithfulness:
    """Normalised faithfulness of `circuit`: (F(C) - F(0)) / (F(M) - F(0)), F the mean metric (Hanna et al. 2024).

    Ratio of means, not mean of ratios; 95 % bootstrap interval over prompts. Raises `InputError` if the circuit belongs
    to another model or the model does not do the task (F(M) <= F(0)): then there is no behaviour to explain.
    """
    return _evaluate(model, [circuit], task, ablation, seed, max_memory, None)[0]


def faithfulness_curve(
    model: Model,
    scores: EdgeScores,
    task: Task,
    *,
    sizes: Sequence[int] = (),
    draws: int = 3,
    select: Callable[[int], Circuit] | None = None,
    ablation: Ablation = "corrupted",
    seed: int = 0,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Curve:
    """Faithfulness of the circuits that `scores` gives at each of `sizes`, and of `draws` random circuits of each size.

    `select` maps a size to a circuit (default `scores.top`); `sizes` defaults to a log-spaced range of the graph.
    Everything that does not depend on the circuit runs once. Raises as `faithfulness`.
    """
    chosen = tuple(sizes) or default_sizes(scores.graph)
    pick = select or scores.top
    circuits = [pick(size) for size in chosen]
    generator = torch.Generator().manual_seed(seed)
    nulls = [random_circuit(scores.graph, len(circuit), generator) for circuit in circuits for _ in range(draws)]
    results = _evaluate(model, [*circuits, *nulls], task, ablation, seed, max_memory, progress)
    found, null = results[: len(circuits)], results[len(circuits) :]
    groups = [null[i : i + draws] for i in range(0, len(null), draws)] if draws else []
    return Curve(
        chosen,
        tuple(found),
        tuple(_mean_share(group, seed) for group in groups),
        tuple((min(g.value for g in group), max(g.value for g in group)) for group in groups),
        draws,
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


def random_circuit(graph: Graph, n: int, generator: torch.Generator) -> Circuit:
    """`n` edges of `graph` drawn without replacement."""
    mask = torch.zeros(graph.n_edges, dtype=torch.bool)
    mask[torch.randperm(graph.n_edges, generator=generator)[:n]] = True
    full = torch.zeros_like(graph.mask)
    full[graph.mask] = mask
    return Circuit(graph, full)


def _evaluate(
    model: Model,
    circuits: Sequence[Circuit],
    task: Task,
    ablation: Ablation,
    seed: int,
    max_memory: int | None,
    progress: Progress | None,
) -> list[Faithfulness]:
    """Faithfulness of several circuits on the same prompts; one clean run and one baseline a batch."""
    evaluator = Evaluator(model, task, ablation, max_memory, keep=False)
    total = len(circuits) * len(task)

    def tell(done: int, _: int) -> None:
        if progress:
            progress(min(done, total), total)

    found = evaluator.circuits([Circuit.empty(model.graph), *circuits], tell)
    clean, empty = evaluator.clean, found[0]
    _check_gap(model, task, ablation, clean, empty)
    return [
        _result(c, metric, clean, empty, task.unit, ablation, seed)
        for c, metric in zip(circuits, found[1:], strict=True)
    ]


def _check_gap(model: Model, task: Task, ablation: str, clean: Tensor, empty: Tensor) -> None:
    for name, values in (("clean", clean), (ablation, empty)):
        if not bool(torch.isfinite(values).all()):
            row = int((~torch.isfinite(values)).nonzero()[0])
            raise NumericsError(f"The metric of {model.name} on {name} prompt {row} of task {task.name} is not finite.")
    if float(clean.mean()) <= float(empty.mean()):
        raise InputError(
            f"{model.name} does not do the task {task.name}: its mean {task.metric} is {float(clean.mean()):.3f} on "
            f"clean prompts and {float(empty.mean()):.3f} with everything ablated ({ablation}), so there is "
            "no behaviour to explain. Try another model, other prompts, or check that answer and wrong are not swapped."
        )


def _result(
    circuit: Circuit, metric: Tensor, clean: Tensor, empty: Tensor, unit: str, ablation: str, seed: int
) -> Faithfulness:
    samples = torch.stack([metric, clean, empty], 1)
    return Faithfulness(
        share=bootstrap(samples, _share, SHARE, seed=seed),
        circuit=mean(metric, unit, seed=seed),
        model=mean(clean, unit, seed=seed),
        empty=mean(empty, unit, seed=seed),
        n_edges=len(circuit),
        ablation=ablation,
        samples=samples,
    )


def _share(means: Tensor) -> Tensor:
    """(F(C) - F(0)) / (F(M) - F(0)) of columns circuit, model, empty."""
    return (means[:, 0] - means[:, 2]) / (means[:, 1] - means[:, 2])


def _mean_share(group: Sequence[Faithfulness], seed: int) -> Estimate:
    """Faithfulness of the mean metric over several circuits."""
    return bootstrap(torch.stack([one.samples for one in group]).mean(0), _share, SHARE, seed=seed)
