"""Two trainings side by side: curves over each other with both onsets, where they end, and each of their steps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitome.present.blocks import Block, Checkpoints, Lines, Table, table
from circuitome.studies import developed, watched_steps
from circuitome.studies.pieces import cell

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.results import Estimate
    from circuitome.studies.opened import OpenedRun

SIDES = ("first", "second")


def compared(first: "OpenedRun", second: "OpenedRun") -> dict[str, Any] | None:
    """Curves, onsets, and differences of ends of what both measured; None where one of the runs watched no training."""
    runs = dict(zip(SIDES, (first, second), strict=True))
    if not all("curves" in run.results for run in runs.values()):
        return None
    names = [name for name in first.results["curves"] if name in second.results["curves"]]
    paired = _same_texts(first, second)
    return {
        "curves": {
            name: {
                **{side: run.results["curves"][name] for side, run in runs.items()},
                "onsets": {side: run.results["onsets"].get(name) for side, run in runs.items()},
                "difference": _difference(first, second, name, paired).to_dict(),
            }
            for name in names
        },
        "only": {
            side: [curve["title"] for name, curve in run.results["curves"].items() if name not in names]
            for side, run in runs.items()
        },
    }


def _same_texts(first: "OpenedRun", second: "OpenedRun") -> bool:
    """Whether both were measured on the same rows, so that differences are of pairs."""
    facts = [(run.manifest["data_hash"], run.manifest["settings"]["seed"]) for run in (first, second)]
    return bool(facts[0] == facts[1])


def _difference(first: "OpenedRun", second: "OpenedRun", name: str, paired: bool) -> "Estimate":
    """The second curve's end minus that of the first, with an interval over rows where both have the same ones."""
    from circuitome.results import Estimate, mean

    ends = _end(first, name), _end(second, name)
    unit = first.results["curves"][name]["unit"]
    if paired and len(ends[0]) == len(ends[1]):
        return mean(ends[1] - ends[0], unit)
    value = float(ends[1].mean() - ends[0].mean())
    return Estimate(value, float("nan"), float("nan"), unit, min(map(len, ends)))


def _end(run: "OpenedRun", name: str) -> "Tensor":
    """Samples of a curve at its last step; of scores of heads those of the best head there."""
    last: Tensor = run.tensors[name][-1]
    return last if last.ndim == 1 else last.flatten(1)[:, last.mean(0).flatten().argmax()]


def blocks(found: Mapping[str, Any], first: "OpenedRun", second: "OpenedRun") -> list[Block]:
    """Onsets and ends, both trainings step by step, and the curves."""
    return [ends_table(found), *side_by_side(first, second), *map(_lines, found["curves"].values())]


def ends_table(found: Mapping[str, Any]) -> Table:
    """Of each curve both onsets, whether they are sudden, both ends, and their difference."""
    rows = []
    for curve in found["curves"].values():
        onsets = [_onset(curve["onsets"][side]) for side in SIDES]
        ends = [curve[side]["value"][-1] for side in SIDES]
        rows.append((_name(curve), *onsets[0], *onsets[1], *ends, cell(curve["difference"])))
    columns: list[Any] = ["curve"]
    for side in SIDES:
        columns += [(f"{side} onset", "estimate", 0), "sudden"]
    columns += [(f"{side} end", "number", 2) for side in SIDES]
    return table("Onsets and ends", (*columns, ("difference", "estimate", 2)), rows)


def _onset(at: Mapping[str, Any] | None) -> tuple[Any, str]:
    return (None, "") if at is None else ((at["step"], at["low"], at["high"]), "yes" if at["sudden"] else "no")


def _name(curve: Mapping[str, Any]) -> str:
    """What both curves show; where their best heads differ, both."""
    titles = [curve[side]["title"] for side in SIDES]
    return titles[0] if titles[0] == titles[1] else f"{titles[0]}/{titles[1].split()[-1]}"


def _lines(curve: Mapping[str, Any]) -> Lines:
    """One measure of both trainings on a logarithmic axis, with the onsets that are sudden."""
    onsets = {side: at for side in SIDES if (at := curve["onsets"][side]) and at["sudden"]}
    return Lines(
        title=_name(curve),
        x="training step",
        y=curve["first"]["unit"] or curve["first"]["about"],
        series=tuple(developed.line(curve[side], name=side) for side in SIDES),
        log_x=True,
        marks=tuple((f"{side}, {at['step']:,}", at["step"]) for side, at in onsets.items()),
    )


def side_by_side(first: "OpenedRun", second: "OpenedRun") -> list[Checkpoints]:
    """Both trainings at the step that a reader chooses, where both have scores of heads."""
    if not all(run.results.get("heads") for run in (first, second)):
        return []
    runs = tuple(
        watched_steps.watched({**run.results, "name": f"{side}: {Path(run.folder).name}"})
        for side, run in zip(SIDES, (first, second), strict=True)
    )
    return [Checkpoints(title="Step by step", note=watched_steps.NOTE, runs=runs, where="page")]


def sentence(found: Mapping[str, Any]) -> str:
    """Which curves change suddenly in both trainings or in one, and whose ends differ for sure."""
    sudden = {
        side: [_name(curve) for curve in found["curves"].values() if (curve["onsets"][side] or {}).get("sudden")]
        for side in SIDES
    }
    both = [name for name in sudden["first"] if name in sudden["second"]]
    parts = [f"{len(both)} of {len(found['curves'])} curves change suddenly in both trainings"]
    for side in SIDES:
        if alone := [name for name in sudden[side] if name not in both]:
            parts.append(f"only in the {side} {', '.join(alone)}")
    return "; ".join(parts) + "."
