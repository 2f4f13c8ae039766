"""Takes the queued jobs one after another to a worker, and knows how far the running one is."""

import json
import threading
from pathlib import Path
from typing import Any

from circuitome.app.jobs import Job, Jobs, State
from circuitome.app.worker import Worker
from circuitome.runs.store import MANIFEST, partial_of


class Runner:
    """One thread that hands jobs to one worker."""

    def __init__(self, jobs: Jobs) -> None:
        """Jobs that were running when the server ended are queued again, or are done where their run is there."""
        self.jobs, self.worker = jobs, Worker("circuitome jobs")
        self.version = 0
        """Grows with each change of any job."""
        self.progress: dict[str, Any] | None = None
        """How far the running job is."""
        self._current: int | None = None
        self._cancelled: set[int] = set()
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
        self.version += 1
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

    def _work(self) -> None:
        while not self.ending:
            with self._guard:
                job = self.jobs.next()
                if job is not None:
                    self.jobs.begin(job.id)
                    self._current, self.progress = job.id, None
            if job is None:
                self._wake.wait(1.0)
                self._wake.clear()
                continue
            self.version += 1
            self._follow(job)

    def _follow(self, job: Job) -> None:
        for kind, said in self.worker.ask("study", job.study, list(job.words), job.folder):
            if kind == "progress":
                self.progress = said
                self.version += 1
                continue
            with self._guard:
                self._current = None
                cancelled = job.id in self._cancelled and kind != "done"
                self._cancelled.discard(job.id)
                if not self.ending:
                    state: State = "cancelled" if cancelled else "done" if kind == "done" else "failed"
                    self.jobs.end(job.id, state, str(said) if state == "failed" else "")
            self.progress = None
            self.version += 1


def _settle(jobs: Jobs, job: Job) -> None:
    """What becomes of a job that was running when its server ended."""
    folder = Path(job.folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        written = (folder / MANIFEST).stat().st_mtime
    except (OSError, ValueError):
        manifest, written = {}, 0.0
    saved = manifest.get("command") == job.command and written >= (job.began or 0.0)
    if saved and not partial_of(folder).exists():
        jobs.end(job.id, "done")
    else:
        jobs.queue_again(job.id)
