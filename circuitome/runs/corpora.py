"""Texts of any size, read piece by piece: .txt, .jsonl, .jsonl.zst, .csv, Parquet, folders, Hugging Face data sets.

A corpus is a list of pieces: a file, a stretch of lines, a row group of Parquet, a part of a data set. Where its texts
are read in random order, the order of the pieces is drawn; a place in it is a piece and how many of its texts were
read, so that reading goes on there without the pieces before. Of a compressed file, which cannot be entered in the
middle, the whole is one piece.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from circuitome.errors import DataFileError, InputError, unknown_name
from circuitome.heads.long_context.needles import own_text
from circuitome.runs.parquet import opened_parquet

Where = Callable[[], str]
"""Says where a row is: counting lines is left until somebody asks."""
Row = tuple[Where, dict[str, Any]]
"""Where a row is, and its cells by column."""
Place = tuple[int, int]
"""A piece, by its place in the order that is read, and how many of its texts were read."""
SUFFIXES = (".txt", ".jsonl", ".jsonl.zst", ".csv", ".parquet")
"""Of files with texts."""
STORED = "hf:"
"""What the name of a Hugging Face data set begins with here."""
COLUMNS = ("text", "content", "document", "body", "passage")
"""Names of the column with the texts, where nobody says; the first that there is."""
STRETCH, ROWS = 1 << 20, 1000
"""Bytes of a piece of lines, and rows of a piece of a data set."""
RATIO = 4
"""Bytes of text in a byte that is compressed, about."""
CHUNK, WINDOW = 1 << 16, 1 << 31
"""Compressed bytes that are read at a time, and the largest window of Zstandard that is taken."""


@dataclass(frozen=True)
class Piece:
    """A part of a corpus."""

    rows: Callable[[], Iterable[Row]]
    """Reads its rows."""
    size: int
    """About how many bytes of text it holds; 0 where that is not known."""


@dataclass(frozen=True)
class Corpus:
    """Texts, in pieces."""

    pieces: Sequence[Piece]
    """All of them, in the order of the files."""
    column: str | None = None
    """The column with the texts; None: the first of `COLUMNS` that there is."""
    files: tuple[tuple[str, int, int], ...] = ()
    """Name, size and time of each file."""

    @property
    def size(self) -> int:
        """About how many bytes of text there are."""
        return sum(piece.size for piece in self.pieces)

    def texts(self, seed: int | None = None, start: Place = (0, 0)) -> Iterator[tuple[Place, Place, str]]:
        """Texts that are not empty, each with the place behind it and where it stands in the corpus.

        With a seed, pieces come in random order.

        Raises `DataFileError`, with file and line or row, for what cannot be read.
        """
        order = list(range(len(self.pieces)))
        if seed is not None:
            Random(seed).shuffle(order)
        for at in range(start[0], len(order)):
            before = start[1] if at == start[0] else 0
            for number, (where, row) in enumerate(self.pieces[order[at]].rows(), 1):
                if number > before and (text := cell(where, row, self.column)).strip():
                    yield (at, number), (order[at], number), text


def corpus(source: str | None) -> Corpus:
    """The texts of a file, of all files below a folder, of the standard input ("-") or of a data set; None: our own.

    A .txt file is one text; others have one a row, in the column `text` or one of `COLUMNS`, or in that which #COLUMN
    behind the name says. `hf:NAME[:CONFIG][:SPLIT]` is a Hugging Face data set, which is streamed, or the folder of
    one that was saved. Raises `DataFileError` for what is not there, `InputError` for a package that is not installed.
    """
    if source is None or source == "-":
        size = len(own_text()) if source is None else 0
        return Corpus([Piece(lambda: [(str, {"text": own_text() if source is None else _standard_input()})], size)])
    path, _, column = source.rpartition("#")
    if not path or Path(source).exists():
        path, column = source, ""
    if path.startswith(STORED):
        return Corpus(_stored(path), column or None)
    files, columns = files_of(Path(path)), (column,) if column else COLUMNS
    about = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return Corpus([piece for file in files for piece in pieces(file, columns)], column or None, about)


def files_of(path: Path) -> list[Path]:
    """A file, or all files with texts below a folder, by name. Raises `DataFileError`."""
    if not path.is_dir():
        try:
            path.stat()
        except OSError as error:
            raise DataFileError(f"{path}: cannot be read ({error.strerror or error}).") from None
        return [path]
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.lower().endswith(SUFFIXES))
    if not files:
        kinds = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        raise DataFileError(f"The folder {path} holds no {kinds} file. Give one with texts.")
    return files


def pieces(path: Path, columns: Sequence[str] = COLUMNS) -> list[Piece]:
    """A file in pieces; of Parquet those of `columns` that it has, else all. Another suffix is read as plain text.

    Raises `DataFileError` for an empty file and for what is no Parquet file.
    """
    name, size = path.name.lower(), path.stat().st_size
    if not size:
        raise DataFileError(f"{path}: the file is empty; it needs at least one text.")
    if name.endswith(".parquet"):
        return _row_groups(path, columns)
    if name.endswith((".zst", ".csv")):
        read, times = (_compressed, RATIO) if name.endswith(".zst") else (_table, 1)
        return [Piece(partial(read, path), times * size)]
    if name.endswith(".jsonl"):
        ends = [*range(0, size, STRETCH), size]
        return [Piece(partial(_lines, path, a, b), b - a) for a, b in pairwise(ends)]
    return [Piece(lambda: [(lambda: str(path), {"text": plain_text(path)})], size)]


def cell(where: Where, row: dict[str, Any], column: str | None) -> str:
    """The text of a row. Raises `DataFileError` for a column that is not there or holds no text."""
    name = column or next((name for name in COLUMNS if name in row), "text")
    if isinstance(text := row.get(name), str):
        return text
    known = ", ".join(map(repr, row))
    if name in row:
        raise DataFileError(f"{where()}: the column {name!r} holds {type(text).__name__}, no text. Columns: {known}.")
    if column:
        raise DataFileError(f"{where()}: {unknown_name('column', name, row)}")
    raise DataFileError(
        f"{where()}: there is no {name!r} (or other column of texts); found {known}. Name the column: FILE#COLUMN."
    )


def plain_text(path: str | Path) -> str:
    """The text of a file. Raises `DataFileError` for a file that cannot be read or holds none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataFileError(f"The text {path} cannot be read: {reason}. Give a UTF-8 file of plain text.") from error
    if not text.strip():
        raise DataFileError(f"The text {path} is empty. Give a file with some text.")
    return text


def _standard_input() -> str:
    return _read_once(sys.stdin)


@cache
def _read_once(stream: Any) -> str:
    """The whole of a stream that can be read only once, as often as it is asked for."""
    try:
        return stream.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise DataFileError(f"The standard input is not UTF-8 text ({error.reason}).") from None


def _lines(path: Path, start: int, stop: int) -> Iterator[Row]:
    """The rows of lines that begin in a stretch of a .jsonl file."""
    with path.open("rb") as file:
        file.seek(max(0, start - 1))
        if start:
            file.readline()  # of the stretch before, unless it ends where this one begins
        at = file.tell()
        while at < stop and (line := file.readline()):
            if line.strip():
                yield _json_row(partial(_at_byte, path, at), line)
            at += len(line)


def _at(path: Path | str, what: str, number: int) -> str:
    return f"{path}, {what} {number}"


def _at_byte(path: Path, offset: int) -> str:
    """File and number of the line that begins at an offset."""
    with path.open("rb") as file:
        number = 1 + sum(file.read(min(STRETCH, offset - at)).count(b"\n") for at in range(0, offset, STRETCH))
    return _at(path, "line", number)


def _json_row(where: Where, line: bytes) -> Row:
    """The row of a line. Raises `DataFileError` for what is no JSON object."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        reason = f"not valid JSON ({error.msg} at column {error.colno})"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 text ({error.reason})"
    else:
        if isinstance(row, dict):
            return where, row
        reason = f"expected an object with 'text', got {str(row)[:40]}"
    raise DataFileError(f"{where()}: {reason}.")


def _table(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                yield partial(_at, path, "line", reader.line_num), dict(row)
        except UnicodeDecodeError as error:
            raise DataFileError(f"{path}: not UTF-8 text ({error.reason}). Save the file as UTF-8.") from None
        except csv.Error as error:
            raise DataFileError(f"{path}, line {reader.line_num}: {error}.") from None


def _compressed(path: Path) -> Iterator[Row]:
    rest, number = b"", 0
    for part in _decompressed(path):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                yield _json_row(partial(_at, path, "line", number), line)
    if rest.strip():
        yield _json_row(partial(_at, path, "line", number + 1), rest)


def _decompressed(path: Path) -> Iterator[bytes]:
    """What a file of Zstandard frames holds. Raises `DataFileError` for one that is damaged or cut off."""
    try:
        import zstandard
    except ImportError:
        raise InputError(f"Reading {path} needs zstandard: pip install 'circuitome[data]'.") from None
    frame = None
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
                try:
                    yield frame.decompress(chunk)
                except zstandard.ZstdError as error:
                    raise DataFileError(f"{path}: damaged near byte {file.tell():,} ({error}).") from None
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise DataFileError(f"{path}: cut off; the last Zstandard frame has no end. Get the file again.")


def _row_groups(path: Path, columns: Sequence[str]) -> list[Piece]:
    about, found, start = opened_parquet(path).metadata, list[Piece](), 0
    for number in range(about.num_row_groups):
        group = about.row_group(number)
        found.append(Piece(partial(_row_group, path, number, start, columns), group.total_byte_size))
        start += group.num_rows
    return found


def _row_group(path: Path, number: int, start: int, columns: Sequence[str]) -> Iterator[Row]:
    file = opened_parquet(path)
    names = [name for name in file.schema_arrow.names if name in columns] or None
    try:
        for batch in file.iter_batches(row_groups=[number], columns=names):
            for row in batch.to_pylist():
                start += 1
                yield partial(_at, path, "row", start), row
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise DataFileError(f"{path}: row group {number} is damaged ({str(error).splitlines()[0]}).") from None


def _stored(name: str) -> list[Piece]:
    """The pieces of a Hugging Face data set."""
    data = _data_set(name.removeprefix(STORED))
    if hasattr(data, "shard") and not hasattr(data, "num_rows"):  # streamed
        count = data.num_shards
        return [Piece(partial(_rows_of, name, partial(data.shard, count, i), 0), 0) for i in range(count)]
    starts = range(0, data.num_rows, ROWS)
    each = (data.dataset_size or 0) // max(1, len(starts))
    return [
        Piece(partial(_rows_of, name, partial(data.select, range(i, min(i + ROWS, data.num_rows))), i), each)
        for i in starts
    ]


def _rows_of(name: str, part: Callable[[], Iterable[dict[str, Any]]], start: int) -> Iterator[Row]:
    for number, row in enumerate(part(), start + 1):
        yield partial(_at, name, "row", number), row


def _data_set(name: str) -> Any:
    """A data set: NAME[:CONFIG][:SPLIT], streamed, or the folder of one that was saved."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"Reading {STORED}{name} needs datasets: pip install 'circuitome[data]'.") from None
    path, *rest = name.split(":")
    config, split = (rest[0] if len(rest) > 1 else None), (rest[-1] if rest else "train")
    try:
        if (Path(path) / "dataset_dict.json").is_file() or (Path(path) / "state.json").is_file():
            data = datasets.load_from_disk(path)
            return data if isinstance(data, datasets.Dataset) else data[split]
        return datasets.load_dataset(path, config, split=split, streaming=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataFileError(f"The data set {STORED}{name} cannot be read: {str(error).splitlines()[0]}") from None
