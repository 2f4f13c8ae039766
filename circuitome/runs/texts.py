"""Texts that a run reads: a file of the user's, with labels or without, or the prose that comes with the package."""

import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from circuitome.errors import DataFileError
from circuitome.heads.long_context.needles import own_text
from circuitome.runs.parquet import read_rows

OWN = "the package's own prose"
TABLES = (".jsonl", ".csv", ".parquet")
"""Files with a text a row, in the column `text`."""


def read_text(path: str | None) -> str:
    """The text of a file, or the package's own. Raises `DataFileError` for a file that holds no text."""
    if path is None:
        return own_text()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataFileError(f"The text {path} cannot be read: {reason}. Give a UTF-8 file of plain text.") from error
    if not text.strip():
        raise DataFileError(f"The text {path} is empty. Give a file with some text.")
    return text


def documents(path: str | None) -> list[str]:
    """The texts of a file, of all files below a folder, or of the standard input ("-"); None: the package's own.

    A .txt file is one text; .jsonl, .csv and .parquet files have one a row, in the column `text`. Raises
    `DataFileError`, with file and line, for what cannot be read and for a folder without such files.
    """
    if path is None or (path != "-" and Path(path).suffix.lower() not in TABLES and not Path(path).is_dir()):
        return [read_text(path)]
    if path == "-":
        try:
            return [text for text in [sys.stdin.buffer.read().decode()] if text.strip()]
        except UnicodeDecodeError as error:
            raise DataFileError(f"The standard input is not UTF-8 text ({error.reason}).") from None
    if not Path(path).is_dir():
        return read_texts(Path(path), None)[0]
    files = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in (".txt", *TABLES))
    if not files:
        raise DataFileError(f"The folder {path} holds no .txt, .jsonl, .csv or .parquet file. Give one with texts.")
    return [text for file in files for text in documents(str(file))]


def by_name(folder: str) -> dict[str, list[str]]:
    """Texts of each file and folder inside of a folder, by its name without suffix. Raises as `documents`."""
    if not Path(folder).is_dir():
        raise DataFileError(
            f"{folder or 'The folder of texts'} is no folder. Give one with a file or folder a language."
        )
    entries = sorted(entry for entry in Path(folder).iterdir() if not entry.name.startswith("."))
    return {entry.stem if entry.is_file() else entry.name: documents(str(entry)) for entry in entries}


def text_hash(*texts: str) -> str:
    """BLAKE2 over texts."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode())
    return digest.hexdigest()


def read_texts(path: Path, by: str | None) -> tuple[list[str], list[str] | None]:
    """Texts of a file and their labels in column `by`. Raises `DataFileError`, with file and line."""
    if path.suffix.lower() == ".parquet":
        rows = [(f"{path}, row {n}", row) for n, row in enumerate(read_rows(path, ("text", by or "text")), 1)]
    else:
        rows = _rows(path, _decoded(path))
    if not rows:
        raise DataFileError(f"{path}: the file is empty; it needs at least one text.")
    for where, row in rows:
        for column in ("text", *([by] if by else [])):
            if not isinstance(row.get(column), str) or not row[column]:
                known = ", ".join(repr(name) for name in row)
                raise DataFileError(f"{where}: there is no {column!r} (or it is no text); found {known}.")
    return [row["text"] for _, row in rows], [row[by] for _, row in rows] if by else None


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: not UTF-8 text ({error.reason}). Save the file as UTF-8.") from None


def _rows(path: Path, raw: str) -> list[tuple[str, dict[str, Any]]]:
    """Where each row is, and its cells by column."""
    suffix, lines = path.suffix.lower(), list(enumerate(raw.splitlines(), 1))
    if suffix == ".txt":
        return [(f"{path}, line {n}", {"text": line}) for n, line in lines if line.strip()]
    if suffix == ".csv":
        reader = csv.DictReader(raw.splitlines(keepends=True))
        return [(f"{path}, line {reader.line_num}", dict(row)) for row in reader]
    if suffix != ".jsonl":
        raise DataFileError(
            f"{path}: expected a file that ends in .txt, .jsonl, .csv or .parquet, got {path.suffix!r}."
        )
    rows = []
    for n, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFileError(f"{path}, line {n}: not valid JSON ({error.msg} at column {error.colno}).") from None
        if not isinstance(row, dict):
            raise DataFileError(f"{path}, line {n}: expected an object with 'text', got {str(row)[:40]}.")
        rows.append((f"{path}, line {n}", row))
    return rows
