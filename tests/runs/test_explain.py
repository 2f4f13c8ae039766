"""`circuitome explain` end to end on a model whose heads are known, and its messages."""

import json

import pytest
from circuitome.report.pages import page
from command import run

from circuitome.cli.main import main
from circuitome.runs.store import load_run

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run of `find` on the toy of indirect object identification, its prompts from a file."""
    rows = []
    for i in range(8):
        a, b, *others = (NAMES[(i + k) % 8] for k in range(5))
        first, second = (a, b) if i % 2 else (b, a)
        clean = f"{first} and {second} met then {b} gave to"
        corrupted = f"{others[0]} and {others[1]} met then {others[2]} gave to"
        rows.append({"clean": clean, "corrupted": corrupted, "answer": a, "wrong": b})
    folder = tmp_path_factory.mktemp("explain")
    data = folder / "names.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    main(["find", "--model", "known-ioi", "--data", str(data), "--edges", "12", "--out", str(folder / "run")])
    return folder


@pytest.mark.slow
def test_explain_writes_a_run_that_names_the_heads(capsys, found):
    code, printed, _ = run(capsys, "explain", found / "run")
    assert code == 0 and "a2.h0" in printed and "Duplicate token (a0.h0)" in " ".join(printed.split())
    made = load_run(found / "run-explain")
    roles = {head["head"]: head["role"] for head in made.manifest["results"]["heads"]}
    expected = {"a0.h0": "duplicate token", "a1.h0": "inhibition", "a2.h0": "mover", "a2.h1": "negative mover"}
    assert {head: roles[head] for head in expected} == expected
    assert made.manifest["command"] == f"circuitome explain {found / 'run'} --seed 0"
    assert made.tensors["direct"].shape == (8, len(roles)) and made.tensors["heads"].shape == (len(roles), 2)
    text = (found / "run-explain" / "report.html").read_text()
    assert "<script" not in text and "Heads by role" in text and made.manifest["summary"][:40] in text
    assert page(made) == text
    code, printed, _ = run(capsys, "show", found / "run-explain")
    assert code == 0 and "a2.h0" in printed


def test_explain_of_some_heads_as_json(capsys, found):
    arguments = ("explain", found / "run", "--heads", "a2.h0,a1.h0", "--out", found / "two", "--json")
    code, printed, _ = run(capsys, *arguments)
    results = json.loads(printed)["results"]
    assert code == 0 and {head["head"] for head in results["heads"]} == {"a1.h0", "a2.h0"}
    by_name = {head["head"]: head for head in results["heads"]}
    assert by_name["a1.h0"]["role"] == "inhibition" and by_name["a1.h0"]["score"] == pytest.approx(1, abs=1e-3)
    assert (
        by_name["a1.h0"]["attention_changes"][0]["head"] == "a2.h0"
        and by_name["a1.h0"]["attention_changes"][0]["change"] < -0.5
    )
    assert by_name["a2.h0"]["attends_to"] == "answer" and by_name["a2.h0"]["attention"] == pytest.approx(1, abs=1e-3)


def test_bad_input(capsys, found):
    code, _, error = run(capsys, "explain", found / "run", "--heads", "a2.h7", "--out", found / "none")
    assert code == 1 and "no head of the circuit 'a2.h7'. Did you mean" in error and not (found / "none").exists()
    code, _, error = run(capsys, "explain", found / "nowhere")
    assert code == 1 and "There is no run folder" in error
    main(["patch", "--model", "known-ioi", "--data", str(found / "names.jsonl"), "--out", str(found / "patch")])
    capsys.readouterr()
    code, _, error = run(capsys, "explain", found / "patch")
    assert code == 1 and "holds no circuit" in error


@pytest.mark.slow
def test_the_roles_of_an_explain_run_are_knocked_out_together(capsys, found):
    named = found / "run-named"
    assert run(capsys, "explain", found / "run", "--out", named)[0] == 0
    code, _, error = run(
        capsys, "validate", found / "run", "--quick", "--roles", named, "--out", found / "by-role", "--json"
    )
    assert code == 0, error
    kinds = [one["kind"] for one in load_run(found / "by-role").manifest["results"]["completeness"]]
    assert "duplicate token" in kinds and "heads of the first third" not in kinds
    assert "--roles" in load_run(found / "by-role").manifest["command"]
    code, _, error = run(capsys, "validate", found / "run", "--quick", "--roles", found / "run", "--out", found / "no")
    assert code == 1 and "names no roles" in error
