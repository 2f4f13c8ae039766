"""Circuits as sets of edges: what holds of all of them, on drawn circuits of drawn graphs."""

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph

SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2), st.booleans())
"""Layers, query heads for each key/value head, key/value heads, whether blocks are parallel."""
DRAWS = st.binary(min_size=16, max_size=16)
"""Bits that say which edges a circuit holds, over and over."""
# The phase that explains failures traces every line that runs, which takes most of the time.
quickly = settings(max_examples=25, deadline=None, phases=set(Phase) - {Phase.explain})


def circuit_of(shape, draw) -> Circuit:
    layers, heads_a_group, groups, parallel = shape
    graph = Graph(layers, heads_a_group * groups, groups, parallel=parallel)
    bits = (torch.tensor(list(draw))[:, None] >> torch.arange(8) & 1).flatten().bool()
    mask = torch.zeros_like(graph.mask)
    mask[graph.mask] = bits.repeat(-(-graph.n_edges // len(bits)))[: graph.n_edges]
    return Circuit(graph, mask)


@quickly
@given(SHAPES, DRAWS, DRAWS, DRAWS)
def test_the_algebra_is_that_of_sets(shape, first, second, third):
    a, b, c = (circuit_of(shape, draw) for draw in (first, second, third))
    in_a, in_b = set(a), set(b)
    assert set(a | b) == in_a | in_b and set(a & b) == in_a & in_b
    assert set(a - b) == in_a - in_b and set(a ^ b) == in_a ^ in_b
    assert (a <= b) == (in_a <= in_b) and len(a) == len(in_a)
    assert a & (b | c) == (a & b) | (a & c) and ~(a | b) == ~a & ~b and ~~a == a
    assert (a | ~a) == Circuit.full(a.graph) and (a & ~a) == Circuit.empty(a.graph)


@quickly
@given(SHAPES, DRAWS)
def test_text_gives_the_circuit_back(shape, draw):
    circuit = circuit_of(shape, draw)
    again = Circuit.from_text(circuit.graph, str(circuit))
    assert again == circuit and hash(again) == hash(circuit)


@quickly
@given(SHAPES, DRAWS, DRAWS)
def test_dropping_dangling_edges_keeps_paths_and_nothing_else(shape, first, second):
    smaller, other = (circuit_of(shape, draw) for draw in (first, second))
    kept = smaller.without_dangling()
    assert kept <= smaller and kept.without_dangling() == kept
    assert kept <= (smaller | other).without_dangling()  # an edge on a path stays on it when edges come in
    graph, inputs = kept.graph, kept.graph.inputs
    for row, column in kept.mask.nonzero().tolist():
        assert row < len(graph.embeds) or bool(kept.mask[:, inputs[row]].any())  # something reaches the writer
        readers = inputs[:, column].nonzero().flatten().tolist()
        assert column == len(graph.readers) - 1 or any(bool(kept.mask[node].any()) for node in readers)
