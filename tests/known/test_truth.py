"""True circuits, computed, against the published ones; ACDC finds them."""

import pytest
import torch

import circuitome as cm
from circuitome.discovery import roc_sweep
from circuitome.runs import KnownSpec, run_known
from circuitome.runs.known import THRESHOLDS
from circuitome.validation import pessimistic_area, roc_points

# As published: zero ablation by Conmy et al. 2023, resampling by Miller et al. 2024 (one embedding node).
PUBLISHED = {
    ("tracr-reverse", "zero"): "embed->a0.kv0.v embed->m0.in a0.h0->m0.in embed->m1.in m0->m1.in m1->m2.in m2->a3.h0.q "
    "embed->a3.kv0.k embed->a3.kv0.v a3.h0->logits",
    ("tracr-reverse", "corrupted"): "embed->a3.kv0.v a3.h0->logits",
    ("tracr-frac-prevs", "zero"): "embed->m0.in embed->a1.h0.q embed->a1.kv0.k m0->a1.kv0.v a1.h0->logits",
    ("tracr-frac-prevs", "corrupted"): "embed->m0.in m0->a1.kv0.v a1.h0->logits",
}


@pytest.fixture(params=list(PUBLISHED), ids=" ".join)
def case(request):
    """Model, ablation, and the published edges."""
    name, ablation = request.param
    model = cm.load(name)
    return model, ablation, cm.Circuit.of(model.graph, PUBLISHED[request.param].split())


def test_the_truth_is_the_published_one(case):
    model, ablation, published = case
    assert cm.known.true_circuit(model, cm.known.task(model.name, 60), ablation) == published


def test_acdc_finds_it(case):
    model, ablation, published = case
    task = cm.known.task(model.name, 12)
    _, circuits = roc_sweep(model, task, THRESHOLDS[::2], loss="l2", ablation=ablation)
    assert pessimistic_area(roc_points(circuits.values(), published)) == pytest.approx(1.0)
    assert published in circuits.values()


HAND_SET = {
    "known-induction": {"a0.h0", "a1.h0"},
    "known-ioi": {"a0.h0", "a1.h0", "a2.h0", "a2.h1"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(HAND_SET))
def test_hand_set_circuits_hold_the_heads_that_work_and_no_other(name):
    model = cm.load(name)
    for ablation in ("zero", "corrupted"):
        truth = cm.known.true_circuit(model, cm.known.task(name, 24), ablation)
        assert {node for node in truth.nodes if node.startswith(("a", "m"))} == HAND_SET[name]
        assert truth.without_dangling() == truth


@pytest.mark.slow
def test_the_command_compares_methods_with_the_truth():
    spec = KnownSpec.of(("tracr-reverse",), ("exact", "eap", "random"), ("corrupted",))
    result = run_known(spec)
    by_method = {row["method"]: row for row in result["rows"]}
    assert by_method["exact"]["edge AUROC"] == 1.0 and by_method["exact"]["recall"] == 1.0
    assert by_method["random"]["edge AUROC"] < 1.0
    assert len(result["truths"]["tracr-reverse corrupted"]) == by_method["eap"]["true_edges"] == 2
    assert torch.tensor([row["all_edges"] for row in result["rows"]]).unique().tolist() == [77]
