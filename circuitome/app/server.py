"""The server: runs, jobs, forms and prompts over HTTP, on this machine only."""

import asyncio
import json
import secrets
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import Body, FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse

from circuitome.app.folders import Folders, sandbox
from circuitome.app.guard import Guard
from circuitome.app.jobs import Jobs
from circuitome.app.runner import Runner
from circuitome.app.worker import Worker
from circuitome.errors import CircuitomeError, InputError, RunError
from circuitome.present.assets import asset
from circuitome.present.formats import CONTROL
from circuitome.studies.catalog import STUDIES
from circuitome.studies.options import filled_in, form, parsed
from circuitome.studies.settings import RunSettings, command_line

LOOKED_AT = 0.2
"""Seconds between two looks for changes."""
PATIENCE = 30.0
"""Seconds after which a prompt that waits for another is refused."""


class Served:
    """The state behind the addresses: the folder of runs, its jobs, and a process for prompts."""

    def __init__(self, runs: Path) -> None:
        """Raises `RunError` where another server has the folder open."""
        self.folders, self.jobs = Folders(runs), Jobs(runs)
        self.runner, self.prompts = Runner(self.jobs), Worker("circuitome prompts")
        self.prompting = threading.Lock()
        self.leaving: Callable[[], bool] = lambda: False
        """Whether the server was asked to end."""

    def version(self) -> tuple[int, int]:
        """Another one whenever lists would show something else."""
        return self.runner.version, self.folders.changed()

    def state(self) -> dict[str, Any]:
        """All that lists show."""
        runs, problem = list[dict[str, Any]](), self.runner.problem
        try:
            runs = self.folders.rows()
        except RunError as error:
            problem = str(error)
        return {
            "runs": runs,
            "jobs": [asdict(job) for job in self.jobs.all()],
            "progress": self.runner.progress,
            "folder": str(self.folders.root.absolute()),
            "problem": problem,
        }

    def start_job(self, study: str, values: dict[str, str]) -> dict[str, Any]:
        """Queue a study from what a form holds. Raises `InputError` for what it cannot take."""
        if study not in STUDIES:
            raise InputError(f"There is no study {study!r}.")
        chosen, root = STUDIES[study], self.folders.root
        if "run" in chosen.settings.arguments and values.get("run"):
            values = {**values, "run": str(self.folders.path(values["run"]))}
        words = filled_in(chosen, values)
        settings = parsed(chosen, words)
        try:
            settings.check()
        except OSError as error:  # a text that was taken for the name of a file
            raise InputError(f"{error.strerror or error}: {str(error.filename)[:80]}") from None
        command = command_line(study, settings)
        job = self.jobs.add(study, words, command, root.resolve() / settings.folder_name(study))
        self.runner.changed()
        return asdict(job)

    def again(self, number: int) -> dict[str, Any]:
        """Queue a job again that failed or was cancelled; it goes on from what it had kept."""
        if self.jobs.get(number).state in ("queued", "running"):
            raise InputError(f"Job {number} is not at an end.")
        self.jobs.queue_again(number)
        self.runner.changed()
        return asdict(self.jobs.get(number))

    def prompt(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a model does with a prompt, in the process for prompts. Raises `InputError` where it cannot."""
        if not self.prompting.acquire(timeout=PATIENCE):
            raise InputError("The prompt box is still at another prompt.")
        try:
            kind, said = list(self.prompts.ask("prompt", request))[-1]
        finally:
            self.prompting.release()
        if kind != "done":
            raise InputError(str(said))
        return dict(said)

    def stop(self) -> None:
        """End the processes and let the folder go."""
        self.runner.stop()
        self.prompts.end()
        self.jobs.close()


def application(served: Served) -> FastAPI:
    """The addresses behind the token."""
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def handled(kind: type[Exception], status: int, words: str) -> None:
        @api.exception_handler(kind)
        def said(_: Request, error: Exception) -> JSONResponse:
            return JSONResponse({"error": CONTROL.sub("\ufffd", words.format(error))}, status)

    handled(CircuitomeError, 400, "{}")
    handled(OSError, 400, "A file is gone or cannot be read: {}.")
    handled(sqlite3.Error, 503, "The table of jobs cannot be used now: {}.")
    handled(Exception, 500, "This is a fault of circuitome; the terminal shows where: {!r}")

    _pages(api, served)
    _data(api, served)
    return api


def _pages(api: FastAPI, served: Served) -> None:
    """The app's page and its parts, pages and files of runs."""

    @api.get("/")
    def home() -> HTMLResponse:
        return HTMLResponse(asset("app.html"))

    @api.get("/{script}.js")
    def script(script: Literal["app", "page"]) -> Response:
        return Response(asset(f"{script}.js"), media_type="text/javascript")

    @api.get("/app.css")
    def style() -> Response:
        return Response(asset("page.css") + asset("app.css"), media_type="text/css")

    @api.get("/runs/{name}/report")
    def report(name: str) -> HTMLResponse:
        return HTMLResponse(served.folders.report(name), headers={"content-security-policy": sandbox()})

    @api.get("/runs/{name}/files/{file:path}")
    def run_file(name: str, file: str) -> FileResponse:
        path = served.folders.path(name, file)
        if not path.is_file():
            raise InputError(f"{file} is not a file.")
        with path.open("rb"):  # else it would be said only after the answer has begun that it cannot be read
            stat = path.stat()
        headers = {"content-security-policy": sandbox()}
        return FileResponse(
            path, stat_result=stat, filename=path.name, media_type="application/octet-stream", headers=headers
        )


def _data(api: FastAPI, served: Served) -> None:
    """What the page asks for and sends, as JSON."""

    @api.get("/api/studies")
    def studies() -> Any:
        from circuitome.models.loading import SHORT_NAMES  # takes as long to import as all the rest of the server
        from circuitome.tasks import TASKS

        known = {"model": list(SHORT_NAMES), "task": list(TASKS)}
        listed = [
            {
                "name": name,
                "about": (study.settings.__doc__ or "").partition("\n")[0].replace("`", ""),
                "of_run": issubclass(study.settings, RunSettings),
                "fields": [asdict(field) for field in form(study)],
            }
            for name, study in STUDIES.items()
        ]
        return {"studies": listed, "known": known}

    @api.get("/api/state")
    def state() -> Any:
        return served.state()

    @api.get("/api/runs/{name}")
    def run(name: str) -> Any:
        return {"files": served.folders.files(name)}

    @api.post("/api/runs/{name}/groups")
    def keep(name: str, view: str = Body(), kept: Any = Body()) -> Any:  # noqa: B008  # how FastAPI is told
        served.folders.keep(name, view, kept)
        return {}

    @api.post("/api/jobs")
    def start(study: str = Body(), values: dict[str, str] = Body()) -> Any:  # noqa: B008  # how FastAPI is told
        return served.start_job(study, values)

    @api.post("/api/jobs/{number}/cancel")
    def cancel(number: int) -> Any:
        served.runner.cancel(number)
        return asdict(served.jobs.get(number))

    @api.post("/api/jobs/{number}/again")
    def again(number: int) -> Any:
        return served.again(number)

    @api.post("/api/prompt")
    def prompt(request: dict[str, Any] = Body()) -> Any:  # noqa: B008
        return served.prompt(request)

    @api.get("/api/events")
    async def events(request: Request) -> StreamingResponse:
        return StreamingResponse(_events(served, request.is_disconnected), media_type="text/event-stream")


async def _events(served: Served, gone: Callable[[], Any]) -> AsyncIterator[str]:
    """What of the state has changed, whenever it has, at first all of it: server-sent events."""
    seen, told = None, dict[str, Any]()
    while not served.leaving() and not await gone():
        if seen != (version := served.version()):
            try:
                state = await asyncio.to_thread(served.state)
            except sqlite3.Error:  # the page asks anew
                return
            if changed := {name: part for name, part in state.items() if name not in told or told[name] != part}:
                yield f"data: {json.dumps(changed)}\n\n"
            seen, told = version, state
        await asyncio.sleep(LOOKED_AT)


def serve(runs: Path, port: int, tell: Callable[[str], None], token: str | None = None) -> None:
    """Serve a folder of runs until interrupted; `tell` is given the address, with its token, once it answers.

    Port 0 takes a free one. Raises `InputError` for a port that is taken, `RunError` where the folder is.
    """
    token = token or secrets.token_urlsafe(24)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise InputError(f"Port {port} cannot be used: {reason}. Give another with --port.") from None
    port = listening.getsockname()[1]
    try:
        served = Served(runs)
    except RunError:
        listening.close()
        raise
    guarded = Guard(application(served), token, port)
    config = uvicorn.Config(guarded, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    served.leaving = lambda: server.should_exit
    served.runner.start()
    try:
        threading.Timer(0.3, tell, [f"http://127.0.0.1:{port}/{token}/"]).start()
        with suppress(KeyboardInterrupt):  # how uvicorn says that it was asked to end
            server.run(sockets=[listening])
    finally:
        served.stop()
