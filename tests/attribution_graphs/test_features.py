"""Transcoders' features in attribution graphs: sums, edges, effects and files; features that are neurons."""

from dataclasses import replace

import pytest
import torch
from families import CONFIGS, tiny

import circuitome as cm
from circuitome.attribution_graphs.effects import total_effects
from circuitome.attribution_graphs.explained import Explained
from circuitome.attribution_graphs.frozen_model import FrozenModel, inputs_of
from circuitome.attribution_graphs.rows import Target, incoming
from circuitome.errors import InputError
from circuitome.features.dictionary import Dictionary
from circuitome.features.places import Place

IDS = (5, 17, 42, 8, 23, 31)
QUICK = ("qwen2", "gemma2", "neox-parallel")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]


def transcoder(site, layer, seed):
    """Random features with thresholds or TopK, biases everywhere, and a linear part."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return 0.3 * torch.randn(*shape, generator=generator)

    weights = {"W_enc": noise(24, 60), "b_enc": noise(60), "W_dec": noise(60, 24), "b_dec": noise(24)}
    made = Dictionary(place=Place(site, layer), **weights, b_in=noise(24))
    return (
        replace(made, k=9) if site == "transcoder" else replace(made, threshold=noise(60).abs(), W_skip=noise(24, 24))
    )


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def frozen(model):
    with torch.no_grad():
        found = {1: transcoder("transcoder", 1, 0), 2: transcoder("stream-transcoder", 2, 1)}
        return FrozenModel.of(model, IDS, found)


@torch.no_grad()
def test_features_and_errors_are_what_the_mlp_adds_and_edges_sum_to_activations(model, frozen):
    out = model.record(inputs_of(frozen)).mlp_out
    for layer in (1, 2):
        units = frozen.units[layer]
        torch.testing.assert_close(units.written(units.values), out[layer][0], atol=1e-5, rtol=1e-4)
    explained = Explained.of(frozen, None)
    places = [(layer, p, int(frozen.units[layer].values[p, :60].argmax())) for layer in (1, 2) for p in (0, 2, 5)]
    off = (1, 3, int(frozen.units[1].values[3, :60].argmin()))
    targets = [Target(*place) for place in (*places, off, (1, 4, 64), (1, 4, 63))]
    rows = incoming(frozen, targets, explained.reads(frozen))
    sums = rows.tokens.sum(1) + rows.bias + sum(units.sum((1, 2)) for units in rows.units if units is not None)
    expected = [float(frozen.units[t.layer].values[t.position, t.unit]) for t in targets]
    assert min(expected[:6]) > 0 and expected[6:] == [0.0, 1.0, 0.0]  # of errors, only a token's own is there
    torch.testing.assert_close(sums, torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_graphs_of_features_pass_their_checks_and_come_back_from_files(model, tmp_path):
    found = [transcoder("transcoder", 1, 0), transcoder("stream-transcoder", 2, 1)]
    graph = cm.attribution_graph(model, IDS, transcoders=found, expand=40, node_share=0.95, first_token=True)
    assert {node.kind for node in graph.units() if node.layer > 0} == {"feature"}
    assert all(node.index < 60 for node in graph.units() if node.kind == "feature")
    checks = cm.attribution_graphs.check_graph(model, graph, nodes=4)
    assert checks.sums < 1e-4 and checks.differences < 1e-3
    if checks.off:
        loadings = cm.attribution_graphs.head_loadings(model, graph)
        layers = [layer for layer in range(3) if bool((loadings.heads[:, layer] != 0).any())]
        assert layers
    graph.save(tmp_path / "graph.json", name="features")
    back = cm.attribution_graphs.read_graph(tmp_path / "graph.json")
    assert {node.name for node in back.units()} == {node.name for node in graph.units()}


def test_effects_are_what_the_held_model_loses():
    """By all paths: with the edges of all sources known, an effect is a sum over paths of shares."""
    model = tiny("qwen2")
    with torch.no_grad():
        frozen = FrozenModel.of(model, IDS, {1: transcoder("transcoder", 1, 0)})
        explained = Explained.of(frozen, None)
        reads = explained.reads(frozen)
        effects = total_effects(frozen, explained.mean(reads.vectors.T))
        position = 2
        unit = int(frozen.units[1].values[position, :60].argmax())
        # Through the logits directly, and through the neurons of block 2.
        logits = incoming(frozen, [Target(3, 5, i) for i in range(len(explained.tokens))], reads)
        direct = float(explained.mean(logits.units[1][:, position, unit]))
        behind = [(p, n) for p in range(len(IDS)) for n in range(40)]
        into = incoming(frozen, [Target(2, *place) for place in behind], reads)
        share = [float(frozen.units[2].values[place]) for place in behind]
        further = sum(
            float(into.units[1][i, position, unit]) / share[i] * float(effects.neurons[2][place])
            for i, place in enumerate(behind)
        )
    assert float(effects.neurons[1][position, unit]) == pytest.approx(direct + further, rel=1e-3, abs=1e-5)


def test_features_that_are_neurons_have_the_neurons_edges():
    model = tiny("opt")
    first, last = model.blocks[1].mlp_readers[0], model.blocks[1].mlp_writer
    weights = {"W_enc": first.weight.T, "b_enc": first.bias, "W_dec": last.weight.T, "b_dec": last.bias}
    same = Dictionary(place=Place("transcoder", 1), **{name: w.detach().clone() for name, w in weights.items()})
    options = {"expand": 60, "node_share": 0.9, "first_token": True}
    graphs = [cm.attribution_graph(model, IDS, transcoders=some, **options) for some in ([same], [])]
    edges = [
        {
            tuple(graph.nodes[end].name.replace(".f", ".n") for end in ends): float(w)
            for *ends, w in zip(graph.sources.tolist(), graph.targets.tolist(), graph.weights, strict=True)
        }
        for graph in graphs
    ]
    assert any(".f" in node.name for node in graphs[0].nodes) and edges[0].keys() == edges[1].keys()
    assert edges[0] == pytest.approx(edges[1], abs=1e-5)


def test_what_is_no_transcoder_of_the_model_is_refused():
    model = tiny("llama")
    for site, layer, words in (
        ("resid", 1, "Only transcoders"),
        ("mlp", 1, "Only transcoders"),
        ("transcoder", 7, "0 to 2"),
    ):
        with pytest.raises(InputError, match=words):
            cm.attribution_graph(model, IDS, transcoders=[transcoder(site, layer, 0)])
