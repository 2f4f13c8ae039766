"""The streaming cache: chunks against token by token, against the plain model, and against a model with a window."""

import pytest
import torch
import transformers as tf
from families import CONFIGS, tiny
from streamed import stepwise_losses

from circuitome.errors import InputError, UnsupportedModelError
from circuitome.heads.long_context.streaming import dense_losses, stream_losses
from circuitome.models.loading import load
from circuitome.models.model import Model

QUICK = ("llama", "neox-parallel", "gemma3", "opt")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def tokens(n, seed=0):
    return torch.randint(3, 61, (n,), generator=torch.Generator().manual_seed(seed))


def bare(model, ids):
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model.hf(ids[None]).logits[0, :-1], ids[1:], reduction="none")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_chunks_are_exactly_token_by_token(name):
    model, ids = tiny(name), tokens(13)
    for sinks, window in ((2, 4), (3, 1)):
        expected = stepwise_losses(model, ids, sinks, window)
        for chunk in (5, 12):
            close(stream_losses(model, ids, sinks=sinks, window=window, chunk=chunk), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_window_as_long_as_the_text_is_the_plain_model(name):
    model, ids = tiny(name), tokens(24)
    expected = bare(model, ids)
    close(dense_losses(model, ids, chunk=7), expected)
    for sinks, window in ((0, 23), (4, 40), (4, 19)):
        close(stream_losses(model, ids, sinks=sinks, window=window, chunk=10), expected)


def test_policies_agree_before_the_first_eviction_and_differ_after():
    model, ids = tiny("llama"), tokens(30)
    dense, window, kept = (
        bare(model, ids),
        stream_losses(model, ids, sinks=0, window=12),
        stream_losses(model, ids, sinks=4, window=8),
    )
    close(window[:12], dense[:12])
    close(kept[:12], dense[:12])
    for after, other in ((window, dense), (kept, dense), (window, kept)):
        assert float((after[12] - other[12]).abs()) > 1e-3


def test_without_sinks_it_is_a_model_with_a_sliding_window():
    """The same weights in an architecture that hides old keys itself: distances in a window do not shrink."""
    llama, ids = tiny("llama"), tokens(30)
    config = tf.MistralConfig(**{**llama.hf.config.to_dict(), "model_type": "mistral", "sliding_window": 6})
    torch.manual_seed(0)
    mistral = tf.AutoModelForCausalLM.from_config(config).eval()
    mistral.load_state_dict(llama.hf.state_dict())
    close(stream_losses(llama, ids, sinks=0, window=6, chunk=9), bare(Model(mistral, None, "mistral"), ids))


def test_later_tokens_of_learned_positions_take_the_last_index():
    model, ids = tiny("gpt2"), tokens(20)
    before = stream_losses(model, ids, sinks=2, window=4)
    with torch.no_grad():
        model.hf.transformer.wpe.weight[6:] = torch.nan
    close(stream_losses(model, ids, sinks=2, window=4), before)


def test_learned_positions_do_not_end_a_stream():
    model, ids = tiny("gpt2"), tokens(90)
    whole = stream_losses(model, ids, sinks=4, window=60)
    close(whole, stream_losses(model, ids, sinks=4, window=60, chunk=11))


def test_models_are_left_as_they_were():
    model, ids = tiny("llama"), tokens(12)
    attention, expected = model.hf.config._attn_implementation, bare(model, ids)
    stream_losses(model, ids, sinks=1, window=4)
    assert model.hf.config._attn_implementation == attention
    assert torch.equal(bare(model, ids), expected)


def test_bfloat16_models_stream_too():
    model, ids = tiny("llama", dtype=torch.bfloat16), tokens(24)
    losses = stream_losses(model, ids, sinks=2, window=40)
    assert losses.dtype == torch.float32
    assert float((losses - bare(model, ids).float()).abs().mean()) < 0.05


def test_frequencies_that_change_with_length_stay_those_of_the_cache():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = CONFIGS["llama"]()
    config.max_position_embeddings, config.rope_parameters = 16, rope
    torch.manual_seed(0)
    model = Model(tf.AutoModelForCausalLM.from_config(config).eval(), None, "dynamic")
    ids = tokens(24)
    close(stream_losses(model, ids, sinks=2, window=14), stepwise_losses(model, ids, 2, 14))
    with pytest.raises(InputError, match=r"dynamic.*from 16 positions on.*at most 14"):
        stream_losses(model, ids, sinks=2, window=15)


@pytest.mark.parametrize(
    ("name", "n", "sinks", "window", "message"),
    [
        ("llama", 9, -1, 4, "sinks .* 0 or more, got -1"),
        ("llama", 9, 4, 0, "window .* 1 or more, got 0"),
        ("llama", 1, 4, 4, "at least 2 tokens, got 1"),
        ("gpt2", 9, 4, 61, "learned positions for 64 .* at most 60"),
    ],
)
def test_sizes_that_cannot_be(name, n, sinks, window, message):
    with pytest.raises(InputError, match=message):
        stream_losses(tiny(name), tokens(n), sinks=sinks, window=window)


def test_dense_needs_positions_and_two_tokens():
    with pytest.raises(InputError, match="at most 65 tokens"):
        dense_losses(tiny("gpt2"), tokens(66))
    with pytest.raises(InputError, match="at least 2 tokens"):
        dense_losses(tiny("gpt2"), tokens(1))


def test_a_model_with_an_attention_of_its_own_cannot_be_streamed():
    with pytest.raises(UnsupportedModelError, match=r"known-induction.*outside of transformers' attention interface"):
        stream_losses(load("known-induction"), torch.tensor([1, 2, 3]), sinks=1, window=1)


def test_progress_counts_tokens():
    seen = []
    stream_losses(tiny("llama"), tokens(10), window=4, chunk=4, progress=lambda *at: seen.append(at))
    assert seen == [("streaming", 4, 9), ("streaming", 8, 9), ("streaming", 9, 9)]


@pytest.mark.slow
def test_smollm2_needs_its_first_token(smollm2):
    """Published: without the first tokens perplexity explodes as soon as they are evicted, with them it stays."""
    from circuitome.heads.long_context.needles import own_text

    ids = torch.tensor(smollm2.encode(own_text())[:400])
    dense = dense_losses(smollm2, ids)
    window = stream_losses(smollm2, ids, sinks=0, window=132)
    kept = stream_losses(smollm2, ids, sinks=4, window=128)
    close(window[:132], dense[:132])
    close(kept[:132], dense[:132])
    assert float((window - dense)[132:].mean()) > 0.3
    assert float((kept - dense)[132:].mean()) < 0.15
