"""A series of checkpoints that exists already, measured one by one: the ends first, then halves."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from circuitome.dynamics.development import Development, of_rows
from circuitome.dynamics.measures import Measures, listed
from circuitome.engine.shards import WHOLE, Shard, shard_of
from circuitome.errors import CircuitomeError, InputError
from circuitome.models.loading import load
from circuitome.models.model import Model
from circuitome.progress import BESIDE, Progress, silent

SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Entries of a configuration that all checkpoints of a series share."""


def checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """Step and place of each checkpoint in a folder of folders, by step.

    A checkpoint's folder has its step as the last number of its name: step-00000512, checkpoint-512, step512.
    Raises `InputError` for a folder without any, and for two of one step.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"There is no folder {folder}. Give the folder that holds the checkpoints' folders.")
    found = [
        (int(numbers[-1]), path)
        for path in sorted(place.iterdir())
        if path.is_dir() and not path.name.endswith(".partial") and (numbers := re.findall(r"\d+", path.name))
    ]
    steps = [step for step, _ in found]
    if not found or len(set(steps)) < len(steps):
        what = "holds no folders with a step in their names" if not found else "holds two checkpoints of one step"
        raise InputError(f"{folder} {what}. Name each checkpoint's folder by its step, such as step-00000512.")
    return sorted(found)


def ends_then_halves(count: int) -> list[int]:
    """All numbers below `count`, in an order that refines: the first, the last, the middle, then middles of parts.

    >>> from circuitome.dynamics.checkpoint_series import ends_then_halves
    >>> ends_then_halves(6)
    [0, 5, 2, 1, 3, 4]
    """
    order, gaps = [0, count - 1][: max(0, count)], [(0, count - 1)]
    while gaps:
        middles = [(low, (low + high) // 2, high) for low, high in gaps if high - low > 1]
        order += [middle for _, middle, _ in middles]
        gaps = [gap for low, middle, high in middles for gap in ((low, middle), (middle, high))]
    return order if count != 1 else [0]


def series(
    folder: str | Path,
    measures: Callable[[Model], Measures],
    *,
    keep: Path | None = None,
    progress: Progress = silent,
) -> tuple[Development, dict[str, str]]:
    """Measure every checkpoint below `folder`, one in memory at a time; and say which were passed over, and why.

    `measures` makes the measures from the first checkpoint that loads; all others get the same. The order is that of
    `ends_then_halves`, so that a curve refines while it is watched. `keep` is a file for what is done so far: the same
    call goes on from it. A checkpoint that cannot be loaded, gives NaN or has another architecture is passed over.
    Raises `InputError` for a folder without checkpoints, and where none of them can be measured.

    >>> import pathlib, tempfile
    >>> from circuitome.models.saving import write_checkpoint
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> model = cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer(), layers=1)
    >>> for step in (1, 2):
    ...     _ = write_checkpoint(model, folder / f"step-{step}")
    >>> found, passed_over = cm.dynamics.series(folder, lambda model: cm.dynamics.Measures.of(model, None))
    >>> found.steps, passed_over
    ((1, 2), {})
    """
    rows, passed_over = measure_checkpoints(folder, measures, keep=keep, progress=progress)
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(passed_over.items())[:3])
        raise InputError(f"No checkpoint in {folder} can be measured. {reasons}")
    return of_rows(Path(folder).name, sorted(rows.items())), passed_over


def measure_checkpoints(
    folder: str | Path,
    measures: Callable[[Model], Measures],
    *,
    keep: Path | None,
    shard: Shard = WHOLE,
    progress: Progress = silent,
) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
    """By step what was measured, and why others were passed over; of all checkpoints, or of those of a shard."""
    places = checkpoints(folder)
    rows, passed_over = _restored(keep)
    fixed: Measures | None = None
    shape: dict[str, Any] | None = None
    order = ends_then_halves(len(places))
    others = set(order) - {order[i] for i in shard_of(len(order), shard)}
    for done, at in enumerate(order, 1):
        step, path = places[at]
        known = step in rows or path.name in passed_over or at in others
        if not known or shape is None:
            try:
                model = load(path)
                shape = shape or _shape(model)
                fixed = fixed or measures(model)
                if not known:
                    _check_shape(model, shape)
                    rows[step] = listed(fixed(model))
            except CircuitomeError as error:
                passed_over[path.name] = str(error)
            _write(keep, rows, passed_over)
        progress(f"checkpoints{BESIDE}{path.name}", done, len(places))
    return rows, passed_over


def join_kept(parts: Sequence[Path], into: Path) -> None:
    """Write what the shards of a series have kept as what one series has kept, which `series` goes on from."""
    rows: dict[int, dict[str, Any]] = {}
    passed_over: dict[str, str] = {}
    for part in parts:
        more, without = _restored(part)
        rows |= more
        passed_over |= without
    _write(into, rows, passed_over)


def _shape(model: Model) -> dict[str, Any]:
    return {name: getattr(model.hf.config, name, None) for name in SHAPE}


def _check_shape(model: Model, shape: dict[str, Any]) -> None:
    """Raises `InputError` for a checkpoint of another architecture than the first that was loaded."""
    if differs := [name for name, value in _shape(model).items() if value != shape[name]]:
        what = ", ".join(f"{name} is {_shape(model)[name]}, not {shape[name]}" for name in differs)
        raise InputError(f"It has another architecture than the checkpoint that was read first: {what}.")


def _restored(keep: Path | None) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
    if keep is None or not keep.is_file():
        return {}, {}
    held = json.loads(keep.read_text(encoding="utf-8"))
    return {int(step): row for step, row in held["rows"].items()}, held["passed_over"]


def _write(keep: Path | None, rows: dict[int, dict[str, Any]], passed_over: dict[str, str]) -> None:
    if keep is not None:
        part = keep.with_name(keep.name + ".part")
        part.write_text(json.dumps({"rows": rows, "passed_over": passed_over}), encoding="utf-8")
        part.replace(keep)
