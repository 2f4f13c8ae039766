"""Token circuits against the model's own attention and logits; strongest pairs against the whole matrix."""

import pytest
import torch
from families import CONFIGS, tiny

from circuitome.errors import InputError, UnknownNameError
from circuitome.models.inputs import Inputs
from circuitome.models.loading import load
from circuitome.weights.circuits import qk_circuit, rotations, token_ov, token_qk
from circuitome.weights.factored import Factored
from circuitome.weights.pairs import ov_pairs, qk_pairs, strongest

ROTARY = [name for name in CONFIGS if name not in ("gpt2", "opt")]

QUICK = ("gpt2", "neox-parallel", "gemma2", "olmo2")
"""Families with what is special: fused, interleaved and parallel, sandwich norms and caps, norms on q and k."""


def patterns(model, resid):
    """Attention probabilities of block 0 [head, query, key] when it reads `resid` [pos, d_model]."""
    ids = torch.zeros(1, len(resid), dtype=torch.long)
    inputs = Inputs(ids, torch.ones_like(ids), torch.arange(len(resid))[None], torch.tensor([len(resid) - 1]))
    seen = []
    with torch.no_grad(), model.starting_from(resid[None]), model.watching_attention(lambda i, p: seen.append(p)):
        model.record(inputs)
    return seen[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_scores_are_those_of_the_models_first_attention(small, name):
    """A query sees itself and the token before; the log of the ratio of its two probabilities is a score difference."""
    model, first, second = small(name), 17, 40
    with torch.no_grad():
        shown = patterns(model, model.hf.get_input_embeddings()(torch.tensor([first, second])))
    for head in range(4):
        near = token_qk(model, f"a0.h{head}").full()[second, second]
        far = token_qk(model, f"a0.h{head}", offset=int(name in ROTARY)).full()[second, first]
        if name == "gemma2":  # soft cap of 5
            near, far = (5 * torch.tanh(score / 5) for score in (near, far))
        ratio = shown[head, 1, 0].log() - shown[head, 1, 1].log()
        torch.testing.assert_close(far - near, ratio, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox-parallel", "gemma3", "olmo2"])
def test_ov_entries_are_changes_of_logits(small, name):
    """What a head writes for one token, less what it writes for another, through the final norm with scale 1."""
    model, head = small(name), "a1.h2"
    block, ids = model.blocks[1], torch.tensor([5, 33])
    with torch.no_grad():
        e = model.hf.get_input_embeddings()(ids)
        norm = block.attention_norm
        x = e if norm is None else norm.module(e) - (0 if norm.bias is None else norm.bias)
        v = block.split([p(x[None]) - p(torch.zeros_like(x[None])) for p in block.projections])[0]
        v = v[:, model.heads.q + model.heads.kv + model.graph.kv_head(2)]
        out = v @ block.head_weights()[2]
        final = model.final_norm
        logits = (final.centre(out) * final.gain) @ model.unembedding.weight.T
    torch.testing.assert_close(
        token_ov(model, head).full()[ids], logits - logits.mean(1, keepdim=True), atol=1e-4, rtol=1e-3
    )


def test_folded_circuit_is_the_score_of_centred_directions(small):
    """On the stream, for a model with LayerNorm: centring and gain are in the weights, biases are not."""
    model = small("neox-parallel")
    block = model.blocks[2]
    weights, norm = block.reader_weights(), block.attention_norm
    x, y = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    q, k = (weights[i] @ (norm.gain * norm.centre(t)) for i, t in ((3, x), (7, y)))
    torch.testing.assert_close(x @ qk_circuit(model, "a2.h3").full() @ y, q @ k * block.attention.scaling)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROTARY)
def test_rotation_keeps_lengths_and_partial_rotary_a_part(small, name):
    model = small(name)
    turn, still = rotations(model, 1, 3)
    same = torch.eye(model.heads.width)
    torch.testing.assert_close(turn @ turn.T, same)
    torch.testing.assert_close(still, same)
    assert (turn - same).abs().max() > 0.1
    if name.startswith("neox"):
        kept = int((turn - same).abs().sum(0).lt(1e-6).sum())
        assert 0 < kept < model.heads.width


def test_models_without_rotary_have_no_offset(small):
    with pytest.raises(InputError, match=r"tiny-gpt2 \(gpt2\) has no rotary embedding"):
        qk_circuit(small("gpt2"), "a0.h0", offset=1)
    with pytest.raises(InputError, match="cannot be -1"):
        qk_circuit(small("llama"), "a0.h0", offset=-1)


@pytest.mark.parametrize("rows", [None, 7, 61])
def test_strongest_entries_are_those_of_the_matrix(rows, monkeypatch):
    import circuitome.weights.pairs as pairs

    monkeypatch.setattr(pairs, "BLOCK", 200)
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(61, 5, generator=generator), torch.randn(5, 50, generator=generator)
    left *= torch.linspace(0.1, 3, 61)[:, None]
    matrix = Factored(left, right)
    values, (at, to), searched, proven = strongest(matrix, 9, rows)
    kept = left.norm(dim=1).argsort(descending=True)[: rows or 61]
    torch.testing.assert_close(values, matrix.full()[kept].flatten().topk(9).values)
    torch.testing.assert_close(matrix.full()[at, to], values)
    assert searched <= (rows or 61)
    if rows is None:
        assert proven and searched < 61
    if proven:
        torch.testing.assert_close(values, matrix.full().flatten().topk(9).values)


def test_pairs_of_chosen_tokens_and_their_names(small):
    model = small("llama")
    full = token_qk(model, "a1.h1", offset=2).full()
    found = qk_pairs(model, "a1.h1", k=3, offset=2, tokens=[7])
    torch.testing.assert_close(found.values, full[7].topk(3).values)
    assert found.rows.tolist() == [7, 7, 7] and found.names[0][0] == "#7" and found.proven
    low = ov_pairs(model, "a1.h1", k=4, suppressed=True)
    torch.testing.assert_close(low.values, token_ov(model, "a1.h1").full().flatten().topk(4, largest=False).values)
    assert low.to_dict()["pairs"][0]["ids"] == [int(low.rows[0]), int(low.columns[0])]


def test_the_induction_head_set_by_hand_looks_up_and_copies():
    model = load("known-induction")
    found = ov_pairs(model, "a1.h0", k=5)
    assert all(a == b for a, b in found.names)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: qk_pairs(m, "a3.h0"), UnknownNameError, "no writer 'a3.h0'. Did you mean"),
        (lambda m: ov_pairs(m, "embed"), InputError, "embed is no attention head"),
        (lambda m: ov_pairs(m, "a0.h0", k=0), InputError, "k must be at least 1, got 0"),
        (lambda m: qk_pairs(m, "a0.h0", rows=0), InputError, "rows must be at least 1, got 0"),
        (lambda m: qk_pairs(m, "a0.h0", tokens=[61]), InputError, "has tokens 0 to 60, not 61"),
    ],
)
def test_what_cannot_be_is_refused(small, make, error, message):
    with pytest.raises(error, match=message):
        make(small("llama"))


def test_half_precision_is_read_in_float32():
    half = tiny("llama", dtype=torch.bfloat16)
    assert token_qk(half, "a0.h0").left.dtype == torch.float32
    assert token_ov(half, "a0.h0").right.dtype == torch.float32
