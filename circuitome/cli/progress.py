"""How far the work is: a bar with the time left on a terminal, a plain line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from circuitome.progress import WHOLE, phase_of

EVERY = 30.0
"""Seconds between two plain lines."""
ANNOUNCED = 60
"""A run that should take longer says so before it starts, in seconds."""

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
            name = phase_of(what)
            if name not in phases:
                phases[name] = bars.add_task(what, total=total)
            bars.update(phases[name], completed=done, total=total, description=what)

        yield tell


def plain_lines(stream: Any, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> Tell:
    """Progress as lines such as `scoring edges 12/64, about 2 min left`, at most one in `every` seconds.

    Work that takes less than that leaves no line; a run that should take over a minute says so at its beginning. The
    time left is that of the whole run where it is known, else of the phase.
    """
    began: dict[str, float] = {}
    whole_left: list[int] = []
    last = [clock()]

    def tell(what: str, done: int, total: int) -> None:
        now = clock()
        if what == WHOLE:
            if not whole_left and total > ANNOUNCED:
                print(f"This takes about {duration(total)}.", file=stream, flush=True)
            whole_left[:] = [total - done]
            return
        name = phase_of(what)
        began.setdefault(name, now)
        if now - last[0] < every:
            return
        last[0] = now
        spent = now - began[name]
        seconds = whole_left[0] if whole_left else spent / done * (total - done) if 0 < done < total else 0
        left = f", about {duration(seconds)} left" if seconds else ""
        print(f"{what} {done}/{total}{left}", file=stream, flush=True)

    return tell


def duration(seconds: float) -> str:
    """A time as a person says it: 40 s, 3 min, 2.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
