"""Rows as Parquet files, in and out, where pyarrow is installed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from circuitome.errors import DataFileError, InputError


def opened_parquet(path: Path) -> Any:
    """A Parquet file, of which nothing but the description has been read.

    Raises `InputError` where pyarrow is not installed, `DataFileError` for a file that cannot be read.
    """
    _installed(f"Reading {path}")
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise DataFileError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]}).") from None


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write rows as a Parquet file; see `as_parquet`.

    Raises `InputError` where pyarrow is not installed, `OSError` where the file cannot be written.
    """
    path.write_bytes(as_parquet(rows))


def as_parquet(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as the content of a Parquet file: a column for each name; what is of several types becomes text.

    Raises `InputError` where pyarrow is not installed.
    """
    _installed("Writing Parquet")
    import pyarrow
    import pyarrow.parquet

    made = list(rows)
    columns: dict[str, Any] = {name: [row.get(name) for row in made] for row in made for name in row}
    for name, values in columns.items():
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
            columns[name] = pyarrow.array([None if value is None else str(value) for value in values])
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return bytes(out.getvalue().to_pybytes())


def _installed(what: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(f"{what} needs pyarrow: pip install 'circuitome[parquet]', or use .jsonl.") from None
