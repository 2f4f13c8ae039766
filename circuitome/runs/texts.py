"""Text that a run reads: a file of the user's, or the prose that comes with the package."""

import hashlib
from pathlib import Path

from circuitome.errors import DataFileError
from circuitome.heads.long_context.needles import own_text

OWN = "the package's own prose"


def read_text(path: str | None) -> str:
    """The text of a file, or the package's own. Raises `DataFileError` where there is none."""
    if path is None:
        return own_text()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"The text {path} cannot be read as UTF-8: {error}") from error
    if not text.strip():
        raise DataFileError(f"The text {path} is empty. Give a file with some text.")
    return text


def text_hash(*texts: str) -> str:
    """BLAKE2 over texts."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode())
    return digest.hexdigest()
