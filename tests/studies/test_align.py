"""Causal abstraction as a study: maps, verdicts with their controls, one's own causal model, and what is refused."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.errors import UnknownNameError
from circuitome.runs.store import load_run

KNOWN = ("align", "known-ioi", "--model", "known-ioi", "--n", "32")
OWN = """
import circuitome as cm
causal = cm.causal.model(said=lambda IO: IO, answer=lambda said: said)
number = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


@pytest.mark.slow
def test_maps_and_verdicts_of_whole_places(capsys, tmp_path):
    out = tmp_path / "run"
    code, printed, error = run(capsys, *KNOWN[:-1], 64, "--sites", "heads", "--k", 0, "--out", out)
    assert code == 0, error
    found = load_run(out)
    verdicts = {verdict["variable"]: verdict for verdict in found.manifest["results"]["verdicts"]}
    assert {name: verdict["place"] for name, verdict in verdicts.items()} == {
        "repeated": "a0.h0@S2",
        "name": "a2.h0@end",
    }
    for verdict in verdicts.values():
        assert verdict["holds"] and verdict["accuracy"]["value"] == 1 and verdict["k"] == 0
        assert {"no interchange", "random weights", "values of other pairs"} <= set(verdict["controls"])
    maps = blocks_of(out, "heat map")
    assert list(maps) == ["Where repeated is", "Where name is"]
    torch.testing.assert_close(torch.tensor(maps["Where name is"].values), found.tensors["right.name"].mean(0))
    assert "name has a place: in a2.h0@end, 100 %" in " ".join(lede_of(out).split())
    drawn = blocks_of(out, "causal model")["The causal model and its places"]
    assert [v.sites for v in drawn.variables if v.place] == [((0.3, 0),), ((2.3, 1),)] and drawn.layers == 3
    assert all(not verdict["wrong"] for verdict in verdicts.values())
    text, page = check_shown(out)
    assert text.splitlines() == printed.splitlines() and "Held-out accuracy and controls" in page


@pytest.mark.slow
def test_a_subspace_is_learned_chosen_and_kept(capsys, tmp_path):
    out = tmp_path / "run"
    options = ("--variables", "repeated", "--place", "x2@end", "--k", "8")
    code, _, error = run(capsys, *KNOWN, *options, "--out", out)
    assert code == 0, error
    found = load_run(out)
    (verdict,) = found.manifest["results"]["verdicts"]
    assert verdict["k"] == 8 and set(verdict["sizes"]) == {"0", "8"} and "random directions" in verdict["controls"]
    basis = found.tensors["basis.repeated"]
    torch.testing.assert_close(basis.T @ basis, torch.eye(8), atol=1e-5, rtol=0)
    check_shown(out)


@pytest.fixture
def circuit(capsys, tmp_path):
    """A run of find whose circuit is that of known-ioi."""
    code, _, error = run(capsys, "find", *KNOWN[1:], "--edges", 14, "--out", tmp_path / "find")
    assert code == 0, error
    return tmp_path / "find"


@pytest.mark.slow
def test_only_parts_of_a_circuit_are_looked_at_and_explain_says_what_they_hold(capsys, tmp_path, circuit):
    options = ("--sites", "heads", "--run", circuit, "--k", 0, "--out", tmp_path / "align")
    code, _, error = run(capsys, *KNOWN, *options)
    assert code == 0, error
    found = load_run(tmp_path / "align").manifest["results"]
    nodes = set(cm.open(circuit).circuit.nodes)
    rows = found["alignment"]["maps"]["name"]["rows"]
    assert rows == [name for name in rows if name in nodes] and len(rows) < 9
    assert found["joint"]["accuracy"]["value"] == 1 and list(found["joint"]["sets"]) == ["repeated+name"]
    assert "Set together, each from a prompt of its own" in " ".join(lede_of(tmp_path / "align").split())
    code, printed, error = run(
        capsys, "explain", circuit, "--alignment", tmp_path / "align", "--out", tmp_path / "explain"
    )
    assert code == 0, error
    table = blocks_of(tmp_path / "explain", "table")["Variables that its parts hold"]
    held = {(row[0], row[1], row[2]) for row in table.rows}
    assert {("a0.h0", "repeated", "S2"), ("a1.h0", "repeated", "end"), ("a2.h0", "name", "end")} <= held
    assert "Variables that its parts hold" in printed
    code, _, error = run(capsys, "explain", circuit, "--alignment", circuit, "--out", tmp_path / "other")
    assert code == 1 and "is a find run. Give one of circuitome align" in " ".join(error.split())


@pytest.mark.slow
def test_directions_of_a_run_can_be_set(capsys, tmp_path):
    options = ("--variables", "repeated", "--place", "a1.h*@end", "--search", "mask", "--out", tmp_path / "run")
    code, _, error = run(capsys, *KNOWN, *options)
    assert code == 0, error
    opened = cm.open(tmp_path / "run")
    subspace = opened.subspace("repeated")
    assert [basis.shape[1] for basis in subspace.bases] == [28, 0, 0] and subspace.search == "mask"
    with pytest.raises(UnknownNameError, match="no variable 'name'"):
        opened.subspace("name")


def test_pairs_that_went_wrong_are_listed_with_their_prompts(capsys, tmp_path):
    out = tmp_path / "run"
    code, _, error = run(capsys, *KNOWN, "--place", "x1@S2", "--variables", "repeated", "--k", 0, "--out", out)
    assert code == 0, error
    (verdict,) = load_run(out).manifest["results"]["verdicts"]
    wrong = verdict["wrong"]
    assert len(wrong) / 24 == pytest.approx(1 - verdict["accuracy"]["value"]) and wrong
    assert all(pair["said"] not in pair["expected"] and pair["base"] != pair["source"] for pair in wrong)
    table = blocks_of(out, "table")["Pairs that went wrong: repeated"]
    assert [row[0] for row in table.rows] == [pair["base"] for pair in wrong]
    check_shown(out)


def test_a_causal_model_of_ones_own(capsys, tmp_path, own):
    out = tmp_path / "run"
    options = ("--model-of", f"{own}:causal", "--k", 0, "--at", "S2,end")
    code, _, error = run(capsys, *KNOWN, *options, "--out", out)
    assert code == 0, error
    (verdict,) = load_run(out).manifest["results"]["verdicts"]
    assert verdict["variable"] == "said" and verdict["place"] == "x3@end" and verdict["holds"]
    assert blocks_of(out, "heat map")["Where said is"].columns == ("S2", "end")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model-of", "{own}:number"), "is a int. A causal model is made by cm.causal.model"),
        (("--model-of", "{own}:casual"), "no causal model in {own} 'casual'. Did you mean 'causal'"),
        (("--variables", "reapeted"), "no variable 'reapeted'. Did you mean 'repeated'"),
        (("--sites", "head"), "no kind of sites 'head'. Did you mean 'heads'"),
        (("--at", "S3"), "no position 'S3'. Did you mean 'S2'"),
        (("--place", "x9@end"), "There is no x9 in a model of 3 blocks"),
        (("--k", "-1"), "--k takes sizes of subspaces from 1 on, or 0 alone"),
        (("--search", "dbm"), "no search 'dbm'"),
        (("--least", "2"), "--least is a share of the prompts, above 0 and at most 1; got 2.0"),
        (("--run", "{own}"), "--run names heads and MLPs, and --sites resid has none"),
        (("--at", "first"), "first stands in front of a token that it is computed from (S2)"),
        (("--k", "400"), "1 to 64 directions at this place, got k = 400"),
    ],
)
def test_what_cannot_be_aligned_is_refused(capsys, tmp_path, own, options, message):
    options = [option.replace("{own}", str(own)) for option in options]
    options = [f"{options[0]}={options[1]}"]
    code, _, error = run(capsys, *KNOWN, *options, "--out", tmp_path / "run")
    assert code == 1 and message.replace("{own}", str(own)) in " ".join(error.split())
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["own.py"]


def test_a_task_without_a_causal_model_says_how_to_write_one(capsys, tmp_path):
    code, _, error = run(capsys, "align", "capitals", "--out", tmp_path / "run")
    assert code == 1 and "no causal model for the task 'capitals'" in error and "cm.causal.model" in error


def test_a_dry_run_counts_places_and_learning(capsys, tmp_path):
    def passes(*options):
        return json.loads(run(capsys, *KNOWN, *options, "--out", tmp_path / "run", "--dry-run", "--json")[1])["passes"]

    whole, one, heads = passes("--k", 0), passes("--k", 4), passes("--k", 0, "--sites", "heads")
    assert heads["forward"] > whole["forward"] and "forward-backward" not in whole
    assert one["forward-backward"] > 0 and not list(tmp_path.iterdir())
