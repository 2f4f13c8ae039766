"""What is gathered for dictionaries is what the model computes."""

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, MemoryBudgetError, UnknownNameError
from circuitome.features.activations import Activations, gathered, passes

FAMILIES = ["gpt2", "neox-parallel", "llama-bias", "gemma2", "olmo2", "phi3", "opt"]


def texts(lengths=(9, 5, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return cm.neurons.packed([torch.randint(3, 61, (n,), generator=generator).tolist() for n in lengths])


def recorded(model, cut, place):
    """The same by a whole recorded pass: given, target."""
    with torch.no_grad():
        cache = model.record(cut.inputs(model, range(len(cut))))
        block, layer = model.blocks[place.layer], place.layer
        middle = cache.resid_mid[layer]
        if place.site == "resid":
            values = cache.resid_post(layer), cache.resid_post(layer)
        elif place.site == "z":
            values = cache.z[layer], cache.z[layer]
        elif place.site == "mlp":
            values = cache.mlp_out[layer], cache.mlp_out[layer]
        elif place.site == "transcoder":
            values = block.mlp_norm(middle) if block.mlp_norm else middle, cache.mlp_out[layer]
        else:
            out = block.output(cache.z[layer])
            out = block.attention_post(out) if block.attention_post else out
            values = out, out
    where = cut.inputs(model, range(len(cut))).real().bool()
    where[:, 0] = False
    return [value[where].float() for value in values]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_site_is_the_models_own(name):
    model, cut = tiny(name), texts()
    for site in ("resid", "mlp", "attn", "z", "transcoder"):
        for layer in (0, 2):
            place = cm.features.Place(site, layer)
            data = gathered(Setting(model), place, cut, range(3))
            given, target = recorded(model, cut, place)
            torch.testing.assert_close(data.given, given)
            torch.testing.assert_close(data.target, target)
            assert data.given.shape[1] == place.widths(model)[0] and (data.target is data.given) == place.one_site


def test_places_and_parts():
    model, cut = tiny("llama"), texts()
    place = cm.features.Place("resid", 1)
    data = gathered(Setting(model), place, cut, range(3))
    assert data.window.tolist() == [0] * 8 + [1] * 4 + [2] * 6
    assert data.position.tolist() == [*range(1, 9), *range(1, 5), *range(1, 7)]
    small = Setting(model, max_memory=12 * model.bytes_per_token(gradients=False))
    parts = list(passes(small, place, cut))
    assert len(parts) == 3
    torch.testing.assert_close(torch.cat([part.given for part in parts]), data.given)


def test_bfloat16_is_gathered_as_float32():
    model = tiny("llama", dtype=torch.bfloat16)
    data = gathered(Setting(model), cm.features.Place("resid", 0), texts(), range(3))
    assert data.given.dtype == torch.float32


def test_massive_tokens_are_left_out():
    x = torch.ones(10, 4)
    x[3] *= 100
    data = Activations(x, x, torch.arange(10), torch.arange(10))
    kept = data.ordinary(data.limits())
    assert kept.window.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9] and kept.target is kept.given


def test_bad_places():
    model = tiny("llama")
    with pytest.raises(UnknownNameError, match="Did you mean 'resid'"):
        cm.features.Place("residual", 0)
    with pytest.raises(InputError, match="layers 0 to 2"):
        cm.features.Place("mlp", 3).check(model)
    with pytest.raises(MemoryBudgetError, match="--max-memory"):
        next(passes(Setting(model, max_memory=1), cm.features.Place("resid", 0), texts()))
