"""Files of other tools, made here by their own formulas, give the same features; what cannot be right is refused."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import tiny
from safetensors.torch import save_file

import circuitome as cm
from circuitome.errors import DataFileError, InputError
from circuitome.features.formats import read

D, F = 12, 30
X = torch.randn(7, D, generator=torch.Generator().manual_seed(9))


def weights(*names, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D)}
    return {name: 0.3 * torch.randn(shapes.get(name, (F,)), generator=generator) for name in names}


def largest(z, k):
    values = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, values.indices, values.values.relu())


def lens(folder, cfg, tensors):
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "d_sae": F, **cfg}))
    return folder


HOOK = {"metadata": {"hook_name": "blocks.1.hook_resid_post", "model_name": "m"}}


def test_sae_lens_kinds(tmp_path):
    w = weights("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip", "b_gate", "b_mag", "r_mag")
    four = {name: w[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    z, centred = X @ w["W_enc"], (X - w["b_dec"]) @ w["W_enc"]

    standard = read(
        lens(tmp_path / "standard", {"architecture": "standard", "apply_b_dec_to_input": True, **HOOK}, four)
    )
    features = (centred + w["b_enc"]).relu()
    torch.testing.assert_close(standard.encode(X), features)
    torch.testing.assert_close(standard.reconstruct(X), features @ w["W_dec"] + w["b_dec"])
    assert standard.place == cm.features.Place("resid", 1)

    topk = {"architecture": "topk", "k": 3, "apply_b_dec_to_input": False, "rescale_acts_by_decoder_norm": True, **HOOK}
    norms = w["W_dec"].norm(dim=1)
    features = largest((z + w["b_enc"]) * norms, 3)
    found = read(lens(tmp_path / "topk", topk, four))
    torch.testing.assert_close(found.reconstruct(X), (features / norms) @ w["W_dec"] + w["b_dec"])

    jump = {"architecture": "jumprelu", "apply_b_dec_to_input": False, **HOOK}
    found = read(lens(tmp_path / "jump", jump, {**four, "threshold": w["threshold"]}))
    pre = z + w["b_enc"]
    torch.testing.assert_close(found.encode(X), pre.relu() * (pre > w["threshold"]))

    gated = {name: w[name] for name in ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")}
    found = read(lens(tmp_path / "gated", {"architecture": "gated", "apply_b_dec_to_input": True, **HOOK}, gated))
    wanted = (centred * w["r_mag"].exp() + w["b_mag"]).relu() * (centred + w["b_gate"] > 0)
    torch.testing.assert_close(found.encode(X), wanted, rtol=1e-4, atol=1e-5)

    skip = {"architecture": "skip_transcoder", "apply_b_dec_to_input": False}
    skip["metadata"] = {"hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}
    found = read(lens(tmp_path / "skip", skip, {**four, "W_skip": w["W_skip"]}))
    wanted = (z + w["b_enc"]).relu() @ w["W_dec"] + w["b_dec"] + X @ w["W_skip"].T
    torch.testing.assert_close(found.reconstruct(X), wanted)
    assert found.place == cm.features.Place("transcoder", 2)

    normed = {"architecture": "standard", "normalize_activations": "layer_norm", "apply_b_dec_to_input": False, **HOOK}
    found = read(lens(tmp_path / "normed", normed, four))
    mean, deviation = X.mean(1, keepdim=True), X.std(1, keepdim=True)
    features = (((X - mean) / (deviation + 1e-5)) @ w["W_enc"] + w["b_enc"]).relu()
    torch.testing.assert_close(found.reconstruct(X), (features @ w["W_dec"] + w["b_dec"]) * deviation + mean)


def test_old_sae_lens(tmp_path):
    w = weights("W_enc", "W_dec", "b_enc", "b_dec")
    old = {"hook_name": "blocks.3.hook_resid_pre", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    found = read(lens(tmp_path / "old", old, w))
    assert found.k == 4 and found.place == cm.features.Place("resid", 2) and found.b_in is not None


def test_gemma_scope(tmp_path):
    w = weights("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    folder = tmp_path / "gemma-scope-2b-pt-att" / "layer_7" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: value.numpy() for name, value in w.items()})
    found = read(folder)
    assert found.place == cm.features.Place("z", 7)
    pre = X @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(found.encode(X), pre.relu() * (pre > w["threshold"]))
    assert read(folder / "params.npz", site="resid", layer=2).place == cm.features.Place("resid", 2)


def test_dictionary_learning(tmp_path):
    w = weights("W_enc", "W_dec", "b_enc", "b_dec", "r_mag", "gate_bias", "mag_bias")
    state = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T}
    centred = (X - w["b_dec"]) @ w["W_enc"] + w["b_enc"]

    def ae(name, kind, held, **trainer):
        (tmp_path / name).mkdir()
        torch.save(held, tmp_path / name / "ae.pt")
        about = {"trainer": {"dict_class": kind, "layer": 5, "submodule_name": "resid_post_layer_5", **trainer}}
        (tmp_path / name / "config.json").write_text(json.dumps(about))
        return read(tmp_path / name)

    found = ae("plain", "AutoEncoder", {**state, "bias": w["b_dec"]})
    torch.testing.assert_close(found.reconstruct(X), centred.relu() @ w["W_dec"] + w["b_dec"])
    assert found.place == cm.features.Place("resid", 5)
    found = ae("topk", "AutoEncoderTopK", {**state, "b_dec": w["b_dec"], "k": torch.tensor(3)}, k=3)
    torch.testing.assert_close(found.encode(X), largest(centred, 3))
    batch = {**state, "b_dec": w["b_dec"], "threshold": torch.tensor(0.2), "k": torch.tensor(3)}
    torch.testing.assert_close(ae("batch", "BatchTopKSAE", batch).encode(X), centred.relu() * (centred > 0.2))
    own = {"encoder.weight": w["W_enc"].T, "decoder.weight": w["W_dec"].T, "decoder_bias": w["b_dec"]}
    own |= {name: w[name] for name in ("r_mag", "gate_bias", "mag_bias")}
    raw = (X - w["b_dec"]) @ w["W_enc"]
    wanted = (raw + w["gate_bias"] > 0) * (w["r_mag"].exp() * raw + w["mag_bias"]).relu()
    torch.testing.assert_close(ae("gated", "GatedAutoEncoder", own).encode(X), wanted, rtol=1e-4, atol=1e-5)
    jump = {name: w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | {"threshold": torch.full((F,), 0.1)}
    pre = X @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(ae("jump", "JumpReluAutoEncoder", jump).encode(X), pre.relu() * (pre > 0.1))


def test_sparsify_and_circuit_tracer(tmp_path):
    w = weights("W_enc", "W_dec", "b_enc", "b_dec", "W_skip")
    folder = tmp_path / "layers.4.mlp"
    folder.mkdir()
    held = {
        "encoder.weight": w["W_enc"].T.contiguous(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["W_dec"],
        "b_dec": w["b_dec"],
    }
    save_file(held, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": 3, "d_in": D, "num_latents": F}))
    found = read(folder)
    torch.testing.assert_close(found.encode(X), largest((X - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 3))
    assert found.place == cm.features.Place("mlp", 4)
    (folder / "cfg.json").write_text(json.dumps({"k": 3, "d_in": D, "transcode": True}))
    save_file({**held, "W_skip": w["W_skip"]}, folder / "sae.safetensors")
    found = read(folder)
    wanted = largest(X @ w["W_enc"] + w["b_enc"], 3) @ w["W_dec"] + w["b_dec"] + X @ w["W_skip"].T
    torch.testing.assert_close(found.reconstruct(X), wanted)

    tracer = tmp_path / "tracer"
    tracer.mkdir()
    own = {"W_enc": w["W_enc"].T.contiguous(), "W_dec": w["W_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    save_file({**own, "activation_function.threshold": torch.full((F,), 0.1)}, tracer / "layer_3.safetensors")
    (tracer / "config.yaml").write_text(
        "model_name: m\nfeature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    found = read(tracer, layer=3)
    assert found.place == cm.features.Place("stream-transcoder", 3)
    assert read(tracer / "layer_3.safetensors").place.layer == 3
    pre = X @ w["W_enc"] + w["b_enc"]
    torch.testing.assert_close(found.encode(X), pre.relu() * (pre > 0.1))
    with pytest.raises(InputError, match="a transcoder for each layer"):
        read(tracer)


@pytest.mark.parametrize(
    ("site", "options"),
    [
        ("resid", {"k": 3}),
        ("mlp", {"threshold": torch.full((F,), 0.1)}),
        ("attn", {"b_in": torch.ones(D)}),
        ("z", {"scaling": "layer_norm"}),
        ("transcoder", {"W_skip": torch.eye(D)}),
        ("stream-transcoder", {"threshold": torch.full((F,), 0.1), "W_skip": torch.eye(D)}),
    ],
)
def test_what_is_written_reads_the_same(site, options, tmp_path):
    w = weights("W_enc", "W_dec", "b_enc", "b_dec")
    dictionary = cm.features.Dictionary(place=cm.features.Place(site, 4), **w, **options, facts={"model": "m"})
    cm.features.save(dictionary, tmp_path / "own")
    again = read(tmp_path / "own")
    torch.testing.assert_close(again.reconstruct(X), dictionary.reconstruct(X))
    assert again.place == dictionary.place and again.kind == dictionary.kind


def test_cross_layer_transcoders(tmp_path):
    model, generator = tiny("llama"), torch.Generator().manual_seed(0)
    layers, d, features = 3, 24, 40
    W_enc = [0.3 * torch.randn(features, d, generator=generator) for _ in range(layers)]
    W_dec = [0.3 * torch.randn(features, layers - i, d, generator=generator) for i in range(layers)]
    for i in range(layers):
        held = {f"W_enc_{i}": W_enc[i], f"b_enc_{i}": torch.full((features,), 0.1), f"b_dec_{i}": torch.full((d,), 0.2)}
        save_file(held, tmp_path / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": W_dec[i]}, tmp_path / f"W_dec_{i}.safetensors")
    (tmp_path / "config.yaml").write_text("model_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n")
    found, none = cm.features.load_cross_layer(tmp_path, model=model, check=False)
    given = [torch.randn(5, d, generator=generator) for _ in range(layers)]
    codes = [(x @ W_enc[i].T + 0.1).relu() for i, x in enumerate(given)]
    wanted = codes[0] @ W_dec[0][:, 2] + codes[1] @ W_dec[1][:, 1] + codes[2] @ W_dec[2][:, 0] + 0.2
    torch.testing.assert_close(found.reconstruct(given)[2], wanted)
    assert found.site == "stream-transcoder" and none == []
    with pytest.raises(DataFileError, match="load_cross_layer"):
        read(tmp_path)
    with pytest.raises(InputError, match="has 3 layers of widths"):
        cm.features.load_cross_layer(tmp_path, model=tiny("llama", layers=2))


@pytest.mark.slow
def test_a_dictionary_proves_itself_on_the_model(tmp_path):
    """One that fits is taken; another site, layer, scaling or a lost threshold is refused with both numbers."""
    model = cm.load("smollm2-135m")
    texts = cm.heads.own_text()
    own = cm.features.train(model, [texts] * 4, layer=1, width=200, k=20, kind="batchtopk", batch=64).dictionary
    cm.features.save(own, tmp_path / "own")
    loaded = cm.features.load(tmp_path / "own", model=model)
    assert loaded.facts["proof"]["fvu"] < 0.6
    with pytest.raises(InputError, match=r"leaves .* unexplained, where at most 0.9 .* the mean alone leaves 1"):
        cm.features.load(tmp_path / "own", model=model, site="mlp")
    with pytest.raises(InputError, match="does not fit the resid of layer 28"):
        cm.features.load(tmp_path / "own", model=model, layer=28)
    cm.features.save(replace(own, W_enc=own.W_enc * 20), tmp_path / "scaled")
    with pytest.raises(InputError, match="does not fit"):
        cm.features.load(tmp_path / "scaled", model=model)
    cut = cm.neurons.windows(model, texts, length=64, tokens=300)
    assert float(
        cm.features.load_cross_layer(_mean_only(model, cut, tmp_path / "clt"), model=model, check=False)[0].b_dec[0][0]
    )
    with pytest.raises(InputError, match="does not fit smollm2-135m: in the middle of its layers it leaves"):
        cm.features.load_cross_layer(tmp_path / "clt", model=model)


def _mean_only(model, cut, folder):
    """A cross-layer transcoder without features."""
    folder.mkdir()
    for i in range(30):
        held = {f"W_enc_{i}": torch.zeros(4, 576), f"b_enc_{i}": torch.zeros(4), f"b_dec_{i}": torch.full((576,), 0.01)}
        save_file(held, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": torch.zeros(4, 30 - i, 576)}, folder / f"W_dec_{i}.safetensors")
    return folder


class Evil:
    def __reduce__(self):
        return print, ("this ran",)


def test_bad_files(tmp_path, capsys):
    with pytest.raises(DataFileError, match="There is no"):
        read(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFileError, match="no dictionary of a known format: SAELens"):
        read(tmp_path / "empty")
    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DataFileError, match=r"ae\.pt"):
        read(tmp_path / "ae.pt")
    torch.save({"W_enc": Evil()}, tmp_path / "ae.pt")
    with pytest.raises(DataFileError, match="pickle of more than plain tensors"):
        read(tmp_path / "ae.pt")
    np.savez(tmp_path / "params.npz", W_enc=np.array([Evil()], dtype=object))
    with pytest.raises(DataFileError, match=r"params\.npz"):
        read(tmp_path / "params.npz", site="resid", layer=1)
    assert "this ran" not in capsys.readouterr().out
    w = weights("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    with pytest.raises(InputError, match="does not say which values"):
        read(lens(tmp_path / "nowhere", {"architecture": "standard"}, w))
    with pytest.raises(DataFileError, match="'temporal'"):
        read(lens(tmp_path / "other", {"architecture": "temporal", **HOOK}, w))
    lacking = {name: value for name, value in w.items() if name != "threshold"}
    with pytest.raises(DataFileError, match=r"lacks what its format needs.*threshold"):
        read(lens(tmp_path / "lacking", {"architecture": "jumprelu", **HOOK}, lacking))
    with pytest.raises(InputError, match="b_enc has shape"):
        read(lens(tmp_path / "shape", {"architecture": "standard", **HOOK}, {**lacking, "b_enc": torch.zeros(5)}))
    with pytest.raises(InputError, match="NaN"):
        read(
            lens(
                tmp_path / "nan",
                {"architecture": "standard", **HOOK},
                {**lacking, "b_enc": torch.full((F,), torch.nan)},
            )
        )
    (tmp_path / "nan" / "sae_weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(DataFileError, match="damaged"):
        read(tmp_path / "nan")
