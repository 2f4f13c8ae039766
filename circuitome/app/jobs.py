"""The table of jobs: what was asked for and how far it is, in an SQLite file that outlives the server."""

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from circuitome.errors import RunError
from circuitome.present.formats import CONTROL

State = Literal["queued", "running", "done", "failed", "cancelled"]
FILE, LOCK = ".circuitome-jobs.sqlite", ".circuitome-app.lock"
TABLE = """
create table if not exists jobs (
    id integer primary key autoincrement, study text not null, words text not null, command text not null,
    folder text not null, state text not null, message text not null default '', added real not null, began real,
    ended real
)
"""


@dataclass(frozen=True)
class Job:
    """A study that was asked for."""

    id: int
    """Its number; jobs are done in the order of numbers."""
    study: str
    """Name of the study."""
    words: tuple[str, ...]
    """Its settings as words of a command line."""
    command: str
    """The command line that does the same."""
    folder: str
    """Folder of its run."""
    state: State
    """How far it is. Interrupted jobs are queued again."""
    message: str
    """Why it failed."""
    added: float
    """When it was asked for, in seconds since 1970."""
    began: float | None
    """When its work began the last time."""
    ended: float | None
    """When it was done, failed or was cancelled."""


class Jobs:
    """The jobs of one folder of runs. One server at a time: it holds a lock that ends with its process."""

    def __init__(self, runs: Path) -> None:
        """Raises `RunError` where another server has the folder open, or nothing can be written there."""
        try:
            runs.mkdir(parents=True, exist_ok=True)
            self._lock = sqlite3.connect(runs / LOCK, timeout=0, isolation_level=None, check_same_thread=False)
            self._lock.execute("begin exclusive")
            self._table = sqlite3.connect(runs / FILE, isolation_level=None, check_same_thread=False)
            self._table.execute(TABLE)
        except sqlite3.DatabaseError as error:
            if "locked" in str(error):
                raise RunError(
                    f"Another circuitome app has {runs} open. Use that one, or name another folder."
                ) from None
            raise RunError(f"The table of jobs {runs / FILE} cannot be used: {error}. Move it away.") from None
        except OSError as error:
            raise RunError(f"{runs} cannot be used for runs: {error.strerror or error}. Name another folder.") from None
        self._guard = threading.Lock()

    def add(self, study: str, words: Sequence[str], command: str, folder: Path) -> Job:
        """Queue a study."""
        row = (study, json.dumps(list(words)), command, str(folder), "queued", time.time())
        names = "study, words, command, folder, state, added"
        with self._guard:
            made = self._table.execute(f"insert into jobs ({names}) values (?, ?, ?, ?, ?, ?)", row)
        return self.get(int(made.lastrowid or 0))

    def get(self, number: int) -> Job:
        """A job by its number. Raises `RunError` where there is none."""
        found = self._read("where id = ?", number) if 0 < number < 2**63 else []
        if not found:
            raise RunError(f"There is no job {number}.")
        return found[0]

    def all(self) -> list[Job]:
        """All jobs, the latest first."""
        return self._read("order by id desc")

    def next(self) -> Job | None:
        """The queued job that was asked for first."""
        return next(iter(self._read("where state = 'queued' order by id limit 1")), None)

    def begin(self, number: int) -> None:
        """A job's work begins."""
        self._write("state = 'running', began = ?, message = ''", number, time.time())

    def end(self, number: int, state: State, message: str = "") -> None:
        """A job is done, has failed, or was cancelled."""
        told = CONTROL.sub("\ufffd", message)
        self._write("state = ?, message = ?, ended = ?", number, state, told, time.time())

    def queue_again(self, number: int) -> None:
        """A job that was interrupted, cancelled or has failed is to go on from where it was."""
        self._write("state = 'queued', message = '', ended = null", number)

    def close(self) -> None:
        """Let another server have the folder."""
        self._table.close()
        self._lock.close()

    def _read(self, which: str, *values: Any) -> list[Job]:
        with self._guard:
            rows = self._table.execute(f"select * from jobs {which}", values).fetchall()
        return [Job(row[0], row[1], tuple(json.loads(row[2])), *row[3:]) for row in rows]

    def _write(self, change: str, number: int, *values: Any) -> None:
        with self._guard:
            self._table.execute(f"update jobs set {change} where id = ?", (*values, number))
