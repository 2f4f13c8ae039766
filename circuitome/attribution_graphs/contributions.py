"""What each source of a graph makes of the residual stream, block by block: the forward sweep of the frozen model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.attribution_graphs.frozen_model import FrozenModel
from circuitome.attribution_graphs.result import UNITS, AttributionGraph, GraphNode

OTHERS, BIAS = "other neurons", "bias"
"""Names of the last two parts of a stream."""


@dataclass(frozen=True)
class Parts:
    """The parts into which streams are taken: a graph's tokens and neurons, all other neurons, and biases."""

    nodes: tuple[GraphNode, ...]
    """Tokens and neurons of the graph, in its order."""

    @classmethod
    def of(cls, graph: AttributionGraph) -> "Parts":
        """The parts of a graph."""
        return cls(tuple(node for node in graph.nodes if node.kind == "embed" or node.kind in UNITS))

    @property
    def names(self) -> list[str]:
        """Their names, the two that are no nodes last."""
        return [*(node.name for node in self.nodes), OTHERS, BIAS]


def streams_by_part(frozen: FrozenModel, parts: Parts) -> Iterator[tuple[int, Float[Tensor, "part pos d_model"]]]:
    """In front of each block, what every part makes of the stream; the parts sum to it. Last is the final stream."""
    model = frozen.model
    stream = torch.zeros(len(parts.nodes) + 2, frozen.tokens, model.d_model, device=model.device)
    for i, node in enumerate(parts.nodes):
        if node.kind == "embed":
            stream[i, node.position] = frozen.embeddings[node.position]
    for layer, attention in enumerate(frozen.attention):
        yield layer, stream
        values = attention.values(stream)
        values[-1] += attention.constant_values()
        stream = stream + attention.mixed(values)
        if (bias := attention.block.output_bias()) is not None:
            stream[-1] += bias
        stream = stream + _written(frozen, parts.nodes, layer)
    yield len(frozen.attention), stream


def _written(frozen: FrozenModel, nodes: Sequence[GraphNode], layer: int) -> Float[Tensor, "part pos d_model"]:
    """What each part's units of one MLP write."""
    units = frozen.units[layer]
    here = [(i, node) for i, node in enumerate(nodes) if node.layer == layer and node.kind in UNITS]
    written = torch.zeros(len(nodes) + 2, frozen.tokens, frozen.model.d_model, device=frozen.model.device)
    weights, shares = units.writes(), units.shares.clone()
    for i, node in here:
        written[i, node.position] = shares[node.position, node.index] * weights[node.index]
        shares[node.position, node.index] = 0.0
    written[-2], written[-1] = shares @ weights, units.constant.expand(frozen.tokens, -1)
    return written
