"""Prompts for what a search must not see: to choose a circuit's size on, and to measure it on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from circuitome.errors import TaskError
from circuitome.tasks.task import Pair, Task

FEWEST = 8
"""Pairs that a set of prompts needs, so that a share measured on it says something."""


@dataclass(frozen=True)
class Split:
    """Sets of prompts of one behaviour, with no prompt in common."""

    search: Task
    """Prompts that scores and masks are made from."""
    sizing: Task | None = None
    """Prompts on which the size of the circuit is chosen."""
    held_out: Task | None = None
    """Prompts on which the circuit is measured, and nothing else."""


def split(task: Task, *, seed: int = 0) -> Split:
    """Half of the prompts for the search, a quarter for the size, a quarter held out; drawn by `seed`.

    Pairs with the same clean prompt stay together, and so do the rows of an answer of several tokens.
    Raises `TaskError` where a quarter would hold too few prompts.
    """
    units: dict[object, list[Pair]] = {}
    rows = task.measure.name == "answer_log_prob"
    for pair in task.pairs:
        units.setdefault(pair.template if rows and pair.template else pair.clean, []).append(pair)
    order = list(units.values())
    Random(seed).shuffle(order)
    quarter = len(order) // 4
    if quarter < FEWEST:
        raise TaskError(
            f"Task {task.name!r} has {len(order)} different prompts. To search on half of them, choose the size on a "
            f"quarter and measure on the rest takes at least {4 * FEWEST}. Give more prompts, or prompts of their own "
            "to choose the size on and to measure on (sizing and held_out; --held-out FILE), or ask for a size "
            "(--edges)."
        )
    parts = order[2 * quarter :], order[:quarter], order[quarter : 2 * quarter]
    return Split(*(_of(task, [pair for unit in units for pair in unit]) for units in parts))


def joined(first: Task, *others: Task) -> Task:
    """The prompts of several tasks as one, with the name and metric of the first."""
    return _of(first, [pair for task in (first, *others) for pair in task.pairs])


def fresh(task: Task, seen: Iterable[Task]) -> Task | None:
    """The pairs of `task` whose clean prompts are in none of `seen`; None where too few are left."""
    known = {pair.clean for other in seen for pair in other.pairs}
    pairs = [pair for pair in task.pairs if pair.clean not in known]
    return _of(task, pairs) if len(pairs) >= FEWEST else None


def _of(task: Task, pairs: Sequence[Pair]) -> Task:
    return replace(task, pairs=tuple(pairs))
