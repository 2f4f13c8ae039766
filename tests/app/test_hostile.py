"""Runs, requests and prompts that somebody made to do harm: each is refused or shown as text, and soon."""

import asyncio
import copy
import json
import random
import time
from dataclasses import asdict

import pytest

pytest.importorskip("fastapi")

from app.asgi import asked
from documents import every

from circuitome.app.folders import SHOWN, Folders
from circuitome.app.guard import Guard
from circuitome.app.prompt import LETTERS, answer
from circuitome.app.server import Served, application
from circuitome.errors import InputError, RunError
from circuitome.runs.store import LARGEST, load_run

AT_MOST = 20.0
"""Seconds, on a machine that others use too."""
PLAIN = {"key": "k", "kind": "find", "created": "2026-01-01", "title": "t", "command": "c", "sign": "s", "blocks": []}
WRONG = (None, -1, 10**9, 1e308, "", "../../x", "a999999999.h9", [], {}, [[]], True)
"""What stands where something else was expected."""


def saved(root, name, text):
    folder = root / name
    folder.mkdir()
    (folder / "manifest.json").write_text(text, "utf-8")
    return folder


@pytest.fixture
def server(tmp_path):
    served = Served(tmp_path / "runs")
    yield Guard(application(served), "secret", 1234)
    served.stop()


def nested(depth):
    return json.dumps(PLAIN)[:-1] + ', "deep": ' + '{"a": ' * depth + "1" + "}" * (depth + 1)


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_a_deeply_nested_manifest_is_shown_or_refused(server, tmp_path, depth):
    folder = saved(tmp_path / "runs", "deep", nested(depth))
    start = time.monotonic()
    status, _, _ = asked(server, "/secret/runs/deep/report")
    assert status in (200, 400) and time.monotonic() - start < AT_MOST
    assert asked(server, "/secret/api/state")[0] == 200
    with pytest.raises(RunError, match="damaged"):
        load_run(folder)


def test_a_manifest_of_a_gigabyte_is_not_read_by_commands_either(tmp_path):
    folder = saved(tmp_path, "big", json.dumps(PLAIN))
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(5 * LARGEST)  # sparse
    with pytest.raises(RunError, match="is not read"):
        load_run(folder)


@pytest.mark.parametrize("data", [b"", b"x" * 8, (2**62).to_bytes(8, "little") + b"{}", b"\xff" * 1000])
def test_damaged_tensors_are_said_and_the_page_is_shown_without_them(server, tmp_path, data):
    folder = saved(tmp_path / "runs", "bad", json.dumps(PLAIN))
    (folder / "tensors.safetensors").write_bytes(data)
    with pytest.raises(RunError, match=r"tensors\.safetensors cannot be read"):
        load_run(folder)
    assert asked(server, "/secret/runs/bad/report")[0] == 200


def places(value, path=()):
    """The ways to all that lies in plain data."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(min(3, len(value))) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def spoilt(block, draw):
    """A copy with something wrong in a place that was drawn."""
    made = copy.deepcopy(block)
    *way, last = draw.choice(list(places(made)))
    inside = made
    for key in way:
        inside = inside[key]
    if draw.random() < 0.2:
        del inside[last]
    else:
        inside[last] = draw.choice(WRONG)
    return made


@pytest.mark.slow
def test_pages_of_spoilt_blocks_are_shown_or_refused(tmp_path):
    draw, folders = random.Random(0), Folders(tmp_path)
    blocks = [json.loads(json.dumps(asdict(block))) for block in every().blocks]
    folder, slowest, refused = saved(tmp_path, "run", ""), 0.0, 0
    for number in range(300):
        manifest = {**PLAIN, "blocks": [spoilt(blocks[number % len(blocks)], draw)]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        start = time.monotonic()
        try:
            folders.report("run")
        except RunError:
            refused += 1
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < AT_MOST and 50 < refused < 300


@pytest.mark.parametrize("name", PLAIN)
def test_facts_of_another_kind_are_shown_or_refused(server, tmp_path, name):
    for number, wrong in enumerate(WRONG):
        saved(tmp_path / "runs", str(number), json.dumps({**PLAIN, name: wrong}))
        assert asked(server, f"/secret/runs/{number}/report")[0] in (200, 400)
    rows = json.loads(asked(server, "/secret/api/state")[2])["runs"]
    assert len(rows) == len(WRONG)


def test_a_title_of_a_megabyte_is_cut_in_the_list(server, tmp_path):
    saved(tmp_path / "runs", "long", json.dumps({**PLAIN, "title": "x" * 10**6}))
    assert len(asked(server, "/secret/api/state")[2]) < 2 * SHOWN


@pytest.mark.parametrize(
    "name",
    ["x" * 5000, "x" * 300, "a\nb", "con", "%00", "\u202egnp.exe", "..%2f..", "~", "*", ".circuitome-jobs.sqlite"],
)
def test_names_that_are_no_runs_are_refused(server, name):
    for path in (f"runs/{name}/report", f"runs/{name}/files/manifest.json", f"api/runs/{name}"):
        assert asked(server, f"/secret/{path}")[0] in (400, 404)


@pytest.mark.parametrize(
    "prompt", ["a\x00b\x07\x1b[2J", "\u202eevil\u202c \u2066x", "\ud800", "\ufffe\uffff", " \t\r\n ", "</script><b>"]
)
def test_hostile_prompts_are_answered_or_refused(prompt):
    try:
        found = answer({"model": "known-ioi", "prompt": prompt})
    except InputError:
        return
    assert json.dumps(found)


@pytest.mark.parametrize(
    "change",
    [{"prompt": "x " * 500_000}, {"prompt": None}, {"prompt": 7}, {"prompt": ["a"]}, {"model": {}}, {"heads": [1]}],
)
def test_requests_that_cannot_be_are_refused_at_once(change):
    start = time.monotonic()
    with pytest.raises(InputError):
        answer({"model": "known-ioi", "prompt": "Ann and", **change})
    assert time.monotonic() - start < 1 and LETTERS < 10**6


def test_a_web_socket_is_closed_before_it_opens(server):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/secret/api/events", "headers": [(b"host", b"127.0.0.1:1234")]}
    asyncio.run(server(scope, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/events", {}),
        ("/wrong/api/events", {}),
        ("/secret/api/events", {"origin": "http://evil.example"}),
        ("/secret/api/events", {"host": "evil.example"}),
        ("/secret/runs/x/report", {"sec-fetch-site": "cross-site"}),
        ("/secret/api/jobs", {"origin": "null"}),
        ("/secret/api/prompt", {"origin": "http://127.0.0.1:80"}),
    ],
)
def test_every_kind_of_address_is_refused_to_others(server, path, headers):
    for method in ("GET", "POST", "OPTIONS"):
        assert asked(server, path, method=method, headers=headers)[0] == 403
