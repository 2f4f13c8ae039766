"""Texts that a run reads: a file of the user's, with labels or without, or the prose that comes with the package."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from circuitome.errors import DataFileError
from circuitome.heads.long_context.needles import own_text
from circuitome.runs.corpora import SUFFIXES, Row, corpus, files_of, pieces, plain_text

OWN = "the package's own prose"


def read_text(path: str | None) -> str:
    """The text of a file, or the package's own. Raises `DataFileError` for a file that holds no text."""
    return own_text() if path is None else plain_text(path)


def documents(path: str | None) -> list[str]:
    """All texts of a source, in the order of its files; see `corpora.corpus` for what can be read.

    Raises `DataFileError`, with file and line, for what cannot be read and for a folder without such files.
    """
    return list(each_document(path))


def each_document(path: str | None) -> Iterator[str]:
    """The texts that `documents` gives, read piece by piece. Raises as it does."""
    return (text for *_, text in corpus(path).texts())


@dataclass(frozen=True)
class Documents:
    """The texts of a source, read anew, piece by piece, each time that somebody goes through them."""

    path: str | None
    """As in `documents`."""

    def __iter__(self) -> Iterator[str]:
        return each_document(self.path)


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
    return HashedTexts(texts).hexdigest()


class HashedTexts:
    """Texts that are read one after another, and the hash over those that were read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts
        self.digest: hashlib.blake2b | None = None

    def __iter__(self) -> Iterator[str]:
        self.digest = hashlib.blake2b(digest_size=16)
        for text in self.texts:
            self.digest.update(len(text).to_bytes(8, "big") + text.encode())
            yield text

    def hexdigest(self) -> str:
        """What `text_hash` gives of them; they are read for it where nobody has read them yet."""
        if self.digest is None:
            for _ in self:
                pass
        assert self.digest is not None
        return self.digest.hexdigest()


def read_texts(path: Path, by: str | None) -> tuple[list[str], list[str] | None]:
    """Texts of a file, of a .txt file its lines, and their labels in column `by`.

    Raises `DataFileError`, with file and line.
    """
    [path] = files_of(path) if not path.is_dir() else [path]
    if path.is_dir() or not path.name.lower().endswith(SUFFIXES):
        kinds = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise DataFileError(f"{path}: expected a file that ends in {kinds}, got {path.suffix!r}.")
    rows = [row for piece in pieces(path, ("text", by or "text")) for row in _rows(path, piece.rows())]
    for where, row in rows:
        for column in ("text", *([by] if by else [])):
            if not isinstance(row.get(column), str) or not row[column]:
                known = ", ".join(repr(name) for name in row)
                raise DataFileError(f"{where()}: there is no {column!r} (or it is no text); found {known}.")
    return [row["text"] for _, row in rows], [row[by] for _, row in rows] if by else None


def _rows(path: Path, rows: Iterable[Row]) -> Iterable[Row]:
    """The rows of a piece; those of a .txt file are its lines."""
    if path.suffix.lower() != ".txt":
        return rows
    lines = ((n, line) for _, row in rows for n, line in enumerate(row["text"].splitlines(), 1) if line.strip())
    return ((partial("{}, line {}".format, path, n), {"text": line}) for n, line in lines)
