"""Texts of a study in windows, read once for all of its shards, and what a manifest says of them."""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from circuitome.studies.context import Context

if TYPE_CHECKING:
    from circuitome.neurons.text_windows import Windows

BYTES = 3
"""Bytes of a token at least, for the estimate of what there is to read."""


@runtime_checkable
class ReadsTexts(Protocol):
    """Settings of a study that reads texts in windows."""

    @property
    def texts(self) -> str | None:
        """Where they are."""

    @property
    def tokens(self) -> int:
        """Tokens at most."""

    @property
    def length(self) -> int:
        """Tokens of a window."""

    @property
    def seed(self) -> int:
        """Decides their order."""


def windows_of(settings: ReadsTexts, context: Context) -> "Windows":
    """The texts in windows; what is read is kept for `--resume` and for shards."""
    from circuitome.runs.reading import read_windows

    return read_windows(
        context.model,
        settings.texts,
        length=settings.length,
        tokens=settings.tokens,
        seed=settings.seed,
        folder=context.file("windows"),
        tell=context.tell("cutting texts"),
    )


def about(settings: ReadsTexts, cut: "Windows", tokens: int | None = None) -> dict[str, Any]:
    """What a manifest says of the windows."""
    from circuitome.runs.texts import OWN

    counts = {"tokens": cut.tokens if tokens is None else tokens, "windows": len(cut)}
    return {"data_hash": cut.data_hash(), "texts": {"source": settings.texts or OWN, **counts}}


def expected_tokens(settings: ReadsTexts) -> int:
    """About how many tokens will be read, from the sizes of the files. Raises as `corpus`."""
    from circuitome.runs.corpora import corpus

    size = corpus(settings.texts).size
    return min(settings.tokens, max(1, size // BYTES)) if size else settings.tokens
