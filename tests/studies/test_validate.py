"""A circuit put to the test as a study: the answer, its evidence, what is not computed again, and after a stop."""

import json

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.runs.store import load_run
from circuitome.studies.frame import perform


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A circuit of the IOI toy, with the scores of every prompt, none of which is held out."""
    from circuitome.studies.find import STUDY, Find

    folder = tmp_path_factory.mktemp("found")
    model, data = cm.load("known-ioi"), folder / "names.jsonl"
    rows = [
        {
            "clean": pair.clean_text,
            "corrupted": pair.corrupted_text,
            "answer": model.decode(pair.answers[:1]),
            "wrong": model.decode(pair.wrongs[:1]),
            "template": pair.template,
            "roles": {name: place for name, place in pair.roles.items() if name != "end"},
        }
        for pair in cm.ground_truth.task("known-ioi", 16).pairs
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    settings = Find(task="known-ioi", model="known-ioi", data=str(data), edges=20, method="eap-ig")
    perform(STUDY, settings, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def quick(found):
    """Its quick verdict."""
    from circuitome.studies.validate import STUDY, Validate

    return perform(STUDY, Validate(run=str(found), quick=True, shrink=True))


@pytest.mark.slow
def test_the_answer_comes_first_and_the_criteria_after_it(capsys, quick):
    verdict, out = quick
    manifest = verdict.manifest
    assert out.name == "run-validate-quick" and manifest["kind"] == "validate"
    lines = manifest["results"]["criteria"]
    names = {line["name"] for line in lines}
    assert {"faithfulness", "completeness", "minimality", "sufficiency", "independence", "equivalence"} <= names
    assert manifest["answer"] == manifest["results"]["answer"] and manifest["holds"] == (
        manifest["answer"] != "NOT ESTABLISHED"
    )
    text = lede_of(out)
    assert text.startswith(f"{manifest['answer']}: {manifest['results']['reason']}")
    passed = sum(line["verdict"] == "pass" for line in lines)
    unclear = sum(line["verdict"] == "unclear" for line in lines)
    assert f"the circuit of 20 edges passes {passed} and" in text and f"{unclear} inconclusive" in text
    table = blocks_of(out)["The verdict"]
    assert [row[1] for row in table.rows] == [line["name"] for line in lines] and len(table.marks) == len(lines)
    assert any("layer-matched random circuits" in row[4] for row in table.rows)
    assert any(row[4].startswith("H0: ") and ", p = " in row[4] for row in table.rows)
    terminal, page = check_shown(out)
    words = " ".join(terminal.split())
    assert all(word in words for line in lines for word in line["threshold"].split())  # no column is left out
    assert "Completeness" in page and "Minimality" in page
    assert run(capsys, "show", out)[1].split() == terminal.split()


@pytest.mark.slow
def test_shrinking_keeps_the_smaller_circuit(quick):
    verdict, out = quick
    assert int(verdict.tensors["circuit"].sum()) == verdict.manifest["edges_after_shrinking"] <= 20
    left_out = verdict.manifest["left_out"]
    said = [block.text for title, block in blocks_of(out).items() if block.block == "note"]
    assert not left_out or any(", ".join(left_out) in text for text in said)


@pytest.mark.slow
def test_a_circuit_that_is_too_small_is_told_a_size_that_would_do(tmp_path):
    from circuitome.studies import find, validate

    small = tmp_path / "small"
    perform(find.STUDY, find.Find(task="known-ioi", model="known-ioi", n=16, edges=2, ablation="zero"), out=small)
    verdict, out = perform(validate.STUDY, validate.Validate(run=str(small), quick=True))
    assert verdict.manifest["answer"] == "NOT ESTABLISHED" and not verdict.manifest["holds"]
    curve = load_run(small).manifest["results"]["curve"]
    enough = next(n for n, share in zip(curve["sizes"], curve["circuit"], strict=True) if share["value"] >= 0.9)
    assert f"The circuit of {enough} edges by the same scores reaches a faithfulness of 0.9" in lede_of(out)


@pytest.mark.slow
def test_an_audit_fails_by_its_exit_status_where_that_is_asked_for(capsys, tmp_path, found, quick):
    from circuitome.studies import find

    assert quick[0].manifest["answer"] == "ESTABLISHED"
    assert run(capsys, "validate", found, "--quick", "--strict", "--out", tmp_path / "passes")[0] == 0
    small = tmp_path / "small"
    perform(find.STUDY, find.Find(task="known-ioi", model="known-ioi", n=16, edges=2, ablation="zero"), out=small)
    code, printed, _ = run(capsys, "validate", small, "--quick", "--strict", "--out", tmp_path / "fails")
    assert code == 3 and "NOT ESTABLISHED" in printed and (tmp_path / "fails").is_dir()


@pytest.fixture(scope="module")
def whole(found, tmp_path_factory):
    """The whole suite, during which EAP-IG must not run again: its scores of every prompt are kept in the run."""
    from circuitome.studies.validate import STUDY, Validate
    from circuitome.validation.robustness import summary

    def never(*args, **kwargs):
        raise AssertionError("EAP-IG ran again")

    patched = pytest.MonkeyPatch()
    patched.setattr(summary, "eap_ig", never)
    try:
        return perform(STUDY, Validate(run=str(found)), out=tmp_path_factory.mktemp("whole") / "run")
    finally:
        patched.undo()


@pytest.mark.slow
def test_the_whole_suite_reuses_scores_and_shows_all_its_evidence(whole):
    verdict, out = whole
    results, blocks = verdict.manifest["results"], blocks_of(out)
    expected = {
        *("Faithfulness, as papers define it", "Circuits made by chance", "Faithfulness by template"),
        *("Faithfulness over prompts", "Faithfulness under other ablations", "Completeness", "Every set of nodes"),
        *("Minimality", "Single edges", "Areas under the curve", "Faithfulness by share of the edges"),
        *("Heads ablated, and who took over", "On other prompts and tasks", "On resampled prompts"),
        "In other words",
        *("Overlap of methods (Jaccard of edges)", "Against the true circuit", "The verdict"),
    }
    assert expected <= set(blocks)
    assert len(blocks["Completeness"].points) == len(blocks["Every set of nodes"].rows) == len(results["completeness"])
    assert dict(blocks["Minimality"].rows) == pytest.approx(results["minimality"])
    assert {row[0] for row in blocks["Single edges"].rows} == set(results["single_edges"]["changes"])
    assert len(blocks["Faithfulness by share of the edges"].series[0].x) == len(results["curve"])
    assert dict(blocks["Against the true circuit"].rows) == results["known"]
    check_shown(out)


@pytest.mark.slow
def test_a_stopped_validation_goes_on_with_the_same_verdict(capsys, tmp_path, found, whole, stop):
    out = tmp_path / "run"
    stop(lambda what, done, total: what == "robustness" and done == 2)
    code, _, error = run(capsys, "validate", found, "--out", out)
    assert code == 130 and "--resume" in error
    kept = {path.stem for path in (tmp_path / "run.partial").iterdir()}
    assert {"backups", "stability"} <= kept and not kept & {"shuffled", "transfer", "methods"}
    stop(lambda *at: False)
    code, _, error = run(capsys, "validate", found, "--out", out, "--resume")
    assert code == 0, error
    assert load_run(out).manifest["results"] == whole[0].manifest["results"]
    torch.testing.assert_close(load_run(out).tensors["circuit"], whole[0].tensors["circuit"])


@pytest.mark.slow
def test_runs_that_cannot_be_validated_are_refused(capsys, tmp_path, folder, data):
    out, own = tmp_path / "run", tmp_path / "pairs.jsonl"
    own.write_text(data.read_text())
    assert run(capsys, "find", "--model", folder, "--data", own, "--edges", 120, "--out", out)[0] == 0
    assert run(capsys, "validate", tmp_path / "none")[0] == 1
    patched = tmp_path / "patched"
    run(capsys, "patch", "--model", folder, "--data", own, "--out", patched)
    code, _, error = run(capsys, "validate", patched)
    assert code == 1 and "is a patch run and holds no circuit" in error
    code, _, error = run(capsys, "validate", out, "--quick", "--roles", out)
    assert code == 1 and "names no roles" in error
    own.write_text("\n".join(own.read_text().splitlines()[1:]))
    code, _, error = run(capsys, "validate", out)
    assert code == 1 and "have changed since" in error
    own.unlink()
    code, _, error = run(capsys, "validate", out)
    assert code == 1 and "is not there any more" in error
    assert {path.name for path in tmp_path.iterdir()} == {"run", "patched"}
