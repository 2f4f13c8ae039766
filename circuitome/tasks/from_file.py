"""Prompt pairs from a file of the user."""

import csv
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from circuitome.errors import DataFileError, TaskError
from circuitome.tasks.task import Pair, Task, Tokens, make_pair

COLUMNS = ("clean", "corrupted", "answer", "wrong")
SUFFIXES = (".jsonl", ".json-lines", ".csv")

Row = tuple[str, Mapping[str, Any]]
"""Where a row is, e.g. "pairs.csv, line 3", and its cells by column."""


def from_file(model: Tokens, path: str | Path, metric: str = "logit_diff", *, aligned: bool = True) -> Task:
    """Prompt pairs from a JSONL or CSV file with the columns clean, corrupted, answer and wrong.

    {"clean": "The capital of France is", "corrupted": "The capital of Italy is", "answer": " Paris", "wrong": " Rome"}

    Texts are used exactly as written: mind the leading space of an answer. Several answers are a JSON list, or in CSV
    also cells such as " is| was"; [] in `wrong` means none. A column `template` groups prompts whose positions mean the
    same; other columns are ignored. The task is called like the file; its roles are just "end".
    Unless `aligned`, the prompts of a pair may differ in length; then only zero and mean ablation can be used.
    Raises `DataFileError`, with file and line, for what cannot be used, and `UnknownNameError` for the metric.
    """
    path = Path(path)
    pairs = tuple(_pair(model, where, row, aligned) for where, row in _rows(path))
    if not pairs:
        raise DataFileError(f"{path}: the file is empty; it needs at least one row with the columns {_list(COLUMNS)}.")
    return Task(path.stem, pairs, metric, source=path.name)


def _rows(path: Path) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataFileError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, got {path.suffix!r}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataFileError(f"{path}: there is no such file.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataFileError(f"{path}, line {line}: not UTF-8 text ({error.reason}). Save the file as UTF-8.") from None
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror}).") from None
    return _csv_rows(path, text) if suffix == ".csv" else _json_rows(path, text)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFileError(f"{where}: not valid JSON ({error.msg} at column {error.colno}).") from None
        except RecursionError:
            raise DataFileError(f"{where}: not usable JSON (nested too deep).") from None
        if not isinstance(row, dict):
            raise DataFileError(f"{where}: expected an object with {_list(COLUMNS)}, got {_kind(row)}.")
        _check_columns(where, row)
        yield where, row


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    start = 1
    try:
        for cells in reader:
            where, start = f"{path}, line {start}", reader.line_num + 1
            if not "".join(cells).strip():
                continue
            if header is None:
                header = [name.strip() for name in cells]
                _check_columns(where, dict.fromkeys(header))
            elif len(cells) != len(header):
                raise DataFileError(
                    f"{where}: expected {len(header)} cells ({', '.join(header)}), got {len(cells)}. "
                    "A text with a comma in it needs double quotes around it."
                )
            else:
                row: dict[str, Any] = dict(zip(header, cells, strict=True))
                yield where, row | {name: _cell(where, name, row[name]) for name in ("answer", "wrong")}
    except csv.Error as error:
        raise DataFileError(f"{path}, line {start}: not valid CSV ({error}).") from None


def _cell(where: str, name: str, cell: str) -> Any:
    """One text or, from a JSON list or from texts with | between them, several."""
    if not cell.startswith("["):
        return cell.split("|") if "|" in cell else cell
    try:
        return json.loads(cell)
    except (json.JSONDecodeError, RecursionError):
        raise DataFileError(f"{where}: {name} starts with [ but is not a JSON list: {cell!r}.") from None


def _check_columns(where: str, found: Mapping[str, Any]) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if not missing:
        return
    near = [hit for name in missing for hit in get_close_matches(name, set(found) - set(COLUMNS), n=1, cutoff=0.6)]
    hint = f" Did you mean {missing[0]!r} where it says {near[0]!r}?" if len(missing) == 1 and near else ""
    raise DataFileError(f"{where}: missing {_list(missing)}; found {_list(found) or 'nothing'}.{hint}")


def _pair(model: Tokens, where: str, row: Mapping[str, Any], aligned: bool) -> Pair:
    clean, corrupted = (_text(where, name, row[name]) for name in ("clean", "corrupted"))
    answers, wrongs = (_texts(where, name, row[name]) for name in ("answer", "wrong"))
    template = _text(where, "template", row.get("template") or "")
    try:
        return make_pair(model, clean, corrupted, answers, wrongs, template=template, where=where, aligned=aligned)
    except TaskError as error:
        raise DataFileError(str(error)) from None


def _texts(where: str, name: str, value: Any) -> list[str]:
    return [_text(where, name, item) for item in (value if isinstance(value, list) else [value])]


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        either = " or a list of texts" if name in ("answer", "wrong") else ""
        raise DataFileError(f"{where}: {name} must be text{either}, got {_kind(value)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise DataFileError(f"{where}: {name} holds half of a surrogate pair, which is no character.")
    return value


def _kind(value: Any) -> str:
    """A JSON value as people call it, with the value itself where it is short."""
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value)) or f"{'text' if isinstance(value, str) else 'the number'} {str(value)[:40]}"


def _list(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names)
