"""Held neurons against changed weights; the loss with detectors off; what neurons write; what makes one fire."""

import copy

import pytest
import torch
from families import CONFIGS, tiny
from planted_neurons import PLANTED, TOKEN, planted_model, planted_windows

import circuitome as cm
from circuitome.errors import InputError, NumericsError
from circuitome.graph.node import Node
from circuitome.models.model import Model

QUICK = ("llama", "gpt2", "gemma2", "opt")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
IDS = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(0))


def logits(hf):
    with torch.no_grad():
        return hf(IDS).logits


def without(model, neurons):
    """A copy whose output weights of some neurons are 0."""
    other = Model(copy.deepcopy(model.hf), None, "copy")
    for node in map(Node.parse, neurons):
        weight = other.blocks[node.layer].mlp_writer.weight
        with torch.no_grad():
            (weight if isinstance(other.blocks[node.layer].mlp_writer, torch.nn.Linear) else weight.T)[
                :, node.index
            ] = 0
    return other


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neuron_that_is_off_is_a_column_of_zeros(family):
    model, off = tiny(family), ["m0.n3", "m2.n0", "m2.n39"]
    plain, expected = logits(model.hf), logits(without(model, off).hf)
    with cm.neurons.control(model, off=off):
        torch.testing.assert_close(logits(model.hf), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model.hf), plain) and not torch.allclose(plain, expected, atol=1e-3)


def test_a_neuron_is_set_to_its_value_and_the_inner_context_decides():
    model, seen = tiny("llama"), []
    model.blocks[1].mlp_writer.register_forward_hook(lambda m, args, out: seen.append(args[0][..., 5].clone()))
    with cm.neurons.control(model, off=["m1.n5"], set_to={"m1.n5": 2.5}):
        logits(model.hf)
        with cm.neurons.control(model, set_to={"m1.n5": -1.0}):
            logits(model.hf)
    logits(model.hf)
    values = [tensor.unique().tolist() for tensor in seen[:2]]
    assert values == [[2.5], [-1.0]] and len(seen[2].unique()) > 2


def test_generation_is_held_too():
    model = tiny("llama")
    everything = {f"m{layer}.n{i}": 3.0 for layer in range(3) for i in range(40)}
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with cm.neurons.control(model, set_to=everything):
        held = model.hf.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
        again = model.hf(held).logits[:, 6:-1].argmax(-1)
    assert torch.equal(held[:, 7:], again)
    assert not torch.equal(held, model.hf.generate(IDS, attention_mask=torch.ones_like(IDS), **options))


def test_names_that_cannot_be():
    model = tiny("llama")
    for off in (["m9.n0"], ["m0.n40"], ["a0.h1"], ["m0"], ["m0.n1.in"], []):
        with pytest.raises(InputError), cm.neurons.control(model, off=off):
            pass
    with pytest.raises(NumericsError), cm.neurons.control(model, set_to={"m0.n1": float("nan")}):
        pass
    drawn = cm.neurons.random_neurons(model, ["m0.n1", "m0.n2", "m2.n7"], 0)
    assert [name[:2] for name in drawn] == ["m0", "m0", "m2"] and not set(drawn) & {"m0.n1", "m0.n2", "m2.n7"}
    assert drawn == cm.neurons.random_neurons(model, ["m0.n1", "m0.n2", "m2.n7"], 0)
    with pytest.raises(InputError, match="not as many others"):
        cm.neurons.random_neurons(model, [f"m0.n{i}" for i in range(21)], 0)


@pytest.mark.parametrize("gated", [False, True])
def test_a_tokens_detector_matters_after_the_token_and_nowhere_else(gated):
    """It lowers the logit of the token itself, which the stream still says; the text does not repeat it."""
    model, windows = planted_model(gated=gated), planted_windows()
    windows.ids[:, 1:][windows.ids[:, :-1] == TOKEN[0]] = 6
    census = cm.neurons.census(model, windows)
    names = census.names(census.detector == 1)
    assert names == [f"m0.n{PLANTED.index('token')}"]
    effect = cm.neurons.off_effect(
        model, names, windows, after=[gram[0] for gram in census.detected(names[0])], draws=2
    )
    assert effect.after.low > 0.01
    assert abs(effect.elsewhere.value) < (0.1 * effect.after.value if gated else 1e-6)  # SiLU is not 0 below 0
    assert effect.random_after.value == pytest.approx(0.0, abs=1e-6) and len(effect.draws) == 2
    own = cm.neurons.own_tokens(model, census)
    assert own.neurons == tuple(names) and own.suppresses.tolist() == [True] and float(own.effect[0]) < -2
    with pytest.raises(InputError, match="at least 1"):
        cm.neurons.off_effect(model, names, windows, draws=0)
    with pytest.raises(InputError, match="no token"):
        cm.neurons.off_effect(model, names, windows, after=[999])


def test_losses_are_those_of_the_model_whatever_the_batch():
    model = tiny("phi3")
    windows = cm.neurons.packed([row[:n] for row, n in zip(IDS.tolist(), (7, 4), strict=True)])
    effect = cm.neurons.off_effect(model, ["m1.n0"], windows, draws=1)
    small = cm.neurons.off_effect(model, ["m1.n0"], windows, draws=1, max_memory=1)
    off = without(model, ["m1.n0"])
    change = []
    for hf, sign in ((off.hf, 1), (model.hf, -1)):
        for row, n in zip(IDS, (7, 4), strict=True):
            with torch.no_grad():
                out = hf(row[None, :n]).logits[0, :-1]
            change.append(sign * torch.nn.functional.cross_entropy(out, row[1:n], reduction="sum"))
    assert effect.after.value == pytest.approx(float(sum(change)) / 9, abs=1e-5)
    assert small.after.value == pytest.approx(effect.after.value, abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama"])
def test_promoted_tokens_are_what_the_final_norm_lets_through(family):
    """A step along the neuron's weights from a long random stream moves logits as they say, but for a constant."""
    model = tiny(family)
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    row = model.blocks[1].neuron_weights()[4]
    found = cm.neurons.promoted_tokens(model, "m1.n4", k=61)
    generator = torch.Generator().manual_seed(0)
    changes = torch.zeros(61)
    for _ in range(400):  # the change along the stream itself, which the norm takes out, averages out
        x = 100 * torch.randn(24, generator=generator)
        with torch.no_grad():
            a, b = (model.unembedding(model.final_norm(y[None]))[0] for y in (x, x + row))
        changes += (b - a) / 4
    changes -= changes.mean()
    expected = dict(found.promoted)
    values = torch.tensor([expected[f"#{i}"] for i in range(61)])
    assert torch.corrcoef(torch.stack([values, changes]))[0, 1] > 0.99 and (cap is None or cap > 0)
    assert found.suppressed[0][1] == min(values.tolist()) and abs(float(values.mean())) < 1e-5


@pytest.mark.parametrize("family", ["llama", "opt", "phi3"])
def test_what_makes_a_neuron_fire_is_the_slope_along_each_embedding(family):
    model, ids = tiny(family, dtype=torch.float64), IDS[0].tolist()
    found = cm.neurons.neuron_context(model, "m1.n7", ids)
    from circuitome.models.inputs import Inputs
    from circuitome.neurons.activity import watching_activity

    embedded = model.embeddings(Inputs.whole(IDS[:1])).detach()

    def given(start):
        seen = []
        watch = watching_activity(model, lambda layer, given, written: seen.append(float(given[-1, 7])), [1])
        with watch, model.starting_from(start):
            model.logits(Inputs.whole(IDS[:1]))
        return seen[0]

    assert found.value == pytest.approx(given(embedded), rel=1e-5)
    for at in (0, 3, 6):
        step = torch.zeros_like(embedded)
        step[0, at] = embedded[0, at]
        slope = (given(embedded + 1e-2 * step) - given(embedded - 1e-2 * step)) / 2e-2
        assert float(found.contributions[at]) == pytest.approx(slope, rel=2e-2, abs=2e-3)


def test_activations_of_one_neuron_are_those_that_the_census_found_largest():
    model = tiny("llama")
    windows = cm.neurons.packed([row[:n] for row, n in zip(IDS.tolist(), (7, 4), strict=True)])
    values = cm.neurons.neuron_activations(model, "m2.n3", windows)
    assert values.isnan().sum() == 3
    census = cm.neurons.census(model, windows)
    place = int(census.places[2, 0, 3])
    assert float(census.top[2, 0, 3]) == pytest.approx(float(values[place // 7, place % 7]), rel=1e-5)
