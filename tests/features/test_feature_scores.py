"""Scores of features against the metric with the site patched by hand."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.errors import InputError, UnknownNameError

SITES = ["resid", "mlp", "attn", "z", "transcoder"]


def dictionary(model, site, layer=1):
    generator = torch.Generator().manual_seed(0)
    cut = cm.neurons.packed(torch.randint(3, 61, (20, 20), generator=generator).tolist())
    return cm.features.train(model, cut, site=site, layer=layer, width=40, k=4, kind="batchtopk").dictionary


def patched(model, task, own, change):
    """Mean change of the metric with `change(clean given, corrupted given, clean target, corrupted target)` put in."""
    place, differences = own.place, []
    for row, pair in enumerate(task.pairs):
        seen = {}

        def look(name, which, seen):
            return lambda values: seen.update({(which, name): values.clone()})

        for which, ids in (("clean", pair.clean), ("corrupted", pair.corrupted)):
            with (
                torch.no_grad(),
                cm.hook(model, place.reads, look(place.reads, which, seen)),
                cm.hook(model, place.describes, look(place.describes, which, seen)),
            ):
                logits = model.hf(torch.tensor([ids])).logits
            if which == "clean":
                before = task.score(logits[:, pair.answer_position], (row,))
        given = [seen[which, place.reads][0].float() for which in ("clean", "corrupted")]
        target = [seen[which, place.describes][0].float() for which in ("clean", "corrupted")]
        new = change(*given, *target)[None]
        with torch.no_grad(), cm.hook(model, place.describes, lambda values, new=new: new.to(values)):
            after = task.score(model.hf(torch.tensor([pair.clean])).logits[:, pair.answer_position], (row,))
        differences.append(float(after - before))
    return sum(differences) / len(differences)


QUICK = (("llama-bias", "resid"), ("gemma2", "transcoder"), ("neox-parallel", "z"))


@pytest.mark.parametrize(
    ("name", "site"),
    [
        pytest.param(name, site, marks=() if (name, site) in QUICK else pytest.mark.slow)
        for name in ("llama-bias", "gemma2", "neox-parallel")
        for site in SITES
    ],
)
def test_scores_add_up_and_effects_are_exact(name, site):
    model, task = tiny(name), random_task()
    own = dictionary(model, site)
    found = cm.features.scores(model, own, task, steps=40)
    assert abs(found.whole.value - patched(model, task, own, lambda a, b, c, d: d)) < 1e-4
    assert abs(float(found.values.sum()) + found.error - found.whole.value) < 0.02 * abs(found.whole.value) + 1e-3
    some = [feature for feature, _ in found.top(2)]
    for feature, effect in zip(some, cm.features.effects(model, own, some, task), strict=True):

        def moved(given, other, target, _, feature=feature):
            step = own.encode(other)[:, feature] - own.encode(given)[:, feature]
            return target + step[:, None] * own.W_dec[feature]

        assert abs(effect.value - patched(model, task, own, moved)) < 1e-4


def test_small_changes_are_predicted():
    """At the last block the metric is nearly linear in what a feature changes: scores predict effects."""
    model, task = tiny("llama"), random_task(8)
    own = dictionary(model, "mlp", 2)
    found = cm.features.scores(model, own, task, steps=20)
    some = [feature for feature, _ in found.top(8)]
    exact = torch.tensor([effect.value for effect in cm.features.effects(model, own, some, task)])
    assert float(torch.corrcoef(torch.stack([exact, found.values[some]]))[0, 1]) > 0.9


def test_bad_input():
    model, task = tiny("llama"), random_task()
    own = dictionary(model, "resid")
    with pytest.raises(InputError, match="steps must be at least 1"):
        cm.features.scores(model, own, task, steps=0)
    with pytest.raises(InputError, match="not ablated by zero"):
        cm.features.scores(model, own, task, ablation="zero")
    with pytest.raises(UnknownNameError, match="no feature 40"):
        cm.features.effects(model, own, [40], task)
    with pytest.raises(InputError, match="40 features; 41 were asked"):
        cm.features.scores(model, own, task).top(41)


def test_every_activation_of_a_feature_is_found():
    model = tiny("llama")
    dictionary = cm.features.random_dictionary(cm.features.Place("mlp", 1), 24, 60, k=8)
    rows = torch.randint(3, 61, (6, 9), generator=torch.Generator().manual_seed(0)).tolist()
    (found,) = cm.features.fired(model, dictionary, cm.neurons.packed(rows), [17])
    values = torch.stack([cm.features.feature_activations(model, dictionary, row)[:, 17] for row in rows])
    expected = values[values > 0].sort().values
    torch.testing.assert_close(found.values, expected)
    for window, position in found.places.tolist():
        assert float(values[window, position]) > 0
    median = float(expected[len(expected) // 2])
    assert (found.at(1.0)[2], found.at(0.5)[2]) == pytest.approx((float(expected[-1]), median), rel=1e-5)
    assert sum(found.histogram(5)[1]) == len(expected)
