"""Induction: the known head and nothing else, losses by hand, what is refused."""

import json
import math
from dataclasses import replace

import pytest
import torch
from families import tiny

from circuitome.errors import InputError, UnsupportedModelError
from circuitome.heads.atlas.induction_heads import (
    Losses,
    context_score,
    early_repeat,
    induction,
    late_repeats,
    losses_without,
)
from circuitome.heads.atlas.repeated import repeated_tokens
from circuitome.models.loading import load


def test_the_known_head_carries_all_of_it():
    found = induction(load("known-induction"), n=3, k=1, draws=2, seed=1)
    assert found.without.heads == ("a1.h0",)
    assert all("a1.h0" not in one.heads for one in found.random)
    assert found.first_half.value == pytest.approx(math.log(17), abs=0.01)  # nothing to go by: even over the vocabulary
    assert found.second_half.value < 0.002
    assert found.loss_rise().value == pytest.approx(found.advantage.value, abs=1e-3)
    assert found.loss_rise("random").value == pytest.approx(0, abs=1e-3)
    assert found.loss_rise("difference").value == pytest.approx(
        found.loss_rise().value - found.loss_rise("random").value
    )
    assert found.in_context is None and found.context_score_rise() is None
    assert float(found.prefix.mean[1, 0]) == 1 and float(found.copying.mean[1, 0]) > 9


def test_without_the_previous_token_head_patterns_stay_so_that_induction_stays():
    """Pattern-preserving: the induction head finds its place through a0.h0, but its pattern is kept."""
    model = load("known-induction")
    inputs = repeated_tokens(model, n=2, period=16).inputs
    keep = torch.ones(2, 3)
    keep[0, 0] = 0
    whole, kept = losses_without(model, inputs, [keep])
    torch.testing.assert_close(kept, whole)
    with torch.no_grad():
        model.hf.layers[0].self_attn.out_proj.weight[:, :33] = 0  # the same head, patterns free
        (free,) = losses_without(model, inputs, [])
    assert float(free[:, 17:].mean()) > 1 + float(whole[:, 17:].mean())


def test_losses_are_of_the_next_token():
    model = tiny("gpt2")
    inputs = repeated_tokens(model, n=2, period=5).inputs
    (found,) = losses_without(model, inputs, [])
    with torch.no_grad():
        logits = model.hf(inputs.ids).logits
    for row, ids in enumerate(inputs.ids.tolist()):
        for at in range(9):
            expected = -logits[row, at].log_softmax(-1)[ids[at + 1]]
            assert float(found[row, at]) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("front", [0, 1])
def test_halves_leave_out_the_first_token_of_every_repeat(front):
    layout = replace(repeated_tokens(tiny("llama"), n=1, period=4, repeats=3), front=front)
    places = torch.arange(1, layout.length) - front  # token that each loss is of
    losses = Losses((), places.float()[None], None)
    assert float(early_repeat(losses, layout)) == (1 + 2 + 3) / 3
    assert float(late_repeats(losses, layout)) == (5 + 6 + 7 + 9 + 10 + 11) / 6


def test_the_context_score_is_late_minus_early():
    losses = torch.zeros(2, 100)
    losses[0, 5:15], losses[0, 90:] = 3.0, 1.0
    losses[1, 4], losses[1, 15], losses[1, 89] = 50.0, 50.0, 50.0
    assert context_score(losses).tolist() == [-2, 0]


def test_pieces_of_text_have_a_length_of_their_own():
    """On a model that reads text; the package's own is cut behind what the tokenizer puts in front."""
    found = induction(load("known-induction"), n=2, k=1, draws=1, text=" ".join("abcdefghijklmnop" * 4))
    assert found.whole.text.shape == (2, 32) and found.whole.repeated.shape == (2, 32)
    shorter = induction(load("known-induction"), n=2, period=8, k=1, draws=1, text=" ".join("abcdefghijklmnop" * 4))
    assert shorter.whole.text.shape == (2, 32) and shorter.whole.repeated.shape == (2, 16)
    assert shorter.in_context.value < -1 and shorter.context_score_rise("difference").value > 1


def test_it_is_plain_data():
    found = induction(tiny("gemma2"), n=2, period=5, k=2, draws=2)
    again = json.loads(json.dumps(found.to_dict()))
    assert len(again["heads"]) == 2 and len(again["random_heads"]) == 2 and again["in_context"] is None
    assert len(again["loss_by_position"]["whole"]) == 9
    assert again["effects"]["without"]["value"] == pytest.approx(found.loss_rise().value)


def test_sets_of_heads_do_not_overlap_and_the_seed_decides():
    model = tiny("llama")
    first, again, other = (induction(model, n=1, period=5, k=3, draws=2, seed=s) for s in (0, 0, 1))
    assert [one.heads for one in first.random] == [one.heads for one in again.random]
    assert [one.heads for one in first.random] != [one.heads for one in other.random]
    assert all(not set(one.heads) & set(first.without.heads) for one in first.random)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "from 1 to 6, half of the 12 heads of tiny-llama; got 0"),
        ({"k": 7}, "half of the 12 heads"),
        ({"draws": 0}, "at least 1, got 0"),
        ({"n": 0}, "n must be at least 1"),
        ({"period": 99}, "Use a period of at most 32"),
    ],
)
def test_numbers_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        induction(tiny("llama"), **{"n": 1, "k": 2, **options})


def test_a_model_without_attention_probabilities():
    model = tiny("llama")
    attention = model.blocks[0].attention
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0], None)
    with pytest.raises(UnsupportedModelError, match="no attention probabilities"):
        induction(model, n=1, period=5, k=2)


@pytest.mark.slow
def test_smollm2_needs_its_induction_heads_more_than_others(smollm2):
    found = induction(smollm2, n=4, period=24, k=5, draws=2)
    assert {"a18.h6", "a17.h4", "a17.h3"} <= set(found.without.heads)
    assert found.advantage.low > 4
    assert found.loss_rise("difference").low > 1
    assert found.in_context.value < 0
    with pytest.raises(InputError, match=r"The text has \d tokens"):
        induction(smollm2, n=1, k=5, text="Too short.")
