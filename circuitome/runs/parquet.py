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
    """Write rows, with the same columns in each, as a Parquet file.

    Raises `InputError` where pyarrow is not installed, `OSError` where the file cannot be written.
    """
    _installed(f"Writing {path}")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)


def _installed(what: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InputError(f"{what} needs pyarrow: pip install 'circuitome[parquet]', or use .jsonl.") from None
