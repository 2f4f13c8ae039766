"""Areas under curves by hand, and circuits made by chance."""

import pytest
import torch
from families import tiny

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.validation.faithfulness.auc import SHARES, area_under_curve, benchmark_sizes
from circuitome.validation.tests.nulls import NULLS


def test_a_perfect_curve_and_one_that_rises_at_the_end():
    perfect = area_under_curve(SHARES, [1.0] * len(SHARES))
    assert (perfect.cpr, perfect.cmd) == (pytest.approx(0.999), 0)
    assert (perfect.cpr_log, perfect.cmd_log) == (pytest.approx(1), 0)
    late = area_under_curve(SHARES, [0.0] * (len(SHARES) - 1) + [1.0])
    assert (late.cpr, late.cmd) == (pytest.approx(0.25), pytest.approx(0.749))
    over = area_under_curve(SHARES, [2.0] * len(SHARES))
    assert (over.cpr, over.cmd) == (pytest.approx(1.998), pytest.approx(0.999))
    assert area_under_curve([0.01, 0.1, 1.0], [0, 1, 1]).cpr_log == pytest.approx(0.75)


@pytest.mark.parametrize("shares", [[0.5], [0.0, 1.0], [0.5, 0.2], [0.5, 1.5]])
def test_sizes_that_cannot_be(shares):
    with pytest.raises(InputError):
        area_under_curve(shares, [1.0] * len(shares))


@pytest.fixture
def circuit():
    graph = tiny("llama").graph
    chance = torch.rand(graph.mask.shape, generator=torch.Generator().manual_seed(0))
    return Circuit(graph, (chance < 0.2) & graph.mask)


def test_benchmark_sizes(circuit):
    sizes = benchmark_sizes(circuit.graph)
    assert sizes[0] == 1 and sizes[-1] == circuit.graph.n_edges and list(sizes) == sorted(set(sizes))


@pytest.mark.parametrize("name", list(NULLS))
def test_nulls_keep_what_they_promise(circuit, name):
    generator = torch.Generator().manual_seed(3)
    made = [NULLS[name](circuit, generator) for _ in range(5)]
    assert all(len(one) == len(circuit) for one in made)
    assert len({hash(one) for one in made}) == 5 and circuit not in made
    if name == "degree-matched":
        for one in made:
            assert torch.equal(one.mask.sum(0), circuit.mask.sum(0))
            assert torch.equal(one.mask.sum(1), circuit.mask.sum(1))
    if name == "layer-matched":
        span = circuit.graph.attention_columns(1)
        heads = circuit.graph.head_rows(0)
        queries = slice(span.start, span.start + circuit.graph.n_heads)
        for one in made:
            assert one.mask[heads, queries].sum() == circuit.mask[heads, queries].sum()
            assert one.mask[0, -1] == circuit.mask[0, -1]  # a cell of one edge
    assert NULLS[name](Circuit.empty(circuit.graph), generator) == Circuit.empty(circuit.graph)
