"""Attention sinks: against the model's own patterns, and heads that attend evenly."""

import pytest
import torch
from families import tiny

from circuitome.errors import InputError
from circuitome.heads.long_context.sinks import pieces, sink_mass


def texts(n=6, length=20):
    return torch.randint(3, 61, (n, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["llama", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_mass_is_the_sum_over_first_keys(name):
    model, ids = tiny(name), texts()
    found = sink_mass(model, ids, start=6)
    patterns = []
    with torch.no_grad(), model.watching_attention(lambda layer, pattern: patterns.append(pattern)):
        model.hf(ids)
    for layer, pattern in enumerate(patterns):
        for index, k in enumerate((1, 4)):
            expected = pattern[:, :, 6:, :k].sum(-1).mean(-1)
            torch.testing.assert_close(found.samples[index, :, layer], expected, atol=1e-6, rtol=1e-5)
    estimate = found.layer(1, 0)
    assert estimate.n == 6 and estimate.value == pytest.approx(float(found.mean[1, 0].mean()))
    assert found.share_above(0.0) == 1.0 and found.share_above(1.1) == 0.0


def test_even_attention_has_the_mass_that_is_stated():
    model, ids = tiny("gpt2"), texts()
    with torch.no_grad():
        for block in model.blocks:
            block.projections[0].weight[:, :24] = 0  # no queries: all scores are equal
            block.projections[0].bias[:24] = 0
    found = sink_mass(model, ids)
    assert found.start == 4
    for index in range(2):
        torch.testing.assert_close(found.samples[index], found.uniform[index].expand_as(found.samples[index]))


def test_pieces_begin_as_the_tokenizer_begins():
    model = tiny("llama")
    model.encode = lambda text: [1]
    assert pieces(model, list(range(10, 20)), 4, 9).tolist() == [[1, 10, 11, 12], [1, 13, 14, 15], [1, 16, 17, 18]]
    assert len(pieces(model, list(range(10, 20)), 4, 2)) == 2
    with pytest.raises(InputError, match="The text has 10 tokens; one piece of 12 needs 11"):
        pieces(model, list(range(10, 20)), 12, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": ()}, "got \\[\\]"),
        ({"first": (0,)}, "got \\[0\\]"),
        ({"first": (4,), "start": 3}, "up to start = 3"),
        ({"start": 20}, "more than 20 tokens.*6 texts of 20"),
    ],
)
def test_queries_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        sink_mass(tiny("llama"), texts(), **change)
