"""A series of checkpoints that exists already, measured one by one: the ends first, then halves."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitome.dynamics.development import Development, of_rows
from circuitome.dynamics.measures import Measures
from circuitome.engine.shards import WHOLE, Shard, shard_of
from circuitome.errors import CircuitomeError, InputError
from circuitome.models.loading import keeping_model, load
from circuitome.models.model import Model
from circuitome.progress import BESIDE, Progress, silent
from circuitome.results import plain

SHAPE = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
"""Entries of a configuration that all checkpoints of a series share."""


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a series: a folder, or a revision of a model of the hub."""

    step: int
    """The step it was written after."""
    name: str
    """What it is called: its folder's name, or its revision."""
    source: str
    """Its folder, or the model's name."""
    revision: str | None = None
    """The revision, of a model of the hub."""

    def load(self) -> Model:
        """The model. Raises what `cm.load` raises."""
        return load(self.source, revision=self.revision)


def checkpoints(source: str | Path, revisions: Sequence[str] = ()) -> list[Checkpoint]:
    """The checkpoints in a folder of folders, or those of a hub model's revisions, by step.

    The step is the number behind "step" in the name, or its last number: step-00000512, checkpoint-512, step512.
    Raises `InputError` for a folder without any, for a revision without a number, and for two of one step.
    """
    if revisions:
        if Path(source).is_dir():
            raise InputError(f"{source} is a folder, which has no revisions. Give the name of a model of the hub.")
        named: list[tuple[str, str, str | None]] = [(name, str(source), name) for name in revisions]
    else:
        place = Path(source)
        if not place.is_dir():
            raise InputError(
                f"There is no folder {source}. Give the folder that holds the checkpoints' folders, or the name of a "
                "model of the hub with revisions of it (--revisions step512,step1000)."
            )
        folders = [path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.endswith(".partial")]
        named = [(path.name, str(path), None) for path in folders if step_of(path.name) is not None]
        if not named:
            raise InputError(f"{source} holds no folders with a step in their names. {NAMED}")
    found = []
    for name, place_of, revision in named:
        if (step := step_of(name)) is None:
            raise InputError(f"The revision {name} has no step in its name. {NAMED}")
        found.append(Checkpoint(step, name, place_of, revision))
    if len({checkpoint.step for checkpoint in found}) < len(found):
        raise InputError(f"{source} holds two checkpoints of one step. {NAMED}")
    return sorted(found, key=lambda checkpoint: checkpoint.step)


NAMED = "The name of each checkpoint holds its step, such as step-00000512 or step512."


def step_of(name: str) -> int | None:
    """The step in a checkpoint's name, None where it has no number.

    >>> from circuitome.dynamics.checkpoint_series import step_of
    >>> step_of("step512"), step_of("checkpoint-00512"), step_of("step1000-tokens4B"), step_of("main")
    (512, 512, 1000, None)
    """
    numbers = re.findall(r"step[-_]?(\d+)", name, re.IGNORECASE)[:1] or re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


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


def measured(checkpoint: Checkpoint, measures: Measures, shape: Mapping[str, Any]) -> dict[str, Any]:
    """All measures of one checkpoint as plain JSON values; nothing else decides them.

    Raises what `cm.load` raises, and `InputError` for a checkpoint of another architecture than `shape_of` gave.
    """
    model = checkpoint.load()
    here = shape_of(model)
    if differs := [f"{name} is {value}, not {shape[name]}" for name, value in here.items() if value != shape[name]]:
        what = ", ".join(differs)
        raise InputError(f"It has another architecture than the checkpoint that was read first: {what}.")
    found: dict[str, Any] = plain(measures(model))
    return found


def shape_of(model: Model) -> dict[str, Any]:
    """What all checkpoints of a series have in common."""
    return {name: getattr(model.hf.config, name, None) for name in SHAPE}


def series(
    source: str | Path,
    measures: Callable[[Model], Measures],
    *,
    revisions: Sequence[str] = (),
    keep: Path | None = None,
    progress: Progress = silent,
) -> tuple[Development, dict[str, str]]:
    """Measure every checkpoint of a series, one in memory at a time; and say which were passed over, and why.

    `source` is a folder of checkpoints, or the name of a model of the hub with `revisions` of it, which are read from
    the local cache where there is no network. `measures` makes the measures from the first checkpoint that loads; all
    others get the same. The order is that of `ends_then_halves`, so that a curve refines while it is watched. `keep` is
    a file for what is done so far: the same call goes on from it. A checkpoint that cannot be loaded, gives NaN or has
    another architecture is passed over.
    Raises `InputError` for a source without checkpoints, and where none of them can be measured.

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
    rows, passed_over = measure_checkpoints(source, measures, revisions=revisions, keep=keep, progress=progress)
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(passed_over.items())[:3])
        raise InputError(f"No checkpoint in {source} can be measured. {reasons}")
    return of_rows(Path(source).name, sorted(rows.items())), passed_over


def measure_checkpoints(
    source: str | Path,
    measures: Callable[[Model], Measures],
    *,
    revisions: Sequence[str] = (),
    keep: Path | None,
    shard: Shard = WHOLE,
    progress: Progress = silent,
) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
    """By step what was measured, and why others were passed over; of all checkpoints, or of those of a shard."""
    there = checkpoints(source, revisions)
    rows, passed_over = _restored(keep)
    wanted = [there[at] for at in ends_then_halves(len(there))]
    mine = [wanted[i] for i in shard_of(len(wanted), shard)]
    left = [one for one in mine if one.step not in rows and one.name not in passed_over]
    done = len(mine) - len(left)
    with keeping_model():  # the first is asked for twice
        fixed = _first(wanted, measures, passed_over)
        for checkpoint in left:
            if fixed is not None and checkpoint.name not in passed_over:
                try:
                    rows[checkpoint.step] = measured(checkpoint, *fixed)
                except CircuitomeError as error:
                    passed_over[checkpoint.name] = str(error)
            _write(keep, rows, passed_over)
            done += 1
            progress(f"checkpoints{BESIDE}{checkpoint.name}", done, len(mine))
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


def _first(
    wanted: Iterable[Checkpoint], measures: Callable[[Model], Measures], passed_over: dict[str, str]
) -> tuple[Measures, dict[str, Any]] | None:
    """The measures that suit the first checkpoint that loads, and its shape; those before it are passed over."""
    for checkpoint in wanted:
        if checkpoint.name in passed_over:
            continue
        try:
            model = checkpoint.load()
        except CircuitomeError as error:
            passed_over[checkpoint.name] = str(error)
            continue
        return measures(model), shape_of(model)
    return None


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
