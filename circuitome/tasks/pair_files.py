"""Prompt pairs from a file of the user."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

from circuitome.errors import DataFileError, TaskError
from circuitome.tasks.long_answers import make_pairs, metric_of_rows
from circuitome.tasks.metrics import Metric
from circuitome.tasks.task import Pair, Task, Tokens, make_pair

COLUMNS = ("clean", "corrupted", "answer", "wrong")
WHOLE = "answer_log_prob"
"""The metric that scores answers of several tokens."""
SUFFIXES = (".jsonl", ".json-lines", ".csv")

Row = tuple[str, Mapping[str, Any]]
"""Where a row is, e.g. "pairs.csv, line 3", and its cells by column."""


def from_file(
    model: Tokens, path: str | Path, metric: "str | Metric" = "logit_diff", *, name: str = "", aligned: bool = True
) -> Task:
    """Prompt pairs from a JSONL or CSV file with the columns clean, corrupted, answer and wrong.

    {"clean": "The capital of France is", "corrupted": "The capital of Italy is", "answer": " Paris", "wrong": " Rome"}

    Texts are used exactly as written: mind the leading space of an answer. Several answers are a JSON list, or in CSV
    also cells such as " is| was"; [] in `wrong` means none. A column `template` groups prompts whose positions mean the
    same. A column `roles` names tokens of the clean prompt, for methods that look at positions: a JSON object such as
    {"S1": "John", "S2": ["John", 2], "verb": -4}, where a text stands for its last token, [text, k] for its k-th
    occurrence, and a number for a position, which may count from the end. A column `corrupted_roles` names the same
    roles in the corrupted prompt, for the ablation by-role. Other columns are ignored. The task is called
    `name`, or like the file; the role "end" is always there. Answers are one token each, unless the metric is
    "answer_log_prob": log p(answer) - log p(wrong answer), in nats. A pair then becomes several rows; see
    `circuitome.tasks.long_answers`.
    Unless `aligned`, the prompts of a pair may differ in length; then only zero, mean and by-role ablation can be used.
    Raises `DataFileError`, with file and line, for what cannot be used, and `UnknownNameError` for the metric.

    >>> import json
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> model, path = cm.load("known-ioi"), Path(mkdtemp()) / "names.jsonl"
    >>> row = {"clean": "Ann and Bob met then Bob gave to", "corrupted": "Ann and Bob met then Ann gave to"}
    >>> size = path.write_text(json.dumps({**row, "answer": "Ann", "wrong": "Bob"}))
    >>> cm.tasks.from_file(model, path)
    Task('names', 1 prompt pairs, metric logit diff in logits)
    """
    path = Path(path)
    whole = metric == WHOLE
    pairs = [pairs_of(model, where, row, aligned=aligned, whole=whole) for where, row in rows_of(path)]
    if not pairs:
        raise DataFileError(f"{path}: the file is empty; it needs at least one row with the columns {_list(COLUMNS)}.")
    return _task(name or path.stem, pairs, metric, path.name)


def from_pairs(
    model: Tokens,
    rows: Iterable[Any],
    metric: "str | Metric" = "logit_diff",
    *,
    name: str = "pairs",
    aligned: bool = True,
) -> Task:
    """A task from rows in memory: mappings with the columns of `from_file`, or a pandas DataFrame.

    >>> model = cm.load("known-ioi")
    >>> clean, corrupted = "Ann and Bob met then Bob gave to", "Ann and Bob met then Ann gave to"
    >>> rows = [{"clean": clean, "corrupted": corrupted, "answer": "Ann", "wrong": "Bob"}]
    >>> task = cm.tasks.from_pairs(model, rows, name="names")
    >>> task.name, len(task), task.unit
    ('names', 1, 'logits')

    Raises `TaskError`, with the number of the row from 0, for what cannot be used, and `UnknownNameError` for the
    metric.
    """
    records = rows.to_dict("records") if hasattr(rows, "to_dict") else list(rows)
    pairs = list[list[Pair]]()
    for number, row in enumerate(records):
        where = f"row {number}"
        if not isinstance(row, Mapping):
            raise TaskError(f"{where}: expected a mapping with {_list(COLUMNS)}, got {type(row).__name__}.")
        _check_columns(where, row)
        pairs.append(pairs_of(model, where, row, aligned=aligned, whole=metric == WHOLE))
    return _task(name, pairs, metric, "memory")


def _task(name: str, pairs: Sequence[Sequence[Pair]], metric: "str | Metric", source: str) -> Task:
    """The task of all rows that the given ones became: where answers have several tokens, those are more."""
    rows = [pair for several in pairs for pair in several]
    if len(rows) == len(pairs):
        return Task(name, tuple(rows), metric, source=source)
    marked = [
        pair if pair.template else replace(pair, template=f"pair {number}")
        for number, several in enumerate(pairs)
        for pair in several
    ]
    return Task(name, tuple(marked), metric_of_rows(len(rows), len(pairs)), source=source)


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file, each with its place. Raises `DataFileError` for a file that cannot be read as rows."""
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


def pairs_of(
    model: Tokens, where: str, row: Mapping[str, Any], *, aligned: bool = True, whole: bool = False
) -> list[Pair]:
    """The pair of one row, or with `whole`, for answers of several tokens, the rows of `make_pairs`.

    `where` starts each message.
    Raises `DataFileError` for a row that cannot be used.
    """
    clean, corrupted = (_text(where, name, row[name]) for name in ("clean", "corrupted"))
    answers, wrongs = (_texts(where, name, row[name]) for name in ("answer", "wrong"))
    template = _text(where, "template", row.get("template") or "")
    try:
        roles = _roles(model, where, row.get("roles") or {}, clean)
        options: dict[str, Any] = {"template": template, "roles": roles, "where": where, "aligned": aligned}
        if whole:
            return make_pairs(model, clean, corrupted, answers, wrongs, **options)
        options["corrupted_roles"] = _roles(model, where, row.get("corrupted_roles") or {}, corrupted)
        return [make_pair(model, clean, corrupted, answers, wrongs, **options)]
    except TaskError as error:
        raise DataFileError(str(error)) from None


def _roles(model: Tokens, where: str, value: Any, clean: str) -> dict[str, int]:
    """Positions of named tokens in the clean prompt."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            raise DataFileError(f"{where}: roles must be a JSON object, got {value[:40]!r}.") from None
    if not isinstance(value, dict):
        raise DataFileError(f"{where}: roles must be an object from names to tokens, got {_kind(value)}.")
    ids = model.encode(clean) if value else []
    return {name: _position(model, f"{where}: role {name!r}", place, clean, ids) for name, place in value.items()}


def _position(model: Tokens, where: str, place: Any, clean: str, ids: list[int]) -> int:
    """The token that a number, a text or the k-th occurrence of a text stands for."""
    if isinstance(place, int) and not isinstance(place, bool):
        if not -len(ids) <= place < len(ids):
            raise DataFileError(f"{where}: position {place} is outside the clean prompt of {len(ids)} tokens.")
        return place % len(ids)
    text, count = place if isinstance(place, list) and len(place) == 2 else (place, 1)
    if not isinstance(text, str) or not text or not isinstance(count, int) or count < 1:
        raise DataFileError(
            f"{where}: expected a position, a text or [text, occurrence], got {json.dumps(place)[:60]}."
        )
    end = 0
    for _ in range(count):
        start = clean.find(text, end)
        if start < 0:
            raise DataFileError(f"{where}: {text!r} does not occur {count} times in {clean!r}.")
        end = start + len(text)
    whole = model.decode(ids)
    if not whole.endswith(clean):
        raise DataFileError(f"{where}: this tokenizer does not give the prompt back as written; give a position.")
    end += len(whole) - len(clean)  # what the tokenizer puts in front
    return next(i for i in range(len(ids)) if len(model.decode(ids[: i + 1])) >= end)


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
