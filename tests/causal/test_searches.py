"""Searches: gradients, what each finds where the answer is known, and networks that were trained or are random."""

import pytest
import torch
from trained_equality import UNSEEN, prompts, trained

import circuitome as cm
from circuitome.causal import searches
from circuitome.causal.alignment import random_weights
from circuitome.causal.interchanges import answers_at, right_at
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import at_random, orthonormal
from circuitome.causal.trials import trials
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError


def equality(n=128, seed=0):
    return cm.ground_truth.task("known-equality", n, seed)


def accuracy(model, task, variable, subspace):
    causal = cm.causal.ready("known-equality")
    return cm.causal.interchange(model, task, causal, subspace.place, variables=[variable], subspace=subspace)[
        variable
    ].value


def test_gradients_of_a_rotation_and_its_boundary_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    free, change, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 6), (4, 6), (4, 6))
    )

    def loss(free, share):
        project = searches.weighted(orthonormal(free), searches.kept_softly(share, 6, 0.7))
        return (project(change) * weight).sum()

    share = torch.tensor(0.4, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (free.requires_grad_(), share.requires_grad_()))
    kept = searches.kept_softly(share, 6, 1e-3)
    assert kept.round().tolist() == [1, 1, 0, 0, 0, 0]
    whole = searches.weighted(orthonormal(free), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(whole(change), change)


@pytest.mark.slow
@pytest.mark.parametrize(("variable", "neuron"), [("left", 0), ("right", 1)])
def test_a_mask_keeps_the_one_neuron_that_holds_the_variable(variable, neuron):
    model, causal = cm.load("known-equality"), cm.causal.ready("known-equality")
    found = cm.causal.das(model, equality(64), causal, "m1.n*@end", variable=variable, search="mask", epochs=12)
    assert found.bases[0].nonzero().tolist() == [[neuron, 0]]
    assert accuracy(model, equality(64, 1), variable, found) == 1
    other = at_random(found, 3)
    assert other.basis.sum() == 1 and other.basis.shape == found.basis.shape


def test_a_mask_over_heads_keeps_the_head_that_holds_the_variable():
    model, task, causal = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32), cm.causal.ready("known-ioi")
    found = cm.causal.das(model, task, causal, "a1.h*@end", variable="repeated", search="mask", epochs=12)
    assert [basis.shape[1] for basis in found.bases] == [28, 0, 0]
    with pytest.raises(InputError, match="has 3 sites, each with directions of its own"):
        _ = found.basis
    assert sorted(basis.shape[1] for basis in at_random(found, 1).bases) == [0, 0, 28]


@pytest.mark.slow
def test_a_boundary_stops_where_the_variable_ends():
    model, causal = cm.load("known-equality"), cm.causal.ready("known-equality")
    found = cm.causal.das(model, equality(192), causal, "x2@end", variable="left", search="boundless")
    assert 1 <= found.k <= 8 and accuracy(model, equality(128, 9), "left", found) >= 0.97


def test_principal_components_are_those_of_the_values():
    setting = Setting(cm.load("known-equality"), equality(32))
    pairs = trials(setting, cm.causal.ready("known-equality"), ["left"])
    found = searches.learned(pairs, "x1@end", "left", 3, search="pca").basis
    values = pairs.values_of(Place.parse("x1@end", pairs.model))[0][pairs.base, 0].double()
    covariance = torch.cov(values.T)
    largest = torch.linalg.eigh(covariance).eigenvectors[:, -3:].float()
    torch.testing.assert_close((found.T @ largest).abs().sum(0), torch.ones(3), atol=0.2, rtol=0)
    torch.testing.assert_close(found @ found.T, largest @ largest.T, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_trained_network_holds_both_variables_and_one_of_random_weights_neither():
    model, causal = trained(), cm.causal.ready("known-equality")
    task, unseen = prompts(192, 0, range(20)), prompts(128, 1, UNSEEN)
    pairs, held = (trials(Setting(model, part), causal) for part in (task, unseen))
    assert held.base_accuracy.value == 1
    place, other = Place.parse("x1@end", model), random_weights(model)
    for variable in ("left", "right"):
        found = searches.learned(pairs, "x1@end", variable, 8)
        assert float(right_at(held, variable, answers_at(held, place, found)).mean()) >= 0.97
        chance = max(held.majority(variable), 1 - held.changed(variable))
        at_chance = searches.learned(pairs.on(other), "x1@end", variable, 8)
        assert (
            float(right_at(held.on(other), variable, answers_at(held.on(other), place, at_chance)).mean())
            <= chance + 0.1
        )
        anywhere = at_random(found, 0)
        assert float(right_at(held, variable, answers_at(held, place, anywhere)).mean()) <= chance + 0.1


@pytest.mark.slow
def test_other_searches_are_refused_and_sizes_are_judged_on_prompts_of_their_own():
    model, causal = cm.load("known-equality"), cm.causal.ready("known-equality")
    with pytest.raises(UnknownNameError, match="no search 'dbm'"):
        cm.causal.das(model, equality(16), causal, "x2@end", search="dbm")
    with pytest.raises(InputError, match=r"1 to 2 directions at this place, got k = 3"):
        cm.causal.das(model, equality(16), causal, "m1.n0,n1@end", k=3)
    found = cm.causal.locate(
        model,
        equality(48),
        causal,
        "m1.n*@end",
        equality(48, 1),
        variable="left",
        search="mask",
        sizing=equality(48, 2),
        epochs=8,
    )
    assert found.k == 1 and found.accuracy.value == 1 and found.search == "mask" and set(found.sizes) == {0, 1}
    assert found.controls["random directions"].value < 0.7 and found.controls["random weights"].value < 0.7
