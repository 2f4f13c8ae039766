"""Hypothesis tests that need circuit runs: is the circuit better than chance, and is each of its edges?

Source: Shi et al. 2024, arXiv:2410.13032; see `hypotheses` for the tests themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph
from circuitome.results import plain_fields
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.share import random_circuit
from circuitome.validation.tests.hypotheses import TestResult, better_than_random, needed_edges


@dataclass(frozen=True)
class EdgeTest:
    """Whether single edges of a circuit matter more than useless ones do."""

    edges: tuple[str, ...]
    """The edges that were tested."""
    changes: Float[Tensor, " edges"]
    """|mean change of the metric| without each."""
    useless: Float[Tensor, " draws"]
    """The same for edges of paths that were added at random."""
    results: tuple[TestResult, ...]
    """One test an edge, corrected for their number."""

    @property
    def summary(self) -> TestResult:
        """The test of the circuit: rejected if any edge's is. Its statistic is the share of edges rejected."""
        smallest = min(self.results, key=lambda test: test.p_value)
        share = sum(test.rejected() for test in self.results) / len(self.results)
        return replace(smallest, name="minimal edges", statistic=share)

    @property
    def unneeded(self) -> tuple[str, ...]:
        """Edges that are no better than useless ones."""
        return tuple(edge for edge, test in zip(self.edges, self.results, strict=True) if test.rejected())

    def to_dict(self) -> dict[str, Any]:
        """What each edge changes, what useless ones do, and which edges are no better, as plain JSON values."""
        changes = dict(zip(self.edges, self.changes.tolist(), strict=True))
        return {"changes": changes, **plain_fields(self, "useless", "unneeded")}


def edge_test(evaluator: Evaluator, circuit: Circuit, *, most: int = 100, draws: int = 50, seed: int = 0) -> EdgeTest:
    """Test up to `most` of the circuit's edges, drawn at random, against useless ones.

    A useless edge: one random path from an embedding to the logits is added to the circuit, and one of its edges, not
    in the circuit before, is left out again; `draws` of them. Leaving out an edge of the circuit should change the
    metric more than that.
    """
    generator = torch.Generator().manual_seed(seed)
    graph = circuit.graph
    every = circuit.mask.nonzero()
    chosen = every[torch.randperm(len(every), generator=generator)[:most]].tolist()
    chosen.sort(key=lambda edge: -edge[1])
    gone = torch.zeros(len(chosen) + 1, *circuit.mask.shape, dtype=torch.bool)
    for k, (row, column) in enumerate(chosen):
        gone[k + 1, row, column] = True
    metrics = evaluator.parts(circuit, gone, "single edges").mean(1)
    paths: list[Circuit] = []
    left_out: list[list[int]] = []
    while len(paths) < draws:
        path = random_path(graph, generator) - circuit
        if len(path):
            paths.append(path)
            edges = path.mask.nonzero()
            left_out.append(edges[int(torch.randint(len(edges), (), generator=generator))].tolist())
    useless = _useless_changes(evaluator, circuit, paths, left_out)
    names = tuple(graph.edge_name(row, column) for row, column in chosen)
    changes = (metrics[1:] - metrics[0]).abs()
    return EdgeTest(names, changes, useless, tuple(needed_edges(changes, useless)))


def _useless_changes(
    evaluator: Evaluator, circuit: Circuit, paths: Sequence[Circuit], left_out: Sequence[Sequence[int]]
) -> Float[Tensor, " draws"]:
    """What leaving out one edge of each path changes, the path and the circuit being there."""
    union = reduce(Circuit.__or__, paths, circuit)
    gone = []
    for path, (row, column) in zip(paths, left_out, strict=True):
        others = (union - circuit - path).mask
        without = others.clone()
        without[row, column] = True
        gone += [others, without]
    means = evaluator.parts(union, torch.stack(gone), "useless edges").mean(1).view(-1, 2)
    return (means[:, 1] - means[:, 0]).abs()


def random_path(graph: Graph, generator: torch.Generator) -> Circuit:
    """The edges of one walk from an embedding to the logits; at each node one of its edges, all equally likely."""

    def pick(options: Sequence[int]) -> int:
        return options[int(torch.randint(len(options), (), generator=generator))]

    mask = torch.zeros_like(graph.mask)
    row = pick(range(len(graph.embeds)))
    while True:
        column = pick(graph.mask[row].nonzero().flatten().tolist())
        mask[row, column] = True
        if not graph.rows_of[column]:
            return Circuit(graph, mask)
        row = pick(graph.rows_of[column])


def necessity(
    evaluator: Evaluator, circuit: Circuit, *, draws: int = 50, seed: int = 0
) -> tuple[TestResult, float, list[float]]:
    """Does cutting the circuit's edges hurt the model more than cutting as many others? Rejection: yes, surely.

    Gives the test, the damage F(M) - F(M without C), and that of `draws` random sets of edges outside the circuit.
    """
    graph = circuit.graph
    generator = torch.Generator().manual_seed(seed)
    others, n = ~circuit, len(circuit)
    sets = [circuit, *(random_circuit(graph, n, generator, others) for _ in range(draws if len(others) and n else 0))]
    means = evaluator.circuits([~edges for edges in sets], "necessity").mean(1)
    damage = (evaluator.clean.mean() - means).tolist()
    drawn = damage[1:] or [damage[0]]  # a circuit of all edges has no others to be compared with
    return better_than_random("necessity", damage[0], drawn), damage[0], damage[1:]
