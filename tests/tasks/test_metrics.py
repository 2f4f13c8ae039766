"""Metrics on logits worked out by hand, their gradients against finite differences, and metrics of one's own."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.errors import InputError, TaskError, UnknownNameError
from circuitome.tasks.metrics import METRICS, Metric, _written
from circuitome.tasks.task import Pair, Task

LOGITS = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, 0.0, 0.0, 8.0]])
WITH_GRADIENT = ("logit_diff", "logit_diff_max", "prob_diff", "log_prob", "answer_log_prob")


def pairs(*answers_and_wrongs):
    return [Pair((1,), (2,), tuple(answers), tuple(wrongs)) for answers, wrongs in answers_and_wrongs]


def value(name, logits, *answers_and_wrongs):
    return METRICS[name](logits, pairs(*answers_and_wrongs)).tolist()


def test_logit_diff_of_means():
    # row 0: (2 + 4) / 2 - 1 = 2; row 1: 0 - (0 + 8) / 2 = -4
    assert value("logit_diff", LOGITS, ([1, 2], [0]), ([0], [1, 3])) == [2.0, -4.0]


def test_logit_diff_without_wrong_answers_is_the_mean_logit():
    assert value("logit_diff", LOGITS, ([2], []), ([3], [])) == [4.0, 8.0]


def test_logit_diff_max_takes_the_best_wrong_one():
    # row 0: 2 - max(1, 4) = -2; row 1: 8 - max(0, 0) = 8
    assert value("logit_diff_max", LOGITS, ([1], [0, 2]), ([3], [0, 1])) == [-2.0, 8.0]
    with pytest.raises(TaskError, match="needs a wrong answer"):
        Task("t", tuple(pairs(([1], []))), "logit_diff_max")


def test_prob_diff_sums_probabilities():
    logits = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]])
    assert value("prob_diff", logits, ([0, 3], [1, 2])) == pytest.approx([0.55 - 0.45])
    assert value("prob_diff", logits, ([0, 3], [])) == pytest.approx([0.55])
    assert value("prob_diff", logits + 7, ([0], [1])) == pytest.approx([0.2])
    assert value("log_prob", logits + 7, ([0, 3], [1])) == pytest.approx([math.log(0.55)])


def test_rank_and_accuracy_count_tokens():
    assert value("answer_rank", LOGITS, ([1, 0], [3]), ([3], [])) == [-2.0, -1.0]
    assert value("accuracy", LOGITS, ([1], [0, 3]), ([3], [])) == [1.0, 1.0]
    assert value("accuracy", LOGITS, ([1], []), ([0], [3])) == [0.0, 0.0]
    assert value("accuracy", torch.zeros(2, 4), ([1], [2]), ([0], [])) == [0.0, 0.0]  # a tie is not right


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_gradients_are_those_of_finite_differences(name):
    row = pairs(([0, 3], [1, 2]))
    logits = torch.tensor([[0.3, -1.0, 0.8, 0.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: METRICS[name].function(x, row), logits)
    (gradient,) = torch.autograd.grad(METRICS[name](logits, pairs(([0], [1]))).sum(), logits)
    assert gradient[0, 0] > 0 > gradient[0, 1]


def test_units_and_names():
    units = {name: metric.unit for name, metric in METRICS.items()}
    assert units == {
        "logit_diff": "logits",
        "logit_diff_max": "logits",
        "prob_diff": "probability",
        "log_prob": "nats",
        "answer_log_prob": "nats",
        "answer_rank": "ranks",
        "accuracy": "share of prompts",
    }
    assert str(METRICS["logit_diff"]) == "logit diff"
    with pytest.raises(UnknownNameError, match="Did you mean 'logit_diff'"):
        random_task(2).measured_by("logit_dif")


def margin(logits, pairs):
    return torch.stack([row[pair.answers[0]] - row.logsumexp(0) for row, pair in zip(logits, pairs, strict=True)])


@pytest.mark.slow
def test_a_metric_of_ones_own_gives_what_the_same_one_by_name_does():
    model, task = tiny("llama"), random_task(3)
    named, own = task.measured_by("log_prob"), task.measured_by(Metric("margin", margin, "nats"))
    assert repr(own) == "Task('random', 3 prompt pairs, metric margin in nats)"
    for method in (
        lambda task: cm.eap_ig(model, task, steps=2).values,
        lambda task: cm.exact(model, task, edges=cm.Circuit.of(model.graph, ["m1->logits"])).values,
        lambda task: cm.patch(model, task, "mlps").samples,
    ):
        torch.testing.assert_close(method(own), method(named), atol=1e-5, rtol=1e-4, equal_nan=True)
    assert named.data_hash() != own.data_hash() != task.data_hash()
    assert cm.eap(model, task.measured_by(margin)).unit == "metric"


@pytest.mark.slow
def test_metrics_without_a_gradient_serve_methods_that_run_the_model_and_are_refused_elsewhere():
    model, task = tiny("llama"), random_task(3).measured_by("answer_rank")
    for method in (cm.eap, cm.eap_ig, cm.atp, cm.edge_pruning):
        options = {"edges": 5, "steps": 1} if method is cm.edge_pruning else {}
        with pytest.raises(InputError, match="metric answer_rank has no gradient"):
            method(model, task, **options)
    assert cm.patch(model, task, "mlps").samples.shape[0] == 3


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda logits, pairs: logits.sum(),
            r"one number a prompt, a tensor of shape \(\d,\).*gave a tensor of shape \(\)",
        ),
        (lambda logits, pairs: 1.0, "it gave float"),
        (lambda logits, pairs: logits[:, 0] / 0.0, "not finite"),
    ],
)
def test_functions_that_give_no_number_a_prompt_are_refused(function, message):
    with pytest.raises(InputError, match=message):
        cm.patch(tiny("llama"), random_task(3).measured_by(function), "mlps")


@pytest.mark.slow
def test_the_divergence_from_the_clean_model_is_a_metric():
    model, task = tiny("gpt2"), random_task(3, lengths=(5, 6))
    task = task.measured_by(cm.kl_metric(model, task))
    clean = torch.cat([model.hf(torch.tensor([pair.clean])).logits[:, -1] for pair in task.pairs])
    other = torch.cat([model.hf(torch.tensor([pair.corrupted])).logits[:, -1] for pair in task.pairs])
    torch.testing.assert_close(task.score(clean, range(3)), torch.zeros(3), atol=1e-5, rtol=0)
    p, q = clean.log_softmax(-1), other.log_softmax(-1)
    torch.testing.assert_close(task.score(other, range(3)), -(p.exp() * (p - q)).sum(-1), atol=1e-5, rtol=1e-4)
    scores, expected = cm.eap_ig(model, task, steps=3), cm.eap_ig(model, task, steps=3, loss="kl")
    torch.testing.assert_close(scores.values, expected.values, atol=1e-6, rtol=1e-4)
    for method in (cm.eap, cm.atp):
        with pytest.raises(InputError, match=r"that of kl .* is zero"):
            method(model, task)


def test_prompts_that_are_read_at_two_places_have_a_clean_distribution_each():
    model, whole = tiny("gpt2"), random_task(1, lengths=(6,)).pairs[0]
    task = Task("two places", (whole, replace(whole, answer_position=3)))
    task = task.measured_by(cm.kl_metric(model, task))
    with torch.no_grad():
        logits = model.hf(torch.tensor([whole.clean])).logits[0, [5, 3]]
    torch.testing.assert_close(task.score(logits, range(2)), torch.zeros(2), atol=1e-5, rtol=0)


def test_the_hash_of_the_data_knows_what_a_metric_of_ones_own_computes():
    first, second = (
        Metric("own", function)
        for function in (lambda logits, pairs: logits[:, 0], lambda logits, pairs: 2.0 * logits[:, 0])
    )
    task = random_task(2)
    hashes = {task.measured_by(metric).data_hash() for metric in (first, second, Metric("own", margin), "log_prob")}
    assert len(hashes) == 4
    assert task.measured_by(Metric("own", margin)).data_hash() in hashes
    inner = (lambda logits, pairs: torch.stack([row[0] for row in logits]) for _ in range(2))
    assert len({task.measured_by(Metric("own", function)).data_hash() for function in inner}) == 1
    assert " at 0x" not in _written(lambda logits, pairs: torch.stack([row[0] for row in logits]))
    assert task.measured_by(partial(margin)).data_hash()
