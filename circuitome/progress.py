"""How long work says how far it is: one signature, wherever it runs."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def bars() -> Progress:
    """A `Progress` that draws a bar with the time left for each phase, on a terminal or in a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    drawn: dict[str, tuple[Bars, TaskID]] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in drawn:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            # Drawn at each call and not by a thread, which an interruption would leave running.
            phase = Bars(*columns, console=Console(stderr=True), auto_refresh=False)
            phase.start()
            drawn[what] = phase, phase.add_task(what, total=total)
        phase, task = drawn[what]
        phase.update(task, completed=done, total=total)
        phase.refresh()
        if done >= total:
            drawn.pop(what)[0].stop()

    return tell


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that nobody watches."""
