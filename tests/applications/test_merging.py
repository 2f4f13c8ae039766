"""Merging: the identities of every method, formulas against slow forms, parts, and what cannot be merged."""

import json

import pytest
import torch
from families import CONFIGS, tiny
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import circuitome as cm
from circuitome.applications import merging
from circuitome.applications.component_masks import component_masks, random_components
from circuitome.applications.merge_formulas import Largest, disjoint_mean, slerp
from circuitome.errors import InputError, RunError, UnknownNameError

QUICK = ("gpt2", "llama", "gemma2")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def tuned(model, seed, size=0.05):
    """The weights of a model, all moved a little; tied ones stay tied."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def three(request, tmp_path):
    """Folders of a base and of two models made from it."""
    name = getattr(request, "param", "llama")
    for folder, seed in (("base", None), ("a", 1), ("b", 2)):
        model = tiny(name) if seed is None else tuned(tiny(name), seed)
        model.hf.save_pretrained(tmp_path / folder)
    return tmp_path


def weights(folder):
    return load_file(folder / "model.safetensors")


def merged(three, models, recipe="task-arithmetic", **options):
    out = three / f"out-{len(list(three.iterdir()))}"
    cm.merge(three / "base", [three / name for name in models], out, recipe, **options)
    return weights(out)


def close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol)


@pytest.mark.parametrize("three", FAMILIES, indirect=True)
def test_identities(three):
    base, a, b = (weights(three / name) for name in ("base", "a", "b"))
    close(merged(three, "a", cm.Recipe(method="ties", density=1.0)), a)
    close(merged(three, "ab", cm.Recipe(weight=1.0)), {n: a[n] + b[n] - base[n] for n in base})
    plain = merged(three, "ab", cm.Recipe(weight=0.3))
    close(merged(three, "ab", cm.Recipe(method="dare", drop=0.0, weight=0.3)), plain)
    close(merged(three, "ab", cm.Recipe(method="slerp", weight=0.0)), a)
    close(merged(three, "ab", cm.Recipe(method="slerp", weight=1.0)), b)
    close(merged(three, "ab", cm.Recipe(weight=0.0)), base, 0)
    every = [f"a{layer}.h{head}" for layer in range(3) for head in range(4)] + ["m0", "m1", "m2"]
    close(merged(three, "ab", cm.Recipe(weight=0.3, outside=1.0), only=[every, ["a0.h0"]]), plain)


@pytest.mark.parametrize("three", FAMILIES, indirect=True)
def test_only_the_chosen_parts_change(three):
    base = weights(three / "base")
    found = merged(three, "a", cm.Recipe(weight=1.0), only=[["a1.h2", "m0.n7", "m2"]])
    moved = {name for name in base if not torch.equal(found[name], base[name])}
    assert moved and all(any(f".{layer}." in name for layer in range(3)) for name in moved)
    live = cm.load(AutoModelForCausalLM.from_pretrained(three / "base"))
    tuned_live = cm.load(AutoModelForCausalLM.from_pretrained(three / "a"))
    result = cm.load(AutoModelForCausalLM.from_pretrained(next(three.glob("out-*"))))
    group = live.graph.kv_head(2)
    q, kv = live.heads.q, live.heads.kv
    chosen = {2, q + group, q + kv + group}
    readers, before, after = (m.blocks[1].reader_weights() for m in (result, live, tuned_live))
    for reader in range(q + 2 * kv):
        assert torch.allclose(readers[reader], (after if reader in chosen else before)[reader], atol=1e-6), reader
    heads = [m.blocks[1].head_weights() for m in (result, live, tuned_live)]
    for head in range(q):
        post = live.blocks[1].attention_post is not None  # its gain is folded in, and does not change
        expected = heads[2 if head == 2 else 1][head]
        assert post or torch.allclose(heads[0][head], expected, atol=1e-6)
    if live.blocks[0].mlp_post is None:
        for layer, which in ((0, {7}), (1, set()), (2, set(range(live.blocks[2].n_neurons)))):
            one, two, three_ = (m.blocks[layer].neuron_weights() for m in (result, live, tuned_live))
            for neuron in range(len(one)):
                assert torch.allclose(one[neuron], (three_ if neuron in which else two)[neuron], atol=1e-6)


def test_ties_by_hand(three, monkeypatch):
    base, a, b = (weights(three / name) for name in ("base", "a", "b"))
    found = merged(three, "ab", cm.Recipe(method="ties", density=0.3, weight=0.7))
    flat = torch.stack([torch.cat([(m[n] - base[n]).flatten() for n in base]) for m in (a, b)])
    k = round(0.3 * flat.shape[1])
    for row in flat:
        row[row.abs() < row.abs().topk(k).values[-1]] = 0
    sign = flat.sum(0).sign()
    sign[sign == 0] = 1 if sign.sum() >= 0 else -1
    agreeing = torch.where(flat.sign() == sign, flat, torch.zeros(()))
    change = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    expected, at = {}, 0
    for name, value in base.items():
        expected[name] = value + 0.7 * change[at : at + value.numel()].view_as(value)
        at += value.numel()
    close(found, expected)


def test_the_kth_largest_of_many_tensors():
    parts = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (5, 300, 70)] + [torch.zeros(9)]
    ranked = torch.cat(parts).abs().sort(descending=True).values
    for k in (1, 17, 200, 375, 384):
        largest = Largest()
        for part in parts:
            largest.see(part)
        largest.narrow(k)
        for part in parts:
            largest.see(part)
        assert largest.size(k) == float(ranked[k - 1])


def test_dare_keeps_the_mean_and_a_seed_draws_the_same(three):
    base, a = (weights(three / name) for name in ("base", "a"))
    draws = [merged(three, "a", cm.Recipe(method="dare", drop=0.5, weight=1.0, seed=seed)) for seed in range(30)]
    name = max(base, key=lambda n: base[n].numel())
    mean = torch.stack([draw[name] - base[name] for draw in draws]).mean(0)
    assert float((mean - (a[name] - base[name])).abs().mean()) < 0.02
    again = merged(three, "a", cm.Recipe(method="dare", drop=0.5, weight=1.0, seed=3))
    close(again, draws[3], 0)


def test_slerp_keeps_the_norm_between_two_tensors_as_long():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    torch.testing.assert_close(slerp(a, b, 0.5), torch.tensor([2.0, 2.0]) / 2**0.5)
    torch.testing.assert_close(slerp(a, a * 1.5, 0.5), a * 1.25)
    assert torch.equal(slerp(torch.zeros(2), b, 1.0), b)
    changes = torch.tensor([[1.0, -1.0, 0.2], [3.0, 2.0, -0.2]])
    assert torch.equal(disjoint_mean(changes, torch.tensor([0.5, 0.5]), 1.0), torch.tensor([2.0, 2.0, 0.0]))


def test_several_files_and_what_transformers_reads(three, monkeypatch):
    whole = merged(three, "ab")
    monkeypatch.setattr(merging, "SHARD", 20_000)
    out = cm.merge(three / "base", [three / "a", three / "b"], three / "sharded")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    state = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole.items())
    again = cm.merge(out, [out], three / "again")
    assert (again / "config.json").is_file()


def test_random_components_are_as_many():
    model = tiny("llama")
    drawn = random_components(model, ["a0.h0", "a1.h3", "m1", "m0.n2", "embed"], 0)
    assert [cm.Node.parse(name).kind for name in drawn] == ["head", "head", "neuron", "mlp"]


def test_what_cannot_be_merged(three):
    tiny("llama", layers=2).hf.save_pretrained(three / "short")
    config = CONFIGS["llama"]()
    config.intermediate_size = 32
    AutoModelForCausalLM.from_config(config).save_pretrained(three / "narrow")
    bad = [
        (["short"], {}, InputError, "is in .*base alone"),
        (["narrow"], {}, InputError, r"shape \[24, 40\] in one and \[24, 32\] in the other"),
        (["a"], {"recipe": "slerp"}, InputError, "slerp merges two models"),
        ([], {}, InputError, "got 0"),
        (["a"], {"recipe": "tie"}, UnknownNameError, "Did you mean 'ties'"),
        (["a"], {"only": []}, InputError, "Parts are given for 0 models"),
        (["a"], {"only": [["a9.h0"]]}, InputError, "has no a9.h0"),
        (["a"], {"only": [["embed"]]}, InputError, "No head, neuron or MLP is chosen"),
    ]
    for models, options, error, match in bad:
        with pytest.raises(error, match=match):
            cm.merge(three / "base", [three / name for name in models], three / "out", **options)
        assert not (three / "out").exists()
    with pytest.raises(RunError, match="not empty"):
        cm.merge(three / "base", [three / "a"], three / "b")
    for density, drop in ((0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(InputError, match="density is above 0"):
            cm.Recipe(density=density, drop=drop)


def test_other_tokenizers_are_shown(three):
    for folder, vocabulary in (("base", {"a": 0, "b": 1}), ("a", {"a": 0, "c": 1})):
        (three / folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    with pytest.raises(InputError, match="tokenizers differ, 2 and 2 tokens; 'b' is number 1 in one and none"):
        cm.merge(three / "base", [three / "a"], three / "out")


def test_masks_cover_a_part_and_no_more():
    model = tiny("gpt2")
    masks = component_masks(model, ["m1.n3"]).masks
    assert {name.split(".", 3)[-1] for name in masks} >= {"mlp.c_fc.weight", "mlp.c_proj.weight", "mlp.c_fc.bias"}
    total = sum(int(mask.expand(dict(model.hf.named_parameters())[name].shape).sum()) for name, mask in masks.items())
    assert total == 24 + 1 + 24
