"""What edit, prune and merge share: texts to score and measure on, other tasks, tables of models side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Bars, Block, Note, Table, table
from circuitome.studies.pieces import cell, ends

if TYPE_CHECKING:
    from circuitome.neurons.text_windows import Windows
    from circuitome.studies.context import Context
    from circuitome.tasks.task import Task

OTHERS = ("induction", "subject-verb", "gendered-pronoun", "greater-than", "capitals")
"""Tasks that are measured where nobody says."""
LENGTH = 128
"""Tokens of a window of text."""


def check_tasks(names: Sequence[str]) -> None:
    """Raises `UnknownNameError` for what is no task."""
    from circuitome.tasks import TASKS

    for name in names:
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)


def check_saved(model: str) -> None:
    """Raises `InputError` for a model that transformers could not read from a checkpoint."""
    from circuitome.models.known import KNOWN

    if model in KNOWN:
        raise InputError(f"{model} is no architecture of transformers, so it has no checkpoints. Give another.")


@dataclass(frozen=True)
class Texts:
    """Text windows in two halves."""

    scored: "Windows"
    """On which parts are scored."""
    measured: "Windows"
    """On which models are measured."""
    data_hash: str
    """Hash of all of it."""


def split_texts(path: str | None, model: "cm.Model", tokens: int, seed: int) -> Texts:
    """Texts of a file or folder, or the package's own, in windows: one half to score parts on, one to measure on."""
    from circuitome.runs.reading import read_windows

    cut = read_windows(model, path, length=min(LENGTH, model.positions or LENGTH), tokens=2 * tokens, seed=seed)
    half = max(1, len(cut) // 2)
    return Texts(cut.chosen(range(half)), cut.chosen(range(half, len(cut)) if len(cut) > 1 else [0]), cut.data_hash())


def tasks_of(context: "Context", names: Sequence[str], n: int, own: "Task | None" = None) -> tuple[Any, dict[str, str]]:
    """Prompts of the tasks that the model does, the own one first, and why there are none of others."""
    from circuitome.applications.quality import done_tasks

    others = [name for name in dict.fromkeys(names) if own is None or name != own.name]
    tasks, why = done_tasks(context.model, others, n, context.settings.seed + 1)
    return ({} if own is None else {own.name: own}) | tasks, why


def quality_table(rows: Mapping[str, Mapping[str, Any]], title: str = "Side by side", note: str = "") -> Table:
    """Models by name: change of the loss, share of each task's gap that is left, size."""
    names = list(next(iter(rows.values()))["kept"])
    columns = [("model", "text"), ("change of loss", "estimate", 3, "nats a token")]
    columns += [(f"{name} left", "estimate", 2) for name in names]
    cells = ((name, cell(row["change"]), *(cell(row["kept"][task]) for task in names)) for name, row in rows.items())
    return table(title, columns, cells, note=note)


def loss_bars(rows: Mapping[str, Mapping[str, Any]], first: str) -> Bars:
    """Change of the loss by model."""
    named = {name: ends(row["change"]) for name, row in rows.items() if name != first}
    values, low, high = zip(*named.values(), strict=True)
    return Bars(
        title="What it costs",
        labels=tuple(named),
        values=values,
        low=low,
        high=high,
        x="change of the loss on neutral text, nats a token",
        where="page",
    )


def left_out(why: Mapping[str, str]) -> list[Block]:
    """Tasks that are not measured, and why."""
    text = "; ".join(f"{name}: {reason}" for name, reason in why.items())
    return [Note(text=f"Tasks that are left out: {text}")] if why else []


def nats(estimate: Mapping[str, Any]) -> str:
    """A change of the loss in words."""
    return f"{formats.fixed(estimate['value'], 3)} {formats.interval(estimate['low'], estimate['high'])} nats a token"
