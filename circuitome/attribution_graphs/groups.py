"""Nodes of a graph grouped by attribution profile: what makes them, and what they make.

A node's profile is its edges in, from tokens and neurons, and its edges out, to neurons and logits. Two nodes are as
alike as the geometric mean of the cosines of their edges in and of their edges out, 0 where one of these is negative:
alike are nodes that come from the same and do the same. Groups are those of average linkage, cut at a distance.
Source: Arora et al. 2026, arXiv:2604.07615 (profiles over prompts there, over one prompt's edges here).
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from circuitome.attribution_graphs.result import UNITS, AttributionGraph
from circuitome.errors import InputError

DISTANCE = 0.5
"""Below this mean distance, 1 minus how alike they are, nodes are one group."""


def profile_similarity(graph: AttributionGraph) -> tuple[list[int], Float[Tensor, "unit unit"]]:
    """Places of a graph's neurons, and how alike each two are."""
    units = [i for i, node in enumerate(graph.nodes) if node.kind in UNITS]
    matrix = graph.matrix()
    sides = [matrix[units], matrix[:, units].T]
    scaled = [side / side.norm(dim=1, keepdim=True).clamp(min=1e-12) for side in sides]
    into, out = ((side @ side.T).clamp(min=0) for side in scaled)
    return units, (into * out).sqrt()


def grouped(graph: AttributionGraph, *, distance: float = DISTANCE) -> AttributionGraph:
    """The same graph, its neurons with their group; those that are like no other have none.

    Groups are numbered from 0, those with most influence first.

    >>> model = cm.load("known-ioi")
    >>> graph = cm.attribution_graph(model, "Ann and Bob met then Bob gave to", first_token=True)
    >>> {node.group for node in cm.attribution_graphs.grouped(graph).units()} <= {None, 0, 1, 2, 3, 4, 5}
    True

    Raises `InputError` for a distance outside (0, 1].
    """
    if not 0 < distance <= 1:
        raise InputError(f"distance is 1 minus how alike nodes are and must lie between 0 and 1, got {distance:g}.")
    units, similarity = profile_similarity(graph)
    if len(units) < 2:
        return graph
    apart = squareform((1 - similarity.double()).clamp(min=0).fill_diagonal_(0).numpy(), checks=False)
    numbers = fcluster(linkage(apart, "average"), distance, "distance")
    influence = np.array([graph.nodes[i].influence for i in units])
    several = [number for number in np.unique(numbers) if (numbers == number).sum() > 1]
    several.sort(key=lambda number: -influence[numbers == number].sum())
    order = {number: i for i, number in enumerate(several)}
    group = dict(zip(units, (order.get(number) for number in numbers), strict=True))
    return replace(graph, nodes=tuple(replace(node, group=group.get(i)) for i, node in enumerate(graph.nodes)))
