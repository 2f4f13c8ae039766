"""Methods compared on the same prompts: by size, on held-out prompts, against exact scores, and after a stop."""

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.runs.store import load_run
from circuitome.studies.compare import OPTIONS


def compare(folder, data, out, *more):
    return ("compare", "--model", folder, "--data", data, "--edges", 20, "--out", out, *more)


@pytest.mark.slow
def test_methods_stand_side_by_side(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    options = ("--methods", "eap,eap-ig,acdc,random,routes", "--exact-edges", 30, "--held-out", data)
    code, printed, error = run(capsys, *compare(folder, data, out, *options))
    assert code == 0, error
    found, blocks = load_run(out), blocks_of(out)
    rows = {row["name"]: row for row in found.manifest["results"]["methods"]}
    assert list(rows) == ["eap", "eap-ig", "acdc", "random", "routes"]
    point = rows["eap"]["points"][-1]
    assert point["held_out"] == pytest.approx(point["value"])  # the held-out prompts are the same here
    assert rows["eap-ig"]["pearson_abs"] > rows["random"]["pearson_abs"]
    assert int(found.tensors["eap.circuit"].sum()) == rows["eap"]["edges"] == 20
    assert not (tmp_path / "run.partial").exists()
    own = {row[0]: row for row in blocks["The circuit of each method"].rows}
    point = next(p for p in rows["eap"]["points"] if p["edges"] == 20)
    assert own["eap"][1] == 20 and own["eap"][2] == pytest.approx(point["value"], abs=0.006)
    assert own["eap"][3] == tuple(point[name] for name in ("held_out", "held_out_low", "held_out_high"))
    model, given, circuit = cm.open(out).model, cm.open(out).task, cm.Circuit
    for name in ("eap", "random"):  # what the model loses without the circuit: its complement, run by itself
        rest = cm.faithfulness(model, ~circuit(model.graph, found.tensors[f"{name}.circuit"]), given)
        assert rows[name]["necessity"]["value"] == pytest.approx(1 - rest.value, abs=1e-5)
        assert own[name][4][0] == rows[name]["necessity"]["value"] and own[name][5] == rows[name]["forwards"] > 0
    assert rows["acdc"]["forwards"] > rows["eap"]["forwards"]
    of_scores = {row[0]: row for row in blocks["The scores of each method"].rows}
    assert rows["acdc"]["stability"] is None and of_scores["acdc"][1:3] == (None, None)
    assert of_scores["eap"][1:3] == tuple(rows["eap"]["stability"][name] for name in ("draws", "agreed"))
    best = min(rows, key=lambda name: abs(1 - own[name][3][0]))
    assert f"Of 5 methods {best} comes nearest to the whole model" in lede_of(out)
    measured = {(name, p["edges"], p["value"]) for name, row in rows.items() for p in row["points"]}
    every = {(row[0], row[1], row[2][0]) for row in blocks["Every circuit with its interval"].rows}
    assert measured < every and {name for name, *_ in every} == {*rows, "random circuits"}
    assert {line.name for line in blocks["Faithfulness by size"].series} == {name for name, *_ in every}
    held = blocks["Faithfulness by size, held out"]
    (drawn,) = (line for line in held.series if line.name == "eap")
    assert drawn.y == tuple(p["held_out"] for p in rows["eap"]["points"]) and held.log_x
    text, page = check_shown(out)
    assert "eap-ig" in printed and run(capsys, "show", out)[1] == printed
    assert "Sees the clean prompts alone" in " ".join(text.split()) and "edge attribution patching" in page


@pytest.mark.slow
def test_learned_rankings_give_every_size_and_the_smallest_circuit_one(capsys, tmp_path, monkeypatch):
    for name in ("mattr", "smallest"):
        monkeypatch.setitem(OPTIONS, name, {"steps": 30})
    given = ("--model", "known-ioi", "--n", 32, "--methods", "mattr,smallest", "--exact-edges", 0, "--edges", 13)
    code, _, error = run(capsys, "compare", "known-ioi", *given, "--out", tmp_path / "run")
    assert code == 0, error
    found = load_run(tmp_path / "run")
    rows = {row["name"]: row for row in found.manifest["results"]["methods"]}
    assert len(rows["mattr"]["points"]) > 3 and len(rows["smallest"]["points"]) == 1
    by_size = blocks_of(tmp_path / "run")["Faithfulness by number of edges"]
    assert all(any(value != "" for value in values) for _, *values in by_size.rows)
    # neither goes on from what the other has learned
    assert rows["smallest"]["forwards"] > 0.8 * rows["mattr"]["forwards"] > 20
    check_shown(tmp_path / "run")


@pytest.mark.slow
def test_neurons_as_nodes_are_rows_of_their_own(capsys, tmp_path):
    given = ("--model", "tracr-reverse", "--n", 16, "--ablation", "zero", "--exact-edges", 0, "--edges", 10)
    options = ("--methods", "eap,eap-ig,acdc", "--neurons", 6)
    code, text, error = run(capsys, "compare", "tracr-reverse", *given, *options, "--out", tmp_path / "run")
    assert code == 0, error
    found = load_run(tmp_path / "run")
    names = [row["name"] for row in found.manifest["results"]["methods"]]
    assert names == ["eap", "eap-ig", "acdc", "eap, neurons", "eap-ig, neurons"]
    model = cm.load("tracr-reverse")
    task = cm.ground_truth.task("tracr-reverse", 16)
    view = model.with_neurons(found.manifest["neuron_nodes"]["neurons"], apart=found.manifest["neuron_nodes"]["apart"])
    scores = cm.neurons.graph_scores(view, task, steps=1, ablation="zero")
    assert found.tensors["eap, neurons.scores"].shape == scores.values.shape != found.tensors["eap.scores"].shape
    assert "eap-ig, neurons" in text
    check_shown(tmp_path / "run")


@pytest.mark.slow
def test_a_stopped_comparison_goes_on_with_the_methods_that_are_left(capsys, tmp_path, folder, data, stop, monkeypatch):
    whole, out, done = tmp_path / "whole", tmp_path / "run", []
    options = ("--methods", "eap,exact,random", "--exact-edges", 0)
    assert run(capsys, *compare(folder, data, whole, *options))[0] == 0
    stop(lambda what, done, total: what.startswith("exact") and done > 0.6 * total)
    code, _, error = run(capsys, *compare(folder, data, out, *options))
    assert code == 130 and "--resume" in error and (tmp_path / "run.partial").is_dir() and not out.exists()
    stop(lambda what, at, total: done.append(what) or False)  # type: ignore[func-returns-value]
    code, _, error = run(capsys, *compare(folder, data, out, *options))
    assert code == 1 and "Add --resume" in error
    code, _, error = run(capsys, *compare(folder, data, out, *options, "--seed", 7, "--resume"))
    assert code == 1 and "another command" in error
    done.clear()
    code, _, error = run(capsys, *compare(folder, data, out, *options, "--resume"))
    assert code == 0, error
    assert not any(what.startswith("eap") for what in done) and not (tmp_path / "run.partial").exists()
    same = load_run(out).tensors
    for name, tensor in load_run(whole).tensors.items():
        torch.testing.assert_close(same[name], tensor, rtol=0, atol=0)


@pytest.mark.slow
def test_known_models_have_held_out_prompts_too(capsys, tmp_path):
    given = ("--model", "known-ioi", "--n", 8, "--methods", "eap,magnitude", "--exact-edges", 0)
    code, _, error = run(capsys, "compare", "known-ioi", *given, "--out", tmp_path / "run")
    assert code == 0, error
    found = load_run(tmp_path / "run").manifest
    assert found["held_out"]["name"] == "known-ioi" and found["held_out"]["n"] > 40 and found["exact_edges"] == 0
    assert "pearson" not in found["results"]["methods"][0]


BAD = [
    (("--methods", "eapig"), "no method 'eapig'. Did you mean 'eap-ig'"),
    (("--exact-edges", "2"), "must be 0 or at least 3, got 2"),
    (("--ablation", "zeros"), "no ablation 'zeros'. Did you mean 'zero'"),
    (("--held-out", "oii"), "no task or file of held-out prompts 'oii'. Did you mean 'ioi'"),
    (("--methods", ","), "nothing to compare"),
    (("--methods", "eap", "--edges", "191"), "outside 1..190"),
    (("--methods", "eap", "--neurons", "0"), "at least 1; got 0"),
    (("--methods", "acdc", "--neurons", "5"), "acdc knows MLPs as one node each"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_says_what_to_do_and_writes_nothing(capsys, tmp_path, folder, data, options, message):
    given = ("compare", "--model", folder, "--data", data, "--out", tmp_path / "run", *options)
    code, printed, error = run(capsys, *given)
    assert (code, printed) == (1, "") and message in error
    assert list(tmp_path.iterdir()) == []
