"""Many runs from one file: models x tasks x methods x seeds, on this machine, a Ray cluster or Slurm, in one table."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from typing_extensions import override

from circuitome.errors import CircuitomeError, RunError
from circuitome.present import blocks
from circuitome.studies.context import Context
from circuitome.studies.diff import flat, is_number
from circuitome.studies.settings import Argument, Settings, SpreadSettings, command_line
from circuitome.studies.shards import models_of_worker
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.sweep_plan import Job, read_plan

SHOWN, FEW, MANY = 20, 12, 30
"""Runs that the table shows first; runs from which means by setting are told; values of a setting that are told."""
NUMBERS = 6
"""Numbers of the runs that the table shows: estimates first, those that differ first; runs.csv has all."""
OF_ESTIMATES = ("low", "high", "n", "level", "templates")
"""What is told of an estimate beside its value."""
ABOUT = ("seconds", "state", "folder")
"""What the table says of every run."""
DONE, FAILED, KEPT = "done", "failed", "was there"
"""What became of a job: done since the sweep began, failed, or done before."""


@dataclass(frozen=True, kw_only=True)
class Sweep(SpreadSettings):
    """Do all runs that a YAML file names, and compare them in one table; what is done already is not done again."""

    arguments: ClassVar[tuple[str, ...]] = ("file",)

    file: Annotated[str, Argument] = ""
    """YAML file with study, set (what all runs are asked) and vary (lists of values), or a list of such."""
    workers: int = 1
    """Runs done at the same time."""
    runs: str = "runs"
    """Folder of the runs."""

    @override
    def check(self) -> None:
        if self.workers < 1:
            raise RunError(f"--workers must be at least 1, got {self.workers}.")
        planned(self.file)

    @override
    def subject(self) -> str:
        return Path(self.file).stem


def planned(file: str) -> list[Job]:
    """The jobs of a file."""
    from circuitome.studies.catalog import STUDIES

    return read_plan(file, STUDIES)


def work(settings: Sweep, context: Context) -> Work:
    """As if every job that is left took as long as the first."""
    from circuitome.studies.catalog import STUDIES
    from circuitome.studies.frame import cost

    left = [job for job in planned(settings.file) if not is_done(job, Path(settings.runs))]
    seconds = cost(STUDIES[left[0].study], left[0].settings).seconds if left else 0.0
    return Work(texts=0, tokens=0, seconds=seconds * len(left) / settings.workers, notes={"runs": len(left)})


def run(settings: Sweep, context: Context) -> Findings:
    """All jobs, those that fail with their message; raises `RunError` where none succeeds."""
    from circuitome.runs.executors import EXECUTORS

    jobs, runs = planned(settings.file), Path(settings.runs).resolve()
    states = [{"state": KEPT, "seconds": 0.0} if is_done(job, runs) else {} for job in jobs]
    left = [i for i, state in enumerate(states) if not state]
    tell = context.tell("runs of the sweep")
    given = [(jobs[i].study, jobs[i].settings, str(jobs[i].folder(runs))) for i in left]
    options = {"workers": settings.workers, "address": settings.address, "gpus": settings.gpus}
    ended = EXECUTORS[settings.on](perform_job, given, **options) if given else ()
    for count, (i, state) in enumerate(ended, len(jobs) - len(left) + 1):
        states[left[i]] = state
        tell(count, len(jobs))
    if all(state["state"] == FAILED for state in states):
        raise RunError(f"All {len(jobs)} runs failed. The first said: {states[0]['message']}")
    rows = [row(job, state, runs) for job, state in zip(jobs, states, strict=True)]
    results = {"runs": rows, "failed": sum(state["state"] == FAILED for state in states)}
    return Findings(
        title=f"{len(jobs)} runs of {Path(settings.file).name}",
        sign="Each row is a run of its own; its folder has its page.",
        results=results,
        blocks=shown(rows),
        files=tables_of(rows),
        more={"plan": Path(settings.file).read_text(encoding="utf-8")},
    )


def is_done(job: Job, runs: Path) -> bool:
    """Whether the run of a job is there already, finished."""
    return done_there(job.study, job.settings, job.folder(runs))


def done_there(study: str, settings: Settings, folder: Path) -> bool:
    """Whether the run of a study is in a folder, finished."""
    from circuitome.runs.store import load_run

    try:
        return bool(load_run(folder).manifest["command"] == command_line(study, settings))
    except RunError:  # not there, or damaged: then it is done anew
        return False


def perform_job(given: tuple[str, Settings, str]) -> dict[str, Any]:
    """In a worker: do one job. Gives its state, its seconds and, where it failed, its message."""
    from circuitome.runs.store import locked, partial_of
    from circuitome.studies.catalog import STUDIES
    from circuitome.studies.frame import perform_locked

    name, settings, folder = given
    start, out = time.perf_counter(), Path(folder)
    try:
        with locked(out, wait=True):
            if not done_there(name, settings, out):  # by another sweep, or a worker that was lost before it said so
                resume = partial_of(out).is_dir()
                perform_locked(STUDIES[name], settings, out, resume=resume, models=models_of_worker())
        for left in out.parent.glob(f".{out.name}-*"):  # of a worker that was lost while it wrote this run
            shutil.rmtree(left, ignore_errors=True)
    except CircuitomeError as error:
        return {"state": FAILED, "seconds": time.perf_counter() - start, "message": str(error)}
    return {"state": DONE, "seconds": time.perf_counter() - start}


def row(job: Job, state: Mapping[str, Any], runs: Path) -> dict[str, Any]:
    """A job as one row: what was asked, what became of it, all numbers of its results."""
    folder = job.folder(runs)
    found = {"study": job.study, **job.varied, "state": state["state"], "seconds": round(state["seconds"], 2)}
    found |= {"folder": folder.name, "message": state.get("message", "")}
    if state["state"] == FAILED:
        return found
    from circuitome.runs.store import load_run

    numbers = {name: value for name, value in flat(load_run(folder).manifest["results"]) if is_number(value)}
    return {**found, **{name: value for name, value in numbers.items() if name not in found}}


def shown(rows: list[dict[str, Any]]) -> list[blocks.Block]:
    """A table of what varies and of the first numbers that differ, means of many runs, and what failed."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    varied, found_numbers = names[: names.index("state")], names[names.index("message") + 1 :]
    estimates = [name for name in found_numbers if name.endswith(" value")]
    others = [name for name in found_numbers if name.split()[-1] not in (*OF_ESTIMATES, "value")]
    numbers = sorted((*estimates, *others), key=lambda name: len({row.get(name) for row in rows}) == 1)[:NUMBERS]
    titles = [name.removesuffix(" value") for name in numbers]
    columns = [*varied, *((title, "number") for title in titles), ("seconds", "number", 1), "state", ("folder", "node")]
    cells = [
        (*(_text(row.get(name)) for name in varied), *(row.get(name) for name in (*numbers, *ABOUT))) for row in rows
    ]
    found: list[blocks.Block] = [blocks.table("Runs", columns, cells, top=SHOWN)]
    if len(rows) > FEW and numbers:
        found.insert(0, means(rows, varied[1:], numbers, titles))
    if failed := [row for row in rows if row["state"] == FAILED]:
        found.append(
            blocks.table("What failed", [("folder", "node"), "message"], [(r["folder"], r["message"]) for r in failed])
        )
    return found


def means(rows: list[dict[str, Any]], varied: list[str], numbers: list[str], titles: list[str]) -> blocks.Block:
    """By value of each setting that varies: how many runs succeeded, and the means of their numbers."""
    done, cells = [row for row in rows if row["state"] != FAILED], list[tuple[Any, ...]]()
    for name in varied:
        values = list(dict.fromkeys(_text(row.get(name)) for row in rows))
        for value in values if 1 < len(values) <= MANY else ():
            some = [row for row in done if _text(row.get(name)) == value]
            told = ([row[number] for row in some if row.get(number) is not None] for number in numbers)
            cells.append((name, value, len(some), *(sum(x) / len(x) if x else None for x in told)))
    columns = ["setting", "value", ("runs", "count"), *((title, "number") for title in titles)]
    note = "Means over the runs with a value, whatever their other settings."
    return blocks.table("By setting", columns, cells, note=note)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def tables_of(rows: list[dict[str, Any]]) -> dict[str, str | bytes]:
    """The rows as files: CSV, and Parquet where pyarrow is installed."""
    from importlib.util import find_spec

    from circuitome.runs.parquet import as_parquet

    files: dict[str, str | bytes] = {"runs.csv": csv_of(rows)}
    if find_spec("pyarrow") is not None:
        files["runs.parquet"] = as_parquet(rows)
    return files


def csv_of(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV with all their columns."""
    import csv
    import io

    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def all_done(settings: Sweep, manifest: Mapping[str, Any]) -> bool:
    """Whether no run failed."""
    return not manifest["results"]["failed"]


STUDY = Study(name="sweep", settings=Sweep, run=run, work=work, holds=all_done)
