"""How long work says how far it is: one signature, wherever it runs."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that nobody watches."""
