"""How far two circuits overlap, and two ways of scoring edges agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import hypergeom, pearsonr, spearmanr
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.results import Record, plain_fields
from circuitome.validation.faithfulness.share import random_circuit


@dataclass(frozen=True)
class Agreement:
    """Correlations of two sets of scores over the same edges; NaN where one of them is constant."""

    pearson: float
    """Of the scores, with their signs."""
    pearson_abs: float
    """Of their sizes."""
    spearman: float
    """Of the ranks of their sizes, ties averaged."""
    n: int
    """Edges compared."""


@dataclass(frozen=True)
class Overlap(Record):
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
        return torch.tensor([[float(getattr(overlap, field)) for overlap in row] for row in self.overlaps])

    def to_dict(self) -> dict[str, Any]:
        """Names and one matrix a field, as plain JSON values."""
        matrices = {name: self.matrix(name).tolist() for name in ("edges", "nodes", "weighted", "pearson", "spearman")}
        return {**plain_fields(self, "names", "size"), **matrices, "chance": self.overlaps[0][0].chance}


def agreement(scores: EdgeScores, reference: EdgeScores, among: Circuit | None = None) -> Agreement:
    """Pearson's and Spearman's correlation of `scores` with `reference`, over all edges or those of `among`.

    Raises `InputError` if the graphs differ or fewer than three edges are compared.
    """
    if scores.graph != reference.graph:
        raise InputError(f"Scores of different graphs cannot be compared: {scores.graph} and {reference.graph}.")
    mask = scores.graph.mask if among is None else among.mask
    a, b = scores.values[mask].double().numpy(), reference.values[mask].double().numpy()
    if len(a) < 3:
        raise InputError(f"A correlation needs at least three edges, got {len(a)}.")
    if a.std() == 0 or b.std() == 0 or abs(a).std() == 0 or abs(b).std() == 0:
        nan = float("nan")
        return Agreement(nan, nan, nan, len(a))
    pearson, sizes, ranks = pearsonr(a, b), pearsonr(abs(a), abs(b)), spearmanr(abs(a), abs(b))
    return Agreement(float(pearson.statistic), float(sizes.statistic), float(ranks.statistic), len(a))


def compare_scores(a: EdgeScores, b: EdgeScores, size: int) -> Overlap:
    """How far two sets of scores agree, on the `size` strongest edges of each and on all of them.

    Raises `InputError` if the graphs differ or the size cannot be.
    """
    correlations, graph = agreement(a, b), a.graph
    check_size(a.top(size))
    edges = torch.stack([scores.top(size).mask[graph.mask] for scores in (a, b)])
    shares = [scores.values.abs().double() / scores.values.abs().double().sum() for scores in (a, b)]
    return Overlap(
        size,
        float(jaccard(edges, edges)[0, 1]),
        float(jaccard(*[nodes_of(graph, edges)] * 2)[0, 1]),
        float(torch.minimum(*shares).sum() / torch.maximum(*shares).sum()),
        correlations.pearson,
        correlations.spearman,
        chance_jaccard(size, graph.n_edges),
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


def spread_edges(scores: EdgeScores, n: int, seed: int = 0) -> Circuit:
    """`n` edges for a comparison with costly scores: half of them the strongest, half drawn from the rest.

    Drawn alone, nearly all would be edges that matter little. Gives all edges where the graph has no more than `n`.
    """
    graph, generator = scores.graph, torch.Generator().manual_seed(seed)
    if n >= graph.n_edges:
        return Circuit.full(graph)
    largest = scores.top(n // 2)
    return largest | random_circuit(graph, n - n // 2, generator, ~largest)


def jaccard(a: Bool[Tensor, "sets n"], b: Bool[Tensor, "others n"]) -> Float[Tensor, "sets others"]:
    """Shared members over members of either, each set of `a` with each of `b`; 1 for two empty sets."""
    both = a.float() @ b.float().T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    return torch.where(either == 0, torch.ones_like(both), both / either.clamp(min=1))


def chance_jaccard(size: int, n_edges: int) -> float:
    """Expected Jaccard of two random sets of `size` edges of `n_edges`, about size / (2 n_edges - size)."""
    shared = np.arange(size + 1)
    return float((hypergeom.pmf(shared, n_edges, size, size) * shared / np.maximum(1, 2 * size - shared)).sum())


def nodes_of(graph: Graph, edges: Bool[Tensor, "sets edges"]) -> Bool[Tensor, "sets writers"]:
    """Which writers each set of edges touches, see `Circuit.nodes`."""
    rows, columns = (ends[None].expand(len(edges), -1) for ends in graph.mask.nonzero().T)
    leaves, enters = (torch.zeros(len(edges), size, dtype=torch.int32) for size in graph.mask.shape)
    leaves.scatter_add_(1, rows, edges.int())
    enters.scatter_add_(1, columns, edges.int())
    return (leaves > 0) | ((enters > 0).float() @ graph.inputs.float().T > 0)


def strongest(values: Float[Tensor, "... edges"], size: int) -> Bool[Tensor, "... edges"]:
    """The `size` edges with the largest |value|."""
    chosen = torch.zeros(values.shape, dtype=torch.bool)
    return chosen.scatter_(-1, values.abs().topk(size).indices, True)


def check_size(circuit: Circuit) -> None:
    """Raises `InputError` for an empty circuit."""
    if len(circuit) == 0:
        raise InputError("Circuits of 0 edges cannot be compared; the size must be at least 1.")
