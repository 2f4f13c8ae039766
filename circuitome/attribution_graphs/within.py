"""Which nodes and edges of a finished graph have most of its influence: what the sliders of its page do."""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from circuitome.attribution_graphs.pruning import fewest
from circuitome.attribution_graphs.result import UNITS, AttributionGraph
from circuitome.errors import InputError

ALWAYS = ("embed", "bias", "logit")
"""Kinds of nodes that are no part of a node share: tokens, biases and what is explained."""


def within_shares(
    graph: AttributionGraph, *, node_share: float = 1.0, edge_share: float = 1.0
) -> tuple[Bool[Tensor, " node"], Bool[Tensor, " edge"]]:
    """Which nodes and which edges of a graph stay when it is pruned to shares of its influence.

    Kept are the fewest neurons, features and sums of others with `node_share` of the influence of all these; then,
    with influence flowing in the graph of kept nodes alone, the fewest edges with `edge_share` of that of all edges.
    The influence of an edge is |A[t, s]| / sum over s' of |A[t, s']| times (B[t] + w[t]), with A the edges' weights, w
    what a logit weighs and B what reaches a node. A node that no kept edge leaves, and a neuron or feature that none
    enters, goes with its edges, until there is none. Tokens, biases and logits stay. Computed in float64; the graph's
    page computes the same.
    Source: Ameisen et al. 2025, "Circuit tracing", `prune_graph` of circuit-tracer, which keeps a threshold of the
    cumulated influence as well.

    >>> graph = cm.attribution_graph(cm.load("known-ioi"), "Ann and Bob met then Bob gave to", first_token=True)
    >>> nodes, edges = cm.attribution_graphs.within_shares(graph, edge_share=0.5)
    >>> bool(nodes.all()), int(edges.sum()) < len(graph.weights)
    (True, True)

    Raises `InputError` for shares outside [0, 1].
    """
    for name, share in (("node_share", node_share), ("edge_share", edge_share)):
        if not 0 <= share <= 1:
            raise InputError(f"{name} is a share of influence and must lie between 0 and 1, got {share:g}.")
    count = len(graph.nodes)
    kinds = np.array([node.kind for node in graph.nodes])
    free = ~np.isin(kinds, ALWAYS)
    influence = torch.tensor([node.influence for node in graph.nodes], dtype=torch.float64)
    alive = np.ones(count, bool)
    alive[free] = fewest(influence[torch.from_numpy(free)], node_share).numpy()
    sources, targets = graph.sources.numpy(), graph.targets.numpy()
    edges = alive[sources] & alive[targets]
    edges &= fewest(torch.from_numpy(_edge_influence(graph, edges)), edge_share).numpy()
    needs = np.isin(kinds, UNITS)
    while True:
        out, into = (np.bincount(ends[edges], minlength=count) > 0 for ends in (sources, targets))
        dead = alive & free & (~out | needs & ~into)
        if not dead.any():
            return torch.from_numpy(alive), torch.from_numpy(edges)
        alive &= ~dead
        edges &= alive[sources] & alive[targets]


def _edge_influence(graph: AttributionGraph, kept: np.ndarray) -> np.ndarray:
    """The influence that passes each kept edge in the graph of these alone; 0 for others. Edges lead to later nodes."""
    sizes = np.abs(graph.weights.double().numpy()) * kept
    sources, targets, count = graph.sources.numpy(), graph.targets.numpy(), len(graph.nodes)
    sums = np.bincount(targets, sizes, count)
    shares = np.divide(sizes, sums[targets], out=np.zeros_like(sizes), where=sums[targets] > 0)
    total = np.array([node.influence if node.kind == "logit" else 0.0 for node in graph.nodes])
    for edge in np.argsort(-targets, kind="stable"):  # last targets first, so that a node's own total is complete
        total[sources[edge]] += shares[edge] * total[targets[edge]]
    return shares * total[targets]
