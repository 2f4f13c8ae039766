"""The atlas: one row a head, every score in it, what joins it and what is refused."""

import json
import math

import pytest
import torch
from families import tiny

from circuitome.errors import InputError, UnknownNameError
from circuitome.heads.atlas.all_heads import head_atlas
from circuitome.heads.atlas.head_score import HeadScore
from circuitome.heads.atlas.patterns import pattern_scores
from circuitome.models.loading import load

NAMES = ["previous", "duplicate", "induction", "self", "sink1", "sink4", "distance", "entropy", "copying"]
NAMES += ["copying_ratio", "copy_top5", "anticopy_top5", "eigenvalue_copying"]


def test_the_known_heads_stand_out_and_nothing_else():
    found = head_atlas(load("known-induction"), n=4)
    assert list(found.scores) == NAMES
    assert found.in_front == "BOS" and found.repeated.period == 16
    previous, induction = (dict(found.top(name, 6)) for name in ("previous", "induction"))
    assert {name for name, one in previous.items() if one.value > 0.5} == {"a0.h0", "a0.h1"}
    assert {name for name, one in induction.items() if one.value > 0.5} == {"a1.h0", "a1.h1"}
    assert found.top("copying", 1)[0][0] == "a1.h0"
    row = found.table()[3]
    assert row["head"] == "a1.h0" and row["induction"] == 1 and row["copying_ratio"] == pytest.approx(1)
    assert len(found.table()) == 6


def test_patterns_are_those_of_the_pattern_scores():
    model = tiny("gemma2")
    found = head_atlas(model, n=3, period=6, random=(), max_memory=1)
    alone = pattern_scores(model, found.repeated)
    for name, score in alone.items():
        torch.testing.assert_close(found[name].samples, score.samples)
        assert found[name].chance == score.chance
    assert found["induction"].random is None and found["induction"].ceiling is None


def test_random_weights_show_what_is_no_news():
    found = head_atlas(tiny("llama"), n=3, period=8, random=(0, 1))
    for score in found.scores.values():
        assert score.random.shape == (2, 3, 4) and bool(torch.isfinite(score.random).all())


def test_it_is_plain_data():
    found = head_atlas(tiny("gpt2"), n=2, period=5, random=())
    again = json.loads(json.dumps(found.to_dict()))
    assert again["scores"]["self"]["mean"][0][0] == pytest.approx(found["self"].estimate(0, 0).value)
    assert again["sequences"] == 2 and again["in_front"] == ""
    assert all(value is None for value in again["scores"]["eigenvalue_copying"]["low"][0])


def test_scores_from_elsewhere_join():
    model = tiny("llama")
    other = HeadScore.of("retrieval", "copies from a needle", "share of tokens", torch.rand(5, 3, 4))
    found = head_atlas(model, n=1, random=(), more=[other])
    assert found.top("retrieval", 1)[0][1].value == pytest.approx(float(other.mean.max()))
    assert math.isnan(found["self"].estimate(0, 0).high)
    wrong = HeadScore.of("retrieval", "", "", torch.rand(5, 2, 4))
    with pytest.raises(InputError, match=r"retrieval has \(2, 4\) layers and heads, the atlas of tiny-llama \(3, 4\)"):
        found.joined(wrong)


def test_an_unknown_score():
    with pytest.raises(UnknownNameError, match="Did you mean 'induction'"):
        head_atlas(tiny("llama"), n=1, random=()).top("inducton")


def test_outputs_that_are_no_tokens_leave_copying_out():
    model = load("known-induction")
    model.hf.lm_head.weight = torch.nn.Parameter(model.hf.lm_head.weight[:5].clone())
    found = head_atlas(model, n=2)
    assert list(found.scores) == NAMES[:8]


def test_a_period_that_a_model_is_too_small_for():
    with pytest.raises(InputError, match=r"are 7 positions; tracr-hist has 6\. Use a period of at most 2"):
        head_atlas(load("tracr-hist"))
