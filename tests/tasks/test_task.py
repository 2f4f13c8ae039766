"""Pair, Task and their checks."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from circuitome.errors import TaskError, UnknownNameError
from circuitome.tasks.task import Pair, Task, continuation, make_pair

PAIR = Pair((1, 2), (1, 3), (0,), (1,))


def test_pair_holds_ids_texts_and_end(words: Any) -> None:
    pair = make_pair(words, "The cat", "The dog", [" is"], [" are", " were"], template="t", roles={"noun": 1})
    assert (pair.clean_text, pair.corrupted_text, pair.template) == ("The cat", "The dog", "t")
    assert words.decode(pair.clean) == "The cat"
    assert [words.decode([i]) for i in pair.wrongs] == [" are", " were"]
    assert pair.roles == {"noun": 1, "end": 1}


BAD_PAIRS = {
    "lengths": (("A b c", "A b", [" x"], [" y"]), ["got 3 and 2", "A| b| c", "clean ", "corrupted ", "Change"]),
    "same": (("A b", "A b", [" x"], [" y"]), ["are the same ('A b')"]),
    "no prompt": (("", "A", [" x"], [" y"]), ["the clean prompt '' has no tokens"]),
    "long answer": (("A b", "A c", [" x y"], [" y"]), ["the answer ' x y' must be one token, got 2:  x| y"]),
    "long wrong": (("A b", "A c", [" x"], ["y z"]), ["the wrong answer 'y z'", "space before the word: ' y z'"]),
    "empty answer": (("A b", "A c", [""], [" y"]), ["the answer is empty"]),
    "no answer": (("A b", "A c", [], [" y"]), ["there is no answer"]),
    "both": (("A b", "A c", [" x"], [" y", " x"]), ["' x' is listed both as right and as wrong"]),
}


@pytest.mark.parametrize(("arguments", "parts"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_bad_pairs(words: Any, arguments: Any, parts: list[str]) -> None:
    with pytest.raises(TaskError) as caught:
        make_pair(words, *arguments, where="pairs.csv, line 3")
    assert str(caught.value).startswith("pairs.csv, line 3: ")
    for part in parts:
        assert part in str(caught.value)


POSITIONS = [(-1, 2), (-3, 0), (0, 0), (2, 2)]


@pytest.mark.parametrize(("given", "position"), POSITIONS)
def test_answer_positions_count_from_the_start_whichever_way_they_are_given(given: int, position: int) -> None:
    pair = Pair((4, 5, 6), (4, 7, 6), (0,), (1,), answer_position=given)
    assert pair.answer_position == position
    assert replace(pair, answers=(3,)).answer_position == position


BAD_IDS_AND_POSITIONS = {
    "clean": ({"clean": (1, -2, 3)}, "token id is a number from 0 on, got -2 in `clean`"),
    "corrupted": ({"corrupted": (1, 2, -1)}, "got -1 in `corrupted`"),
    "answers": ({"answers": (-7,)}, "got -7 in `answers`"),
    "wrongs": ({"wrongs": (-7,)}, "got -7 in `wrongs`"),
    "late": ({"answer_position": 3}, "answer position 3 lies outside .* which has 3 tokens. Give one from 0 to 2"),
    "early": ({"answer_position": -4}, "answer position -4 lies outside"),
    "empty": ({"clean": ()}, "clean prompt has no tokens"),
    "role": ({"roles": {"S": 3}}, "role 'S' is at position 3, outside"),
    "negative role": ({"roles": {"S": -1}}, "role 'S' is at position -1, outside"),
}


@pytest.mark.parametrize(("change", "message"), BAD_IDS_AND_POSITIONS.values(), ids=BAD_IDS_AND_POSITIONS)
def test_ids_and_positions_that_do_not_exist_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        replace(Pair((1, 2, 3), (1, 4, 3), (0,), (1,)), **change)


@pytest.mark.parametrize("name", ["two-digits", "dummy-space"])
def test_continuation_is_spelled_as_behind_a_word(patterns: Any, name: str) -> None:
    tokens = patterns(name)
    assert tokens.encode("The cat sat")[-1:] == continuation(tokens, " sat")
    assert tokens.decode(continuation(tokens, " cat sat")) == " cat sat"


def test_task_checks_metric_and_pairs() -> None:
    with pytest.raises(UnknownNameError, match=r"no metric 'logit_dif'. Did you mean 'logit_diff'"):
        Task("mine", (PAIR,), "logit_dif")
    with pytest.raises(TaskError, match="'mine' has no prompt pairs"):
        Task("mine", ())
    with pytest.raises(TaskError, match="logit_diff_max needs a wrong answer"):
        Task("mine", (Pair((1,), (2,), (0,), ()),), "logit_diff_max")


def test_score_takes_the_rows_it_is_given() -> None:
    task = Task("mine", (PAIR, Pair((1, 2), (1, 3), (2,), (0,))))
    logits = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.bfloat16)
    score = task.score(logits, [1])
    assert (score.tolist(), score.dtype, len(task), task.unit) == ([4.0], torch.float32, 2, "logits")


def test_prompts_of_one_template_are_one_group() -> None:
    names = ["b", "a", "", "b", ""]
    pairs = tuple(Pair((i % 3, 2), (7, 8), (0,), (1,), template=name) for i, name in enumerate(names))
    assert Task("mine", pairs).groups == (0, 1, 2, 0, 3)
    assert Task("mine", (PAIR, PAIR)).groups == (0, 0)


def test_data_hash_changes_with_what_a_method_sees() -> None:
    base = Task("mine", (PAIR,)).data_hash()
    assert Task("yours", (PAIR,), seed=4).data_hash() == base
    assert Task("mine", (PAIR,), "prob_diff").data_hash() != base
    assert Task("mine", (Pair((1, 2), (1, 3), (0,), (2,)),)).data_hash() != base
