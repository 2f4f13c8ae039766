"""Circuits that could have come about by chance: what a claim has to be compared with."""

import torch

from circuitome.graph.circuits import Circuit
from circuitome.validation.faithfulness.share import random_circuit

SWAPS = 10
"""Attempted swaps for each edge of a rewired circuit."""


def layer_matched_circuit(circuit: Circuit, generator: torch.Generator) -> Circuit:
    """A circuit with as many edges between every kind and layer of writer and every kind and layer of reader."""
    graph = circuit.graph
    readers = [(node.kind, node.layer, node.input) for node in graph.reader_nodes]
    writers = [(node.kind, node.layer) for node in graph.writer_nodes]
    cells: dict[object, list[tuple[int, int]]] = {}
    for row, column in graph.mask.nonzero().tolist():
        cells.setdefault((writers[row], readers[column]), []).append((row, column))
    mask = torch.zeros_like(graph.mask)
    for edges in cells.values():
        count = sum(bool(circuit.mask[edge]) for edge in edges)
        for i in torch.randperm(len(edges), generator=generator)[:count].tolist():
            mask[edges[i]] = True
    return Circuit(graph, mask)


def degree_matched_circuit(circuit: Circuit, generator: torch.Generator) -> Circuit:
    """A circuit in which every writer and every reader has as many edges as before: pairs of edges exchange ends."""
    graph, mask = circuit.graph, circuit.mask.clone()
    edges = mask.nonzero().tolist()
    for _ in range(SWAPS * len(edges) if len(edges) > 1 else 0):
        i, j = torch.randint(len(edges), (2,), generator=generator).tolist()
        (a, u), (b, v) = edges[i], edges[j]
        possible = graph.mask[a, v] and graph.mask[b, u]
        if a == b or u == v or not possible or mask[a, v] or mask[b, u]:
            continue
        mask[a, u] = mask[b, v] = False
        mask[a, v] = mask[b, u] = True
        edges[i], edges[j] = [a, v], [b, u]
    return Circuit(graph, mask)


NULLS = {
    "random": lambda circuit, generator: random_circuit(circuit.graph, len(circuit), generator),
    "layer-matched": layer_matched_circuit,
    "degree-matched": degree_matched_circuit,
}
"""By name: (circuit, generator) -> one circuit of the same size. Random: from the whole graph; layer-matched: the same
number between all layers and kinds of parts; degree-matched: the same number at every node."""
SHAPED = ("layer-matched", "degree-matched")
"""Nulls that share the circuit's shape."""
