import pytest
import torch

from circuitome.errors import InputError, UnknownNameError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph

COUNTS = [
    (Graph(12, 12, 12), 32_491),
    (Graph(12, 12, 12, embeds=("token", "position")), 32_936),
    (Graph(48, 25, 25), 2_235_025),
    (Graph(4, 8, 8, mlps=False), 1_281),
    (Graph(2, 8, 8, mlps=False), 257),
    (Graph(4, 1, 1), 77),
    (Graph(4, 1, 1, embeds=("token", "position")), 94),
    (Graph(2, 1, 1), 23),
    (Graph(2, 1, 1, embeds=("token", "position")), 32),
    (Graph(30, 9, 9), 123_211),
    (Graph(30, 9, 3), 70_651),
    (Graph(24, 14, 14), 179_749),
    (Graph(26, 8, 8), 74_218),
    (Graph(32, 32, 32), 1_592_881),
]

SMALL = Graph(3, 4, 2)


@pytest.mark.parametrize(("graph", "count"), COUNTS)
def test_edge_counts_are_the_published_ones(graph, count):
    assert graph.n_edges == count


def test_smollm2_has_301_writers_and_481_readers():
    graph = Graph(30, 9, 3)
    assert (len(graph.writers), len(graph.readers)) == (301, 481)
    assert graph.writers[:2] == ("embed", "a0.h0")
    assert "a9.kv2.k" in graph.readers
    assert "a9.h6.k" not in graph.readers


def test_parallel_blocks_have_no_edge_from_heads_to_their_own_mlp():
    parallel = Graph(3, 4, 4, parallel=True)
    assert Graph(3, 4, 4).n_edges - parallel.n_edges == 3 * 4
    with pytest.raises(InputError, match="does not come before"):
        parallel.edge("a1.h0->m1.in")
    assert Graph(3, 4, 4).edge("a1.h0->m1.in")


def test_names_and_indices_agree():
    for row, column in SMALL.mask.nonzero().tolist():
        assert SMALL.edge(SMALL.edge_name(row, column)) == (row, column)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ("a5.h1", "write it as writer->reader"),
        ("a9.h1->logits", "no writer 'a9.h1'"),
        ("a1.h3->a2.kv7.k", "no reader 'a2.kv7.k'"),
        ("a2.h0->a1.h0.q", "does not come before"),
        ("embde->logits", "Did you mean 'embed'"),
    ],
)
def test_bad_edges_say_what_is_wrong(edge, message):
    with pytest.raises(InputError, match=message):
        SMALL.edge(edge)


def test_keys_of_ungrouped_heads_answer_to_the_head():
    assert Graph(2, 4, 4).column("a1.h3.k") == Graph(2, 4, 4).column("a1.kv3.k")
    with pytest.raises(UnknownNameError):
        SMALL.column("a1.h3.k")


def circuit(*edges):
    return Circuit.of(SMALL, edges)


def test_set_algebra():
    a = circuit("embed->m0.in", "m0->logits")
    b = circuit("m0->logits", "a1.h0->logits")
    assert len(a | b) == 3
    assert list(a & b) == ["m0->logits"]
    assert list(a - b) == ["embed->m0.in"]
    assert len(a ^ b) == 2
    assert len(~a) == SMALL.n_edges - 2
    assert (a & b) <= a
    assert not a <= b
    assert "m0->logits" in a
    assert "a1.h0->logits" not in a
    assert a == circuit("m0->logits", "embed->m0.in")
    assert hash(a) == hash(circuit("m0->logits", "embed->m0.in"))
    with pytest.raises(InputError, match="different graphs"):
        a | Circuit.empty(Graph(2, 4, 2))


def test_text_form_comes_back():
    a = circuit("embed->a1.h2.q", "a1.h2->m2.in", "m2->logits")
    assert Circuit.from_text(SMALL, f"# found by hand\n\n{a}") == a


def test_dangling_edges_go_until_none_is_left():
    path = circuit("embed->a0.kv0.v", "a0.h1->m1.in", "m1->logits")
    loose = circuit("a1.h0->a2.h0.q", "embed->a1.h3.q", "m0->a1.kv1.k")  # into nothing, from nothing, both
    assert (path | loose).without_dangling() == path
    assert Circuit.full(SMALL).without_dangling() == Circuit.full(SMALL)
    assert path.nodes == ("embed", "a0.h0", "a0.h1", "m1")  # heads 0 and 1 share key/value head 0


def scores_of(pairs):
    values = torch.zeros(SMALL.mask.shape)
    for name, value in pairs.items():
        values[SMALL.edge(name)] = value
    return EdgeScores(SMALL, values)


def test_top_takes_the_strongest_and_signed_the_most_helpful():
    scores = scores_of({"embed->logits": 3.0, "m0->logits": -2.0, "m1->logits": -1.0})
    assert set(scores.top(2)) == {"embed->logits", "m0->logits"}
    assert set(scores.top(2, signed=True)) == {"m0->logits", "m1->logits"}
    assert set(scores.above(2.0)) == {"embed->logits", "m0->logits"}
    assert len(scores.top(SMALL.n_edges)) == SMALL.n_edges
    assert scores.ranked(scores.top(2))[0] == ("embed->logits", 3.0)
    for n in (-1, SMALL.n_edges + 1):
        with pytest.raises(InputError, match="this graph has"):
            scores.top(n)


def test_greedy_grows_from_the_logits():
    scores = scores_of({"embed->m0.in": 9.0, "m0->logits": 1.0, "a2.h0->logits": 2.0, "embed->a2.kv0.v": 0.5})
    assert list(scores.greedy(1)) == ["a2.h0->logits"]
    assert set(scores.greedy(3)) == {"a2.h0->logits", "m0->logits", "embed->m0.in"}
    assert len(scores.greedy(SMALL.n_edges)) == SMALL.n_edges


def test_score_intervals_cover_the_mean_and_need_samples():
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(40, SMALL.n_edges, generator=generator)
    values = torch.zeros(SMALL.mask.shape)
    values[SMALL.mask] = samples.mean(0)
    scores = EdgeScores(SMALL, values, samples=samples)
    chosen = scores.top(10)
    low, high = scores.intervals(chosen)
    assert torch.isnan(low[~chosen.mask]).all()
    assert (low[chosen.mask] < values[chosen.mask]).all()
    assert (values[chosen.mask] < high[chosen.mask]).all()
    standard_error = samples.std(0)[chosen.mask[SMALL.mask]] / 40**0.5
    assert torch.allclose((high - low)[chosen.mask], 2 * 1.96 * standard_error, rtol=0.2)
    with pytest.raises(InputError, match="no per-prompt samples"):
        EdgeScores(SMALL, values).intervals(chosen)
