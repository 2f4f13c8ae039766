"""What a training reads: every window once a pass, shares of a mixture, masks, and the same rows whenever asked."""

import weakref
from itertools import pairwise

import pytest
import torch
from families import CONFIGS

import circuitome as cm
from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.runs.texts import HashedTexts, text_hash
from circuitome.training import streams

TEXT = cm.training.TextStream(torch.arange(103))


def test_each_pass_reads_every_window_once_in_its_own_order():
    seen = torch.cat([TEXT.batch(step, 4, 10, 5).ids for step in range(5)])
    first, second = seen[:10], seen[10:]
    expected = torch.arange(100).view(10, 10)
    for part in (first, second):
        assert torch.equal(part[part[:, 0].argsort()], expected)
    assert not torch.equal(first, second)
    assert torch.equal(TEXT.batch(3, 4, 10, 5).ids, seen[12:16])
    assert not torch.equal(TEXT.batch(0, 4, 10, 6).ids, seen[:4])
    with pytest.raises(InputError, match="103 tokens"):
        TEXT.batch(0, 1, 104, 0)


def test_repeated_rows_repeat():
    ids = cm.training.RepeatedStream(torch.arange(50), begin=(7,)).batch(0, 8, 21, 0).ids
    assert ids.shape == (8, 21) and (ids[:, 0] == 7).all() and torch.equal(ids[:, 1:11], ids[:, 11:])
    ids = cm.training.RepeatedStream(torch.arange(5000), shortest=3).batch(0, 40, 20, 0).ids
    periods = [next(p for p in range(1, 20) if torch.equal(row[p:], row[:-p])) for row in ids]
    assert min(periods) == 3 and max(periods) == 10


def test_shares_of_a_mixture():
    other = cm.training.TextStream(torch.full((100,), 1000))
    mixed = cm.training.MixedStream([(TEXT, 3.0), (other, 1.0), (other, 0.0)])
    for step in range(3):
        ids = mixed.batch(step, 8, 10, 0).ids
        assert ids.shape == (8, 10) and (ids == 1000).all(1).tolist() == [False] * 6 + [True] * 2
    with pytest.raises(InputError, match="less than one row"):
        cm.training.MixedStream([(TEXT, 99.0), (other, 1.0)]).batch(0, 8, 10, 0)


def test_masks():
    plain = cm.training.RepeatedStream(torch.arange(5, 60), begin=(1,))
    masked = cm.training.MaskedStream(plain, token=2, vocabulary=60, share=0.3, kept=(9,))
    tokens = masked.batch(4, 200, 40, 0)
    ids, chosen = plain.batch(4, 200, 40, 0).ids, tokens.counted
    free = (ids != 9) & (torch.arange(40) > 0)
    assert torch.equal(tokens.labels[chosen], ids[chosen]) and not chosen[~free].any()
    assert abs(float(chosen[free].float().mean()) - 0.3) < 0.02
    assert torch.equal(tokens.ids[~chosen], ids[~chosen])
    assert abs(float((tokens.ids[chosen] == 2).float().mean()) - 0.8) < 0.03
    assert abs(float((tokens.ids[chosen] == ids[chosen]).float().mean()) - 0.1) < 0.03
    assert tokens.predicted == int(chosen.sum())


def test_texts_end_as_the_tokenizer_says():
    tokenizer = cm.training.vocabulary("the cat sat on the mat. the dog", size=265)
    config = CONFIGS["llama"]()
    config.vocab_size = len(tokenizer)
    model = cm.training.untrained(config, tokenizer=tokenizer)
    stream = cm.training.text_stream(model, ["the cat", "the dog\n"])
    assert model.decode(stream.ids.tolist()) == "the cat<|end|>the dog\n<|end|>"
    assert cm.training.text_stream(model, iter(["the cat", "the dog\n"])).ids.equal(stream.ids)
    with pytest.raises(InputError, match="hold no tokens"):
        cm.training.text_stream(model, [])
    with pytest.raises(InputError, match="at least 257"):
        cm.training.vocabulary("a", size=100)
    with pytest.raises(InputError, match="without a tokenizer"):
        cm.training.text_stream(Model(model.hf, None, "x"), "the")


def test_texts_are_read_one_after_another_and_none_is_kept():
    tokenizer = cm.training.vocabulary(map(str, ["the cat sat on the mat"]), size=265)
    config = CONFIGS["llama"]()
    config.vocab_size = len(tokenizer)
    model, read = cm.training.untrained(config, tokenizer=tokenizer), list[weakref.ref[Text]]()

    def texts():
        for _ in range(5):
            text = Text("the cat")
            read.append(weakref.ref(text))
            yield text
            del text
            assert sum(one() is not None for one in read) <= 1

    hashed = HashedTexts(texts())
    assert len(cm.training.text_stream(model, hashed).ids) > 5
    assert hashed.hexdigest() == text_hash(*["the cat"] * 5)


class Text(str):
    """A text that can be watched."""


def counting(seen):
    """The usual loss, which notes how many rows it is given."""

    def loss(model, tokens):
        seen.append(len(tokens))
        return cm.training.next_token(model, tokens)

    return loss


def test_losses_against_transformers():
    model = cm.training.untrained(CONFIGS["llama"]())
    tokens = TEXT.batch(0, 4, 10, 0)
    tokens = streams.Rows(tokens.ids % 61, mask=(torch.arange(10) < torch.tensor([[10], [4], [7], [2]])).long())
    labels = tokens.ids.masked_fill(tokens.mask == 0, -100)
    expected = model.hf(input_ids=tokens.ids, attention_mask=tokens.mask, labels=labels).loss
    torch.testing.assert_close(cm.training.next_token(model, tokens), expected)
    one = [cm.training.next_token(model, tokens.rows(i, i + 1)) * tokens.rows(i, i + 1).predicted for i in range(4)]
    torch.testing.assert_close(sum(one) / tokens.predicted, expected)

    class Twice:
        def batch(self, step, rows, length, seed):
            return tokens

    for max_memory in (None, 1):  # one row at a time where memory is short
        found = cm.training.mean_loss(model, Twice(), batches=2, max_memory=max_memory)
        assert found == pytest.approx(expected.item(), rel=1e-5)
    seen = list[int]()
    cm.training.mean_loss(model, Twice(), batches=1, objective=counting(seen), max_memory=1)
    assert seen == [1, 1, 1, 1]


def test_seeds_of_steps_are_apart():
    first = {streams.number(seed, step, purpose) for seed in range(9) for step in range(9) for purpose in ("a", "b")}
    assert len(first) == 162


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_steps_on_a_logarithmic_axis(steps):
    at = cm.training.log_steps(steps)
    assert at[0] == 0 and at[-1] == steps and list(at) == sorted(set(at))


def test_the_rate_rises_and_falls():
    schedule = cm.training.Schedule(steps=100, warm_up=0.1, floor=0.2, learning_rate=1.0)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)]) and rates[-1] == pytest.approx(0.2)
    assert all(a > b for a, b in pairwise(rates[10:])) and rates[54] == pytest.approx(0.6, abs=0.01)
    assert {cm.training.Schedule(steps=9, warm_up=0, floor=1).rate(step) for step in range(9)} == {1e-3}
