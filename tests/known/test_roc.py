"""ROC areas by hand."""

import pytest
import torch
from families import tiny

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.validation.ground_truth.roc import (
    auroc,
    edge_auroc,
    node_auroc,
    pessimistic_area,
    precision_recall,
    roc_points,
    score_points,
)
from circuitome.validation.robustness.score_agreement import agreement, spread_edges


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([(0, 0), (1, 1)], 0),
        ([(0, 0), (0.5, 0.5), (1, 1)], 0.25),
        ([(0, 0), (0.25, 0.25), (1, 1)], 0.1875),
        ([(0, 0), (0.25, 0.25), (0.5, 0.5), (1, 1)], 5 / 16),
        ([(0, 0), (0.25, 0.25), (0.75, 0.5), (1, 1)], 4 / 16),
        ([(0, 1)], 1),
        ([(0.5, 0.2), (0.1, 0.6), (0.3, 0.4)], 0.9 * 0.6),  # what lies below the front does not count
        ([], 0),
    ],
)
def test_pessimistic_area(points, area):
    assert pessimistic_area(points) == pytest.approx(area)


def test_auroc_of_perfect_reversed_tied_and_mixed_scores():
    truth = torch.tensor([True, True, False, False, False])
    assert auroc(torch.tensor([5.0, 4, 3, 2, 1]), truth) == 1.0
    assert auroc(torch.tensor([1.0, 2, 3, 4, 5]), truth) == 0.0
    assert auroc(torch.ones(5), truth) == 0.5
    assert auroc(torch.tensor([3.0, 1, 2, 1, 0]), truth) == pytest.approx((3 + 1.5) / 6)
    for bad in (torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)):
        with pytest.raises(InputError, match="true and false"):
            auroc(torch.ones(5), bad)
    with pytest.raises(InputError, match="NaN"):
        auroc(torch.tensor([1.0, torch.nan, 0, 0, 0]), truth)


@pytest.fixture
def graph():
    return tiny("gpt2").graph


def test_scores_and_circuits_against_a_truth(graph):
    truth = Circuit.of(graph, ["embed->a0.h0.q", "a0.h0->m1.in", "m1->logits"])
    perfect = EdgeScores(graph, -truth.mask.float())
    assert edge_auroc(perfect, truth) == node_auroc(perfect, truth) == 1.0
    assert pessimistic_area(score_points(perfect, truth)) == 1.0
    nothing = EdgeScores(graph, torch.zeros(graph.mask.shape))
    assert edge_auroc(nothing, truth) == 0.5
    found = Circuit.of(graph, ["embed->a0.h0.q", "m0->logits"])
    assert precision_recall(found, truth) == (0.5, pytest.approx(1 / 3))
    ((x, y),) = roc_points([found], truth)
    assert (x, y) == (pytest.approx(1 / (graph.n_edges - 3)), pytest.approx(1 / 3))
    assert precision_recall(Circuit.empty(graph), truth)[1] == 0.0
    for bad in (Circuit.empty(graph), Circuit.full(graph)):
        with pytest.raises(InputError, match="true and false"):
            roc_points([found], bad)
    with pytest.raises(InputError, match="different graphs"):
        roc_points([Circuit.empty(Graph(1, 1, 1))], truth)


def test_agreement_is_over_the_edges_asked_for(graph):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(graph.mask.shape, generator=generator) * graph.mask
    scores = EdgeScores(graph, values)
    among = spread_edges(scores, 40)
    assert len(among) == 40 and scores.top(20) <= among
    same = agreement(scores, EdgeScores(graph, 3 * values), among)
    assert (same.pearson, same.spearman, same.n) == (pytest.approx(1), pytest.approx(1), 40)
    turned = agreement(scores, EdgeScores(graph, -values), among)
    assert turned.pearson == pytest.approx(-1) and turned.pearson_abs == pytest.approx(1)
    flat = agreement(scores, EdgeScores(graph, graph.mask.float()))
    assert flat.pearson != flat.pearson
    assert spread_edges(scores, 10**6) == Circuit.full(graph)
    with pytest.raises(InputError, match="at least three"):
        agreement(scores, scores, Circuit.empty(graph))
