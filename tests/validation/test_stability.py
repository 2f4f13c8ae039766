"""Overlaps by hand, resampled prompts, and the chance level against draws."""

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.validation.faithfulness.share import random_circuit
from circuitome.validation.robustness.score_agreement import (
    chance_jaccard,
    compare_scores,
    jaccard,
    method_agreement,
    nodes_of,
)
from circuitome.validation.robustness.stability import Spread, bootstrap_stability, shared_edges

GRAPH = Graph(2, 2, 1)


def scores_of(samples, graph=GRAPH, method="by hand"):
    values = torch.zeros(graph.mask.shape)
    values[graph.mask] = samples.mean(0)
    return EdgeScores(graph, values, "logits", method, samples)


def noise(prompts, seed=0, graph=GRAPH):
    return torch.randn(prompts, graph.n_edges, generator=torch.Generator().manual_seed(seed))


def test_prompts_that_all_agree_give_one_circuit():
    same = noise(1).expand(12, -1).contiguous()
    found = bootstrap_stability(scores_of(same), 9, draws=10)
    assert found.edges.mean == found.nodes.mean == found.edges_between.mean == found.edges_halves.mean == 1
    assert found.ranks.mean == pytest.approx(1) and found.node_ranks.mean == pytest.approx(1)
    assert found.core() == scores_of(same).top(9)
    assert len(found.edges_between.draws) == 45


def test_prompts_that_share_nothing_agree_by_chance_between_halves():
    graph = tiny("llama").graph
    found = bootstrap_stability(scores_of(noise(40, graph=graph), graph), 60, draws=60)
    assert found.edges_halves.mean == pytest.approx(found.chance_edges, abs=0.03)
    assert found.edges.mean > found.edges_between.mean > found.chance_edges + 0.05  # resamples share prompts
    assert len(found.core()) < 60 / 2


def test_more_prompts_make_a_circuit_more_stable():
    signal = 0.5 * noise(1, seed=1)
    few, many = (bootstrap_stability(scores_of(signal + noise(n)), 12, draws=30) for n in (8, 200))
    assert many.edges.mean > few.edges.mean + 0.1 and many.ranks.mean > few.ranks.mean
    assert many.node_ranks.mean > few.node_ranks.mean
    assert many.edges_halves.mean > few.edges_halves.mean
    assert len(many.core()) > len(few.core())


def test_the_seed_decides():
    scores = scores_of(noise(10))
    first, again, other = (bootstrap_stability(scores, 5, draws=6, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.kept, again.kept) and not torch.equal(first.kept, other.kept)
    told = first.to_dict()
    assert told["edges"]["mean"] == first.edges.mean and told["size"] == 5 and told["core"] == len(first.core())


def test_jaccard_and_nodes_by_hand():
    a, b = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool(), torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    assert jaccard(a, b).tolist() == [[pytest.approx(1 / 3), 0], [0, 1]]
    generator = torch.Generator().manual_seed(1)
    sets = torch.rand(6, GRAPH.n_edges, generator=generator) < 0.15
    for one, nodes in zip(sets, nodes_of(GRAPH, sets), strict=True):
        mask = torch.zeros_like(GRAPH.mask)
        mask[GRAPH.mask] = one
        named = [name for name, on in zip(GRAPH.writers, nodes.tolist(), strict=True) if on]
        assert tuple(named) == Circuit(GRAPH, mask).nodes


def test_chance_is_what_random_circuits_share():
    n, total = 20, GRAPH.n_edges
    generator = torch.Generator().manual_seed(0)
    masks = [random_mask(n, generator) for _ in range(400)]
    found = jaccard(torch.stack(masks[:200]), torch.stack(masks[200:])).mean()
    assert chance_jaccard(n, total) == pytest.approx(float(found), abs=0.003)
    assert chance_jaccard(500, 70_651) == pytest.approx(500 / (2 * 70_651 - 500), rel=0.02)
    assert chance_jaccard(total, total) == pytest.approx(1)


def random_mask(n, generator):
    return random_circuit(GRAPH, n, generator).mask[GRAPH.mask]


def test_scores_side_by_side():
    base = scores_of(noise(3))
    same = compare_scores(base, base, 7)
    assert (same.edges, same.nodes) == (1, 1)
    assert same.weighted == pytest.approx(1) and same.pearson == pytest.approx(1) and same.spearman == pytest.approx(1)
    turned = compare_scores(base, scores_of(-3 * base.samples), 7)
    assert turned.edges == 1 and turned.weighted == pytest.approx(1, abs=1e-6) and turned.pearson == pytest.approx(-1)
    circuits = base.top(7), scores_of(noise(3, seed=5)).top(7)
    other = compare_scores(base, scores_of(noise(3, seed=5)), 7)
    shared = len(circuits[0] & circuits[1])
    assert other.edges == pytest.approx(shared / (14 - shared)) and 0 < other.weighted < 1


def test_methods_side_by_side():
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 8)
    scores = {"eap": cm.eap(model, task), "eap-ig": cm.eap_ig(model, task), "magnitude": cm.magnitude(model, task)}
    found = method_agreement(scores, 8)
    edges = found.matrix("edges")
    assert torch.equal(edges, edges.T) and edges.diagonal().tolist() == [1, 1, 1]
    assert edges[0, 2] == pytest.approx(compare_scores(scores["eap"], scores["magnitude"], 8).edges)
    assert found.matrix("spearman").diagonal().tolist() == pytest.approx([1, 1, 1])
    assert found.to_dict()["edges"] == edges.tolist()


def test_a_spread_by_hand():
    spread = Spread(torch.arange(101).float())
    assert spread.mean == 50 and spread.range == (pytest.approx(2.5), pytest.approx(97.5))


def test_two_draws_share_what_all_prompts_agree_on():
    same = noise(1).expand(12, -1).contiguous()
    assert shared_edges(scores_of(same), 9) == (1.0, 1.0)
    graph = tiny("llama").graph
    plain, agreed = shared_edges(scores_of(noise(40, graph=graph), graph), 60, draws=30)
    chance = chance_jaccard(60, graph.n_edges)
    assert plain == pytest.approx(chance, abs=0.03) and agreed == pytest.approx(chance, abs=0.03)


def test_resamples_agree_on_more_than_means_do_where_single_prompts_shout():
    """Edges that matter a little on every prompt, and others that matter a lot on one: means choose the latter."""
    n, graph = 32, tiny("llama").graph
    samples = 0.01 * noise(n, graph=graph)
    samples[:, :20] += 0.5
    samples[torch.arange(12), 60 + torch.arange(12)] = 9.0
    plain, agreed = shared_edges(scores_of(samples, graph), 20)
    assert agreed > plain + 0.1


def test_bad_input():
    scores = scores_of(noise(6))
    with pytest.raises(InputError, match=r"at least 4 of them, these scores are of 1"):
        bootstrap_stability(scores_of(noise(1)), 3)
    with pytest.raises(InputError, match=r"hold no per-prompt samples"):
        bootstrap_stability(EdgeScores(GRAPH, scores.values), 3)
    with pytest.raises(InputError, match=r"at least 2 draws, got 0"):
        bootstrap_stability(scores, 3, draws=0)
    with pytest.raises(InputError, match=r"A circuit of 9000 edges was asked for"):
        bootstrap_stability(scores, 9000)
    with pytest.raises(InputError, match=r"Circuits of 0 edges"):
        bootstrap_stability(scores, 0)
    with pytest.raises(InputError, match=r"Two draws of prompts take at least 4, these scores are of 3"):
        shared_edges(scores_of(noise(3)), 3)
    with pytest.raises(InputError, match=r"hold no per-prompt samples"):
        shared_edges(EdgeScores(GRAPH, scores.values), 3)
    with pytest.raises(InputError, match=r"Scores of different graphs"):
        compare_scores(scores, scores_of(noise(3, graph=Graph(1, 1, 1)), Graph(1, 1, 1)), 2)
    with pytest.raises(InputError, match=r"at least two methods, got eap"):
        method_agreement({"eap": scores}, 3)
