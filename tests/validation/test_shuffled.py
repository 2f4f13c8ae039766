"""Sign flips of scores against scores of tasks with shuffled labels, and the null that they make."""

from dataclasses import replace

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.errors import InputError, TaskError
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.validation.robustness.shuffled_labels import shuffled_labels, shuffled_null, shuffled_scores

TASK = random_task(6, lengths=(5, 6))


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff"])
@pytest.mark.parametrize("method", [cm.eap, cm.eap_ig])
def test_flipped_scores_are_scores_of_shuffled_labels(method, metric):
    model, task = tiny("llama"), replace(TASK, metric=metric)
    shuffled = shuffled_labels(task, seed=3)
    swapped = [a.answers != b.answers for a, b in zip(task.pairs, shuffled.pairs, strict=True)]
    assert any(swapped) and not all(swapped)
    slow, fast = method(model, shuffled), shuffled_scores(method(model, task), seed=3)
    assert slow.values.abs().max() > 1e-4
    torch.testing.assert_close(fast.values, slow.values, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(fast.samples, slow.samples, atol=1e-6, rtol=1e-4)


def test_what_stays_and_what_goes():
    shuffled = shuffled_labels(TASK, seed=3)
    assert shuffled == shuffled_labels(TASK, seed=3) != shuffled_labels(TASK, seed=4)
    for a, b in zip(TASK.pairs, shuffled.pairs, strict=True):
        assert (a.clean, a.corrupted, {a.answers, a.wrongs}) == (b.clean, b.corrupted, {b.answers, b.wrongs})
    assert shuffled.data_hash() != TASK.data_hash()


GRAPH = Graph(2, 2, 1)


def scores_of(samples):
    values = torch.zeros(GRAPH.mask.shape)
    values[GRAPH.mask] = samples.mean(0)
    return EdgeScores(GRAPH, values, "logits", "by hand", samples)


def test_the_null_by_hand():
    generator = torch.Generator().manual_seed(0)
    scores = scores_of(torch.randn(10, GRAPH.n_edges, generator=generator))
    found = shuffled_null(scores, 6, draws=20, seed=5)
    first = shuffled_scores(scores, seed=5)
    own, other = scores.top(6), first.top(6)
    assert found.largest.draws[0] == pytest.approx(float(first.values.abs().max()))
    rms = scores.samples.square().mean(0).sqrt()
    assert found.steadiest.draws[0] == pytest.approx(float((first.samples.mean(0) / rms).abs().max()))
    assert found.strength.draws[0] == pytest.approx(float(first.values.abs()[other.mask].sum()))
    shared = len(own & other)
    assert found.overlap.draws[0] == pytest.approx(shared / (12 - shared))
    assert found.own_strength == pytest.approx(float(scores.values.abs()[own.mask].sum()))
    assert found.to_dict()["significant_edges"] == len(found.significant())


@pytest.mark.slow
def test_the_null_keeps_its_level_and_finds_planted_edges():
    generator = torch.Generator().manual_seed(0)
    false, strong = 0, 0
    for repeat in range(200):
        found = shuffled_null(scores_of(torch.randn(12, GRAPH.n_edges, generator=generator)), 6, draws=39, seed=repeat)
        false += len(found.significant()) > 0
        strong += found.p_value <= 0.05
    assert 1 <= false <= 20 and 1 <= strong <= 20  # 5 % of 200, by chance up to 20
    planted = torch.randn(40, GRAPH.n_edges, generator=generator)
    planted[:, [3, 7]] += torch.tensor([2.0, -2.0])
    planted[:, 11] *= 30  # large by chance, and no reason to miss the others
    found = shuffled_null(scores_of(planted), 6, draws=99)
    edges = [GRAPH.edge_name(*GRAPH.mask.nonzero()[i].tolist()) for i in (3, 7)]
    assert set(found.significant()) == set(edges)
    assert found.to_dict()["significant_in_circuit"] == 2
    assert len(shuffled_null(scores_of(planted), 6, draws=10).significant()) == 0  # too few draws for 5 %


def test_bad_input():
    one_sided = replace(TASK, pairs=(*TASK.pairs[:2], replace(TASK.pairs[2], wrongs=())))
    with pytest.raises(TaskError, match=r"prompt 2 has no wrong answer"):
        shuffled_labels(one_sided)
    with pytest.raises(TaskError, match=r"logit diff max treats right and wrong ones differently"):
        shuffled_labels(replace(TASK, metric="logit_diff_max"))
    model = tiny("llama")
    with pytest.raises(InputError, match=r"hold no per-prompt samples"):
        shuffled_scores(cm.magnitude(model, TASK))
    with pytest.raises(InputError, match=r"loss kl do not change their sign"):
        shuffled_null(cm.eap_ig(model, TASK, loss="kl"), 5)
    scores = cm.eap(model, TASK)
    with pytest.raises(InputError, match=r"at least one draw"):
        shuffled_null(scores, 5, draws=0)
