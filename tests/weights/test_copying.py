"""Copying scores against eigenvalues of the whole token-by-token matrix, and on heads set by hand."""

import pytest
import torch
import transformers as tf
from families import CONFIGS, tiny

from circuitome.errors import InputError
from circuitome.models.loading import load
from circuitome.models.model import Model
from circuitome.weights.copying import copying_scores, ov_eigenvalues

QUICK = ("gpt2", "neox-parallel", "gemma2", "olmo2")
"""Families with what is special: fused, interleaved and parallel, sandwich norms and caps, norms on q and k."""


def token_matrix(model, layer, head):
    """W_E W_OV W_U [vocab, vocab], by running the model's own projections on what the norm makes of a direction."""
    block, ids = model.blocks[layer], torch.arange(61)

    def normed(norm, x):
        if norm is None:
            return x
        return (x - x.mean(-1, keepdim=True) if isinstance(norm.module, torch.nn.LayerNorm) else x) * norm.gain

    with torch.no_grad():
        x = normed(block.attention_norm, model.hf.get_input_embeddings()(ids))[None]
        read = [p(x) - p(torch.zeros_like(x)) for p in block.projections]
        heads = model.heads
        v = block.split(read)[:, :, heads.q + heads.kv + model.graph.kv_head(head)]
        z = torch.zeros(1, len(ids), heads.q, heads.width)
        z[:, :, head] = v
        z = z.flatten(2)
        out = (block.output(z) - block.output(torch.zeros_like(z)))[0]
        if block.attention_post:
            out = out * block.attention_post.gain
        return (normed(model.final_norm, out) @ model.unembedding.weight.T).double()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_eigenvalues_are_those_of_the_token_matrix(small, name):
    model = small(name)
    scores = copying_scores(model)
    assert scores.shape == (3, 4) and scores.dtype == torch.float32
    for layer, head in ((0, 1), (2, 3)):
        matrix, small = token_matrix(model, layer, head), ov_eigenvalues(model, layer)[head]
        whole = torch.linalg.eigvals(matrix)
        assert float(scores[layer, head]) == pytest.approx(float(whole.sum().real / whole.abs().sum()), abs=2e-4)
        for power in (1, 2, 3):
            traces = [float((values**power).sum().real) for values in (whole, small)]
            assert traces[1] == pytest.approx(traces[0], rel=1e-3, abs=1e-4 * float(small.abs().max() ** power))


def one_head(sign):
    """A head as wide as the stream whose W_OV is a multiple of the identity; embeddings tied."""
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=8,
        tie_word_embeddings=True,
    )
    model = Model(tf.LlamaForCausalLM(config), None, "one head")
    with torch.no_grad():
        for block in model.blocks:
            block.attention.v_proj.weight.copy_(torch.eye(16))
            block.attention.o_proj.weight.copy_(sign * torch.eye(16))
    return model


@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_identity_copies_and_its_negative_does_the_opposite(sign):
    torch.testing.assert_close(copying_scores(one_head(sign)), torch.full((2, 1), sign))


def test_half_precision_is_summed_in_float32(small):
    exact, half = copying_scores(small("llama")), copying_scores(tiny("llama", dtype=torch.bfloat16))
    torch.testing.assert_close(half, exact, atol=0.05, rtol=0)


def test_a_model_with_other_outputs_than_inputs_is_refused():
    with pytest.raises(InputError, match="gives 1 outputs for 5 input tokens"):
        copying_scores(load("tracr-frac-prevs"))


def test_a_layer_that_does_not_exist_is_refused(small):
    with pytest.raises(InputError, match="no layer 3 in tiny-llama; it has layers 0 to 2"):
        ov_eigenvalues(small("llama"), 3)


def test_the_induction_head_set_by_hand_copies():
    scores = copying_scores(load("known-induction"))
    assert float(scores[1].max()) > 0.9
    assert float(scores.max()) == float(scores[1].max())


@pytest.mark.slow
def test_smollm2_has_copying_heads(smollm2):
    scores = copying_scores(smollm2)
    assert scores.shape == (30, 9)
    assert float(scores.abs().max()) <= 1
    assert int((scores > 0.8).sum()) >= 3
