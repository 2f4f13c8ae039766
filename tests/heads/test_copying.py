"""Copying: against the slow form for every architecture, and exactly 1 or -1 where a head is set by hand."""

import pytest
import torch
from families import CONFIGS, tiny
from referee import heads_out

from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.heads.atlas.all_heads import measured
from circuitome.heads.atlas.copying import among_ends, through_heads, token_copying
from circuitome.heads.atlas.repeated import repeated_tokens
from circuitome.models.loading import load

SOME = ["gemma2", "gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS if n not in ("gemma2", "gpt2"))]


def slow_copying(model, repeated):
    """Every head alone through the output projection, the final norm's scale frozen, token by token."""
    patterns = {}
    with torch.no_grad(), model.watching_attention(patterns.__setitem__):
        activations = model.record(repeated.inputs)
    norm, weight = model.final_norm, model.unembedding.weight
    n, period, front = len(repeated.inputs.ids), repeated.period, repeated.front
    up, down = torch.zeros(2, n, len(model.blocks), model.heads.q)
    for row, ids in enumerate(repeated.inputs.ids.tolist()):
        tokens = ids[front : front + period]
        for layer, block in enumerate(model.blocks):
            for head, out in enumerate(heads_out(block, activations.z[layer][row], model.heads.q)):
                for q in range(front + period, repeated.length):
                    seen = norm.gain * norm.centre(out[q]) / norm.sigma(activations.final[row, q])
                    logits = weight[tokens] @ seen
                    raised = logits - logits.mean()
                    for i in range(period):
                        share = sum(float(patterns[layer][row, head, q, k]) for k in range(front + i, q + 1, period))
                        (up if raised[i] > 0 else down)[row, layer, head] += (
                            share * raised[i].detach() / (repeated.length - front - period)
                        )
    return up, down


@pytest.mark.parametrize("name", SOME)
def test_copying_is_the_direct_effect_on_attended_tokens(name):
    model = tiny(name)
    repeated = repeated_tokens(model, n=2, period=4)
    found = measured(Setting(model), repeated)
    up, down = slow_copying(model, repeated)
    torch.testing.assert_close(found["copying"], up + down, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["copying_ratio"], (up + down) / (up - down), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", SOME)
def test_tokens_put_through_heads_are_ranked_among_all(name):
    model = tiny(name)
    tokens = torch.arange(3, 23)
    embedded, first = torch.randn(2, 20, model.d_model, generator=torch.Generator().manual_seed(3))
    found = token_copying(model, embedded, first, tokens)
    for layer, block in enumerate(model.blocks):
        stream = block.attend_inputs(first if layer else embedded)
        values = torch.stack([stream @ w.T for w in block.reader_weights()], 1) + block.reader_biases()
        values = values[:, model.heads.q + model.heads.kv :]
        for head in range(model.heads.q):
            alone = torch.zeros(20, model.heads.q, model.heads.width)
            alone[:, head] = values[:, model.graph.kv_head(head)]
            out = block.output(alone.flatten(1)) - block.output(torch.zeros_like(alone).flatten(1))
            out = out * block.attention_post.gain if block.attention_post else out
            torch.testing.assert_close(through_heads(model, layer, first if layer else embedded)[:, head], out)
            for score, sign in (("copy_top5", 1), ("anticopy_top5", -1)):
                top = model.unembedding(model.final_norm.module(sign * out)).topk(5).indices
                hits = (top == tokens[:, None]).any(1).float()
                assert found[score][:, layer, head].tolist() == hits.tolist()


def test_pieces_of_the_vocabulary_give_what_the_whole_gives(monkeypatch):
    model = tiny("opt")
    with torch.no_grad():
        model.final_norm.module.bias.normal_(0, 3)  # so that a negated row's logits are not the negated logits
    out = torch.randn(61, model.d_model, generator=torch.Generator().manual_seed(0))
    whole = among_ends(model, out, torch.arange(61))
    monkeypatch.setattr("circuitome.weights.extremes.FIRST_PIECE", 4)
    monkeypatch.setattr("circuitome.weights.extremes.AT_ONCE", 1)
    assert torch.equal(whole, among_ends(model, out, torch.arange(61)))
    for found, sign in zip(whole, (1, -1), strict=True):
        top = model.unembedding(model.final_norm.module(sign * out)).topk(5).indices
        assert torch.equal(found, (top == torch.arange(61)[:, None]).any(1))
    assert 0 < int(whole.sum()) < 2 * 61


@pytest.mark.parametrize("sign", [1, -1])
def test_a_head_set_by_hand_copies_exactly(sign):
    model = load("known-induction")
    with torch.no_grad():
        model.hf.layers[1].self_attn.out_proj.weight *= sign
    found = {
        name: values.mean(0)
        for name, values in measured(Setting(model), repeated_tokens(model, n=2, period=16)).items()
    }
    for name in ("copying_ratio", "eigenvalue_copying"):
        assert float(found[name][1, 0]) == pytest.approx(sign, abs=1e-6)
    assert float(found["copy_top5" if sign > 0 else "anticopy_top5"][1, 0]) == 1
    assert float(found["copying"][1, 0]) == pytest.approx(sign * (10 - 10 / 16), rel=1e-5)
    for name in ("copying", "copying_ratio", "copy_top5", "anticopy_top5", "eigenvalue_copying"):
        others = found[name].flatten().tolist()
        del others[3]
        assert others == [0] * 5  # a1.h1 has the pattern but writes nothing; a dead head copies nothing


def test_outputs_that_are_no_tokens_cannot_be_copied_to():
    model = load("tracr-frac-prevs")
    rows = torch.zeros(1, model.d_model)
    with pytest.raises(InputError, match=r"gives 1 outputs for \d+ input tokens"):
        token_copying(model, rows, rows, torch.tensor([1]))
