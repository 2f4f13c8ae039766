"""Dictionaries that are trained: planted ones are found, and a stopped training goes on to the same bytes."""

import pytest
import torch
import transformers as tf
from families import tiny

import circuitome as cm
from circuitome.errors import InputError, UnknownNameError
from circuitome.features import training
from circuitome.models.model import Model

D, ATOMS, ACTIVE, TOKENS = 32, 64, 3, 4000
KINDS = ["topk", "batchtopk", "jumprelu", "l1"]


def planted(seed=0):
    """A model whose stream behind block 0 is, for each token, a sparse positive sum of overcomplete directions."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.nn.functional.normalize(torch.randn(ATOMS, D, generator=generator), dim=1)
    codes = torch.zeros(TOKENS, ATOMS)
    which = torch.rand(TOKENS, ATOMS, generator=generator).topk(ACTIVE, dim=1).indices
    codes.scatter_(1, which, 1 + torch.rand(TOKENS, ACTIVE, generator=generator))
    torch.manual_seed(seed)
    config = tf.LlamaConfig(
        vocab_size=TOKENS, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    hf = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        hf.model.embed_tokens.weight.copy_(codes @ atoms + 0.5)
        hf.model.layers[0].self_attn.o_proj.weight.zero_()
        hf.model.layers[0].mlp.down_proj.weight.zero_()
    return Model(hf, None, "planted"), atoms


def every_token(epochs=1, length=50):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(TOKENS, generator=generator).view(-1, length) for _ in range(epochs)]
    return cm.neurons.packed(torch.cat(rows).tolist())


@pytest.mark.parametrize(
    ("kind", "l1", "epochs"),
    [
        ("topk", 0, 20),
        ("batchtopk", 0, 20),
        pytest.param("jumprelu", 0, 40, marks=pytest.mark.slow),
        pytest.param("l1", 0.4, 40, marks=pytest.mark.slow),
    ],
)
def test_a_planted_dictionary_is_found(kind, l1, epochs):
    model, atoms = planted()
    options = {"kind": kind, "width": ATOMS, "k": ACTIVE, "l1": l1, "batch": 256, "learning_rate": 1e-2}
    trained = cm.features.train(model, every_token(epochs), layer=0, **options)
    learned = torch.nn.functional.normalize(trained.dictionary.W_dec, dim=1)
    cosine = (atoms @ learned.T).max(1).values
    found = cm.features.quality(model, trained.dictionary, every_token(), losses=0)
    assert float(cosine.mean()) > 0.98, (kind, float(cosine.mean()), trained)
    assert found.dead == 0.0 and found.fit.fvu.value < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_goes_on_to_the_same_bytes(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "STRETCH", 500)
    monkeypatch.setattr(training, "SECONDS", 0.0)
    model, cut = tiny("llama"), _words(60)
    options = {"site": "transcoder", "layer": 1, "kind": kind, "width": 40, "k": 3, "batch": 64, "skip": True}
    whole = cm.features.train(model, cut, **options)
    kept = tmp_path / "kept.safetensors"

    def stop(what, done, total):
        if done > 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cm.features.train(model, cut, **options, checkpoint=kept, progress=stop)
    assert kept.is_file()
    again = cm.features.train(model, cut, **options, checkpoint=kept)
    for name, value in whole.dictionary.tensors().items():
        assert torch.equal(value, again.dictionary.tensors()[name]), name
    assert torch.equal(whole.history, again.history)
    with pytest.raises(cm.errors.RunError, match="another dictionary run"):
        cm.features.train(model, cut, **{**options, "k": 4}, checkpoint=kept)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["topk", "l1"])
def test_dead_features_are_revived(kind, monkeypatch):
    """Half of the features begin far below 0: nothing but revival brings them back."""
    model, begin, batches = planted()[0], training.Training._begin, every_token(20)

    def half_dead(self, data):
        begin(self, data)
        self.parameters["b_enc"].data[: ATOMS // 2] = -6.0

    def dead():
        options = {"kind": kind, "width": ATOMS, "k": ACTIVE, "l1": 0.4, "batch": 256, "learning_rate": 1e-2}
        dictionary = cm.features.train(model, batches, layer=0, **options).dictionary
        return int((dictionary.encode(_stream(model)) == 0).all(0).sum())

    monkeypatch.setattr(training.Training, "_begin", half_dead)
    revived = dead()
    monkeypatch.setattr(training.Training, "_revival", lambda self, before, error: error.new_zeros(()))
    monkeypatch.setattr(training.Training, "_resample", lambda *rest: None)
    assert revived <= dead() // 2 and dead() >= ATOMS // 4


def test_the_scaling_is_folded_in():
    """What training sees and the dictionary for the model's own values make the same of a token."""
    model, _ = planted()
    cut = every_token(epochs=1)
    from circuitome.engine.setting import Setting

    run = training.Training(
        Setting(model),
        cm.features.Place("resid", 0),
        cut,
        "topk",
        40,
        training.Sparsity(3, 1.0),
        False,
        256,
        1e-2,
        None,
    )
    trained = run.run()
    x = _stream(model)
    with torch.no_grad():
        seen = run._centred(x, "in")
        features = cm.features.dictionary.activated(seen @ run.parameters["W_enc"] + run.parameters["b_enc"], 3, None)
        out = features @ run.parameters["W_dec"] + run.parameters["b_dec"]
        plain = out / run.scale["factor_out"] + run.scale["centre_out"]
    torch.testing.assert_close(trained.dictionary.reconstruct(x), plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(trained.dictionary.W_dec.norm(dim=1), torch.ones(40))


def test_gradients_of_thresholds():
    """The kernel's gradients against finite differences of the smoothed functions."""
    from circuitome.features.kinds import _Jump, _Step

    z = torch.linspace(-1, 2, 60_001, dtype=torch.double)[:, None]
    width = 0.2
    threshold = torch.tensor([0.5], dtype=torch.double, requires_grad=True)
    _Step.apply(z, threshold, width).mean().backward()
    density = 1 / 3  # of z: the mean of a step falls by this for each unit of the threshold
    assert threshold.grad is not None and abs(float(threshold.grad) + density) < 1e-3
    threshold.grad = None
    _Jump.apply(z, threshold, width).mean().backward()
    assert abs(float(threshold.grad) + 0.5 * density) < 1e-3


def test_bad_input():
    model = tiny("llama")
    cut = _words(4)
    with pytest.raises(UnknownNameError, match="Did you mean 'topk'"):
        cm.features.train(model, cut, layer=0, kind="topkk")
    with pytest.raises(InputError, match="k=50 of 40"):
        cm.features.train(model, cut, layer=0, width=40, k=50)
    with pytest.raises(InputError, match="skip is a transcoder's"):
        cm.features.train(model, cut, layer=0, skip=True)
    with pytest.raises(InputError, match="layers 0 to 2"):
        cm.features.train(model, cut, layer=7)


def test_progress_shows_how_good_it_is():
    calls = []
    cm.features.train(tiny("llama"), _words(4), layer=0, width=40, k=3, progress=lambda *call: calls.append(call))
    assert calls[-1][1:] == (4, 4) and "FVU" in calls[-1][0] and calls[0][0] == "training"


def _words(windows, length=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return cm.neurons.packed(torch.randint(3, 61, (windows, length), generator=generator).tolist())


def _stream(model):
    return model.hf.model.embed_tokens.weight.detach()
