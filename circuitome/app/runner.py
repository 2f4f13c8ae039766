"""Takes the queued jobs one after another to a worker, and knows how far the running one is."""

import itertools
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from circuitome.app.jobs import Job, Jobs, State
from circuitome.app.worker import Worker
from circuitome.errors import RunError
from circuitome.runs.store import MANIFEST, partial_of, read_manifest

ENDING, AGAIN = 5.0, 1.0
"""Seconds that the thread is given to end, and until a table that could not be written is tried again."""


class Runner:
    """One thread that hands jobs to one worker."""

    def __init__(self, jobs: Jobs) -> None:
        """Jobs that were running when the server ended are queued again, or are done where their run is there."""
        self.jobs, self.worker = jobs, Worker("circuitome jobs")
        self.version = 0
        """Another number after each change of any job."""
        self.problem = ""
        """Why the table of jobs cannot be written, while that is so."""
        self.progress: dict[str, Any] | None = None
        """How far the running job is."""
        self._current: int | None = None
        self._cancelled: set[int] = set()
        self._versions = itertools.count(1)
        self.ending = False
        """Whether the server is about to end."""
        self._guard, self._wake = threading.Lock(), threading.Event()
        for job in jobs.all():
            if job.state == "running":
                _settle(jobs, job)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Begin with the first queued job."""
        self._thread.start()

    def changed(self) -> None:
        """Something is queued, or shall be shown."""
        self._tell()
        self._wake.set()

    def cancel(self, number: int) -> None:
        """Take a queued job out, interrupt a running one; where that was asked for before, end its process."""
        with self._guard:
            if self.jobs.get(number).state == "queued":
                self.jobs.end(number, "cancelled")
            elif self._current == number and number in self._cancelled:
                self.worker.end()
            elif self._current == number:
                self._cancelled.add(number)
                self.worker.interrupt()
        self.changed()

    def stop(self) -> None:
        """End the worker; a running job stays marked as running, so that the next server goes on with it."""
        self.ending = True
        self.worker.end()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(ENDING)

    def _tell(self) -> None:
        """Something changed. No two changes get one number, so that one made at the same time is seen too."""
        self.version = next(self._versions)

    def _insisting(self, change: Callable[[], Job | None]) -> Job | None:
        """Change the table; where it cannot be written, say so and try until it can be or the server ends."""
        while not self.ending:
            try:
                changed = change()
            except sqlite3.Error as error:
                self.problem = f"The table of jobs cannot be written ({error}); jobs wait until it can be."
                self._tell()
                self._wake.wait(AGAIN)
                continue
            if self.problem:
                self.problem = ""
                self._tell()
            return changed
        return None

    def _begun(self) -> Job | None:
        """The next job, marked as running."""
        with self._guard:
            job = self.jobs.next()
            if job is not None:
                self.jobs.begin(job.id)
                self._current, self.progress = job.id, None
        return job

    def _work(self) -> None:
        while not self.ending:
            job = self._insisting(self._begun)
            if job is None:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            self._tell()
            self._follow(job)

    def _follow(self, job: Job) -> None:
        for kind, said in self.worker.ask("study", job.study, list(job.words), job.folder):
            if kind == "progress":
                self.progress = said
                self._tell()
                if job.id in self._cancelled:  # it was asked to stop before its work had begun
                    self.worker.interrupt()
                continue
            with self._guard:
                cancelled = job.id in self._cancelled and kind != "done"
            state: State = "cancelled" if cancelled else "done" if kind == "done" else "failed"
            self._insisting(partial(self.jobs.end, job.id, state, str(said) if state == "failed" else ""))
            with self._guard:
                self._current, self.progress = None, None
                self._cancelled.discard(job.id)
            self._tell()


def _settle(jobs: Jobs, job: Job) -> None:
    """What becomes of a job that was running when its server ended."""
    folder = Path(job.folder)
    try:
        manifest = read_manifest(folder)
        written = (folder / MANIFEST).stat().st_mtime
    except (OSError, RunError):
        manifest, written = {}, 0.0
    saved = manifest.get("command") == job.command and written >= (job.began or 0.0)
    if saved and not partial_of(folder).exists():
        jobs.end(job.id, "done")
    else:
        jobs.queue_again(job.id)
