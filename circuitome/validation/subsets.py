"""Completeness and minimality: what becomes of a circuit when parts of it are knocked out.

Source: Wang et al. 2022, arXiv:2211.00593, section 4 and appendix; K are sets of the circuit's nodes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph import Circuit
from circuitome.validation.evaluate import Evaluator

Progress = Callable[[int, int], None]
"""Called with the subsets measured and the subsets in all."""

CANDIDATES = 10
"""Nodes among which a greedy step chooses."""


@dataclass(frozen=True, eq=False)
class Completeness:
    """F(C without K) beside F(M without K): equal where the circuit holds all that does the task."""

    sets: tuple[tuple[str, ...], ...]
    """Each K."""
    kinds: tuple[str, ...]
    """How each was chosen: random, group or greedy."""
    circuit: Float[Tensor, " sets"]
    """F(C without K), mean metric."""
    model: Float[Tensor, " sets"]
    """F(M without K)."""
    gap: float
    """F(M) - F(0), the unit of `scores`."""

    @property
    def scores(self) -> Float[Tensor, " sets"]:
        """|F(C without K) - F(M without K)| as a share of F(M) - F(0): 0 is complete."""
        return (self.circuit - self.model).abs() / abs(self.gap)

    @property
    def worst(self) -> int:
        """Index of the K with the largest score."""
        return int(self.scores.argmax())

    def mean(self, kind: str) -> float:
        """Mean score over the sets of one kind; NaN where there are none."""
        return float(self.scores[[i for i, k in enumerate(self.kinds) if k == kind]].mean())


@dataclass(frozen=True, eq=False)
class Minimality:
    """For each node, how much the circuit loses without it."""

    nodes: tuple[str, ...]
    """The circuit's nodes but `embed`."""
    scores: Float[Tensor, " nodes"]
    """max over K of |F(C without K and v) - F(C without K)|, as a share of F(M) - F(0)."""

    def useless(self, least: float = 0.01) -> tuple[str, ...]:
        """Nodes that the circuit can do without: score below `least`."""
        return tuple(node for node, score in zip(self.nodes, self.scores.tolist(), strict=True) if score < least)


def completeness(
    evaluator: Evaluator,
    circuit: Circuit,
    *,
    draws: int = 30,
    greedy: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Completeness:
    """Compare circuit and model without K: `draws` random K (each node with chance 1/2), groups, and the worst K found.

    Groups are the heads and the MLPs of each third of the layers. The worst K is built in `greedy` steps, each adding
    the one of ten nodes that widens |F(C without K) - F(M without K)| most.
    Raises `InputError` for a circuit without nodes that could be knocked out.
    """
    graph, nodes = circuit.graph, _rows(circuit)
    generator = torch.Generator().manual_seed(seed)
    sets, kinds = [], []
    for _ in range(draws):
        sets.append(_set(graph.writers, [r for r in nodes if torch.rand((), generator=generator) < 0.5]))
        kinds.append("random")
    for group in _groups(circuit, nodes):
        sets.append(_set(graph.writers, group))
        kinds.append("group")
    total = len(sets) + greedy * min(CANDIDATES, len(nodes))
    own, model = _both(evaluator, circuit, torch.stack(sets)) if sets else (torch.empty(0), torch.empty(0))
    if progress:
        progress(len(sets), total)
    chosen: list[int] = []
    for step in range(min(greedy, len(nodes))):
        rest = [row for row in nodes if row not in chosen]
        picked = [rest[i] for i in torch.randperm(len(rest), generator=generator)[:CANDIDATES].tolist()]
        tried = torch.stack([_set(graph.writers, [*chosen, row]) for row in picked])
        with_circuit, with_model = _both(evaluator, circuit, tried)
        best = int((with_circuit - with_model).abs().argmax())
        chosen.append(picked[best])
        sets.append(tried[best])
        kinds.append("greedy")
        own, model = torch.cat([own, with_circuit[best, None]]), torch.cat([model, with_model[best, None]])
        if progress:
            progress(min(total, len(sets) + (step + 1) * CANDIDATES), total)
    names = tuple(tuple(graph.writers[i] for i in one.nonzero().flatten().tolist()) for one in sets)
    return Completeness(names, tuple(kinds), own, model, _gap(evaluator, circuit))


def minimality(
    evaluator: Evaluator, circuit: Circuit, *, sets: int = 1, seed: int = 0, progress: Progress | None = None
) -> Minimality:
    """For each node v, the largest change that leaving it out makes, over K = nothing and `sets` random halves.

    A node that changes nothing alone may matter once its backups are gone: hence the K. Raises as `completeness`.
    """
    graph, nodes = circuit.graph, _rows(circuit)
    generator = torch.Generator().manual_seed(seed)
    halves = [[r for r in nodes if torch.rand((), generator=generator) < 0.5] for _ in range(sets)]
    scores = torch.zeros(len(nodes))
    total, done = (1 + sets) * len(nodes), 0
    for half in [[], *halves]:
        base = circuit.mask & ~_set(graph.writers, half)[:, None]
        circuits = [Circuit(graph, base)]
        for row in nodes:
            mask = base.clone()
            mask[row] = False
            circuits.append(Circuit(graph, mask))
        means = evaluator.circuits(circuits).mean(1)
        changed = torch.tensor([row not in half for row in nodes])
        scores = torch.maximum(scores, (means[1:] - means[0]).abs() * changed)
        done += len(nodes)
        if progress:
            progress(done, total)
    return Minimality(tuple(graph.writers[row] for row in nodes), scores / abs(_gap(evaluator, circuit)))


def without(circuit: Circuit, nodes: Sequence[str]) -> Circuit:
    """The circuit without the edges that leave `nodes`, and without what then leads nowhere."""
    mask = circuit.mask.clone()
    for node in nodes:
        mask[circuit.graph.row(node)] = False
    return Circuit(circuit.graph, mask).without_dangling()


def _both(
    evaluator: Evaluator, circuit: Circuit, sets: Bool[Tensor, "sets writers"]
) -> tuple[Float[Tensor, " sets"], Float[Tensor, " sets"]]:
    """F(C without K) and F(M without K) for each K."""
    circuits = [Circuit(circuit.graph, circuit.mask & ~one[:, None]) for one in sets]
    return evaluator.circuits(circuits).mean(1), evaluator.knocked_out(sets).mean(1)


def _rows(circuit: Circuit) -> list[int]:
    rows = [row for row in circuit.mask.any(1).nonzero().flatten().tolist() if row > 0]
    if not rows:
        raise InputError("The circuit has no head or MLP that could be knocked out; it needs at least one.")
    return rows


def _groups(circuit: Circuit, rows: Sequence[int]) -> list[list[int]]:
    """Heads and MLPs of the first, middle and last third of the layers, those that the circuit has."""
    graph = circuit.graph
    groups: dict[tuple[int, bool], list[int]] = {}
    for row in rows:
        layer = graph.layer_of[row]
        groups.setdefault((3 * layer // graph.n_layers, row == graph.mlp_row(layer)), []).append(row)
    return [groups[key] for key in sorted(groups)]


def _set(writers: Sequence[str], rows: Sequence[int]) -> Bool[Tensor, " writers"]:
    chosen = torch.zeros(len(writers), dtype=torch.bool)
    chosen[list(rows)] = True
    return chosen


def _gap(evaluator: Evaluator, circuit: Circuit) -> float:
    empty = evaluator.circuits([Circuit.empty(circuit.graph)])[0]
    return float(evaluator.clean.mean() - empty.mean())
