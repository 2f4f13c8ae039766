"""Head loadings of edges and attention logits by pairs of sources, on every family."""

import pytest
import torch
from families import CONFIGS, tiny

import circuitome as cm
from circuitome.attribution_graphs.contributions import Parts, streams_by_part
from circuitome.attribution_graphs.frozen_model import FrozenModel, inputs_of
from circuitome.errors import InputError
from circuitome.models.attention import attending, by_group, plain_attention

IDS = (5, 17, 42, 8, 23, 31)
QUICK = ("qwen3", "gemma2", "neox-parallel")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def graph(model):
    return cm.attribution_graph(model, IDS, expand=60, first_token=True)


@torch.no_grad()
def test_parts_sum_to_the_stream(model, graph):
    frozen, parts = FrozenModel.of(model, IDS), Parts.of(graph)
    for layer, stream in streams_by_part(frozen, parts):
        torch.testing.assert_close(stream.sum(0), frozen.streams[layer], atol=1e-4, rtol=1e-4)


def test_heads_and_what_passes_them_by_sum_to_the_edge_at_every_block(model, graph):
    found = cm.attribution_graphs.head_loadings(model, graph)
    whole = found.heads.double().sum(-1) + found.bypass
    edges = graph.weights[found.edges]
    assert len(found.edges) > 20
    for row, edge in enumerate(found.edges.tolist()):
        source, target = graph.nodes[int(graph.sources[edge])], graph.nodes[int(graph.targets[edge])]
        between = range(source.layer + 1, min(target.layer + 1 - model.graph.parallel, 3))
        assert (~whole[row].isnan()).nonzero()[:, 0].tolist() == list(between)
        for layer in between:
            assert float(whole[row, layer]) == pytest.approx(float(edges[row]), rel=1e-4, abs=1e-5)


def test_an_edge_without_one_head_loses_what_it_carried(model, graph):
    """The loading of a head is what the edge loses when that head's values are zero in the frozen maps."""
    found = cm.attribution_graphs.head_loadings(model, graph)
    row = int(found.heads.nan_to_num().abs().amax((1, 2)).argmax())
    layer, head = divmod(int(found.heads[row].nan_to_num().abs().argmax()), model.heads.q)
    name, value = found.strongest(int(found.edges[row]), 1)[0]
    assert name == f"a{layer}.h{head}" and value == float(found.heads[row, layer, head])
    places = cm.attribution_graphs.attention_places(model, graph, found, n=4)
    assert len(places) == 4 and all(place.key <= place.query for place in places)
    assert places[0].influence == max(place.influence for place in places)
    assert places[0].influence > 0


@torch.no_grad()
def test_loadings_in_batches_of_targets_are_the_same(model, graph, monkeypatch):
    whole = cm.attribution_graphs.head_loadings(model, graph)
    monkeypatch.setattr("circuitome.attribution_graphs.loadings.NUMBERS", 7 * 3 * 6 * 24)
    parts = cm.attribution_graphs.head_loadings(model, graph)
    torch.testing.assert_close(parts.heads, whole.heads, equal_nan=True, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(parts.influence, whole.influence, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_attention_logits_are_sums_over_pairs_of_parts(model, graph):
    logits = {}

    def attend(call, query, key, value):
        scores = by_group(query, key.shape[1], key.transpose(-1, -2)) * call.scaling
        logits[call.layer] = scores[0]
        return plain_attention(call, query, key, value)[0]

    with attending(model, attend):
        model.logits(inputs_of(FrozenModel.of(model, IDS)))
    places = [("a0.h1", 4, 2), ("a1.h3", 5, 5), ("a2.h0", 5, 3), ("a2.h2", 3, 0)]
    for (name, query, key), found in zip(places, cm.attribution_graphs.attention_of(model, graph, places), strict=True):
        layer, head = int(name[1]), int(name[-1])
        expected = logits[layer][head, query]
        assert found.logit == pytest.approx(float(expected[key]), abs=1e-4, rel=1e-4)
        assert float(found.raw.double().sum()) == pytest.approx(found.logit, abs=1e-5)
        shares = FrozenModel.of(model, IDS).attention[layer].pattern[head, query]
        less = float(expected[key]) - float((expected * shares).sum())
        assert float(found.pairs.double().sum()) == pytest.approx(less, abs=1e-4, rel=1e-4)
        assert found.by_key(1)[0][1] == pytest.approx(float(found.pairs.sum(0)[found.pairs.sum(0).abs().argmax()]))
        assert len(found.top(4)) == 4 and found.attention == pytest.approx(float(shares[key]))


@pytest.mark.parametrize(
    ("place", "message"),
    [(("m1", 3, 1), "is no head"), (("a9.h0", 3, 1), "is no head"), (("a1.h0", 1, 3), "does not attend")],
)
def test_bad_places(place, message):
    model = tiny("llama")
    graph = cm.attribution_graph(model, IDS, expand=5)
    with pytest.raises(InputError, match=message):
        cm.attribution_graphs.attention_of(model, graph, [place])
