"""What one does first: see a prompt, check a file of pairs, compare two runs."""

import json

import pytest
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm


def test_a_prompt_is_seen_with_and_without_a_part(capsys, tmp_path, folder):
    out = tmp_path / "see"
    code, printed, _ = run(capsys, "see", "a b c d", "--model", folder, "--ablate", "a1.h2,m0", "--out", out)
    assert code == 0 and "Without a1.h2, m0 its probability is" in " ".join(printed.split())
    found = cm.open(out)
    best, model = found.results["next"][0], cm.load(folder)
    plain = model.hf(**model.tokenizer("a b c d", return_tensors="pt")).logits[0, -1].softmax(-1)
    with cm.ablate(model, ["a1.h2", "m0"]):
        changed = model.hf(**model.tokenizer("a b c d", return_tensors="pt")).logits[0, -1].softmax(-1)
    token = int(plain.argmax())
    assert best["token"] == model.decode([token])
    assert best["probability"] == pytest.approx(plain[token].item(), abs=1e-6)
    assert best["ablated"] == pytest.approx(changed[token].item(), abs=1e-6)
    assert len(blocks_of(out)["Attention"].heads) == 4 and found.tensors["attention"].shape == (1, 4, 4, 4)
    check_shown(out)


def test_the_heads_of_a_circuit_are_seen(capsys, tmp_path):
    given = ("--model", "known-ioi", "--n", 8, "--method", "eap", "--edges", 13)
    code, _, error = run(capsys, "find", "known-ioi", *given, "--out", tmp_path / "found")
    assert code == 0, error
    prompt = ("Ann and Bob met then Bob gave to", "--model", "known-ioi")
    code, _, error = run(capsys, "see", *prompt, "--heads", tmp_path / "found", "--out", tmp_path / "see")
    assert code == 0, error
    heads = {name for name in cm.open(tmp_path / "found").circuit.nodes if ".h" in name}
    shown = blocks_of(tmp_path / "see")["Attention"].heads
    assert {name for name, _ in shown} == heads and len(heads) > 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a b", "--heads", "a9.h9"), "a9.h9"),
        (("a b", "--ablate", "x1"), "x1"),
        (("", "--heads", "a0.h0"), "has no tokens"),
        (("a b", "--value", "corrupted"), "zero or mean"),
        (("a b", "--top", 0), "at least 1"),
    ],
)
def test_what_cannot_be_seen_is_refused(capsys, tmp_path, folder, arguments, message):
    code, _, error = run(capsys, "see", *arguments, "--model", folder, "--out", tmp_path / "bad")
    assert code == 1 and message in error and not (tmp_path / "bad").exists()


def test_a_file_is_checked_row_by_row(capsys, tmp_path, folder, data):
    mixed, out = tmp_path / "mixed.jsonl", tmp_path / "check"
    bad = [{"clean": "a b c", "corrupted": "a b", "answer": "c", "wrong": "d"}, {"clean": "a", "corrupted": "b"}]
    good = [json.loads(line) for line in data.read_text().splitlines()]
    bad[1] |= {"answer": "c d", "wrong": "d"}
    mixed.write_text("\n".join(json.dumps(row) for row in (*good[:3], *bad, *good[3:])))
    code, printed, _ = run(capsys, "check", mixed, "--model", folder, "--out", out)
    assert code == 0 and "6 of 8 rows can be used." in printed
    assert [place for place, _ in cm.open(out).results["problems"]] == ["line 4", "line 5"]
    reasons = " ".join(message for _, message in cm.open(out).results["problems"])
    assert "same number of tokens" in reasons and "must be one token" in reasons
    check_shown(out)
    whole = (
        cm.open(tmp_path / "whole")
        if run(capsys, "check", data, "--model", folder, "--out", tmp_path / "whole")
        else None
    )
    assert "6 of 6 rows can be used." in lede_of(tmp_path / "whole")
    task = cm.tasks.from_file(cm.load(folder), data)
    metric = [row[4] for row in whole.results["rows"]]
    clean = cm.run_circuit(cm.load(folder), task, cm.Circuit.full(cm.load(folder).graph))
    assert metric == pytest.approx(task.score(clean, range(6)).tolist(), abs=1e-5)


def test_a_file_that_is_no_file_of_pairs_is_refused(capsys, tmp_path, folder):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for file, message in {empty: "is empty", tmp_path / "no.jsonl": "no such file"}.items():
        code, _, error = run(capsys, "check", file, "--model", folder, "--out", tmp_path / "bad")
        assert code == 1 and message in error and not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_two_runs_are_compared(capsys, tmp_path, folder, data):
    common = ("find", "letters", "--model", folder, "--data", data)
    assert run(capsys, *common, "--edges", 20, "--method", "eap-ig", "--out", tmp_path / "one")[0] == 0
    assert run(capsys, *common, "--edges", 30, "--method", "eap", "--out", tmp_path / "two")[0] == 0
    out = tmp_path / "diff"
    assert run(capsys, "diff", tmp_path / "one", tmp_path / "two", "--out", out)[0] == 0
    one, two, found = (cm.open(path) for path in (tmp_path / "one", tmp_path / "two", out))
    shared = len(one.circuit & two.circuit)
    assert lede_of(out).startswith(f"The circuits of 20 and 30 edges share {shared} (Jaccard")
    otherwise = {name: (a, b) for name, a, b in found.results["set_otherwise"]}
    assert otherwise["edges"] == ("20", "30") and otherwise["method"] == ("eap-ig", "eap")
    assert len({*otherwise.values()}) == len(otherwise)
    assert (found.tensors["difference"] == two.scores.values - one.scores.values).all()
    grid = blocks_of(out)["The circuits on one grid"]
    sizes = {some.name: len(some.edges) for some in grid.others}
    assert sizes == {"both": shared, "only the first": 20 - shared, "only the second": 30 - shared}
    assert len(grid.edges) == 50 - shared
    for edge in grid.edges:
        values = [run.scores[f"{edge.source}->{edge.reader}"] for run in (one, two)]
        assert list(edge.also) == values and edge.score == pytest.approx(values[1] - values[0], abs=1e-6)
    check_shown(out)
    assert run(capsys, "diff", tmp_path / "one", tmp_path / "one", "--out", tmp_path / "same")[0] == 0
    assert "Both runs were set alike." in lede_of(tmp_path / "same")
    assert run(capsys, "diff", tmp_path / "one", tmp_path / "nothing", "--out", tmp_path / "bad")[0] == 1
