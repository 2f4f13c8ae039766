"""Steering: directions are differences of means, prices are losses, and random changes stand beside."""

from dataclasses import replace

import pytest
import torch
from by_hand import PROMPTS
from families import tiny

import circuitome as cm
from circuitome.editing.steering import Steered, _tested
from circuitome.errors import InputError, UnknownNameError
from circuitome.features.loading import firing
from circuitome.models.inputs import Inputs
from circuitome.results import Estimate

PROMPT = "Ann and Bob met then Bob gave to"


@pytest.fixture(scope="module")
def ioi():
    model = cm.load("known-ioi")
    return model, cm.neurons.packed([model.encode(PROMPT), model.encode("Bob and Ann met then Bob gave")])


@pytest.mark.parametrize("tokens", ["end", "all"])
def test_a_direction_is_the_difference_of_mean_streams(tokens):
    model = tiny("llama")
    toward, away = PROMPTS[:2], PROMPTS[2:]
    found = cm.direction(model, toward, away, layer=1, tokens=tokens)
    means, norms = [], []
    for prompts in (toward, away):
        streams = []
        for prompt in prompts:
            with torch.no_grad():
                stream = model.hf(torch.tensor([prompt]), output_hidden_states=True).hidden_states
            with torch.no_grad():
                state = cm.activations(model, [prompt], "a1.resid_pre")["a1.resid_pre"][0]
            torch.testing.assert_close(state, stream[1][0])
            behind = cm.activations(model, [prompt], "m1.resid_post")["m1.resid_post"][0]
            picked = behind[-1:] if tokens == "end" else behind
            streams.append(picked.mean(0))
            norms.append(picked.norm(dim=-1))
        means.append(torch.stack(streams).mean(0))
    change, norm = means[0] - means[1], torch.cat(norms).median()
    torch.testing.assert_close(found.vector, change * norm / change.norm())
    assert found.separation == pytest.approx(float(change.norm() / norm))
    other = found.random(model, 5)
    assert float(other.vector.norm()) == pytest.approx(float(norm), rel=1e-5) and other.site == found.site
    assert float(torch.cosine_similarity(other.vector, found.vector, dim=0).abs()) < 0.9


def test_a_tasks_direction_goes_from_corrupted_to_clean(ioi):
    model, _ = ioi
    task = cm.ground_truth.task("known-ioi", 16)
    clean, corrupted = ([getattr(pair, side) for pair in task.pairs] for side in ("clean", "corrupted"))
    torch.testing.assert_close(
        cm.direction(model, task, layer=1).vector, cm.direction(model, clean, corrupted, layer=1).vector
    )


def test_prices_are_differences_of_losses_and_shares_are_counts(ioi):
    model, neutral = ioi
    what = cm.Parts(("a1.h0",))
    steering = cm.steer(
        model, what, PROMPT, lambda text: text.startswith("Ann"), strengths=[0, 1], neutral=neutral, new=1, draws=2
    )
    own = [row for row in steering.rows if not row.random]
    assert [row.strength for row in own] == [0, 1] and own[0].wanted.value == 0.0 and own[1].texts == ("Ann",) * 8
    assert own[1].loss.value == own[1].divergence.value == 0.0 and own[1].p is None
    assert all(row.strength != 1 for row in steering.rows if row.random)  # the model itself is a row already
    losses = []
    for row, size in zip(neutral.ids.tolist(), neutral.lengths.tolist(), strict=True):
        ids = torch.tensor([row[:size]])
        inputs = Inputs(ids, torch.ones_like(ids), torch.arange(size)[None], torch.tensor([size - 1]))
        with torch.no_grad():
            plain = model.every_logits(inputs)[0, :-1].log_softmax(-1)
            with cm.scale(model, list(what.names), 0.0):
                other = model.every_logits(inputs)[0, :-1].log_softmax(-1)
        losses += [(plain - other).gather(-1, ids[0, 1:, None])[:, 0], (plain.exp() * (plain - other)).sum(-1)]
    assert own[0].loss.value == pytest.approx(float(torch.cat(losses[::2]).mean()), rel=1e-4)
    assert own[0].divergence.value == pytest.approx(float(torch.cat(losses[1::2]).mean()), rel=1e-4)
    assert repr(steering).startswith("Steering(a1.h0 at 1: 100% as wanted")
    again = cm.steer(
        model, what, PROMPT, lambda text: text.startswith("Ann"), strengths=[0, 1], neutral=neutral, new=1, draws=2
    )
    assert again.rows == steering.rows  # the same seed, the same texts


def test_random_parts_are_others_of_the_same_layers():
    model = tiny("llama")
    drawn = cm.Parts(("a1.h0", "m0.n3", "m0.n4")).random(model, 0).names
    kinds = sorted(cm.Node.parse(name).kind for name in drawn)
    assert kinds == ["head", "neuron", "neuron"] and not {"a1.h0", "m0.n3", "m0.n4"} & set(drawn)
    assert cm.Parts(("a1.h0",)).random(model, 1).names[0].startswith("a1.h")
    with pytest.raises(InputError, match="not 1 other parts like m0"):
        cm.Parts(("m0",)).random(model, 0)


def estimate(value, n=20):
    return Estimate(value, value, value, "", n)


def row(what, strength, wanted, loss, *, random):
    return Steered(
        what=what,
        strength=strength,
        random=random,
        texts=(),
        wanted=estimate(wanted),
        loss=estimate(loss),
        divergence=estimate(abs(loss)),
    )


def test_the_test_is_against_random_changes_that_cost_as_much():
    from scipy.stats import fisher_exact

    own = row("own", 0.5, 0.8, 0.1, random=False)
    cheap = row("random 1", 0.5, 0.0, 0.05, random=True)
    dear = row("random 1", 1.0, 0.3, 0.2, random=True)
    dearest = row("random 1", 2.0, 0.0, 3.0, random=True)
    assert _tested(own, [own, cheap]).p is None
    found = _tested(own, [own, cheap, dearest, dear]).p
    assert found == pytest.approx(fisher_exact([[16, 4], [6, 14]], alternative="greater").pvalue)
    assert _tested(dear, [own, dear]).p is None


def test_bad_input(ioi):
    model, neutral = ioi
    what = cm.Parts(("a2.h0",))
    with pytest.raises(InputError, match="at least one prompt and one strength"):
        cm.steer(model, what, PROMPT, bool, strengths=[], neutral=neutral)
    with pytest.raises(InputError, match="samples and new must be at least 1"):
        cm.steer(model, what, PROMPT, bool, samples=0, neutral=neutral)
    with pytest.raises(InputError, match="prompts to go away from"):
        cm.direction(model, [PROMPT])
    with pytest.raises(InputError, match="no block 9"):
        cm.direction(model, [PROMPT], [PROMPT], layer=9)
    with pytest.raises(InputError, match="the same on both sets"):
        cm.direction(model, [PROMPT], [PROMPT])


def some_dictionary(model, *, dead):
    """Random directions of the stream, of which those from `dead` on never fire."""
    found = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=40)
    bias = found.b_enc.clone()
    bias[dead:] = -1e6
    return replace(found, b_enc=bias)


def test_a_random_feature_is_one_that_fires_about_as_often(ioi):
    model, _ = ioi
    dictionary = some_dictionary(model, dead=30)
    density = firing(model, dictionary)
    assert bool((density[30:] == 0).all()) and bool((density[:30] > 0).any())
    feature = cm.Feature(dictionary, int(density[:30].argmax()))
    drawn = [feature.random(model, seed).number for seed in range(40)]
    assert feature.number not in drawn and len(set(drawn)) > 3
    distance = (density.clamp(min=1e-9).log() - density[feature.number].log()).abs()
    nearest = [i for i in distance.argsort(stable=True).tolist() if i != feature.number][:10]
    assert set(drawn) <= set(nearest) and max(drawn) < 30
    assert cm.Feature(dictionary, 35).random(model, 0).number < 30


def test_a_feature_that_there_is_not_is_refused_before_any_work(ioi):
    model, neutral = ioi
    with pytest.raises(UnknownNameError, match="no feature 99"):
        cm.steer(model, cm.Feature(some_dictionary(model, dead=30), 99), PROMPT, bool, neutral=neutral)


def test_where_no_other_feature_fires_there_is_nothing_to_compare_with(ioi):
    model, neutral = ioi
    feature = cm.Feature(some_dictionary(model, dead=0), 1)
    with pytest.raises(InputError, match="no feature to compare with"):
        feature.random(model, 0)
    rows = cm.steer(model, feature, PROMPT, bool, strengths=[0.0], neutral=neutral, samples=1, new=1, draws=0).rows
    assert len(rows) == 1
