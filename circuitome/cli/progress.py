"""How far the work is: a bar with the time left on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between two plain lines."""

Tell = Callable[[str, int, int], None]


@contextmanager
def watched() -> Iterator[Tell]:
    """Inside, calls (what, done, total) are shown on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield plain_lines(sys.stderr)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        phases: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in phases:
                phases[what] = bars.add_task(what, total=total)
            bars.update(phases[what], completed=done, total=total)

        yield tell


def plain_lines(stream: Any, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> Tell:
    """Progress as lines such as `scoring edges 12/64, about 2 min left`, at most one in `every` seconds.

    Work that takes less than that leaves no line.
    """
    began: dict[str, float] = {}
    last = [clock()]

    def tell(what: str, done: int, total: int) -> None:
        now = clock()
        began.setdefault(what, now)
        if now - last[0] < every:
            return
        last[0] = now
        spent = now - began[what]
        left = f", about {duration(spent / done * (total - done))} left" if 0 < done < total else ""
        print(f"{what} {done}/{total}{left}", file=stream, flush=True)

    return tell


def duration(seconds: float) -> str:
    """A time as a person says it: 40 s, 3 min, 2.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
