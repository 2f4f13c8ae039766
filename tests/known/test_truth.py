"""True circuits, computed, against the published ones; ACDC finds them."""

import pytest

import circuitome as cm
from circuitome.discovery.search.pruning import roc_sweep
from circuitome.studies.known import THRESHOLDS
from circuitome.validation.ground_truth.roc import pessimistic_area, roc_points
from circuitome.validation.ground_truth.truth import TOLERANCE

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


@pytest.mark.slow
def test_the_truth_is_the_published_one(case):
    model, ablation, published = case
    assert cm.ground_truth.true_circuit(model, cm.ground_truth.task(model.name, 60), ablation=ablation) == published


@pytest.mark.slow
def test_acdc_finds_it(case):
    model, ablation, published = case
    task = cm.ground_truth.task(model.name, 12)
    _, circuits = roc_sweep(model, task, THRESHOLDS[::2], loss="l2", ablation=ablation)
    assert pessimistic_area(roc_points(circuits.values(), published)) == pytest.approx(1.0)
    assert published in circuits.values()


# As scripts/hand_set.py describes them: all edges, then those that carry the same on clean and corrupted prompts.
HAND_SET = {
    "known-induction": (
        "embed->a0.h0.q embed->a0.h0.k embed->a0.h0.v embed->a1.h0.q a0.h0->a1.h0.k embed->a1.h0.v a1.h0->logits",
        "embed->a0.h0.q embed->a0.h0.k",  # places
    ),
    "known-ioi": (
        "embed->a0.h0.q embed->a0.h0.k embed->a0.h0.v embed->a1.h0.q a0.h0->a1.h0.k a0.h0->a1.h0.v "
        "embed->a2.h0.q a1.h0->a2.h0.q embed->a2.h0.k embed->a2.h0.v a2.h0->logits "
        "embed->a2.h1.q a1.h0->a2.h1.q embed->a2.h1.k embed->a2.h1.v a2.h1->logits",
        "embed->a1.h0.q embed->a2.h0.q embed->a2.h1.q",  # the word "to"
    ),
}


@pytest.mark.parametrize(
    ("name", "n"),
    [
        pytest.param("known-induction", 4, marks=pytest.mark.slow),
        pytest.param("known-induction", 24, marks=pytest.mark.slow),
        pytest.param("known-ioi", 24, marks=pytest.mark.slow),
    ],
)
def test_hand_set_circuits_hold_the_edges_that_were_meant_and_no_other(name, n):
    model, task = cm.load(name), cm.ground_truth.task(name, n)
    every, same = (cm.Circuit.of(model.graph, edges.split()) for edges in HAND_SET[name])
    assert cm.ground_truth.true_circuit(model, task, ablation="zero") == every
    assert cm.ground_truth.true_circuit(model, task, ablation="corrupted") == every - same


QUICK = ("tracr-hist", "tracr-sort-unique", "tracr-pair-balance")


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["zero", "corrupted"])
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in cm.ground_truth.PROGRAMS]
)
def test_an_edge_is_used_or_is_not(name, ablation):
    model = cm.load(name)
    effects = cm.ground_truth.edge_effects(model, cm.ground_truth.task(name, 40), ablation=ablation)
    unclear = (effects > TOLERANCE / 5) & (effects < 0.5)
    assert not bool(unclear.any()), effects[unclear]
    truth = cm.Circuit(model.graph, effects > TOLERANCE)
    assert truth.without_dangling() == truth
