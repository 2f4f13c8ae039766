"""The command line itself: folders that are taken, JSON, dry runs, names that do not exist, damaged runs."""

import json

import pytest
from command import run

from circuitome.cli.studies import amount
from circuitome.errors import RunError
from circuitome.runs.store import load_run


def find(folder, data, out, *more):
    return ("find", "--model", folder, "--data", data, "--edges", 20, "--out", out, *more)


@pytest.mark.slow
def test_the_same_command_gives_the_same_bytes_and_replaces_its_own_run(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    run(capsys, *find(folder, data, out))
    first = (out / "tensors.safetensors").read_bytes()
    assert run(capsys, *find(folder, data, out))[0] == 0
    assert (out / "tensors.safetensors").read_bytes() == first


@pytest.mark.slow
def test_another_run_in_the_folder_is_not_overwritten(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    run(capsys, *find(folder, data, out))
    before = (out / "manifest.json").read_bytes()
    code, _, error = run(capsys, *find(folder, data, out, "--seed", 3))
    assert code == 1
    assert "already holds another run: circuitome find" in error
    assert (out / "manifest.json").read_bytes() == before
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    code, _, error = run(capsys, *find(folder, data, other))
    assert code == 1
    assert "is not empty and holds no run" in error
    assert [p.name for p in other.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_json_and_dry_run(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    code, printed, _ = run(capsys, *find(folder, data, out, "--dry-run", "--json"))
    cost = json.loads(printed)
    assert code == 0
    assert cost["notes"] == {"edges": 20}
    assert cost["seconds"] > 0
    assert cost["passes"]["forward-backward"] == 5
    assert cost["operations"] > 0
    assert not out.exists()
    found = json.loads(run(capsys, *find(folder, data, out, "--json"))[1])
    assert len(next(block for block in found["blocks"] if block["block"] == "circuit")["edges"]) == 20
    assert found["results"]["faithfulness"]["n"] == 6
    again = json.loads(run(capsys, "show", out, "--json")[1])
    assert again == found
    for command in ("tasks", "models"):
        assert json.loads(run(capsys, command, "--json")[1])


def test_unknown_tasks_commands_and_options(capsys, tmp_path):
    code, _, error = run(capsys, "find", "oii", "--out", tmp_path / "run")
    assert (code, "no task 'oii'. Did you mean 'ioi'" in error) == (1, True)
    assert run(capsys, "fnd")[0] == 2
    assert run(capsys, "find", "--edgs", "3")[0] == 2
    error = json.loads(run(capsys, "find", "oii", "--json")[1])
    assert error["error"] == "UnknownNameError"


def test_unsupported_architecture_lists_the_supported_ones(capsys, tmp_path, data):
    import transformers as tf

    tf.BloomForCausalLM(tf.BloomConfig(vocab_size=61, hidden_size=24, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "m"
    )
    code, _, error = run(capsys, *find(tmp_path / "m", data, tmp_path / "run"))
    assert code == 1
    assert "no supported architecture 'bloom'" in error
    assert "gpt_neox" in error
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no config.json" in run(capsys, *find(empty, data, tmp_path / "run"))[2]


@pytest.mark.slow
def test_damaged_runs_are_refused(capsys, tmp_path, folder, data):
    out = tmp_path / "run"
    run(capsys, *find(folder, data, out))
    tensors = (out / "tensors.safetensors").read_bytes()
    (out / "tensors.safetensors").write_bytes(tensors[:100])
    code, _, error = run(capsys, "show", out)
    assert (code, "is damaged: tensors.safetensors cannot be read" in error) == (1, True)
    (out / "tensors.safetensors").unlink()
    assert "tensors.safetensors is missing" in run(capsys, "show", out)[2]
    (out / "manifest.json").write_text("{")
    assert "manifest.json is not valid JSON" in run(capsys, "show", out)[2]
    assert "no run folder" in run(capsys, "show", tmp_path / "nowhere")[2]
    with pytest.raises(RunError):
        load_run(out)


def test_a_run_stopped_before_anything_was_kept_leaves_nothing(capsys, tmp_path, folder, data, stop):
    stop(lambda what, done, total: what == "scoring edges")
    code, printed, error = run(capsys, *find(folder, data, tmp_path / "run"))
    assert (code, printed, error) == (130, "", "Stopped; nothing was written.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("operations", "shown"),
    [(999e3, "999 kFLOP"), (8.06e11, "806 GFLOP"), (1.2e15, "1.2 PFLOP"), (5e21, "5 ZFLOP")],
)
def test_operations_in_the_largest_unit_that_they_fill(operations, shown):
    assert amount(operations) == shown


def test_names_that_no_file_can_have(capsys):
    for words in (("find", "letters", "--model", "known-ioi", "--data", "a" * 300), ("show", "a" * 300)):
        code, printed, error = run(capsys, *words)
        assert (code, printed) == (1, "") and error.strip() == f"{'a' * 300}: File name too long."
