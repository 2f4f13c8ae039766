"""The process that does the work: it keeps its model loaded, can be interrupted, and ends with the server."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from circuitome.errors import CircuitomeError

EVERY = 0.1
"""Seconds between two messages on progress."""
Message = tuple[str, Any]
"""Kind (progress, done, failed or stopped) and what it says."""
Send = Callable[[Message], None]
"""Sends a message to the server."""


@dataclass
class Worker:
    """A process that takes one request after another. It is started by the first one, and anew where it has ended."""

    name: str
    """For lists of processes."""
    _process: BaseProcess | None = None
    _pipe: Connection | None = None
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, kind: str, *arguments: Any) -> Iterator[Message]:
        """Send a request and give what comes back; the last message is done, failed or stopped.

        `kind` is the name of a function in `REQUESTS`. A process that had done earlier requests and ends before it says
        anything may have been gone already: a new one is asked.
        """
        while True:
            new, said = True, False
            try:
                pipe, new = self._running()
                pipe.send((kind, arguments))
                while True:
                    message: Message = pipe.recv()
                    said = True
                    yield message
                    if message[0] != "progress":
                        return
            except (EOFError, OSError):
                code = self.end()
            if new or said:
                yield "failed", f"The process that did it ended (code {code}); memory may have run out. It can go on."
                return

    def interrupt(self) -> None:
        """Stop what it is doing; the process and its model stay."""
        with self._guard:
            if self._process and self._process.pid and self._process.is_alive():
                os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> int | None:
        """End the process. Gives the code with which it ended, or had ended already; None where there was none."""
        with self._guard:
            process, self._process, self._pipe = self._process, None, None
            if process is None or process.pid is None:  # the latter: it could not be started
                return None
            process.join(0.1)  # one that is just ending has a code of its own
            process.kill()
            process.join()
            return process.exitcode

    def _running(self) -> tuple[Connection, bool]:
        """The pipe of a process, and whether that was started for it."""
        with self._guard:
            if self._pipe is None or self._process is None or not self._process.is_alive():
                context = get_context("spawn")
                self._pipe, theirs = context.Pipe()
                self._process = context.Process(target=serve, args=(theirs,), name=self.name, daemon=True)
                self._process.start()
                theirs.close()
                return self._pipe, True
            return self._pipe, False


def serve(pipe: Connection) -> None:
    """The worker's process: one request after another, until the server is gone."""
    from circuitome.models.loading import keeping_model, let_go

    os.setsid()  # Ctrl-C in the server's terminal is for the server
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    working: list[bool] = []
    signal.signal(signal.SIGINT, lambda *_: _interrupt(working))
    with keeping_model():
        while True:
            try:
                kind, arguments = pipe.recv()
            except EOFError:
                return
            answer = _answered(working, partial(REQUESTS[kind], pipe.send, *arguments))
            if answer[0] != "done":
                let_go()
            pipe.send(answer)


def _answered(working: list[bool], work: Callable[[], Any]) -> Message:
    """What work gives, or how it ended."""
    try:
        with _interruptible(working):
            return "done", work()
    except KeyboardInterrupt:
        return "stopped", ""
    except CircuitomeError as error:
        return "failed", str(error)
    except Exception as error:  # a fault of the program ends the job, not the worker
        traceback.print_exc()
        return "failed", f"{type(error).__name__}: {error}. This is a fault of circuitome; the terminal shows where."


@contextmanager
def _interruptible(working: list[bool]) -> Iterator[None]:
    working.append(True)
    try:
        yield
    finally:
        working.clear()


def _interrupt(working: list[bool]) -> None:
    if working:
        working.clear()
        raise KeyboardInterrupt


def _end_with_the_server() -> None:
    """A server that was killed must not leave a worker that writes into the folders of the next one."""
    server = parent_process()
    if server is not None:
        server.join()
        os._exit(1)


def perform_study(send: Send, study: str, words: list[str], folder: str) -> str:
    """Do a study; what a stopped run of it has kept is used. Gives the folder of the run."""
    from circuitome.runs.store import partial_of
    from circuitome.studies.catalog import STUDIES
    from circuitome.studies.frame import perform
    from circuitome.studies.options import parsed

    chosen, out = STUDIES[study], Path(folder)
    resume = partial_of(out).is_dir()
    perform(chosen, parsed(chosen, words), out=out, resume=resume, progress=told(send))
    return folder


def told(send: Send, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> Any:
    """Progress as messages: the beginning and end of each phase, and between them one in `every` seconds.

    Of the whole run it is told with the next phase.
    """
    from circuitome.progress import WHOLE, phase_of

    last: dict[str, Any] = {"phase": "", "at": 0.0, "whole": None}

    def tell(what: str, done: int, total: int) -> None:
        if what == WHOLE:
            last["whole"] = (done, total)
            return
        now, phase = clock(), phase_of(what)
        if phase == last["phase"] and done < total and now - last["at"] < every:
            return
        last.update(phase=phase, at=now)
        send(("progress", {"what": what, "done": done, "total": total, "whole": last["whole"]}))

    return tell


def answer_prompt(send: Send, request: dict[str, Any]) -> dict[str, Any]:
    """What a model does with a prompt."""
    from circuitome.app.prompt import answer

    return answer(request)


REQUESTS: dict[str, Callable[..., Any]] = {"study": perform_study, "prompt": answer_prompt}
"""What a worker can be asked for."""
