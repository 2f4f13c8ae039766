"""Repeated random tokens: what they are made of, what stands in front, what is refused."""

import pytest
import torch
from families import tiny

from circuitome.errors import InputError
from circuitome.heads.atlas.repeated import ordinary_ids, repeated_tokens, tokens_in_front, usual_period
from circuitome.models.loading import load


def test_the_second_repeat_is_the_first_and_bos_stands_in_front_where_the_tokenizer_puts_it():
    known = load("known-induction")
    found = repeated_tokens(known, n=3, period=16)
    ids = found.inputs.ids
    assert tokens_in_front(known) == [0] and found.front == 1 and ids.shape == (3, 33)
    assert bool((ids[:, 0] == 0).all()) and torch.equal(ids[:, 1:17], ids[:, 17:])
    assert all(len(set(row)) == 16 for row in ids[:, 1:17].tolist())
    bare = repeated_tokens(tiny("llama"), n=2, period=5, repeats=3)
    assert bare.front == 0 and bare.inputs.ids.shape == (2, 15)
    assert torch.equal(bare.inputs.ids[:, :5], bare.inputs.ids[:, 10:])


def test_the_seed_decides():
    model = tiny("llama")
    first, again, other = (repeated_tokens(model, n=2, period=9, seed=seed).inputs.ids for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_earlier_copies_are_those_of_the_same_token():
    found = repeated_tokens(tiny("llama"), n=1, period=4, repeats=3)
    ids = found.inputs.ids[0]
    same = (ids[:, None] == ids).tril(-1)
    assert torch.equal((found.layout[:, None] == found.layout).tril(-1), same)


def test_special_tokens_are_not_drawn():
    known = load("known-induction")
    assert ordinary_ids(known) == list(range(1, 17))


def test_the_usual_period_fits_small_models():
    assert usual_period(load("known-induction")) == 16
    assert usual_period(tiny("llama")) == 32
    assert usual_period(tiny("llama"), repeats=4) == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0, "period": 8}, "n must be at least 1 for repeated tokens, got 0"),
        ({"n": 1, "period": 2}, "period must be at least 3 for repeated tokens, got 2"),
        ({"n": 1, "period": 8, "repeats": 1}, "repeats must be at least 2 for repeated tokens, got 1"),
        ({"n": 1, "period": 40}, "are 80 positions; tiny-llama has 64. Use a period of at most 32"),
        ({"n": 1, "period": 62, "repeats": 2}, "at most 32"),
    ],
)
def test_numbers_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        repeated_tokens(tiny("llama"), **options)


def test_a_vocabulary_that_is_too_small():
    model = load("known-induction")
    model.hf.config.max_position_embeddings = 100
    with pytest.raises(InputError, match="A period of 17 needs as many different tokens; known-induction has 16"):
        repeated_tokens(model, n=1, period=17)
