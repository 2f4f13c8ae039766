"""Manifests are what their JSON schema says, which is also the one in the docs."""

import json
from pathlib import Path

import pytest
from command import run
from jsonschema import Draft202012Validator

from circuitome.studies.schema import schema

ROOT = Path(__file__).parents[2]
KNOWN = ("--model", "known-ioi", "--n", "6")
COMMANDS = {
    "find": ("find", "known-ioi", *KNOWN, "--edges", "14"),
    "measure": ("measure", "known-ioi", *KNOWN),
    "patch": ("patch", "known-ioi", *KNOWN),
    "align": ("align", "known-ioi", *KNOWN[:2], "--n", "32", "--k", "0"),
    "weights": ("weights", "a2.h0", "--model", "known-ioi"),
    "see": ("see", "Ann and Bob met then Bob gave to", "--model", "known-ioi"),
    "trace": ("trace", "Ann and Bob met then Bob gave to", "--model", "known-ioi"),
    "graph": ("graph", "Ann and Bob met then Bob gave to", "--model", "known-ioi", "--off", "2"),
    "explain": ("explain", "{find}"),
    "validate": ("validate", "{find}", "--quick"),
    "diff": ("diff", "{find}", "{find}"),
}
"""Runs that show every kind of manifest: over prompts, about a run, about a text, about weights, about two runs."""
SLOW = ("patch", "align", "weights", "explain", "validate")


@pytest.fixture(scope="module")
def folder_of_find(tmp_path_factory):
    from circuitome.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "find"
    main([*COMMANDS["find"], "--out", str(folder), "--json"])
    return folder


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in COMMANDS]
)
def test_a_manifest_is_what_its_schema_says(kind, folder_of_find, tmp_path, capsys):
    folder = folder_of_find if kind == "find" else tmp_path / "run"
    if kind != "find":
        arguments = [str(word).replace("{find}", str(folder_of_find)) for word in COMMANDS[kind]]
        code, _, error = run(capsys, *arguments, "--out", folder)
        assert code == 0, error
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["kind"] == kind
    errors = [f"{fault.json_path}: {fault.message}" for fault in Draft202012Validator(schema()).iter_errors(manifest)]
    assert errors == []


def test_a_manifest_that_lacks_something_is_refused():
    Draft202012Validator.check_schema(schema())
    errors = [fault.message for fault in Draft202012Validator(schema()).iter_errors({"kind": "fnid"})]
    assert any("fnid" in message for message in errors) and any("'key' is a required" in message for message in errors)


def test_the_page_names_every_entry_and_every_block():
    page = (ROOT / "docs/run-format.md").read_text()
    blocks = [
        kind["properties"]["block"]["const"] for kind in schema()["$defs"].values() if "block" in kind["properties"]
    ]
    assert len(blocks) > 10
    assert [name for name in (*schema()["properties"], *blocks) if f"`{name}`" not in page] == []


def test_the_schema_in_the_docs_is_this_one(capsys):
    code, printed, _ = run(capsys, "schema")
    assert code == 0
    assert (ROOT / "docs/run-schema.json").read_text() == printed, "circuitome schema > docs/run-schema.json"
