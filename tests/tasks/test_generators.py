"""What holds for every generator, and what each one promises on its own."""

import inspect
import random
from collections import Counter
from typing import Any

import pytest

import circuitome.tasks as tasks
from circuitome.errors import TaskError, UnknownNameError
from circuitome.tasks import TASKS
from circuitome.tasks.generators.words import CAPITALS, FEMALE_NAMES, FEMALE_PEOPLE, MALE_NAMES, MALE_PEOPLE, NOUNS
from circuitome.tasks.task import Pair, Task

ROLES = {
    "ioi": {"IO", "S1", "S1+1", "S2", "place", "object", "end"},
    "greater-than": {"noun", "XX", "YY", "end"},
    "gendered-pronoun": {"person", "end"},
    "docstring": {"X1", "X2", "A_def", "B_def", "C_def", "Y", "A_doc", "B_doc", "end"},
    "induction": {"A1", "B", "A2", "end"},
    "subject-verb": {"subject", "attractor", "end"},
    "capitals": {"country", "end"},
}
METRIC = {"greater-than": "prob_diff", "docstring": "logit_diff_max"}


def _word(tokens: Any, pair: Pair, role: str) -> str:
    return str(tokens.decode([pair.clean[pair.roles[role]]])).strip()


def _corrupted_word(tokens: Any, pair: Pair, role: str) -> str:
    return str(tokens.decode([pair.corrupted[pair.roles[role]]])).strip()


def _text(tokens: Any, ids: tuple[int, ...]) -> list[str]:
    return [str(tokens.decode([i])).strip() for i in ids]


def _changed(pair: Pair) -> set[int]:
    return {i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b}


def _balanced(items: list[Any]) -> bool:
    counts = Counter(items).values()
    return max(counts) - min(counts) <= 1


@pytest.mark.parametrize("name", TASKS)
def test_catalog(name: str) -> None:
    generator = TASKS[name]
    assert inspect.isfunction(generator)
    assert getattr(tasks, name.replace("-", "_")) is generator
    assert list(inspect.signature(generator).parameters)[:3] == ["model", "n", "seed"]
    summary, blank = (generator.__doc__ or "").splitlines()[:2]
    assert summary.endswith(".")
    assert not blank


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_every_pair(name: str, tokens: Any) -> None:
    task = TASKS[name](tokens, n=24, seed=3)
    assert (task.name, len(task), task.seed, task.metric) == (name, 24, 3, METRIC.get(name, "logit_diff"))
    assert name in task.source
    assert len({(pair.clean, pair.corrupted) for pair in task.pairs}) == 24
    for pair in task.pairs:
        assert len(pair.clean) == len(pair.corrupted)
        assert tuple(tokens.encode(pair.clean_text)) == pair.clean
        assert tuple(tokens.encode(pair.corrupted_text)) == pair.corrupted
        assert pair.clean != pair.corrupted
        assert pair.answers
        assert pair.wrongs
        assert not set(pair.answers) & set(pair.wrongs)
        assert len(set(pair.answers)) == len(pair.answers)
        assert len(set(pair.wrongs)) == len(pair.wrongs)
        assert set(pair.roles) == ROLES[name]
        assert pair.roles["end"] == len(pair.clean) - 1
        assert pair.template


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_templates_align(name: str, tokens: Any) -> None:
    shapes: dict[str, set[Any]] = {}
    for pair in TASKS[name](tokens, n=24).pairs:
        shapes.setdefault(pair.template, set()).add((len(pair.clean), tuple(sorted(pair.roles.items()))))
    assert all(len(shape) == 1 for shape in shapes.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_pairs(name: str, smollm2: Any) -> None:
    task = TASKS[name](smollm2, n=12, seed=1)
    again, other = TASKS[name](smollm2, n=12, seed=1), TASKS[name](smollm2, n=12, seed=2)
    assert (task.pairs, task.data_hash()) == (again.pairs, again.data_hash())
    assert task.data_hash() != other.data_hash()
    assert TASKS[name](smollm2, n=6, seed=1).pairs == task.pairs[:6]


@pytest.mark.parametrize("name", TASKS)
def test_no_global_randomness(name: str, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the process-wide generator was used")

    for function in ("seed", "random", "choice", "choices", "sample", "shuffle", "randint", "randrange", "uniform"):
        monkeypatch.setattr(random, function, forbidden)
    assert len(TASKS[name](words, n=4)) == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_default_is_64_pairs_and_300_are_there(name: str, smollm2: Any) -> None:
    assert len(TASKS[name](smollm2)) == 64
    assert len(TASKS[name](smollm2, n=300)) == 300


@pytest.mark.parametrize("name", TASKS)
def test_a_tokenizer_without_words(name: str, patterns: Any) -> None:
    with pytest.raises(TaskError, match=r"This tokenizer leaves \d+ of \d+ .* needs at least .*from_file"):
        TASKS[name](patterns("letters"))


@pytest.mark.parametrize("corruption", ["s2-random", "s2-io", "abc"])
def test_ioi(tokens: Any, corruption: str) -> None:
    task = tasks.ioi(tokens, n=24, corruption=corruption)
    assert _balanced([pair.template for pair in task.pairs])
    orders = [pair.roles["IO"] < pair.roles["S1"] for pair in task.pairs]
    assert orders == ["ABBA" in pair.template for pair in task.pairs]
    assert _balanced(orders)
    for pair in task.pairs:
        roles = pair.roles
        io, s1, s2 = (_word(tokens, pair, role) for role in ("IO", "S1", "S2"))
        new_io, new_s1, new_s2 = (_corrupted_word(tokens, pair, role) for role in ("IO", "S1", "S2"))
        assert s1 == s2 != io
        assert roles["S1+1"] == roles["S1"] + 1
        assert (_text(tokens, pair.answers), _text(tokens, pair.wrongs)) == ([io], [s1])
        if corruption == "abc":
            assert _changed(pair) == {roles["IO"], roles["S1"], roles["S2"]}
            assert len({io, s1, new_io, new_s1, new_s2}) == 5
        else:
            assert _changed(pair) == {roles["S2"]}
            assert new_s2 == io if corruption == "s2-io" else len({io, s1, new_s2}) == 3


def test_ioi_in_other_words(tokens: Any) -> None:
    task = tasks.ioi(tokens, n=16, paraphrased=True)
    usual = {pair.template for pair in tasks.ioi(tokens, n=12).pairs}
    assert _balanced([pair.template for pair in task.pairs])
    assert len({pair.template for pair in task.pairs}) == 8 and not usual & {pair.template for pair in task.pairs}
    for pair in task.pairs:
        io, s1, s2 = (_word(tokens, pair, role) for role in ("IO", "S1", "S2"))
        assert s1 == s2 != io and _changed(pair) == {pair.roles["S2"]}
        assert (pair.roles["IO"] < pair.roles["S1"]) == ("ABBA" in pair.template)


def test_ioi_unknown_corruption(words: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"no corruption 's2random'. Did you mean 's2-random'.*abc"):
        tasks.ioi(words, corruption="s2random")


YEARS = [
    # tokenizer, digits in front of the compared ones, digits compared
    ("smollm2", 2, 1),
    ("one-digit", 2, 1),
    ("dummy-space", 2, 1),
    ("two-digits", 2, 2),
    ("three-digits", 3, 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("tokenizer", "given", "size"), YEARS)
def test_greater_than(request: Any, patterns: Any, tokenizer: str, given: int, size: int) -> None:
    tokens = request.getfixturevalue("smollm2") if tokenizer == "smollm2" else patterns(tokenizer)
    task = tasks.greater_than(tokens, n=97)
    everything = [f"{k:0{size}}" for k in range(10**size)]
    keys = []
    for pair in task.pairs:
        words = pair.clean_text.split()
        year, again = words[6], words[-1]
        key = year[given : given + size]
        keys.append(key)
        assert again == year[:given]
        assert _word(tokens, pair, "YY") == key
        assert _word(tokens, pair, "noun") == words[1]
        assert year[:given].endswith(_word(tokens, pair, "XX"))
        assert _text(tokens, pair.answers) == [k for k in everything if k > key]
        assert _text(tokens, pair.wrongs) == [k for k in everything if k <= key]
        assert pair.corrupted_text == pair.clean_text.replace(year, year[:2] + "01")
    assert _balanced(keys)
    assert (min(keys), max(keys)) == (("02", "97") if size == 2 else ("2", "7"))


def test_greater_than_says_what_it_saw(patterns: Any) -> None:
    with pytest.raises(TaskError, match=r"cuts the year 1745 into ' 1745'; the task needs 17\|45"):
        tasks.greater_than(patterns("whole-years"))


def test_gendered_pronoun(tokens: Any) -> None:
    task = tasks.gendered_pronoun(tokens, n=24)
    male, female = {*MALE_NAMES, *MALE_PEOPLE}, {*FEMALE_NAMES, *FEMALE_PEOPLE}
    for pair in task.pairs:
        right, wrong = _text(tokens, pair.answers), _text(tokens, pair.wrongs)
        assert {*right, *wrong} == {"he", "she"}
        own, other = (male, female) if right == ["he"] else (female, male)
        assert _word(tokens, pair, "person") in own
        assert _corrupted_word(tokens, pair, "person") in other
        assert _changed(pair) == {pair.roles["person"]}
    assert _balanced([(pair.template, pair.answers) for pair in task.pairs])


def test_docstring(tokens: Any) -> None:
    definition = ("X1", "X2", "A_def", "B_def", "C_def", "Y")
    for pair in tasks.docstring(tokens, n=12).pairs:
        clean = {role: _word(tokens, pair, role) for role in definition}
        corrupted = {_corrupted_word(tokens, pair, role) for role in definition}
        assert len({*clean.values(), *corrupted}) == 12
        assert _changed(pair) == {pair.roles[role] for role in definition}
        assert _word(tokens, pair, "A_doc") == clean["A_def"]
        assert _word(tokens, pair, "B_doc") == clean["B_def"]
        assert pair.roles["A_doc"] > pair.roles["Y"] > pair.roles["C_def"] > pair.roles["B_def"]
        assert _text(tokens, pair.answers) == [clean.pop("C_def")]
        assert sorted(_text(tokens, pair.wrongs)) == sorted(clean.values())
        assert pair.clean_text.endswith("\n    :param")


def test_induction(tokens: Any) -> None:
    task = tasks.induction(tokens, n=24)
    for pair in task.pairs:
        words = pair.clean_text.split()[1:]
        a, b, again = (_word(tokens, pair, role) for role in ("A1", "B", "A2"))
        assert set(words) <= set(NOUNS)
        assert (again, words[-1], words[words.index(a) + 1]) == (a, a, b)
        assert words.count(a) == 2
        assert words.count(b) == 1
        assert pair.roles["B"] == pair.roles["A1"] + 1
        assert pair.roles["A2"] == pair.roles["end"]
        assert _changed(pair) == {pair.roles["A1"]}
        assert _corrupted_word(tokens, pair, "A1") not in words
        assert _text(tokens, pair.answers) == [b]
        assert _text(tokens, pair.wrongs)[0] in set(words) - {a, b}
    assert _balanced([pair.template for pair in task.pairs])


def test_subject_verb(tokens: Any) -> None:
    task = tasks.subject_verb(tokens, n=32)
    numbers = []
    for pair in task.pairs:
        subject, other = _word(tokens, pair, "subject"), _corrupted_word(tokens, pair, "subject")
        attractor = _word(tokens, pair, "attractor")
        plural = subject.endswith("s")
        assert other == (subject[:-1] if plural else subject + "s")
        assert _changed(pair) == {pair.roles["subject"]}
        assert attractor.rstrip("s") != subject.rstrip("s")
        verbs = _text(tokens, pair.answers), _text(tokens, pair.wrongs)
        assert ["is", "was", "has", "does"] in verbs
        assert ("are" in verbs[0]) == plural
        numbers.append((plural, attractor.endswith("s"), pair.template))
    assert _balanced(numbers)
    assert len(set(numbers)) == 16


def test_capitals(tokens: Any) -> None:
    for pair in tasks.capitals(tokens, n=24).pairs:
        country = next(c for c in CAPITALS if f" {c}" in pair.clean_text)
        other = next(c for c in CAPITALS if f" {c}" in pair.corrupted_text)
        assert country != other
        assert _word(tokens, pair, "country") == country.split()[-1]
        assert _text(tokens, pair.answers) == [CAPITALS[country]]
        assert _text(tokens, pair.wrongs) == [CAPITALS[other]]


def test_capitals_of_countries_with_two_tokens(patterns: Any) -> None:
    tokens = patterns("two-token-countries")
    pairs = tasks.capitals(tokens, n=200).pairs
    two = [pair for pair in pairs if pair.template.endswith("of-2")]
    assert {pair.answers for pair in two} == {tuple(tokens.encode_answer(city)) for city in (" Paris", " Berlin")}
    assert all(_word(tokens, pair, "country") in ("ce", "many") for pair in two)


def test_tasks_are_tasks(words: Any) -> None:
    assert all(isinstance(generator(words, n=2), Task) for generator in TASKS.values())
