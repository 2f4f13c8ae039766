"""Minimality: what a circuit loses without each of its parts, and which of them it can do without.

Source: Wang et al. 2022, arXiv:2211.00593, section 4 and appendix; K are sets of the circuit's nodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.results import Estimate, bootstrap
from circuitome.validation.faithfulness.evaluator import Evaluator


@dataclass(frozen=True, eq=False)
class Minimality:
    """How much the circuit loses without each of its parts."""

    names: tuple[str, ...]
    """The parts: nodes but `embed` ("a9.h6", "m3"), and readers with all edges into them ("a9.h6.q", "m3.in")."""
    changes: Float[Tensor, "sets parts prompts"]
    """For each K, F(C without K and the part) - F(C without K) on each prompt; 0 where K holds the part."""
    gap: float
    """F(M) - F(0), the unit of `scores`."""
    groups: tuple[int, ...] = ()
    """Each prompt's template, over which intervals are taken."""

    @property
    def scores(self) -> Float[Tensor, " parts"]:
        """Max over K of |mean change|, as a share of F(M) - F(0)."""
        return self.changes.mean(2).abs().amax(0) / abs(self.gap)

    @property
    def nodes(self) -> dict[str, float]:
        """Scores of the nodes alone."""
        scores = zip(self.names, self.scores.tolist(), strict=True)
        return {name: score for name, score in scores if not is_reader(name)}

    def useless(self, least: float = 0.01) -> tuple[str, ...]:
        """Parts that the circuit can do without, each by itself: score below `least`."""
        return tuple(name for name, score in zip(self.names, self.scores.tolist(), strict=True) if score < least)

    def useless_share(self, least: float = 0.01, seed: int = 0) -> Estimate:
        """Share of the nodes whose score is below `least`, with its interval over prompts."""
        chosen = [i for i, name in enumerate(self.names) if not is_reader(name)]
        shape = self.changes[:, chosen].shape[:2]

        def share(means: Tensor) -> Tensor:
            scores = means.unflatten(1, shape).abs().amax(1) / abs(self.gap)
            return (scores < least).double().mean(1)

        changes = self.changes[:, chosen].flatten(0, 1).T
        return bootstrap(changes, share, "share of the nodes", seed=seed, groups=self.groups)


def minimality(
    evaluator: Evaluator, circuit: Circuit, *, sets: int = 1, readers: bool = True, seed: int = 0
) -> Minimality:
    """For each part of the circuit, the largest change that leaving it out makes, over K = nothing and random halves.

    Parts are its nodes and, with `readers`, the edges into each reader together. A part that changes nothing alone may
    matter once its backups are gone: hence the `sets` random K.
    Raises `InputError` for a circuit without nodes that could be left out.
    """
    names, left_out = parts_of(circuit, readers=readers)
    generator = torch.Generator().manual_seed(seed)
    halves = [random_half(circuit, generator) for _ in range(sets)]
    changes = []
    for done, ablated in enumerate([writers_mask(circuit, []), *halves]):
        rest = Circuit(circuit.graph, circuit.mask & ~ablated[:, None])
        there = torch.tensor([bool((rest.mask & edges).any()) for edges in left_out])
        what = f"minimality, {done + 1} of {1 + sets}"
        metrics = evaluator.parts(rest, torch.cat([torch.zeros_like(left_out[:1]), left_out]), what)
        changes.append((metrics[1:] - metrics[0]) * there[:, None])
    return Minimality(names, torch.stack(changes), evaluator.gap, evaluator.task.groups)


def parts_of(circuit: Circuit, *, readers: bool) -> tuple[tuple[str, ...], Bool[Tensor, "parts writers readers"]]:
    """Names of a circuit's parts, latest first, and the edges that go with each.

    Latest first, since neighbours that lie alike are evaluated together.
    """
    graph, columns = circuit.graph, circuit.mask.any(0).nonzero().flatten().tolist()
    parts: list[tuple[int, str, tuple[int | slice, ...]]] = [
        (2 * graph.layer_of[row] + 1, graph.writers[row], (row,)) for row in node_rows(circuit)
    ]
    parts += [
        (2 * graph.reader_layer[column], graph.readers[column], (slice(None), column)) for column in columns if readers
    ]
    parts.sort(key=lambda part: -part[0])
    masks = torch.zeros(len(parts), *circuit.mask.shape, dtype=torch.bool)
    for mask, (_, _, edges) in zip(masks, parts, strict=True):
        mask[edges] = circuit.mask[edges]
    return tuple(name for _, name, _ in parts), masks


def is_reader(name: str) -> bool:
    """Whether a part's name is that of a reader, not of a node."""
    node = Node.parse(name)
    return node.kind == "logits" or bool(node.input)


def without(circuit: Circuit, parts: Sequence[str]) -> Circuit:
    """The circuit without the edges of `parts` (nodes or readers), and without what then leads nowhere."""
    mask = circuit.mask.clone()
    for part in parts:
        if is_reader(part):
            mask[:, circuit.graph.column(part)] = False
        else:
            mask[circuit.graph.row(part)] = False
    return Circuit(circuit.graph, mask).without_dangling()


def shrink(
    evaluator: Evaluator, circuit: Circuit, minimality: Minimality, *, loss: float = 0.02
) -> tuple[Circuit, tuple[str, ...]]:
    """The circuit without the parts it can do without together, and their names, least needed first.

    As many as can go such that the metric changes by no more than `loss` of F(M) - F(0): a search by halves over the
    parts in the order of their scores, each circuit on the way measured.
    """
    order = [minimality.names[i] for i in minimality.scores.argsort(stable=True).tolist()]
    whole = float(evaluator.circuits([circuit])[0].mean())
    fits, exceeds = 0, len(order) + 1
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        smaller = float(evaluator.circuits([without(circuit, order[:middle])])[0].mean())
        if abs(smaller - whole) <= loss * abs(minimality.gap):
            fits = middle
        else:
            exceeds = middle
    return (without(circuit, order[:fits]) if fits else circuit), tuple(order[:fits])


def node_rows(circuit: Circuit) -> list[int]:
    """Rows of the heads and MLPs that write an edge of the circuit. Raises `InputError` where there are none."""
    embeds = len(circuit.graph.embeds)
    rows = [row for row in circuit.mask.any(1).nonzero().flatten().tolist() if row >= embeds]
    if not rows:
        raise InputError("The circuit has no head or MLP that could be ablated; it needs at least one.")
    return rows


def random_half(circuit: Circuit, generator: torch.Generator) -> Bool[Tensor, " writers"]:
    """A random K: each of the circuit's nodes with chance 1/2."""
    drawn = [row for row in node_rows(circuit) if torch.rand((), generator=generator) < 0.5]
    return writers_mask(circuit, drawn)


def writers_mask(circuit: Circuit, rows: Sequence[int]) -> Bool[Tensor, " writers"]:
    """The writers `rows` as a mask."""
    mask = torch.zeros(len(circuit.graph.writers), dtype=torch.bool)
    mask[list(rows)] = True
    return mask
