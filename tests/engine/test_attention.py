"""Attention probabilities in the open: the model's own, for every architecture."""

import pytest
import torch
from families import CONFIGS, random_task, tiny
from referee import inputs_of

from circuitome.errors import UnsupportedModelError
from circuitome.models.loading import load


def watch(model, inputs):
    patterns = {}
    with torch.no_grad(), model.watching_attention(patterns.__setitem__):
        activations = model.record(inputs)
    return patterns, activations


@pytest.mark.parametrize("name", ["gemma2", *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS)])
def test_patterns_sum_to_one_and_mix_the_values_into_z(name):
    model = tiny(name)
    before = model.hf.config._attn_implementation
    inputs = inputs_of(model, random_task(1).pairs[0].clean)
    patterns, activations = watch(model, inputs)
    assert sorted(patterns) == list(range(len(model.blocks)))
    for layer, pattern in patterns.items():
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        assert float(pattern.triu(1).abs().max()) == 0
        values = model.blocks[layer].split(activations.projected[layer])[:, :, -model.heads.kv :]
        kv = [model.graph.kv_head(head) for head in range(model.heads.q)]
        z = torch.einsum("bhqk,bkhe->bqhe", pattern, values[:, :, kv]).flatten(-2)
        torch.testing.assert_close(z, activations.z[layer], atol=1e-5, rtol=1e-5)
    assert model.hf.config._attn_implementation == before


def test_known_models_show_theirs_too():
    model = load("known-induction")
    ids = torch.arange(1, 6)
    patterns, _ = watch(model, inputs_of(model, tuple(ids.tolist())))
    assert float((patterns[0].sum(-1) - 1).abs().max()) < 1e-5


def test_a_model_without_attention_probabilities_says_so():
    model = tiny("llama")
    attention = model.blocks[1].attention
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0], None)
    with pytest.raises(UnsupportedModelError, match="a1"):
        watch(model, inputs_of(model, (3, 4, 5)))
