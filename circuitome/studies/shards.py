"""Long work in shards: parts of it at the same time, in processes here, on a Ray cluster or on Slurm.

A study that can be split has a `shard`, which does one part and keeps what came out in the folder of the run; its `run`
calls `spread` first and then goes through all parts as if it did them itself, which finds them done.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

from circuitome.errors import CircuitomeError, RunError
from circuitome.studies.context import Context
from circuitome.studies.settings import Settings, ShardSettings


def spread(name: str, settings: ShardSettings, context: Context) -> None:
    """Do the shards of a study that are not done yet. Raises `RunError` for one that fails."""
    from circuitome.runs.executors import EXECUTORS

    if settings.shards == 1 or context.folder is None:
        return
    folder, count = context.folder.resolve(), settings.shards
    left = [number for number in range(count) if not _done(folder, number).exists()]
    given = [(name, settings, str(folder), number, os.getcwd()) for number in left]
    tell = context.tell("shards")
    tell(count - len(left), count)
    options = {"workers": count, "address": settings.address, "gpus": settings.gpus}
    ended = EXECUTORS[settings.on](do_shard, given, **options) if given else ()
    for done, (i, message) in enumerate(ended, count - len(left) + 1):
        if message:
            raise RunError(f"Shard {left[i]} of {count} failed. {message}")
        tell(done, count)


def do_shard(given: tuple[str, Settings, str, int, str]) -> str:
    """In a worker: do one shard, in the folder to which relative paths belong. Gives what failed, else nothing."""
    from circuitome.studies.catalog import STUDIES

    name, settings, folder, number, here = given
    if Path(here).is_dir():
        os.chdir(here)
    shard = STUDIES[name].shard
    assert shard is not None, f"{name} has no shards"
    try:
        shard(settings, Context(settings, folder=Path(folder), models=models_of_worker()), number)
    except CircuitomeError as error:
        return str(error)
    _done(Path(folder), number).touch()
    return ""


def _done(folder: Path, number: int) -> Path:
    """The file that says that a shard is done."""
    return folder / f"shard-{number}.done"


@cache
def models_of_worker() -> dict[Any, Any]:
    """The models that this process has loaded, which its next jobs use again."""
    return {}
