"""Composition scores against the products themselves, chance, and a model whose composition is known."""

from itertools import product

import pytest
import torch
from families import CONFIGS

from circuitome.errors import InputError, UnknownNameError
from circuitome.models.loading import load
from circuitome.weights.circuits import ov_circuit, qk_circuit
from circuitome.weights.head_composition import chance, composition

QUICK = ("gpt2", "neox-parallel", "gemma2", "olmo2")
"""Families with what is special: fused, interleaved and parallel, sandwich norms and caps, norms on q and k."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_scores_are_norms_of_products(small, name):
    model = small(name)
    found = composition(model)
    for (a, g), (b, h) in product(((0, 3), (1, 0), (2, 2)), repeat=2):
        writer, qk, ov = (
            ov_circuit(model, f"a{a}.h{g}"),
            qk_circuit(model, f"a{b}.h{h}"),
            ov_circuit(model, f"a{b}.h{h}"),
        )
        for kind, reader in (("q", qk.full()), ("k", qk.full().T), ("v", ov.full())):
            whole = writer.full() @ reader
            score = whole.norm() / (writer.full().norm() * reader.norm()) if a < b else torch.tensor(0.0)
            if "q_norm" in dict(model.blocks[0].attention.named_modules()) and kind != "v":
                continue  # W_QK holds the gains of norms on q and k, composition reads what comes before them
            torch.testing.assert_close(found.of(kind)[a, g, b, h], score, atol=1e-5, rtol=1e-3)


def test_layers_are_swept_alike_whatever_is_held(small, monkeypatch):
    import sys

    model = small("llama")
    whole = composition(model)
    monkeypatch.setattr(sys.modules["circuitome.weights.head_composition"], "HELD", 1)
    torch.testing.assert_close(composition(model).k, whole.k)


def test_random_weights_score_as_chance_does():
    import transformers as tf

    from circuitome.models.model import Model

    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=8, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, head_dim=16, intermediate_size=8
    )
    model = Model(tf.LlamaForCausalLM(config), None, "random")
    found = composition(model)
    assert found.baseline == 0.125
    for kind in "qkv":
        scores = found.of(kind)[found.exists.expand_as(found.q)]
        assert float(scores.mean()) == pytest.approx(0.125, rel=0.1)
        assert float(scores.std()) < 0.03
        drawn = chance(model, kind, draws=16, seed=1)
        assert float(drawn.square().mean().sqrt()) == pytest.approx(0.125, rel=0.1)
        torch.testing.assert_close(drawn, chance(model, kind, draws=16, seed=1))
        above = found.of(kind, above=found.baseline)
        assert abs(float(above[found.exists.expand_as(above)].mean())) < 0.0125
        assert not above[~found.exists.expand_as(above)].any()


def test_the_induction_head_reads_the_previous_token_head_through_its_keys():
    found = composition(load("known-induction"))
    assert found.top("q") == [] and found.top("v") == []
    assert [earlier for earlier, _, score in found.top("k", 2) if score > 0.249] == ["a0.h0", "a0.h0"]
    assert found.with_head("a1.h0", "k")["earlier"][0] == ("a0.h0", pytest.approx(0.25))
    assert found.with_head("a1.h0", "k")["later"] == []
    assert {name for name, score in found.with_head("a0.h0", "k")["later"] if score > 0} == {"a1.h0", "a1.h1"}


def test_what_does_not_exist_is_refused(small):
    found = composition(small("llama"))
    with pytest.raises(UnknownNameError, match="no kind of composition 'o'"):
        found.of("o")
    with pytest.raises(UnknownNameError, match="Did you mean"):
        found.with_head("a9.h1", "q")
    with pytest.raises(InputError, match="m1 is no attention head"):
        found.with_head("m1", "q")
    with pytest.raises(UnknownNameError, match="no kind of composition"):
        chance(small("llama"), "x")
