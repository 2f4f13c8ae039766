"""The server's answers: who may ask, what hostile runs can do, how jobs are asked for."""

import json
import threading

import pytest

pytest.importorskip("fastapi")

from app.asgi import asked

from circuitome.app.folders import Folders, sandbox
from circuitome.app.guard import Guard
from circuitome.app.server import Served, application
from circuitome.errors import RunError
from circuitome.runs.groups import read_groups, write_groups
from circuitome.runs.store import LARGEST, Run, save_run

TOKEN = "secret"
SCRIPT = "<script>alert(1)</script>"


def saved(root, name, **changes):
    """A run's folder with a manifest, as anybody could write it."""
    folder = root / name
    folder.mkdir()
    block = {
        "block": "lede",
        "title": "",
        "note": "",
        "folded": False,
        "where": "everywhere",
        "text": f"found {SCRIPT}",
    }
    manifest = {
        "key": "k",
        "kind": "weights",
        "created": "2026-01-01T00:00:00",
        "title": f"a title {SCRIPT}",
        "command": f"circuitome weights {SCRIPT}",
        "sign": SCRIPT,
        "blocks": [block],
        SCRIPT: SCRIPT,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    (folder / "report.html").write_text(SCRIPT)
    return folder


@pytest.fixture
def server(served):
    return Guard(application(served), TOKEN, 1234)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/wrong/", {}),
        ("/secretx/", {}),
        ("//secret/", {}),
        ("/secret/", {"host": "evil.example"}),
        ("/secret/", {"host": "127.0.0.1:99"}),
        ("/secret/", {"host": "evil.example@127.0.0.1:1234"}),
        ("/secret/", {"origin": "http://evil.example"}),
        ("/secret/", {"origin": "null"}),
        ("/secret/", {"origin": "http://127.0.0.1:99"}),
        ("/secret/", {"sec-fetch-site": "cross-site"}),
        ("/secret/", {"sec-fetch-site": "same-site"}),
        ("/secret/api/state", {"origin": "http://evil.example"}),
        ("/api/state", {}),
    ],
)
def test_others_get_403(server, path, headers):
    for method in ("GET", "POST"):
        status, _, body = asked(server, path, method=method, headers=headers)
        assert status == 403
        assert b"circuitome" not in body


def test_the_page_comes_with_a_policy_that_lets_no_inline_script_run(server):
    for headers in ({}, {"origin": "http://127.0.0.1:1234"}, {"host": "localhost:1234"}, {"sec-fetch-site": "none"}):
        status, given, body = asked(server, "/secret/", headers=headers)
        assert status == 200
        policy = given["content-security-policy"]
        assert "script-src 'self';" in policy and "default-src 'none'" in policy
        assert given["x-content-type-options"] == "nosniff" and given["referrer-policy"] == "no-referrer"
        assert b'src="app.js"' in body and b"<script>" not in body


def test_a_hostile_manifest_is_text_on_its_page_and_its_own_page_is_not_given(server, served):
    saved(served.folders.root, "hostile")
    status, given, body = asked(server, "/secret/runs/hostile/report")
    assert status == 200
    assert SCRIPT.encode() not in body and b"&lt;script&gt;alert(1)" in body
    policy = given["content-security-policy"]
    assert policy == sandbox() and policy.startswith("sandbox allow-scripts")
    assert "allow-same-origin" not in policy and "script-src 'sha256-" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    status, given, body = asked(server, "/secret/runs/hostile/files/report.html")
    assert status == 200 and body.decode() == SCRIPT
    assert given["content-disposition"].startswith("attachment") and given["content-type"] == "application/octet-stream"
    rows = json.loads(asked(server, "/secret/api/state")[2])["runs"]
    assert rows[0]["title"] == f"a title {SCRIPT}"


@pytest.mark.parametrize(
    "path",
    [
        "runs/../files/outside.txt",
        "runs/a/files/../../outside.txt",
        "runs/a/files//etc/passwd",
        "runs/a/files/link.txt",
        "runs/linked/files/manifest.json",
        "runs/linked/report",
        "runs/../report",
        "runs/./files/.circuitome-jobs.sqlite",
        "runs/a\x00/files/manifest.json",
        "runs/a/files/absent",
        "runs/a/files/",
        "api/runs/..",
        "api/runs/linked",
    ],
)
def test_no_path_leads_out_of_a_run(server, served, tmp_path, path):
    root = served.folders.root
    folder = saved(root, "a")
    (root / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(root / "outside.txt")
    (root / "linked").symlink_to(saved(tmp_path, "elsewhere"))
    status, _, body = asked(server, f"/secret/{path}")
    assert status in (400, 404), body
    assert b"outside\n" not in body and b"root:" not in body and b'"key"' not in body
    assert "link.txt" not in [file["name"] for file in served.folders.files("a")]


def test_files_that_come_and_go_while_they_are_listed(served):
    folder = saved(served.folders.root, "a")

    def write():
        for _ in range(60):
            write_groups(folder, "circuit", {})

    writing = threading.Thread(target=write)
    writing.start()
    while writing.is_alive():
        assert "manifest.json" in [file["name"] for file in served.folders.files("a")]
    assert [file["name"] for file in served.folders.files("a")].count("groups.json") == 1


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"key": 1}', "[" * 100_000, '{"key": 1, "blocks": [{"block": "x"}]}', '{"key":"\udc80"}'],
)
def test_a_damaged_manifest_is_a_row_that_says_so(server, served, text):
    saved(served.folders.root, "good")
    bad = saved(served.folders.root, "bad")
    (bad / "manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    rows = {row["name"]: row for row in json.loads(asked(server, "/secret/api/state")[2])["runs"]}
    assert "problem" not in rows["good"]
    status, _, body = asked(server, "/secret/runs/bad/report")
    assert status == 400 and "error" in json.loads(body)


def test_a_manifest_of_a_gigabyte_is_not_read(served):
    big = saved(served.folders.root, "big")
    with (big / "manifest.json").open("r+b") as file:
        file.truncate(5 * LARGEST)  # sparse
    assert "is not read" in served.folders.rows()[0]["problem"]
    with pytest.raises(RunError, match="is not read"):
        served.folders.report("big")


def test_a_run_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    folders, read = Folders(tmp_path), []

    def manifest(folders, name):
        read.append(name)
        return {"title": "t"}

    saved(tmp_path, "a")
    monkeypatch.setattr(Folders, "manifest", manifest)
    assert folders.rows() == folders.rows()
    assert read == ["a"]


def keep(server, name, groups, view="circuit", pinned=(), **headers):
    body = {"view": view, "kept": {"groups": groups, "pinned": pinned}}
    status, _, said = asked(server, f"/secret/api/runs/{name}/groups", method="POST", body=body, headers=headers)
    return status, said


EARLY = [{"name": f"early {SCRIPT}", "members": ["a0.h1", "m0"]}]
KEPT = {"circuit": {"groups": EARLY, "pinned": []}}


def test_groups_made_by_hand_are_kept_with_the_run(server, served):
    folder = saved(served.folders.root, "a")
    assert keep(server, "a", EARLY)[0] == 200 and keep(server, "a", [], "attribution_graph2", ["m0.n1@2"])[0] == 200
    made = {**KEPT, "attribution_graph2": {"groups": [], "pinned": ["m0.n1@2"]}}
    assert json.loads((folder / "groups.json").read_text()) == made
    assert sorted(path.name for path in folder.iterdir()) == ["groups.json", "manifest.json", "report.html"]
    _, _, body = asked(server, "/secret/runs/a/report")
    kept = body.decode().split('id="kept">')[1].split("</script>")[0]
    assert json.loads(kept) == made and SCRIPT not in kept
    save_run(Run(json.loads((folder / "manifest.json").read_text()), {}), folder, {})  # the same command once more
    assert read_groups(folder) == made


@pytest.mark.parametrize(
    ("groups", "view"),
    [
        (EARLY, "../circuit"),
        (EARLY, "routes"),
        ({"name": "x", "members": []}, "circuit"),
        ([{"name": "", "members": []}], "circuit"),
        ([{"name": "x" * 201, "members": []}], "circuit"),
        ([{"name": "x", "members": [1]}], "circuit"),
        ([{"name": "x", "members": ["y" * 200] * 11_000}], "circuit"),
        ([{"name": "\ud800", "members": []}], "circuit"),
        (["x"] * 201, "circuit"),
        (None, "circuit"),
    ],
)
def test_what_is_no_list_of_groups_is_not_kept(server, served, groups, view):
    folder = saved(served.folders.root, "a")
    status, said = keep(server, "a", groups, view)
    assert status in (400, 422) and said
    assert not (folder / "groups.json").exists()


def test_groups_stay_in_their_run_and_only_its_page_may_send_them(server, served, tmp_path):
    folder, outside = saved(served.folders.root, "a"), tmp_path / "outside.json"
    outside.write_text('{"circuit": {}}')
    (folder / "groups.json").symlink_to(outside)
    (served.folders.root / "linked").symlink_to(saved(tmp_path, "elsewhere"))
    (served.folders.root / "no run").mkdir()
    assert [keep(server, name, EARLY)[0] for name in ("..", "linked", "no run", "absent")] == [400] * 4
    assert keep(server, "a", EARLY, origin="http://evil.example")[0] == 403
    assert b"leads out of its folder" in asked(server, "/secret/runs/a/report")[2]
    assert keep(server, "a", EARLY)[0] == 200
    assert outside.read_text() == '{"circuit": {}}' and read_groups(folder) == KEPT


@pytest.mark.parametrize("text", ["", "{", "[]", '{"circuit": 1}', '{"x": {}}', "[" * 100_000])
def test_damaged_groups_are_said_on_the_page_which_is_shown_without_them(server, served, text):
    (saved(served.folders.root, "a") / "groups.json").write_text(text)
    status, _, body = asked(server, "/secret/runs/a/report")
    assert status == 200 and b"groups.json is damaged" in body and b'id="kept">{}</script>' in body
    assert keep(server, "a", EARLY)[0] == 200 and read_groups(served.folders.root / "a") == KEPT


def start(server, study, **values):
    status, _, body = asked(server, "/secret/api/jobs", method="POST", body={"study": study, "values": values})
    return status, json.loads(body)


def test_a_job_is_queued_with_the_command_that_does_the_same(server, served):
    status, job = start(server, "weights", head="a2.h0", model="known-ioi", seed="0")
    assert status == 200
    assert job["command"] == "circuitome weights a2.h0 --model known-ioi" and job["state"] == "queued"
    assert job["folder"].startswith(str(served.folders.root.resolve()))
    _, job = start(server, "trace", prompt="--seed and 'quotes'", contrast='" a" " b"', neurons="m0@1,m1@2")
    assert job["command"] == (
        "circuitome trace '--seed and '\"'\"'quotes'\"'\"'' --contrast ' a' ' b' --neurons=m0@1,m1@2"
    )
    assert len(served.jobs.all()) == 2


@pytest.mark.parametrize(
    ("study", "values", "words"),
    [
        ("nothing", {}, "no study"),
        ("find", {"task": "iio"}, "Did you mean 'ioi'"),
        ("find", {"n": "many"}, "--n"),
        ("find", {"colour": "red"}, "no field colour"),
        ("see", {"prompt": ""}, "PROMPT"),
        ("validate", {"run": "../x"}, "no file"),
        ("validate", {"run": ""}, "RUN"),
    ],
)
def test_a_form_that_cannot_be_is_refused_with_the_reason(server, served, study, values, words):
    status, answer = start(server, study, **values)
    assert status == 400 and words in answer["error"]
    assert served.jobs.all() == []


def test_every_study_has_a_form(server):
    answer = json.loads(asked(server, "/secret/api/studies")[2])
    fields = {study["name"]: {field["name"]: field for field in study["fields"]} for study in answer["studies"]}
    assert fields["trace"]["prompt"]["required"] and not fields["find"]["task"]["required"]
    assert fields["find"]["dtype"]["choices"] == ["float32", "bfloat16", "float16"]
    assert fields["trace"]["renormalize"]["kind"] == "flag" and fields["find"]["n"]["kind"] == "number"
    assert fields["find"]["seed"]["common"] and not fields["find"]["model"]["common"]
    assert "known-ioi" in answer["known"]["model"] and "ioi" in answer["known"]["task"]


def test_one_server_for_a_folder(served):
    with pytest.raises(RunError, match="Another circuitome app"):
        Served(served.folders.root)


def test_a_queued_job_is_cancelled_and_asked_for_again(server, served):
    _, job = start(server, "weights", head="a2.h0", model="known-ioi")
    asked(server, f"/secret/api/jobs/{job['id']}/cancel", method="POST")
    assert served.jobs.get(job["id"]).state == "cancelled" and served.jobs.next() is None
    asked(server, f"/secret/api/jobs/{job['id']}/again", method="POST")
    assert served.jobs.next() == served.jobs.get(job["id"])
    assert asked(server, f"/secret/api/jobs/{job['id']}/again", method="POST")[0] == 400
    assert asked(server, "/secret/api/jobs/99/cancel", method="POST")[0] == 400
