"""Would other prompts, or another method, have given the same circuit? Overlap of circuits and correlation of scores.

Scores are means over prompts, so resampling the prompts' own scores gives what another draw of prompts would have
found: no pass of the model. Source: Efron 1979 (bootstrap).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import hypergeom, rankdata
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.results import LEVEL
from circuitome.validation.faithfulness.share import random_circuit
from circuitome.validation.robustness.score_agreement import agreement

FEWEST_PROMPTS = 4
"""Prompts that resampling needs: two in each half."""
NULL_DRAWS = 20
"""Random circuits that the chance overlap of nodes is taken from."""


@dataclass(frozen=True, eq=False)
class Spread:
    """A number over draws."""

    draws: Float[Tensor, " draws"]
    """Its value in every draw."""

    @property
    def mean(self) -> float:
        """Mean over draws."""
        return float(self.draws.mean())

    @property
    def range(self) -> tuple[float, float]:
        """Between these lie 95 % of the draws."""
        tail = (1 - LEVEL) / 2
        low, high = torch.quantile(self.draws.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return low, high

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.range[0]:.3f}, {self.range[1]:.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """Mean and range."""
        return {"mean": self.mean, "low": self.range[0], "high": self.range[1], "draws": len(self.draws)}


@dataclass(frozen=True, eq=False)
class Stability:
    """How the circuit of the `size` strongest edges changes with the prompts. Jaccard: shared / in either."""

    size: int
    """Edges of every circuit."""
    n: int
    """Prompts."""
    edges: Spread
    """Jaccard of edges, each resample's circuit with that of all prompts."""
    nodes: Spread
    """Jaccard of nodes, likewise."""
    ranks: Spread
    """Spearman's correlation of |score| over all edges, likewise."""
    node_ranks: Spread
    """Spearman's correlation of what |score| leaves each writer, summed over its edges, likewise."""
    edges_between: Spread
    """Jaccard of edges between resamples."""
    nodes_between: Spread
    """Jaccard of nodes between resamples."""
    edges_halves: Spread
    """Jaccard of edges between two halves of the prompts that share none."""
    nodes_halves: Spread
    """Jaccard of nodes, likewise."""
    chance_edges: float
    """Expected Jaccard of edges of two random circuits of this size."""
    chance_nodes: float
    """Mean Jaccard of nodes of random circuits of this size with the circuit of all prompts."""
    kept: Float[Tensor, "writers readers"]
    """Share of the resamples whose circuit has the edge."""
    graph: Graph
    """Labels of `kept`."""

    def core(self, share: float = LEVEL) -> Circuit:
        """The edges that at least `share` of the resamples agree on."""
        return Circuit(self.graph, (self.kept >= share) & self.graph.mask)

    def to_dict(self) -> dict[str, Any]:
        """All but `kept`, and the size of the core, as plain JSON values."""
        spreads = {name: one.to_dict() for name, one in vars(self).items() if isinstance(one, Spread)}
        chance = {"chance_edges": self.chance_edges, "chance_nodes": self.chance_nodes}
        return {"size": self.size, "n": self.n, **spreads, **chance, "core": len(self.core())}


@dataclass(frozen=True)
class Overlap:
    """Two sets of scores side by side."""

    size: int
    """Edges of both circuits."""
    edges: float
    """Jaccard of the edges of the two circuits of the `size` strongest edges."""
    nodes: float
    """Jaccard of their nodes."""
    weighted: float
    """sum of min / sum of max of |score| over all edges, each scaled to sum 1: the share of strength that is shared."""
    pearson: float
    """Correlation of the scores, with their signs, over all edges."""
    spearman: float
    """Correlation of the ranks of |score| over all edges."""
    chance: float
    """Expected Jaccard of edges of two random circuits of this size."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class AgreementMatrix:
    """Several sets of scores side by side, each with each."""

    names: tuple[str, ...]
    """What the scores are of: methods, tasks."""
    size: int
    """Edges of every circuit."""
    overlaps: tuple[tuple[Overlap, ...], ...]
    """By row and column, in the order of `names`."""

    def matrix(self, field: str) -> Float[Tensor, "names names"]:
        """One field of `Overlap` for every pair."""
        return torch.tensor([[float(getattr(one, field)) for one in row] for row in self.overlaps])

    def to_dict(self) -> dict[str, Any]:
        """Names and one matrix a field, as plain JSON values."""
        fields = ("edges", "nodes", "weighted", "pearson", "spearman")
        matrices = {name: self.matrix(name).tolist() for name in fields}
        return {"names": list(self.names), "size": self.size, **matrices, "chance": self.overlaps[0][0].chance}


def bootstrap_stability(scores: EdgeScores, size: int, *, draws: int = 100, seed: int = 0) -> Stability:
    """What becomes of the circuit of the `size` strongest edges when the prompts are drawn anew, `draws` times.

    Each draw takes as many prompts with replacement, and their scores' mean. A resample shares 63 % of its prompts with
    the whole, so its overlap flatters; halves that share no prompt say what half as many other prompts would find.
    Costs no pass of the model. Raises `InputError` for scores without samples, fewer than 4 prompts, no draw, or a size
    that cannot be.
    """
    samples = samples_of(scores)
    if len(samples) < FEWEST_PROMPTS:
        raise InputError(
            f"Resampling prompts needs at least {FEWEST_PROMPTS} of them, these scores are of {len(samples)}. Score "
            "more prompts (--n)."
        )
    if draws < 2:
        raise InputError(f"Resampling needs at least 2 draws, got {draws}.")
    full, generator = scores.top(size), torch.Generator().manual_seed(seed)
    check_size(full)
    n, half = len(samples), len(samples) // 2
    weights, halves = torch.zeros(draws, n), torch.zeros(2, draws, n)
    for draw in range(draws):
        weights[draw].index_add_(0, torch.randint(n, (n,), generator=generator), torch.ones(n))
        order = torch.randperm(n, generator=generator)
        halves[0, draw, order[:half]] = halves[1, draw, order[half : 2 * half]] = 1
    own, values = full.mask[scores.graph.mask], scores.values[scores.graph.mask]
    own_ranks, own_node_ranks = _ranks(values), _ranks(_leaving(scores.graph, values))
    tops = torch.zeros(draws, scores.graph.n_edges, dtype=torch.bool)
    ranks, node_ranks = torch.zeros(2, draws)
    for draw, mean in enumerate(weights / n @ samples):
        tops[draw] = strongest(mean, size)
        ranks[draw] = _correlation(own_ranks, _ranks(mean))
        node_ranks[draw] = _correlation(own_node_ranks, _ranks(_leaving(scores.graph, mean)))
    first, second = (torch.stack([strongest(mean, size) for mean in part / half @ samples]) for part in halves)
    nodes, kept = nodes_of(scores.graph, tops), torch.zeros(scores.values.shape)
    kept[scores.graph.mask] = tops.float().mean(0)
    own_nodes = nodes_of(scores.graph, own[None])
    pairs = torch.triu_indices(draws, draws, 1)
    chance = [random_circuit(scores.graph, size, generator).mask[scores.graph.mask] for _ in range(NULL_DRAWS)]
    return Stability(
        size,
        n,
        Spread(jaccard(tops, own[None])[:, 0]),
        Spread(jaccard(nodes, own_nodes)[:, 0]),
        Spread(ranks),
        Spread(node_ranks),
        Spread(jaccard(tops, tops)[pairs[0], pairs[1]]),
        Spread(jaccard(nodes, nodes)[pairs[0], pairs[1]]),
        Spread(jaccard(first, second).diagonal()),
        Spread(jaccard(nodes_of(scores.graph, first), nodes_of(scores.graph, second)).diagonal()),
        chance_jaccard(size, scores.graph.n_edges),
        float(jaccard(nodes_of(scores.graph, torch.stack(chance)), own_nodes).mean()),
        kept,
        scores.graph,
    )


def compare_scores(a: EdgeScores, b: EdgeScores, size: int) -> Overlap:
    """How far two sets of scores agree, on the `size` strongest edges of each and on all of them.

    Raises `InputError` if the graphs differ or the size cannot be.
    """
    near = agreement(a, b)
    circuits = [one.top(size) for one in (a, b)]
    check_size(circuits[0])
    tops = torch.stack([one.mask[a.graph.mask] for one in circuits])
    nodes = nodes_of(a.graph, tops)
    shares = [one.values.abs().double() / one.values.abs().double().sum() for one in (a, b)]
    weighted = float(torch.minimum(*shares).sum() / torch.maximum(*shares).sum())
    return Overlap(
        size,
        float(jaccard(tops[:1], tops[1:])),
        float(jaccard(nodes[:1], nodes[1:])),
        weighted,
        near.pearson,
        near.spearman,
        chance_jaccard(size, a.graph.n_edges),
    )


def method_agreement(scores: Mapping[str, EdgeScores], size: int) -> AgreementMatrix:
    """How far several methods agree on the same prompts, each with each, on circuits of equal size.

    Raises `InputError` for fewer than two, and as `compare_scores`.
    """
    if len(scores) < 2:
        raise InputError(f"Agreement needs the scores of at least two methods, got {', '.join(scores) or 'none'}.")
    every = list(scores.values())
    upper = {(i, j): compare_scores(every[i], every[j], size) for i in range(len(every)) for j in range(i, len(every))}
    rows = tuple(tuple(upper[min(i, j), max(i, j)] for j in range(len(every))) for i in range(len(every)))
    return AgreementMatrix(tuple(scores), size, rows)


def chance_jaccard(size: int, n_edges: int) -> float:
    """Expected Jaccard of two random sets of `size` edges of `n_edges`, about size / (2 n_edges - size)."""
    shared = np.arange(size + 1)
    return float((hypergeom.pmf(shared, n_edges, size, size) * shared / np.maximum(1, 2 * size - shared)).sum())


def jaccard(a: Bool[Tensor, "sets n"], b: Bool[Tensor, "others n"]) -> Float[Tensor, "sets others"]:
    """Shared members over members of either, each set of `a` with each of `b`; 1 for two empty sets."""
    both = a.float() @ b.float().T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return torch.where(either == 0, torch.ones_like(both), both / either.clamp(min=1))


def nodes_of(graph: Graph, edges: Bool[Tensor, "sets edges"]) -> Bool[Tensor, "sets writers"]:
    """Which writers each set of edges touches, see `Circuit.nodes`."""
    found = torch.zeros(len(edges), len(graph.writers), dtype=torch.bool)
    for i, one in enumerate(edges):
        mask = torch.zeros_like(graph.mask)
        mask[graph.mask] = one
        found[i] = mask.any(1) | (graph.inputs & mask.any(0)).any(1)
    return found


def strongest(values: Float[Tensor, " edges"], size: int) -> Bool[Tensor, " edges"]:
    """The `size` edges with the largest |value|."""
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.abs().topk(size).indices] = True
    return chosen


def samples_of(scores: EdgeScores) -> Float[Tensor, "prompts edges"]:
    """The scores of every prompt. Raises `InputError` where they were not kept."""
    if scores.samples is None:
        raise InputError(
            f"The scores by {scores.method or 'this method'} hold no per-prompt samples, so nothing can be said over "
            "prompts. EAP and EAP-IG keep them."
        )
    return scores.samples


def check_size(circuit: Circuit) -> None:
    """Raises `InputError` for an empty circuit."""
    if len(circuit) == 0:
        raise InputError("Circuits of 0 edges cannot be compared; the size must be at least 1.")


def _leaving(graph: Graph, values: Float[Tensor, " edges"]) -> Float[Tensor, " writers"]:
    """Sum of |score| over the edges that leave each writer."""
    rows = graph.mask.nonzero()[:, 0]
    return torch.zeros(len(graph.writers)).index_add_(0, rows, values.abs())


def _ranks(values: Tensor) -> Tensor:
    """Ranks of |value|, ties averaged, with mean 0 and length 1."""
    ranks = torch.from_numpy(rankdata(values.abs().numpy()))
    ranks = ranks - ranks.mean()
    return ranks / ranks.norm().clamp(min=1e-300)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(a @ b)
