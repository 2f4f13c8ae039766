"""Features set to a value while the model runs."""

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.errors import InputError, UnknownNameError


def trained(model, site="resid", kind="topk"):
    generator = torch.Generator().manual_seed(0)
    cut = cm.neurons.packed(torch.randint(3, 61, (20, 20), generator=generator).tolist())
    return cm.features.train(model, cut, site=site, layer=1, kind=kind, width=40, k=4).dictionary


@pytest.mark.parametrize("site", ["resid", "mlp", "attn", "z", "transcoder"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "opt"])
def test_the_present_value_changes_nothing(name, site):
    model = tiny(name)
    dictionary, ids = trained(model, site), torch.randint(3, 61, (2, 9))
    plain = model.hf(ids).logits
    with cm.features.clamped(model, dictionary, {3: lambda value: value, 8: lambda value: value}):
        assert torch.equal(model.hf(ids).logits, plain)
    with cm.features.clamped(model, dictionary, {3: 5.0}):
        assert not torch.equal(model.hf(ids).logits, plain)
    assert torch.equal(model.hf(ids).logits, plain)


def test_it_is_the_decoded_change_with_the_error_kept():
    model, seen = tiny("llama"), []
    dictionary, ids = trained(model), torch.randint(3, 61, (2, 9))
    with torch.no_grad():
        before = model.hf(ids, output_hidden_states=True).hidden_states[2]
        with cm.features.clamped(model, dictionary, {3: 5.0}, at=[2, 4]), cm.hook(model, "a1.resid_post", seen.append):
            model.hf(ids)
    flat = before.flatten(0, 1)
    features = dictionary.encode(flat)
    error = flat - dictionary.decode(features, flat)
    features[:, 3] = 5.0
    wanted = (dictionary.decode(features, flat) + error).view_as(before)
    torch.testing.assert_close(seen[0][:, [2, 4]], wanted[:, [2, 4]], rtol=1e-4, atol=1e-4)
    assert torch.equal(seen[0][:, [0, 1, 3, 5]], before[:, [0, 1, 3, 5]])


def test_bad_input():
    model = tiny("llama")
    dictionary = trained(model)
    with (
        pytest.raises(UnknownNameError, match="no feature 40; the dictionary has 0 to 39"),
        cm.features.clamped(model, dictionary, {40: 1.0}),
    ):
        pass
    with (
        pytest.raises(InputError, match="belongs to another"),
        cm.features.clamped(model, cm.features.random_dictionary(dictionary.place, 8, 32, k=2), {0: 1.0}),
    ):
        pass
