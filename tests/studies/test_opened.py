"""Runs that come back: everything a command wrote is within reach of Python, and goes out to files."""

import json
import shutil

import networkx as nx
import pytest
import torch
from command import run

import circuitome as cm
from circuitome.errors import InputError, RunError, UnknownNameError


@pytest.fixture(scope="module")
def runs(tmp_path_factory, folder, data):
    """Folders of a find and a heads run on the small model."""
    from circuitome.cli.main import main

    out = tmp_path_factory.mktemp("runs")
    model = ("--model", str(folder))
    main(
        [
            "find",
            "letters",
            *model,
            "--data",
            str(data),
            "--edges",
            "20",
            "--method",
            "eap-ig",
            "--out",
            str(out / "one"),
        ]
    )
    main(["heads", *model, "--n", "2", "--period", "8", "--out", str(out / "two")])
    return out


def test_a_run_gives_back_its_circuit_scores_and_prompts(runs, data):
    found = cm.open(runs / "one")
    assert repr(found).startswith("OpenedRun('circuitome find letters")
    assert len(found.circuit) == 20 and found.circuit == found.scores.top(20)
    assert found.scores.samples.shape[0] == len(found.task) == 6 and found.task.name == "letters"
    share = cm.faithfulness(found.model, found.circuit, found.task).share
    assert share.value == pytest.approx(found.results["faithfulness"]["value"], abs=1e-5)
    assert set(found.tensors) >= {"scores", "circuit", "metrics"} and found.ablation == "corrupted"
    assert "The circuit" in found._repr_html_() and found.plot().svg.startswith("<svg")
    assert found.plot("faithfulness-by-size").to_dict()["$schema"]


@pytest.mark.slow
def test_maps_of_effects_come_back_with_every_prompt(capsys, tmp_path, folder, data):
    given = ("letters", "--model", folder, "--data", data, "--what", "mlps")
    assert run(capsys, "patch", *given, "--out", tmp_path / "run")[0] == 0
    found = cm.open(tmp_path / "run")
    expected = cm.patch(found.model, found.task, "mlps")
    torch.testing.assert_close(found.effects[0].samples, expected.samples, equal_nan=True)
    assert found.effects[0].top(2) == expected.top(2)


def test_the_newest_run_of_a_study_is_found_by_its_name(runs):
    assert cm.open("find", runs=runs).folder == runs / "one"
    assert cm.open("heads", runs=runs).model.graph.n_layers == 3
    with pytest.raises(RunError, match="no explain run"):
        cm.open("explain", runs=runs)
    with pytest.raises(RunError, match="no run folder"):
        cm.open(runs / "nothing")


def test_a_part_that_a_run_lacks_is_an_error_that_says_where_it_is(runs):
    heads = cm.open(runs / "two")
    for part, study in {"circuit": "find", "task": "find", "verdict": "validate", "effects": "patch"}.items():
        with pytest.raises(RunError, match=f"is a heads run and holds no .*{study}"):
            getattr(heads, part)
    with pytest.raises(UnknownNameError, match="Did you mean"):
        cm.open(runs / "one").plot("faithfulness-by-siz")


def test_tables_are_data_frames(runs):
    pandas = pytest.importorskip("pandas")
    frame = cm.open(runs / "one").to_pandas("the-circuit")
    assert isinstance(frame, pandas.DataFrame) and list(frame.columns) == ["from", "to", "score", "low", "high"]
    assert len(frame) == 20


@pytest.mark.slow
def test_the_circuit_goes_out_as_a_graph(capsys, runs, tmp_path):
    found = cm.open(runs / "one")
    for to, name in {"graphml": "c.graphml", "csv": "c.csv", "neuronpedia": "c.json"}.items():
        code, printed, _ = run(capsys, "export", runs / "one", "--to", to, "--out", tmp_path / name)
        assert code == 0 and printed.strip() == str(tmp_path / name)
    graph = nx.read_graphml(tmp_path / "c.graphml", force_multigraph=True)
    assert set(graph.nodes) == set(found.circuit.nodes) | {"logits"} or "logits" not in graph.nodes
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 21
    written = json.loads((tmp_path / "c.json").read_text())
    assert len(written["metadata"]["prompt_tokens"]) == len(found.task.pairs[0].clean)
    assert "the-circuit" in run(capsys, "export", runs / "one")[1]
    found.export(tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    for to, message in {"gif": "no format 'gif'", "": "no format"}.items():
        with pytest.raises(InputError, match=message):
            found.export(tmp_path / "c", to=to)
    with pytest.raises(InputError, match="cannot be written"):
        found.export(tmp_path / "no" / "c.csv")
    assert run(capsys, "export", runs / "two", "--to", "graphml")[0] == 1


@pytest.mark.slow
def test_another_metric_is_asked_for_on_the_command_line(capsys, tmp_path, folder, data):
    own = tmp_path / "own.py"
    own.write_text("def first(logits, pairs):\n    return logits[:, pairs[0].answers[0]]\n")
    common = ("letters", "--model", folder, "--data", data, "--edges", 20, "--method", "eap-ig")
    for metric, unit in {"log_prob": "nats", "kl": "nats", f"{own}:first": "metric"}.items():
        out = tmp_path / unit / metric.rpartition(":")[2]
        assert run(capsys, "find", *common, "--metric", metric, "--out", out)[0] == 0
        again = cm.open(out)
        assert again.task.unit == unit == again.scores.unit and len(again.circuit) == 20
    for metric, message in {
        "log_pro": "Did you mean 'log_prob'",
        f"{own}:second": "Known: first",
        "x.py:y": "no file",
    }.items():
        code, _, error = run(capsys, "find", *common, "--metric", metric, "--out", tmp_path / "bad")
        assert code == 1 and message in error and not (tmp_path / "bad").exists()


@pytest.mark.slow
def test_answers_of_several_tokens_are_asked_for_by_their_metric(capsys, tmp_path, folder):
    rows = [{"clean": "a b c d", "corrupted": "a e c d", "answer": "f g", "wrong": "h"}]
    rows.append({"clean": "b c d e", "corrupted": "b c a e", "answer": "i", "wrong": "j k"})
    data = tmp_path / "long.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    command = ("patch", "long", "--model", folder, "--data", data, "--what", "mlps", "--out", tmp_path / "out")
    code, _, error = run(capsys, *command)
    assert code == 1 and "must be one token" in error and "answer_log_prob" in error
    assert run(capsys, *command, "--metric", "answer_log_prob")[0] == 0
    found = cm.open(tmp_path / "out")
    assert len(found.task) == 4 and found.task.unit == "nats" and found.effects[0].samples.shape[0] == 4


def test_a_run_whose_metric_was_rewritten_since_is_not_taken_for_what_it_was(capsys, tmp_path, folder, data):
    own = tmp_path / "own.py"
    own.write_text("def first(logits, pairs):\n    return logits[:, pairs[0].answers[0]]\n")
    command = ("patch", "letters", "--model", folder, "--data", data, "--what", "mlps", "--metric", f"{own}:first")
    assert run(capsys, *command, "--out", tmp_path / "out")[0] == 0
    assert len(cm.open(tmp_path / "out").task) == 6
    own.write_text("def first(logits, pairs):\n    return 2 * logits[:, pairs[0].answers[0]]\n")
    with pytest.raises(RunError, match="have changed since"):
        _ = cm.open(tmp_path / "out").task


def test_a_run_of_another_version_gives_what_it_has_and_says_what_to_do_for_the_rest(runs, tmp_path):
    shutil.copytree(runs / "one", tmp_path / "old")
    path = tmp_path / "old" / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    manifest["prompts_from"]["shuffled"] = True
    path.write_text(json.dumps({**manifest, "circuitome": "0.0.1"}), "utf-8")
    old = cm.open(tmp_path / "old")
    assert len(old.circuit) == 20 and old.results["faithfulness"]
    with pytest.raises(RunError, match=r"made by circuitome 0\.0\.1.*Run it again: circuitome find letters"):
        assert old.task
