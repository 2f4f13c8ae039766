"""The suite on models whose circuit is known: the truth passes, damaged or padded circuits fail where they must."""

import pytest
import torch

import circuitome as cm
from circuitome.errors import InputError
from circuitome.graph import Circuit, Graph
from circuitome.validation import Evaluator, completeness, minimality, validate
from circuitome.validation.subsets import without


@pytest.fixture(scope="module")
def known():
    """Model, task, and true circuit of the IOI toy."""
    model, task = cm.load("known-ioi"), cm.known.task("known-ioi", 40)
    return model, task, cm.known.true_circuit(model, task, "corrupted")


@pytest.fixture(scope="module")
def verdict(known):
    model, task, truth = known
    return validate(model, truth, task)


def test_the_truth_passes_everything(verdict):
    failed = [one for one in verdict.criteria if one.verdict != "pass"]
    assert not failed
    assert verdict.holds and verdict["faithfulness"].value == pytest.approx(1, abs=1e-3)
    assert set(verdict.templates) == {"ABBA", "BABA"}
    assert verdict.variants["difference"].value == pytest.approx(0, abs=0.02)


@pytest.mark.slow
def test_the_truth_without_one_edge_is_not_faithful_or_not_complete(known):
    model, task, truth = known
    for edge in truth:
        evaluator = Evaluator(model, task)
        damaged = truth - Circuit.of(truth.graph, [edge])
        own = evaluator.circuits([damaged, Circuit.empty(truth.graph)]).mean(1)
        share = (own[0] - own[1]) / (evaluator.clean.mean() - own[1])
        found = completeness(evaluator, damaged, draws=10)
        assert abs(float(share) - 1) > 0.05 or float(found.scores.max()) > 0.05, edge


def test_a_useless_node_is_not_minimal(known):
    model, task, truth = known
    padded = truth | Circuit.of(truth.graph, ["embed->a1.h1.q", "a0.h0->a1.kv1.v", "a1.h1->logits", "m1->logits"])
    found = minimality(Evaluator(model, task), padded)
    assert set(found.useless()) == {"a1.h1", "m1"}
    assert without(padded, found.useless()) == truth.without_dangling()
    assert validate(model, padded, task, quick=True)["minimality"].verdict == "fail"


def test_identities(known):
    model, task, _ = known
    evaluator = Evaluator(model, task)
    full = Circuit.full(model.graph)
    none = torch.zeros(1, len(model.graph.writers), dtype=torch.bool)
    torch.testing.assert_close(evaluator.knocked_out(none)[0], evaluator.clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluator.circuits([full])[0], evaluator.clean, atol=1e-5, rtol=1e-5)
    found = completeness(evaluator, full, draws=4, greedy=2)
    torch.testing.assert_close(found.scores, torch.zeros_like(found.scores), atol=1e-4, rtol=0)
    assert found.kinds.count("random") == 4 and found.kinds.count("greedy") == 2


def test_few_prompts_leave_verdicts_unclear(known):
    model, _, truth = known
    found = validate(model, truth, cm.known.task("known-ioi", 4), quick=True)
    assert found["equivalence"].verdict == "unclear" and "need at least 8" in found["equivalence"].note
    assert found["sufficiency"].verdict == "unclear"
    assert found.to_dict()["criteria"][0]["name"] == "faithfulness"


def test_bad_input(known):
    model, task, _ = known
    with pytest.raises(InputError, match="circuit is empty"):
        validate(model, Circuit.empty(model.graph), task)
    with pytest.raises(InputError, match="another model"):
        validate(model, Circuit.full(Graph(1, 1, 1)), task)
    with pytest.raises(InputError, match="no head or MLP"):
        minimality(Evaluator(model, task), Circuit.of(model.graph, ["embed->logits"]))
