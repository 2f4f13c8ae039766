"""Lines of the verdict on made-up results: what must not pass does not, what the data cannot tell stays open."""

import pytest
import torch

from circuitome.results import Estimate
from circuitome.validation.criteria import Criterion, answer, beats_chance, faithful, hypothesis_criteria
from circuitome.validation.robustness.summary import robust_criteria
from circuitome.validation.tests.hypotheses import (
    TestResult,
    better_than_random,
    equivalence,
    independence,
    needed_edges,
    sufficiency,
)


def line(test, *others, notes=None):
    """The verdict's line on a test, with `others` at its side."""
    return next(c for c in hypothesis_criteria([test, *others], notes or {}) if c.name == test.name)


def test_a_failure_is_not_corrected_into_a_pass():
    """A circuit that beats the model on none of 8 prompts: p .0175, three more tests at its side."""
    test = equivalence(torch.zeros(8), torch.ones(8))
    assert test.p_value == pytest.approx(0.6**8 + 0.4**8)
    many = [sufficiency(0.9, [0.1] * 50), TestResult("independence", "", 0, 0.5, 8), TestResult("edges", "", 0, 0.9, 8)]
    assert line(test, *many).verdict == "fail"
    scores = torch.randn(64, generator=torch.Generator().manual_seed(0))
    assert line(independence(scores, scores), *many).verdict == "fail"


def test_an_unrejected_null_counts_only_where_the_test_could_have_rejected():
    model = torch.zeros(64)
    even = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)
    assert line(equivalence(even[:8], model[:8])).verdict == "unclear"
    assert line(equivalence(even, model)).verdict == "pass"
    draws = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert line(independence(draws[0, :8], draws[1, :8])).verdict == "unclear"
    assert line(independence(draws[0], draws[1])).verdict == "pass"


def test_only_tests_whose_rejection_speaks_for_the_circuit_are_corrected():
    good, bad = sufficiency(0.9, [0.1] * 30), TestResult("equivalence", "", 0.5, 0.5, 64)
    assert good.p_value < 0.05 and line(good, bad).verdict == "pass"  # one such test: nothing to correct for
    second = better_than_random("necessity", 1.0, [0.0] * 30)
    assert line(good, second, bad).verdict == "unclear"  # of two, 30 draws cannot tell
    assert line(sufficiency(0.9, [0.1] * 49 + [1.0]), bad).verdict == "pass"
    assert line(sufficiency(0.9, [1.0] * 50), bad).verdict == "fail"


def test_edges_are_corrected_for_their_number_once():
    changes = torch.cat([torch.full((9,), 2.0), torch.zeros(1)])
    tests = needed_edges(changes, torch.linspace(0.1, 1, 20))
    rejected = min(tests, key=lambda test: test.p_value)
    assert rejected.p_value == pytest.approx(10 * 0.1**20)
    assert line(rejected, TestResult("equivalence", "", 0.5, 0.5, 64)).verdict == "fail"


@pytest.mark.parametrize("share", [3.0, -1.0, 0.4])
def test_no_share_that_is_farther_from_1_beats_random_circuits(share):
    random = [0.5, 1.4] * 25
    assert line(sufficiency(share, random)).verdict == "fail"
    nulls = {"random": random, "layer-matched": random[:6], "degree-matched": random[:6]}
    assert {c.verdict for c in beats_chance(share, nulls)} == {"fail"}
    assert {c.verdict for c in beats_chance(0.9, nulls)} == {"pass"}


def test_the_comparison_with_shaped_circuits_says_what_was_compared():
    nulls = {"layer-matched": [0.1, 0.221, 0.2], "degree-matched": [0.1, 1.5]}
    layers, degrees = beats_chance(0.401, nulls)
    assert layers.said == "0.401 against the best of 3: 0.221 (+0.180)" and layers.value == pytest.approx(0.18)
    assert degrees.said == "0.401 against the best of 2: 1.500 (-0.099)" and degrees.verdict == "fail"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.85, 1.1, "pass"), (0.7, 0.9, "unclear"), (0.3, 0.79, "fail"), (1.3, 4.0, "fail")]
)
def test_faithfulness_is_judged_by_its_interval(low, high, verdict):
    estimate = Estimate((low + high) / 2, low, high, "share", 64)
    assert faithful(estimate, [0.0]).verdict == verdict


def test_the_overall_answer():
    def lines(*verdicts):
        return [Criterion(f"test {i}", 0.0, None, None, "", "", verdict) for i, verdict in enumerate(verdicts)]

    assert answer(lines("pass", "pass")) == ("ESTABLISHED", "It passes all 2 criteria.")
    assert answer(lines("pass", "unclear", "fail", "fail")) == ("NOT ESTABLISHED", "It fails test 2 and test 3.")
    word, reason = answer(lines("pass", "unclear"))
    assert word == "INCONCLUSIVE" and reason.endswith("do not decide on test 1.")


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.85, 1.0, "pass"), (2.8, 3.2, "fail"), (0.2, 0.4, "fail"), (0.7, 0.9, "unclear")]
)
def test_a_share_far_above_1_on_other_prompts_is_no_success(low, high, verdict):
    """On its own prompts the circuit has .92, so that .82 to 1.1 is as good."""
    shares = [{"value": 0.92, "low": 0.9, "high": 0.95}, {"value": (low + high) / 2, "low": low, "high": high}]
    section = {"names": ["these prompts", "seed 1"], "faithfulness": [shares]}
    none = {"note": "not measured"}
    (found,) = robust_criteria({"shuffled": none, "stability": none, "transfer": section})
    assert found.name == "other prompts" and found.verdict == verdict
