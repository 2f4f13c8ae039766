"""The smallest circuit that does a task: learned on some prompts, sized on others, measured on a third set.

Matryoshka attribution ranks all edges at once; the walk measures the first k of them for many k on the sizing prompts;
the smallest circuit whose share of the gap is near enough to 1 is taken, and parts and edges that it can do without,
by their own effects on the search prompts, go as long as the sizing prompts allow it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.discovery.search.mask_objective import MaskObjective
from circuitome.discovery.search.matryoshka import STEPS, mattr
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.node import Node
from circuitome.neurons.node_graph import graph_scores
from circuitome.results import Estimate, Shown, intervals
from circuitome.tasks.held_out import Split, split
from circuitome.tasks.task import Task
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.share import Faithfulness, evaluate, normalised
from circuitome.validation.tests.minimality import parts_of

FIRST, GROWTH = 8, 1.2
"""Size of the smallest circuit on the walk, and of each next one as a multiple."""
SMALL = 2_000
"""Edges of a graph in which the walk goes through all sizes."""
LARGEST = 1 / 7
"""Share of all edges in the largest circuit on the walk; where none is near enough to 1 it goes on from there."""
IDLE = 0.01
"""Share of the gap below which a node counts as idle, as in the criterion of minimality."""
REFUSED = 6
"""Parts or edges in a row that cannot go, after which no more are tried."""
ROUNDS = 3
"""Rounds in which what is useless goes, at most."""
WORTH = 0.02
"""Share of a large circuit's edges that has to go in a round for another round."""
LARGE = 600
"""Edges up to which each edge's own effect is measured; in larger circuits slopes say which can go."""


@dataclass(frozen=True, eq=False)
class EdgeEffects:
    """What a circuit loses without each of its edges, everything behind the edge reacting."""

    circuit: Circuit
    """The circuit."""
    samples: Float[Tensor, "prompts edges"]
    """Change of the metric on each prompt when the edge leaves the circuit: negative where it helps. Edges are in the
    order of `circuit.mask.nonzero()`."""
    unit: str
    """Unit of the metric."""
    groups: tuple[int, ...]
    """Each prompt's template."""

    @property
    def scores(self) -> EdgeScores:
        """The mean changes; 0 outside the circuit."""
        values = torch.zeros(self.circuit.mask.shape)
        values[self.circuit.mask] = self.samples.mean(0)
        return EdgeScores(self.circuit.graph, values, self.unit, "each edge left out of the circuit")

    def intervals(self, seed: int = 0) -> Float[Tensor, "2 writers readers"]:
        """Low and high ends of the 95 % intervals over prompts; NaN outside the circuit."""
        ends = torch.full((2, *self.circuit.mask.shape), torch.nan)
        ends[:, self.circuit.mask] = intervals(self.samples, groups=self.groups, seed=seed)
        return ends


@dataclass(frozen=True, eq=False, repr=False)
class Smallest(Shown):
    """The smallest circuit found, the walk that led to it, and how well it does on prompts that nothing had seen."""

    circuit: Circuit
    """The circuit."""
    scores: EdgeScores
    """The ranking of all edges that it comes from."""
    faithfulness: Faithfulness
    """On the held-out prompts."""
    edges: EdgeEffects | None
    """What the circuit loses on the held-out prompts without each of its edges; None where it has too many of them."""
    front: tuple[tuple[Circuit, Estimate], ...]
    """The walk: circuits by size with their share of the gap on the sizing prompts."""
    prompts: Split
    """What was searched, sized and measured on."""
    asked: float
    """The share of the gap that was asked for."""
    reached: bool
    """Whether a circuit on the walk reached it on the sizing prompts; else `circuit` is the one that came nearest."""

    def __repr__(self) -> str:
        share = self.faithfulness.share
        return f"Smallest({len(self.circuit)} edges, {share} of the gap on {share.n} held-out prompts)"


@method
@on_neurons
def smallest(
    setting: Setting,
    *,
    faithful: float = 0.9,
    sizing: Task | None = None,
    held_out: Task | None = None,
    steps: int = STEPS,
) -> Smallest:
    """The smallest circuit that keeps at least `faithful` of the gap, and no more than 2 - `faithful`, on new prompts.

    The task's prompts are those that the search sees; `sizing` are the ones that decide the size, `held_out` the ones
    that the result is measured on and nothing else. Where either is missing the task's own are split: half to search,
    a quarter to size, a quarter to measure. On the sizing prompts the share has to be inside by one standard error;
    where no circuit's is, inside is enough; where none is inside, ever larger ones are tried, up to nearly all edges.
    `steps` are those of `mattr`. A share is (F(C) - F(0)) / (F(M) - F(0)), as in `faithfulness`: above 1 the circuit
    overshoots, which counts as much as falling short.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 64)
    >>> cm.smallest(model, task, faithful=0.99, steps=60).circuit == cm.ground_truth.true_circuit(model, task)
    True

    Raises `InputError` unless 0 < faithful < 1, `TaskError` where too few prompts are there to split, and what `mattr`
    and `faithfulness` raise.
    """
    if not 0 < faithful < 1:
        raise InputError(f"faithful is the share of the gap to keep, between 0 and 1; got {faithful}.")
    task = setting.task
    prompts = split(task, seed=setting.seed) if sizing is None or held_out is None else Split(task, sizing, held_out)
    assert prompts.sizing is not None and prompts.held_out is not None
    search = setting.but(prompts=prompts.search)
    folder = setting.checkpoint
    start = graph_scores(search) if setting.model.graph.has_parts else None
    learned = search.but(checkpoint=None if folder is None else folder / "mattr.safetensors")
    scores = mattr(learned, steps=steps, start=start)
    judge = Judge(Evaluator(_kept(setting, prompts.sizing, "sizing")), faithful)
    front = walk(judge, scores)
    circuit, reached = _first_inside(judge, front)
    if not reached:
        judge.margin = 0.0
        circuit, reached = _first_inside(judge, front)
    if not reached and (further := walk(judge, scores, beyond=True)):
        front = (*front, *further)
        circuit, reached = _first_inside(judge, front)
    if reached:
        circuit = without_faint(search, circuit, judge.keeps)
    if reached and len(circuit) <= LARGE:
        circuit = without_useless(Evaluator(_kept(setting, prompts.search, "search")), circuit, judge.keeps)
        circuit = without_idle(judge, circuit)
    measured = Evaluator(_kept(setting, prompts.held_out, "held-out"))
    return Smallest(
        circuit=circuit,
        scores=scores,
        faithfulness=evaluate(measured, [circuit])[0],
        edges=edge_effects(measured, circuit) if len(circuit) <= LARGE else None,
        front=front,
        prompts=prompts,
        asked=faithful,
        reached=reached,
    )


def _kept(setting: Setting, task: Task, name: str) -> Setting:
    """The setting with other prompts, and a file for what is measured on them."""
    folder = setting.checkpoint
    return setting.but(prompts=task, checkpoint=None if folder is None else folder / f"{name}.safetensors")


class Judge:
    """Whether circuits keep enough of the gap on the sizing prompts."""

    def __init__(self, evaluator: Evaluator, faithful: float) -> None:
        self.evaluator, self.tolerance = evaluator, 1 - faithful
        self.margin = 1.0
        """Standard errors by which a share has to be inside."""
        evaluator.checked_gap()

    def shares(self, circuits: Sequence[Circuit]) -> list[tuple[float, float]]:
        """Share of the gap of each circuit, and its standard error over prompts."""
        measured = self.evaluator.circuits(circuits, "walking along sizes")
        return [self._share(metric) for metric in measured]

    def _share(self, metric: Tensor) -> tuple[float, float]:
        """Of a ratio of means the error is that of its residuals (the delta method)."""
        model, empty = self.evaluator.clean, self.evaluator.empty
        share = float((metric - empty).mean()) / self.evaluator.gap
        residuals = metric - empty - share * (model - empty)
        return share, float(residuals.std()) / abs(self.evaluator.gap) / len(metric) ** 0.5

    def inside(self, share: float, error: float) -> bool:
        """Whether a share is near enough to 1, by `margin` standard errors."""
        return abs(share - 1) + self.margin * error <= self.tolerance

    def keeps(self, circuit: Circuit) -> bool:
        """Whether a circuit's share is near enough to 1."""
        return self.inside(*self.shares([circuit])[0])

    def estimate(self, circuit: Circuit) -> Estimate:
        """Share of the gap of a circuit with its interval."""
        samples = self.evaluator.samples(self.evaluator.circuits([circuit])[0])
        return normalised(self.evaluator.setting, samples)


def walk(judge: Judge, scores: EdgeScores, *, beyond: bool = False) -> tuple[tuple[Circuit, Estimate], ...]:
    """Circuits of the strongest edges by size, without what leads nowhere in them, each with its share.

    `beyond`: those larger than a walk usually goes, up to all edges but one step.
    """
    sizes = walked_sizes(scores.graph.n_edges, beyond=beyond)
    circuits = dict.fromkeys(scores.top(size).without_dangling() for size in sizes)
    there = sorted((circuit for circuit in circuits if len(circuit)), key=len)
    judge.shares(there)  # all at once: batches are run through once
    return tuple((circuit, judge.estimate(circuit)) for circuit in there)


def walked_sizes(edges: int, *, beyond: bool = False) -> list[int]:
    """Sizes on the walk through a graph of so many edges: each one in a small graph, then by a fifth."""
    large = edges > SMALL
    most = max(1, round(edges * LARGEST)) if large else edges
    sizes = [min(FIRST, most)] if large else [1]
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, round(sizes[-1] * GROWTH))))
    if not beyond:
        return sizes
    further = [round(most * GROWTH**step) for step in range(1, 1 + int(math.log(edges / most, GROWTH)))]
    return further if large else []


def _first_inside(judge: Judge, front: Sequence[tuple[Circuit, Estimate]]) -> tuple[Circuit, bool]:
    """The first circuit on the walk that keeps enough; where none does the one nearest to 1."""
    if not front:
        raise InputError("No circuit on the walk has a path from the input to the logits.")
    for circuit, _ in front:
        if judge.keeps(circuit):
            return circuit, True
    return min(front, key=lambda point: abs(point[1].value - 1))[0], False


def without_faint(setting: Setting, circuit: Circuit, keeps: Callable[[Circuit], bool]) -> Circuit:
    """A large circuit without the edges whose masks the metric hardly depends on, as long as `keeps` says so.

    An edge's slope, the change of the mean metric with its mask, is what its leaving would change to first order. At
    most half of the edges go at a time, those with the smallest slopes; how many is found by halves.
    """
    if len(circuit) <= LARGE:
        return circuit
    objective = MaskObjective(setting, "metric")
    while len(circuit) > LARGE:
        slopes = objective.metric_slope(circuit.mask.float())[circuit.mask].abs()
        faintest = circuit.mask.nonzero()[slopes.argsort(stable=True)]
        before = circuit
        _, circuit = _most_that_go(partial(_without_first, before, faintest), len(before) // 2, keeps, before)
        setting.progress("leaving out faint edges", LARGE, max(LARGE, len(circuit)))
        if len(circuit) > (1 - WORTH) * len(before):
            break
    return circuit


def _without_first(circuit: Circuit, edges: Int[Tensor, "edges 2"], count: int) -> Circuit:
    """The circuit without the first so many of `edges`."""
    gone = torch.zeros_like(circuit.mask)
    gone[tuple(edges[:count].T)] = True
    return _without(circuit, gone)


def without_useless(evaluator: Evaluator, circuit: Circuit, keeps: Callable[[Circuit], bool]) -> Circuit:
    """The circuit without the parts, then the edges, that it can do without while `keeps` says that it may.

    The order is that of the size of their own effects on the evaluator's prompts, smallest first, measured again in
    each round; how many go is found by halves, and what lies behind is tried one by one.
    """
    for pieces in (_parts, _edges):
        for _ in range(ROUNDS):
            masks = pieces(circuit)
            plain = torch.zeros_like(masks[:1])
            metrics = evaluator.parts(circuit, torch.cat([plain, masks]), "leaving out what is useless").mean(1)
            order = (metrics[1:] - metrics[0]).abs().argsort(stable=True)
            smaller = _as_many_as_can_go(circuit, masks[order], keeps)
            if len(smaller) == len(circuit):
                break
            circuit = smaller
    return circuit


def without_idle(judge: Judge, circuit: Circuit) -> Circuit:
    """The circuit without nodes that change less than `IDLE` of the gap on the sizing prompts, the least first.

    One goes by itself, and only if the share of what is left, errors aside, is near enough to 1.
    """
    if not any(Node.parse(name).kind in ("head", "mlp", "neuron") for name in circuit.nodes):
        return circuit
    masks = parts_of(circuit, readers=False)[1]
    metrics = judge.evaluator.parts(circuit, torch.cat([torch.zeros_like(masks[:1]), masks]), "leaving out idle nodes")
    changes = (metrics[1:] - metrics[0]).mean(1).abs() / abs(judge.evaluator.gap)
    for i in changes.argsort(stable=True).tolist():
        smaller = _without(circuit, masks[i])
        if float(changes[i]) < IDLE and len(smaller) and judge.inside(judge.shares([smaller])[0][0], 0.0):
            circuit = smaller
    return circuit


def _as_many_as_can_go(
    circuit: Circuit, masks: Bool[Tensor, "parts writers readers"], keeps: Callable[[Circuit], bool]
) -> Circuit:
    """The circuit without the first so many of `masks`, as many as `keeps` allows, and without others behind these.

    Of those behind, each goes by itself if it can, until `REFUSED` in a row could not.
    """
    fits, best = _most_that_go(lambda count: _without(circuit, masks[:count].any(0)), len(masks), keeps, circuit)
    refused = 0
    for mask in masks[fits + 1 :]:
        smaller = _without(best, mask)
        if len(smaller) == len(best):
            continue
        if len(smaller) and keeps(smaller):
            best, refused = smaller, 0
        elif (refused := refused + 1) == REFUSED:
            break
    return best


def _most_that_go(
    without: Callable[[int], Circuit], most: int, keeps: Callable[[Circuit], bool], whole: Circuit
) -> tuple[int, Circuit]:
    """How many can go by `keeps`, at most `most`, found by halves, and what is left of the `whole` circuit."""
    best, fits, exceeds = whole, 0, most + 1
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        smaller = without(middle)
        if len(smaller) and keeps(smaller):
            best, fits = smaller, middle
        else:
            exceeds = middle
    return fits, best


def _without(circuit: Circuit, gone: Bool[Tensor, "writers readers"]) -> Circuit:
    """The circuit without some edges, and without what then leads nowhere."""
    return Circuit(circuit.graph, circuit.mask & ~gone).without_dangling()


def edge_effects(evaluator: Evaluator, circuit: Circuit) -> EdgeEffects:
    """What the circuit loses without each of its edges, on the evaluator's prompts."""
    masks = _edges(circuit)
    metrics = evaluator.parts(circuit, torch.cat([torch.zeros_like(masks[:1]), masks]), "leaving out edges")
    task = evaluator.task
    place = {edge: i for i, edge in enumerate(map(tuple, circuit.mask.nonzero().tolist()))}
    order = [place[tuple(mask.nonzero()[0].tolist())] for mask in masks]
    samples = torch.empty(len(task), len(masks))
    samples[:, order] = (metrics[1:] - metrics[0]).T
    return EdgeEffects(circuit, samples, task.unit, task.groups)


def _parts(circuit: Circuit) -> Bool[Tensor, "parts writers readers"]:
    """The edges of each node and of each reader."""
    return parts_of(circuit, readers=True)[1]


def _edges(circuit: Circuit) -> Bool[Tensor, "edges writers readers"]:
    """Every edge by itself, those into late readers first: neighbours that lie alike are evaluated together."""
    rows, columns = circuit.mask.nonzero().T
    order = torch.tensor(circuit.graph.reader_layer)[columns].argsort(descending=True, stable=True)
    masks = torch.zeros(len(rows), *circuit.mask.shape, dtype=torch.bool)
    masks[torch.arange(len(rows)), rows[order], columns[order]] = True
    return masks
