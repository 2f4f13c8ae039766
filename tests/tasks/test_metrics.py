"""Metrics on logits worked out by hand."""

import math

import pytest
import torch

from circuitome.tasks.metrics import METRICS, logit_diff, logit_diff_max, metric_unit, prob_diff

LOGITS = torch.tensor([[1.0, 2.0, 4.0, 0.0], [0.0, 0.0, 0.0, 8.0]])


def test_logit_diff_of_means() -> None:
    # row 0: (2 + 4) / 2 - 1 = 2; row 1: 0 - (0 + 8) / 2 = -4
    assert logit_diff(LOGITS, [[1, 2], [0]], [[0], [1, 3]]).tolist() == [2.0, -4.0]


def test_logit_diff_without_wrong_answers_is_the_mean_logit() -> None:
    assert logit_diff(LOGITS, [[2], [3]], [[], []]).tolist() == [4.0, 8.0]


def test_logit_diff_max_takes_the_best_wrong_one() -> None:
    # row 0: 2 - max(1, 4) = -2; row 1: 8 - max(0, 0) = 8
    assert logit_diff_max(LOGITS, [[1], [3]], [[0, 2], [0, 1]]).tolist() == [-2.0, 8.0]


def test_prob_diff_sums_probabilities() -> None:
    logits = torch.tensor([[math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05)]])
    assert prob_diff(logits, [[0, 3]], [[1, 2]]).item() == pytest.approx(0.55 - 0.45)
    assert prob_diff(logits, [[0, 3]], [[]]).item() == pytest.approx(0.55)
    assert prob_diff(logits + 7, [[0]], [[1]]).item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", METRICS)
def test_larger_is_better_and_gradients_flow(name: str) -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(METRICS[name](logits, [[0]], [[1]]).sum(), logits)
    assert grad[0, 0] > 0 > grad[0, 1]


def test_units() -> None:
    assert [metric_unit(name) for name in METRICS] == ["logits", "logits", "probability"]
