"""How long work says how far it is: one signature, wherever it runs."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is.

What is behind `BESIDE` in the first may change from call to call: it is shown, and is no other phase.
"""
BESIDE = " | "
"""Separates a phase from numbers that are shown beside it, as in `training | FVU 0.31`."""
WHOLE = "whole run, seconds (estimated)"
"""What a study's progress calls the run as a whole: seconds gone, and seconds that all phases together should take."""


def phase_of(what: str) -> str:
    """The phase that a call of `Progress` is about, without what is shown beside it."""
    return what.partition(BESIDE)[0]


def bars() -> Progress:
    """A `Progress` that draws a bar with the time left for each phase, on a terminal or in a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    drawn: dict[str, tuple[Bars, TaskID]] = {}

    def tell(what: str, done: int, total: int) -> None:
        name = phase_of(what)
        if name not in drawn:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # Drawn at each call and not by a thread, which an interruption would leave running.
            phase = Bars(*columns, console=Console(stderr=True), auto_refresh=False)
            phase.start()
            drawn[name] = phase, phase.add_task(what, total=total)
        phase, task = drawn[name]
        phase.update(task, completed=done, total=total, description=what)
        phase.refresh()
        if done >= total:
            drawn.pop(name)[0].stop()

    return tell


def of_whole(progress: Progress, seconds: float, clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress on phases that also tells, at each call, how far the whole run of about `seconds` is.

    A run that takes longer than expected stands at one second left.
    """
    start = clock()

    def tell(what: str, done: int, total: int) -> None:
        gone = int(clock() - start)
        progress(WHOLE, gone, max(gone + 1, round(seconds)))
        progress(what, done, total)

    return tell


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that nobody watches."""
