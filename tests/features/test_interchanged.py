"""Features of a dictionary as what is interchanged: against the model's own pass with features clamped."""

import pytest
import torch
from families import tiny
from random_words import numbers, random_words

import circuitome as cm
from circuitome.causal.interchanges import bases_from, logits_at
from circuitome.causal.sites import Place
from circuitome.causal.trials import trials
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError

MLP, STREAM = cm.features.Place("mlp", 0), cm.features.Place("resid", 0)


@pytest.mark.parametrize("site", [MLP, STREAM], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_features_take_the_values_that_they_have_on_the_source(family, site):
    model = tiny(family, layers=2)
    model.tokenizer = numbers()
    task, causal = random_words(model)
    pairs = trials(Setting(model, task), causal)
    dictionary = cm.features.random_dictionary(site, model.d_model, 30, k=9)
    some = cm.features.as_subspace(model, dictionary, [1, 4, 5, 8, 20, 21, 22], "late")
    place, every = Place.parse(some.place, model), torch.arange(len(pairs.base))
    assert str(place) == ("m0@late" if site == MLP else "x1@late")
    with torch.no_grad():
        logits = logits_at(pairs, bases_from(pairs, [place], every), place, every, some.puts)
        whole = logits_at(pairs, bases_from(pairs, [place], every), place, every)
    changed = 0
    for pair in range(4):
        base, source = (task.pairs[int(which[pair])] for which in (pairs.base, pairs.source))
        seen = []
        with cm.hook(model, site.reads, lambda x, seen=seen: seen.append(x)), torch.no_grad():
            plain = model.hf(torch.tensor([source.clean])).logits
        assert plain is not None
        there = dictionary.encode(seen[0][0, source.roles["late"]])
        values = {feature: float(there[feature]) for feature in some.features}
        clamped = cm.features.clamped(model, dictionary, values, at=base.roles["late"])
        with clamped, torch.no_grad():
            expected = model.hf(torch.tensor([base.clean])).logits[0, -1, list(pairs.tokens)]
        torch.testing.assert_close(logits[pair], expected, atol=2e-4, rtol=1e-4)
        changed += float((logits[pair] - whole[pair]).abs().max()) > 1e-3
    assert changed


def test_what_is_no_subspace_is_refused():
    model = tiny("llama", layers=2)
    dictionary = cm.features.random_dictionary(STREAM, model.d_model, 30, k=3)
    with pytest.raises(UnknownNameError, match="no feature 30"):
        cm.features.as_subspace(model, dictionary, [30], "end")
    other = cm.features.random_dictionary(cm.features.Place("attn", 0), model.d_model, 30, k=3)
    with pytest.raises(
        InputError, match=r"of resid or mlp without scaling .*; this one is of attention output|of attn"
    ):
        cm.features.as_subspace(model, other, [3], "end")
