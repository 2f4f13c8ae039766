"""Scores of attention patterns: exactly 1 where a rule holds, chance in closed form, any architecture."""

import math

import pytest
import torch
from families import CONFIGS, tiny

from circuitome.errors import UnsupportedModelError
from circuitome.heads.atlas.patterns import PATTERNS, measure, pattern_scores, random_model
from circuitome.heads.atlas.relations import even
from circuitome.heads.atlas.repeated import Repeated, repeated_tokens
from circuitome.models.loading import load


def layout(front, period, repeats):
    model = tiny("llama")
    found = repeated_tokens(model, n=1, period=period, repeats=repeats)
    return Repeated(found.inputs, front, period, repeats)


def looking(at, size, front=0):
    """A pattern in which the i-th token behind the front looks at the tokens at(i) evenly, or at the first position."""
    pattern = torch.zeros(1, 1, size, size)
    for query in range(size):
        keys = [front + key for key in at(query - front) if key >= 0] or [0]
        pattern[0, 0, query, keys] = 1 / len(keys)
    return pattern


RULES = [
    ("previous", lambda i: [i - 1]),
    ("duplicate", lambda i: [i - 5]),
    ("duplicate", lambda i: [i - 5, i - 10]),
    ("induction", lambda i: [i - 4]),
    ("induction", lambda i: [i - 9 if i >= 10 else i - 4]),
    ("self", lambda i: [i]),
]


@pytest.mark.slow
@pytest.mark.parametrize("front", [0, 2])
@pytest.mark.parametrize(("name", "rule"), RULES)
def test_a_rule_that_holds_everywhere_scores_exactly_one_and_the_others_nothing(name, rule, front):
    repeated = layout(front, 5, 3)
    found = measure(looking(rule, repeated.length, front), repeated)
    assert float(found[name]) == 1
    assert all(float(found[other]) == 0 for other in {"previous", "duplicate", "induction", "self"} - {name})


def test_sinks_are_positions_whatever_stands_there():
    for front in (0, 2):
        repeated = layout(front, 5, 2)
        for key, (one, four) in {0: (1, 1), 3: (0, 1), 4: (0, 0)}.items():
            found = measure(looking(lambda i, key=key: [key], repeated.length), repeated)
            assert (float(found["sink1"]), float(found["sink4"])) == (one, four)


def test_distance_and_entropy_of_hand_made_patterns():
    repeated = layout(0, 5, 2)
    found = measure(looking(lambda q: [q - 1, q - 4], 10), repeated)
    assert float(found["distance"]) == pytest.approx(2.5)
    assert float(found["entropy"]) == pytest.approx(math.log(2))


def test_hand_set_heads_of_a_model_score_exactly_one():
    model = load("known-induction")
    scores = pattern_scores(model, repeated_tokens(model, n=3, period=16))
    assert scores["previous"].mean[0, :2].tolist() == [1, 1]
    assert scores["induction"].mean[1, :2].tolist() == [1, 1]
    assert scores["induction"].top(1)[0][0] in ("a1.h0", "a1.h1")
    assert float(scores["duplicate"].mean[:, :2].max()) < 1e-9
    nothing = scores["induction"]
    assert float(nothing.mean[0, 2]) == pytest.approx(nothing.chance)


def test_chance_is_even_attention_in_closed_form():
    front, period, repeats = 1, 5, 3
    repeated = layout(front, period, repeats)
    found = {name: float(value) for name, value in measure(even(repeated.length)[None, None], repeated).items()}
    queries = range(4, repeated.length)
    late = range(front + period, repeated.length)
    earlier = sum((q - front) // period / (q + 1) for q in late) / len(late)
    expected = {
        "previous": sum(1 / (q + 1) for q in queries) / len(queries),
        "duplicate": earlier,
        "induction": earlier,
        "self": sum(1 / (q + 1) for q in queries) / len(queries),
        "sink1": sum(1 / (q + 1) for q in queries) / len(queries),
        "sink4": sum(4 / (q + 1) for q in queries) / len(queries),
        "distance": sum(q / 2 for q in queries) / len(queries),
        "entropy": sum(math.log(q + 1) for q in queries) / len(queries),
    }
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["gemma2", *(pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS)])
def test_scores_are_those_of_kept_patterns_one_sequence_at_a_time(name):
    model = tiny(name)
    repeated = repeated_tokens(model, n=3, period=6, repeats=3)
    scores = pattern_scores(model, repeated, max_memory=1)
    kept = {}
    with torch.no_grad(), model.watching_attention(kept.__setitem__):
        model.logits(repeated.inputs)
    for layer, pattern in kept.items():
        at = {"previous": (range(4, 18), lambda q: [q - 1]), "duplicate": (range(6, 18), lambda q: range(q % 6, q, 6))}
        at["induction"] = (range(6, 18), lambda q: range(q % 6 + 1, q, 6))
        for score, (queries, keys) in at.items():
            slow = sum(pattern[:, :, q, k] for q in queries for k in keys(q)) / len(queries)
            torch.testing.assert_close(scores[score].samples[:, layer], slow, atol=1e-6, rtol=1e-5)


def test_random_weights_leave_the_model_and_the_seed_of_the_process_alone():
    model = tiny("llama")
    before = [p.clone() for p in model.hf.parameters()]
    state = torch.get_rng_state()
    repeated = repeated_tokens(model, n=2, period=8)
    scores = pattern_scores(model, repeated, random=(0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.hf.parameters(), strict=True))
    random = scores["induction"].random
    assert random.shape == (2, 3, 4) and not torch.equal(random[0], random[1])
    assert scores["induction"].ceiling < 2 * scores["induction"].chance
    again = random_model(model, 0)
    assert again.hf.config is not model.hf.config
    assert torch.equal(pattern_scores(again, repeated)["self"].mean, scores["self"].random[0])


def test_every_score_has_intervals_that_hold_its_mean():
    model = tiny("llama")
    scores = pattern_scores(model, repeated_tokens(model, n=6, period=8))
    assert list(scores) == list(PATTERNS)
    for score in scores.values():
        low, high = score.interval
        assert bool(((low <= score.mean + 1e-6) & (score.mean <= high + 1e-6)).all())
        assert score.to_dict()["mean"][2][3] == pytest.approx(score.estimate(2, 3).value)
    one = pattern_scores(model, repeated_tokens(model, n=1, period=8))
    assert math.isnan(one["self"].estimate(0, 0).low) and one["self"].to_dict()["low"][0][0] is None


def test_a_model_that_shows_no_attention_is_refused():
    model = tiny("llama")
    attention = model.blocks[0].attention
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0], None)
    with pytest.raises(UnsupportedModelError, match="gives no attention probabilities at a0"):
        pattern_scores(model, repeated_tokens(model, n=1, period=8))
