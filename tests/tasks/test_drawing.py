"""Templates, word filters and the drawing of different pairs."""

from random import Random
from typing import Any

import pytest

from circuitome.errors import TaskError
from circuitome.tasks.generators import words as lists
from circuitome.tasks.sampling import Template, draw_task, one_token_words
from circuitome.tasks.task import Pair

TEMPLATE = Template("t", "The {A} saw {B} and {A2}{_end}")


def test_roles_are_where_the_words_are(words: Any) -> None:
    filled = {"A": "cat", "B": "dog", "A2": "cat", "_end": ""}
    pair = TEMPLATE.pair(words, filled, {"A": "cow"}, answers=[" x"], wrongs=[" y"])
    assert pair.roles == {"A": 1, "B": 3, "A2": 5, "end": 5}
    assert (pair.clean_text, pair.corrupted_text) == ("The cat saw dog and cat", "The cow saw dog and cat")


def test_role_of_a_long_word_is_its_last_token(words: Any) -> None:
    ids = words.encode("The big cat saw dog and cat")
    assert TEMPLATE.roles(words, ids, {"A": "big cat", "B": "dog", "A2": "cat", "_end": ""})["A"] == 2


def test_a_word_that_is_not_found(words: Any) -> None:
    with pytest.raises(TaskError, match="t: this tokenizer spells 'dog' differently"):
        TEMPLATE.roles(words, words.encode("The cat"), {"A": "cat", "B": "dog", "A2": "cat", "_end": ""})


def test_one_token_words_keep_their_order_and_say_when_too_few(words: Any) -> None:
    assert one_token_words(words, ["dog", "two words", "cat"], "nouns", 2) == ["dog", "cat"]
    with pytest.raises(TaskError, match=r"leaves 1 of 2 nouns of one token, and this task needs at least 2.*from_file"):
        one_token_words(words, ["dog", "two words"], "nouns", 2)


def _coin(rng: Random, index: int) -> Pair:
    return Pair((rng.randrange(3),), (9,), (0,), (1,), template="coin", roles={"end": 0})


def test_pairs_are_all_different_or_an_error() -> None:
    assert {pair.clean for pair in draw_task("coin", 3, 0, _coin).pairs} == {(0,), (1,), (2,)}
    with pytest.raises(TaskError, match="coin: found 3 different prompt pairs for this tokenizer, not 4"):
        draw_task("coin", 4, 0, _coin)


@pytest.mark.parametrize("n", [0, -3])
def test_n_must_be_positive(n: int) -> None:
    with pytest.raises(TaskError, match=f"at least 1, got {n}"):
        draw_task("coin", n, 0, _coin)


def test_pairs_of_one_template_must_align() -> None:
    def draw(rng: Random, index: int) -> Pair:
        return Pair((index,) * (index + 1), (9,), (0,), (1,), template="long", roles={"end": index})

    with pytest.raises(TaskError, match="long: this tokenizer spells two prompts of one template differently"):
        draw_task("long", 2, 0, draw)


@pytest.mark.parametrize("name", [name for name in dir(lists) if name.isupper()])
def test_word_lists_have_no_word_twice(name: str) -> None:
    entries = list(getattr(lists, name))
    assert len(entries) == len(set(entries))
    assert len(entries) >= 15


def test_words_of_two_genders_do_not_overlap() -> None:
    assert not {*lists.MALE_NAMES, *lists.MALE_PEOPLE} & {*lists.FEMALE_NAMES, *lists.FEMALE_PEOPLE}
    assert not set(lists.CAPITALS) & set(lists.CAPITALS.values())
