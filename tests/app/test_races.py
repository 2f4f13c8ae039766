"""What changes while the server looks, and what no file or table can hold: answered in words, never with 500."""

import asyncio
import json
import os
import sqlite3

import pytest

pytest.importorskip("fastapi")

from app.asgi import asked

from circuitome.app import runner, server, worker
from circuitome.app.guard import Guard
from circuitome.app.jobs import Jobs
from circuitome.app.runner import Runner
from circuitome.app.server import application
from circuitome.app.worker import Worker
from circuitome.studies import options
from circuitome.studies.catalog import STUDIES

PLAIN = {"key": "k", "kind": "find", "created": "2026-01-01", "title": "t", "command": "c", "sign": "s", "blocks": []}


@pytest.fixture
def app(served):
    return Guard(application(served), "secret", 1234)


def saved(served, name, **changes):
    folder = served.folders.root / name
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(PLAIN | changes))
    return folder


def rows(app):
    status, _, body = asked(app, "/secret/api/state")
    assert status == 200
    return {row["name"]: row for row in json.loads(body)["runs"]}


def status(app, path):
    """The status of an answer, which has words where it is no success."""
    number, _, body = asked(app, f"/secret/{path}")
    assert number == 200 or json.loads(body)["error"]
    return number


def test_links_that_go_round_are_rows_and_files_that_say_so(app, served):
    folder = saved(served, "run")
    (folder / "round").symlink_to("round")
    (saved(served, "other") / "manifest.json").unlink()
    (served.folders.root / "other/manifest.json").symlink_to("manifest.json")
    assert "problem" in rows(app)["other"] and "problem" not in rows(app)["run"]
    assert {status(app, f"runs/{path}") for path in ("other/report", "run/files/round", "other/files/x")} == {400}
    assert [file["name"] for file in json.loads(asked(app, "/secret/api/runs/run")[2])["files"]] == ["manifest.json"]


def test_texts_and_names_that_are_no_unicode_are_shown(app, served):
    run = saved(served, "run", title="a \ud800", command="\udfff")
    saved(served, "long", seconds=10**400)
    odd = served.folders.root / os.fsdecode(b"bad\xff")
    odd.mkdir()
    (odd / "manifest.json").write_text("{}")
    (run / os.fsdecode(b"\xff.json")).write_text("{}")
    listed = rows(app)
    assert listed["run"]["title"] == "a \ufffd" and listed["long"]["seconds"] is None
    assert "problem" in listed["bad\ufffd"]
    assert status(app, "runs/run/report") == 200 and status(app, "api/runs/run") == 200


def test_what_is_gone_before_it_is_looked_at_is_left_out_or_said(app, served, monkeypatch):
    folder = saved(served, "run")
    (folder / "late.txt").write_text("x")
    walk, exists = os.walk, os.path.lexists

    def gone_after_listing(top):
        for place, folders, names in walk(top):
            (folder / "late.txt").unlink(missing_ok=True)
            yield place, folders, names

    monkeypatch.setattr(os, "walk", gone_after_listing)
    assert [file["name"] for file in served.folders.files("run")] == ["manifest.json"]
    monkeypatch.setattr(os.path, "lexists", lambda path: path.name == "manifest.json")  # as it was a moment ago
    (folder / "manifest.json").unlink()
    assert "problem" in rows(app)["run"]
    monkeypatch.setattr(os.path, "lexists", exists)
    folder.rmdir()
    assert rows(app) == {} and status(app, "runs/run/report") == 400


def test_a_folder_of_runs_that_is_gone_is_said(app, served):
    served.folders.root.rename(served.folders.root.with_name("moved"))
    state = json.loads(asked(app, "/secret/api/state")[2])
    assert state["runs"] == [] and "cannot be read" in state["problem"] and served.folders.changed() == 0


@pytest.mark.parametrize("number", [0, -1, 2**63, 10**30])
def test_numbers_that_no_job_has_are_refused(app, number):
    assert asked(app, f"/secret/api/jobs/{number}/cancel", method="POST")[0] == 400


@pytest.mark.parametrize(
    ("study", "values", "words"),
    [
        ("find", {"task": "\x00"}, "no command line can hold"),
        ("weights", {"head": "\ud800"}, "no command line can hold"),
        ("find", {"data": "x" * 5000}, "File name too long"),
        ("find", {"max_memory": "9" * 400}, "not a size"),
        ("trace", {"prompt": "a", "contrast": "'"}, "No closing quotation"),
    ],
)
def test_what_no_command_line_can_hold_is_refused(app, study, values, words):
    body = {"study": study, "values": values}
    number, _, said = asked(app, "/secret/api/jobs", method="POST", body=body)
    assert number == 400 and words in json.loads(said)["error"]


def test_a_table_that_cannot_be_read_is_said(app, served):
    table, served.jobs._table = served.jobs._table, sqlite3.connect(":memory:")
    number, _, said = asked(app, "/secret/api/state")
    assert number == 503 and "table of jobs" in json.loads(said)["error"]
    served.jobs._table = table


def test_a_fault_is_said_in_words(app, served, monkeypatch):
    monkeypatch.setattr(served.folders, "rows", lambda: 1 / 0)
    answers = []

    async def send(message):
        answers.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/secret/api/state", "query_string": b"", "http_version": "1.1"}
    with pytest.raises(ZeroDivisionError):  # for the terminal
        asyncio.run(app({**scope, "headers": [(b"host", b"127.0.0.1:1234")]}, receive, send))
    assert answers[0]["status"] == 500 and b"a fault of circuitome" in answers[1]["body"]


def test_forms_are_read_by_one_thread_at_a_time(monkeypatch):
    parse, held = options.parse_from_object, []

    def watched(kind):
        held.append(options._READING.locked())
        return parse(kind)

    monkeypatch.setattr(options, "parse_from_object", watched)
    options._lines_of.cache_clear()
    assert options.form(STUDIES["find"]) and held and all(held)


def test_events_tell_what_has_changed_alone(served, monkeypatch):
    monkeypatch.setattr(server, "LOOKED_AT", 0.0)

    async def told():
        events = server._events(served, lambda: asyncio.sleep(0, False))
        first = json.loads((await anext(events)).removeprefix("data: "))
        served.runner.progress = {"what": "x", "done": 1, "total": 2, "whole": None}
        served.runner.changed()
        second = json.loads((await anext(events)).removeprefix("data: "))
        saved(served, "run")
        third = json.loads((await anext(events)).removeprefix("data: "))
        served.leaving = lambda: True
        return first, second, third, [event async for event in events]

    first, second, third, rest = asyncio.run(told())
    assert {*first} == {"runs", "jobs", "progress", "folder", "problem"}
    assert second == {"progress": served.runner.progress}
    assert [row["name"] for row in third.pop("runs")] == ["run"] and not third and not rest


def test_a_state_that_cannot_be_read_ends_the_events(served, monkeypatch):
    def closed():
        raise sqlite3.ProgrammingError("closed")

    monkeypatch.setattr(served, "state", closed)

    async def told():
        return [event async for event in server._events(served, lambda: asyncio.sleep(0, False))]

    assert asyncio.run(told()) == []


class Stub(Worker):
    """A worker of messages that are given."""

    def __init__(self, *messages):
        super().__init__("stub")
        self.messages, self.interrupted = messages, 0

    def ask(self, *_):
        yield from self.messages

    def interrupt(self):
        self.interrupted += 1

    def end(self):
        pass


def test_jobs_wait_until_their_table_can_be_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "AGAIN", 0.0)
    jobs, refused = Jobs(tmp_path), []
    made = Runner(jobs)
    made.worker = Stub(("progress", {"done": 1}), ("done", ""))
    job = jobs.add("weights", [], "circuitome weights", tmp_path / "run")
    write = jobs._write

    def full(change, number, *values):
        if refused.count(change) < 2:
            refused.append(change)
            assert "cannot be written" in made.problem or len(refused) % 2
            raise sqlite3.OperationalError("database or disk is full")
        write(change, number, *values)

    monkeypatch.setattr(jobs, "_write", full)
    taken = made._insisting(made._begun)
    assert taken.id == job.id and jobs.get(job.id).state == "running" and not made.problem
    made._follow(taken)
    assert jobs.get(job.id).state == "done" and len(refused) == 4 and not made.problem
    jobs.close()


def test_a_job_that_is_cancelled_before_its_work_begins_is_interrupted_once_it_has(tmp_path):
    jobs = Jobs(tmp_path)
    made = Runner(jobs)
    made.worker = Stub(("progress", {"done": 1}), ("stopped", ""))
    jobs.add("weights", [], "circuitome weights", tmp_path / "run")
    job = made._begun()
    made.cancel(job.id)  # the worker sleeps: a signal tells it nothing
    assert made.worker.interrupted == 1
    made._follow(job)
    assert made.worker.interrupted == 2 and jobs.get(job.id).state == "cancelled"
    jobs.close()


def test_two_changes_never_get_one_number(tmp_path):
    jobs = Jobs(tmp_path)
    made, seen = Runner(jobs), set()
    for _ in range(3):
        made._tell()
        seen.add(made.version)
    assert len(seen) == 3
    jobs.close()


def test_a_process_that_cannot_be_started_fails_the_job(monkeypatch):
    def none(_):
        raise OSError("no memory for another process")

    monkeypatch.setattr(worker, "get_context", none)
    asked_of = Worker("none")
    assert [kind for kind, _ in asked_of.ask("study")] == ["failed"] and asked_of.end() is None


class Pipe:
    """A pipe whose other end says what is given, and is gone then."""

    def __init__(self, *messages):
        self.messages = list(messages)

    def send(self, _):
        pass

    def recv(self):
        if not self.messages:
            raise ConnectionResetError
        return self.messages.pop(0)


def test_a_process_that_was_gone_already_is_replaced_and_one_that_ends_at_work_is_not(monkeypatch):
    def answers(*pipes):
        asked_of, given = Worker("none"), list(pipes)
        monkeypatch.setattr(asked_of, "_running", lambda: given.pop(0))
        return [kind for kind, _ in asked_of.ask("study")], len(given)

    done, progress = ("done", ""), ("progress", "")
    assert answers((Pipe(), False), (Pipe(progress, done), True)) == (["progress", "done"], 0)
    assert answers((Pipe(), True), (Pipe(done), True)) == (["failed"], 1)
    assert answers((Pipe(progress), False), (Pipe(done), True)) == (["progress", "failed"], 1)


def test_a_message_that_is_no_unicode_is_kept(tmp_path):
    jobs = Jobs(tmp_path)
    job = jobs.add("weights", [], "circuitome weights", tmp_path / "run")
    jobs.end(job.id, "failed", "no token \ud800")
    assert jobs.get(job.id).message == "no token \ufffd"
    jobs.close()
