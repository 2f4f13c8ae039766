"""Measures that are right by construction, and against explicit sums over tokens."""

import pytest
import torch
from families import tiny

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.features.activations import gathered
from circuitome.features.dictionary_quality import Sums, components, replacing, with_losses
from circuitome.neurons.text_loss import token_losses

NO_LIMIT = (float("inf"), float("inf"))


def texts(windows=12, length=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [length - (i % 3) for i in range(windows)]
    return cm.neurons.packed([torch.randint(3, 61, (n,), generator=generator).tolist() for n in lengths])


def identity(x):
    return x, torch.ones_like(x)


@pytest.mark.parametrize("site", ["resid", "mlp", "z"])
def test_identity_and_mean(site):
    model, cut, place = tiny("gemma2"), texts(), cm.features.Place(site, 1)
    setting = Setting(model)
    mean = gathered(setting, place, cut, range(len(cut))).target.mean(0)
    rebuilt = {"dictionary": identity, "mean": lambda x: (mean.expand_as(x), torch.zeros_like(x))}
    sums = Sums(setting, place, cut, range(len(cut)), NO_LIMIT, rebuilt)
    perfect, constant = sums.fit("dictionary"), sums.fit("mean")
    assert perfect.fvu.value == 0.0 and abs(constant.fvu.value - 1) < 1e-6
    assert (
        abs(perfect.cosine.value - 1) < 1e-6 and perfect.shrinkage.value == 1.0 and abs(perfect.bias.value - 1) < 1e-6
    )
    assert perfect.active.value == model.d_model if site != "z" else 32 and constant.active.value == 0
    zero = {"zeros": lambda x: (torch.zeros_like(x), x), **rebuilt}
    fits, losses = with_losses(setting, place, cut, NO_LIMIT, zero, dict.fromkeys(zero, perfect), mean)
    assert fits["dictionary"].recovered_zero.value == fits["dictionary"].recovered_mean.value == 1.0
    assert fits["zeros"].recovered_zero.value == 0.0 == fits["mean"].recovered_mean.value
    assert losses["model"].value == fits["dictionary"].loss.value


def test_against_explicit_sums():
    model, cut, place = tiny("llama"), texts(), cm.features.Place("transcoder", 1)
    dictionary = cm.features.train(model, cut, site="transcoder", layer=1, width=50, k=4).dictionary
    found = cm.features.quality(model, dictionary, cut, losses=4)
    data = gathered(Setting(model), place, cut, range(3, 12))
    features = dictionary.encode(data.given)
    out = features @ dictionary.W_dec + dictionary.b_dec
    fvu = (data.target - out).square().sum() / (data.target - data.target.mean(0)).square().sum()
    assert found.tokens == len(data) and abs(found.fit.fvu.value - float(fvu)) < 1e-5
    assert found.fit.active.value == 4.0 and found.fits["random dictionary"].active.value == 4.0
    torch.testing.assert_close(found.density, (features > 0).float().mean(0))
    assert abs(found.dead - float((features == 0).all(0).float().mean())) < 1e-6
    assert abs(found.fit.shrinkage.value - float(out.norm(dim=1).sum() / data.target.norm(dim=1).sum())) < 1e-5
    assert found.fit.fvu.low < found.fit.fvu.value < found.fit.fvu.high


def test_principal_components_are_the_best_of_their_rank():
    model, cut = tiny("llama"), texts(80)
    sample = gathered(Setting(model), cm.features.Place("resid", 1), cut, range(80))
    torch.testing.assert_close(components(sample, 24)(sample.given)[0], sample.target)  # all 24: nothing is lost
    less = cm.features.random_dictionary(cm.features.Place("resid", 1), 24, 48, k=6)
    few = cm.features.quality(model, less, cut, losses=0)
    data = gathered(Setting(model), less.place, cut, range(20, 80)).target
    centred = data - data.mean(0)
    best = torch.linalg.svdvals(centred).square()
    assert few.fits["PCA"].active.value == 6.0
    assert float(best[6:].sum() / best.sum()) <= few.fits["PCA"].fvu.value < 1.3 * float(best[6:].sum() / best.sum())
    assert few.fits["PCA"].fvu.value < few.fits["random dictionary"].fvu.value < 1.0


def test_replacing_leaves_first_tokens_and_padding():
    model, cut, place = tiny("opt"), texts(5), cm.features.Place("transcoder", 0)
    setting, seen = Setting(model), []

    def note(values):
        seen.append(values.clone())

    def zeros(x):
        return torch.zeros_like(x), x

    inputs = cut.inputs(model, range(5))
    with torch.no_grad(), replacing(setting, place, NO_LIMIT, zeros)(inputs), cm.hook(model, "m0.out", note):
        model.every_logits(inputs)
    where = inputs.real().bool()
    where[:, 0] = False
    assert float(seen[0][where].abs().max()) == 0.0 and float(seen[0][:, 0].abs().min()) > 0
    unchanged = token_losses(setting, cut, "", replacing(setting, place, (0.0, 0.0), zeros))
    assert torch.equal(unchanged.nan_to_num(), token_losses(setting, cut, "").nan_to_num())


def test_bad_input():
    model, cut = tiny("llama"), texts()
    wide = cm.features.random_dictionary(cm.features.Place("resid", 1), 30, 48, k=4)
    with pytest.raises(
        InputError, match=r"reads 30 and describes 30 numbers; the resid of layer 1 of tiny-llama has 24"
    ):
        cm.features.quality(model, wide, cut)
    fits = cm.features.random_dictionary(cm.features.Place("resid", 1), 24, 48, k=4)
    with pytest.raises(InputError, match="give 3 windows; at least 4"):
        cm.features.quality(model, fits, texts(3))
