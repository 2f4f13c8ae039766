"""How far two ways of scoring edges agree."""

from dataclasses import dataclass

import torch
from scipy.stats import pearsonr, spearmanr

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores


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


def spread_edges(scores: EdgeScores, n: int, seed: int = 0) -> Circuit:
    """`n` edges for a comparison with costly scores: half of them the strongest, half drawn from the rest.

    Drawn alone, nearly all would be edges that matter little. Gives all edges where the graph has no more than `n`.
    """
    graph = scores.graph
    if n >= graph.n_edges:
        return Circuit.full(graph)
    strongest = scores.top(n // 2).mask
    rest = (graph.mask & ~strongest).nonzero()
    generator = torch.Generator().manual_seed(seed)
    drawn = rest[torch.randperm(len(rest), generator=generator)[: n - n // 2]]
    mask = strongest.clone()
    mask[drawn[:, 0], drawn[:, 1]] = True
    return Circuit(graph, mask)
