"""Files of prompt pairs: what is read, and what each bad file is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from circuitome.errors import DataFileError, TaskError, UnknownNameError
from circuitome.tasks.pair_files import from_file, from_pairs

GOOD = {"clean": "The cat", "corrupted": "The cats", "answer": " is", "wrong": " are"}
LINE = json.dumps(GOOD)
HEADER = "clean,corrupted,answer,wrong\n"


def _write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _texts(tokens: Any, ids: tuple[int, ...]) -> list[str]:
    return [tokens.decode([i]) for i in ids]


GOOD_FILES = {
    "a.jsonl": LINE,
    "b.JSON-lines": f"\ufeff\n{LINE}\r\n\n",
    "c.csv": HEADER + "The cat,The cats, is, are\n",
    "d.csv": f"\ufeff{HEADER}\r\n\r\nThe cat,The cats, is, are\r\n",
    "e.csv": 'wrong,answer,note,"corrupted", clean\n are, is,"a, b",The cats,The cat\n',
    "f.csv": HEADER + 'The cat,The cats,"["" is""]"," are"',
}


@pytest.mark.parametrize("name", GOOD_FILES)
def test_good_files(words: Any, tmp_path: Path, name: str) -> None:
    path = _write(tmp_path, name, GOOD_FILES[name])
    for given in (path, str(path)):
        task = from_file(words, given)
        assert (task.name, task.source, task.seed, task.metric) == (path.stem, path.name, None, "logit_diff")
        (pair,) = task.pairs
        assert (pair.clean_text, pair.corrupted_text) == ("The cat", "The cats")
        assert (_texts(words, pair.answers), _texts(words, pair.wrongs)) == ([" is"], [" are"])
        assert pair.roles == {"end": 1}


LISTS = {
    "a.jsonl": json.dumps(GOOD | {"answer": [" is", " was"], "wrong": [], "template": "cats"}),
    "b.csv": "clean,corrupted,answer,wrong,template\nThe cat,The cats, is| was,[],cats",
    "c.csv": 'clean,corrupted,answer,wrong,template\nThe cat,The cats,"["" is"", "" was""]",[],cats',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists_and_template(words: Any, tmp_path: Path, name: str) -> None:
    (pair,) = from_file(words, _write(tmp_path, name, LISTS[name])).pairs
    assert (_texts(words, pair.answers), pair.wrongs, pair.template) == ([" is", " was"], (), "cats")


def test_quoted_newlines_and_separators_inside_a_text(words: Any, tmp_path: Path) -> None:
    csv = HEADER + '"The\ncat","The\ncats", is, are\nThe cat,The cats, is, is'
    with pytest.raises(DataFileError, match=r"b\.csv, line 5: ' is' is listed both"):
        from_file(words, _write(tmp_path, "b.csv", csv))
    (pair,) = from_file(words, _write(tmp_path, "c.csv", csv.rsplit("\n", 1)[0])).pairs
    assert pair.clean_text == "The\ncat"


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", LINE), ("b.csv", HEADER + "The cat,The cats, is, are")])
def test_only_newlines_end_a_line(words: Any, tmp_path: Path, name: str, text: str) -> None:
    text = text.replace("The cat", "The\u2028cat")
    (pair,) = from_file(words, _write(tmp_path, name, text)).pairs
    assert pair.clean_text == "The\u2028cat"


def test_metric(words: Any, tmp_path: Path) -> None:
    path = _write(tmp_path, "a.jsonl", LINE)
    assert from_file(words, path, "prob_diff").unit == "probability"
    with pytest.raises(UnknownNameError, match="no metric 'acuracy'"):
        from_file(words, path, metric="acuracy")


def _with(**changes: Any) -> str:
    """A good line, a blank one, and a third that differs by `changes`."""
    return f"{LINE}\n\n{json.dumps({k: v for k, v in (GOOD | changes).items() if v != 'gone'})}\n"


BAD_FILES = {
    "suffix": ("a.txt", LINE, "a.txt: expected a file that ends in .jsonl, .json-lines, .csv, got '.txt'"),
    "no suffix": ("pairs", LINE, "got ''"),
    "empty": ("a.jsonl", "", "a.jsonl: the file is empty; it needs at least one row with the columns 'clean'"),
    "blank": ("a.jsonl", "\n \n", "the file is empty"),
    "empty csv": ("a.csv", "\ufeff\n", "the file is empty"),
    "only a header": ("a.csv", HEADER, "the file is empty"),
    "not utf-8": ("a.csv", HEADER.encode() + b"\xff\xfe", "a.csv, line 2: not UTF-8 text"),
    "malformed": ("a.jsonl", LINE + "\n{'clean': 1}", "a.jsonl, line 2: not valid JSON (Expecting property name"),
    "deep": ("a.jsonl", "[" * 200000, "a.jsonl, line 1: not usable JSON"),
    "no object": (
        "a.jsonl",
        '[" is"]',
        "line 1: expected an object with 'clean', 'corrupted', 'answer', 'wrong', got a list",
    ),
    "a number": ("a.jsonl", "12", "got the number 12"),
    "missing": ("a.jsonl", _with(wrong="gone"), "line 3: missing 'wrong'; found 'clean', 'corrupted', 'answer'."),
    "near": (
        "a.csv",
        "clean,corupted,answer,wrong\n",
        (
            "line 1: missing 'corrupted'; found 'clean', 'corupted', 'answer', 'wrong'. "
            "Did you mean 'corrupted' where it says 'corupted'?"
        ),
    ),
    "no header": (
        "a.csv",
        "The cat,The cats, is, are\n",
        "line 1: missing 'clean', 'corrupted', 'answer', 'wrong'; found 'The cat', 'The cats', 'is', 'are'",
    ),
    "nothing": ("a.jsonl", "{}", "found nothing"),
    "prompt type": ("a.jsonl", _with(clean=["The"]), "line 3: clean must be text, got a list"),
    "answer type": ("a.jsonl", _with(answer=5), "line 3: answer must be text or a list of texts, got the number 5"),
    "item type": ("a.jsonl", _with(wrong=[" are", None]), "line 3: wrong must be text or a list of texts, got null"),
    "object answer": ("a.jsonl", _with(answer={}), "got an object"),
    "true": ("a.jsonl", _with(corrupted=True), "corrupted must be text, got true or false"),
    "template type": ("a.jsonl", _with(template=7), "template must be text, got the number 7"),
    "surrogate": ("a.jsonl", _with(clean="\ud800 cat"), "line 3: clean holds half of a surrogate pair"),
    "lengths": (
        "a.jsonl",
        _with(corrupted="The big cats"),
        (
            "line 3: the two prompts must have the same number of tokens, got 2 and 3.\n"
            "  clean     The| cat\n  corrupted The| big| cats"
        ),
    ),
    "long answer": (
        "a.jsonl",
        _with(answer=" is not"),
        "line 3: the answer ' is not' must be one token, got 2:  is| not",
    ),
    "long wrong": (
        "a.csv",
        HEADER + "The cat,The cats, is,are not",
        "line 2: the wrong answer 'are not' must be one token",
    ),
    "same": ("a.jsonl", _with(corrupted="The cat"), "line 3: clean and corrupted prompt are the same"),
    "no answer": ("a.jsonl", _with(answer=[]), "line 3: there is no answer"),
    "empty answer": ("a.csv", HEADER + "The cat,The cats,, are", "line 2: the answer is empty"),
    "empty prompt": ("a.csv", HEADER + ",The cats, is, are", "line 2: the clean prompt '' has no tokens"),
    "too few cells": (
        "a.csv",
        HEADER + "The cat,The cats, is",
        "line 2: expected 4 cells (clean, corrupted, answer, wrong), got 3",
    ),
    "too many cells": (
        "a.csv",
        HEADER + "\nWell, yes,no, is, are",
        "line 3: expected 4 cells (clean, corrupted, answer, wrong), got 5. A text with",
    ),
    "open quote": ("a.csv", HEADER + '"The cat,The cats, is, are', "line 2: not valid CSV"),
    "bad list": (
        "a.csv",
        HEADER + "The cat,The cats,[is, are",
        "line 2: answer starts with [ but is not a JSON list: '[is'",
    ),
}


@pytest.mark.parametrize(("name", "text", "part"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files(words: Any, tmp_path: Path, name: str, text: str | bytes, part: str) -> None:
    path = _write(tmp_path, name, text)
    with pytest.raises(DataFileError) as caught:
        from_file(words, path)
    assert part in str(caught.value)
    assert str(caught.value).startswith(str(path))


def test_missing_file_and_folder(words: Any, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"none\.csv: there is no such file"):
        from_file(words, tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataFileError, match=r"folder\.csv: cannot be read"):
        from_file(words, tmp_path / "folder.csv")


@pytest.mark.slow
def test_real_tokenizer_shows_both_tokenisations(smollm2: Any, tmp_path: Path) -> None:
    row = {"clean": "The capital of France is", "corrupted": "The capital of Liechtenstein is"}
    path = _write(tmp_path, "a.jsonl", json.dumps(row | {"answer": " Paris", "wrong": " Rome"}))
    with pytest.raises(
        DataFileError, match=r"line 1.*got 5 and \d+.*\n.*The\| capital\| of\| France\| is\n.*The\| capital"
    ):
        from_file(smollm2, path)


TWICE = {"clean": "Ann saw Bob and Bob saw", "corrupted": "Ann saw Bob and Ann saw", "answer": " Ann", "wrong": " Bob"}
ROLES = {"IO": "Ann", "S1": "Bob", "S2": ["Bob", 2], "verb": -1, "first": 0}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_roles_name_tokens_of_the_clean_prompt(words: Any, tmp_path: Path, suffix: str) -> None:
    cells = ",".join(TWICE.values()) + ',"' + json.dumps(ROLES).replace('"', '""') + '"\n'
    text = json.dumps(TWICE | {"roles": ROLES}) if suffix == "jsonl" else f"{HEADER.strip()},roles\n{cells}"
    (pair,) = from_file(words, _write(tmp_path, f"a.{suffix}", text)).pairs
    texts = {name: words.decode([pair.clean[at]]).strip() for name, at in pair.roles.items()}
    assert texts == {"IO": "Ann", "S1": "Bob", "S2": "Bob", "verb": "saw", "first": "Ann", "end": "saw"}
    assert (pair.roles["S1"], pair.roles["S2"], pair.roles["verb"]) == (2, 4, 5)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"S1": "Eve"}, "line 1: role 'S1': 'Eve' does not occur 1 times"),
        ({"S1": ["Bob", 3]}, "does not occur 3 times"),
        ({"S1": 9}, "position 9 is outside the clean prompt of 6 tokens"),
        ({"S1": None}, "expected a position, a text or"),
        ([1], "roles must be an object"),
        ("S1", "roles must be a JSON object, got 'S1'"),
    ],
)
def test_roles_that_name_nothing(words: Any, tmp_path: Path, roles: Any, message: str) -> None:
    path = _write(tmp_path, "a.jsonl", json.dumps(TWICE | {"roles": roles}))
    with pytest.raises(DataFileError, match=message):
        from_file(words, path)


def test_rows_in_memory_make_the_task_that_a_file_makes(words: Any, tmp_path: Path) -> None:
    read = from_file(words, _write(tmp_path, "a.jsonl", LINE), name="mine")
    made = from_pairs(words, [json.loads(LINE)], name="mine")
    assert made.pairs == read.pairs and made.name == read.name == "mine" and made.source == "memory"
    for rows, message in (
        ([json.loads(LINE), {"clean": "a"}], r"row 1: missing 'corrupted', 'answer', 'wrong'"),
        ([json.loads(LINE), 7], "row 1: expected a mapping .* got int"),
        ([json.loads(LINE) | {"answer": 3}], "row 0: answer must be text"),
        ([], "no prompt pairs"),
    ):
        with pytest.raises(TaskError, match=message):
            from_pairs(words, rows)
