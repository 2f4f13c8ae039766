"""Series of checkpoints: revisions of a model in a local cache, killed and gone on with, damaged ones with circuits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import transformers.utils.hub

import circuitome as cm
from circuitome.dynamics.checkpoint_series import checkpoints, measured, shape_of
from circuitome.errors import InputError, TaskError
from circuitome.models.loading import weights_hash
from circuitome.models.saving import write_checkpoint
from circuitome.studies.frame import perform
from circuitome.studies.series import STUDY, Series
from circuitome.studies.settings import command_line

STEPS = (1, 2, 4, 512)


def small(step, **choices):
    return cm.dynamics.small_model(
        "attention", cm.dynamics.grammar_tokenizer(), width=16, heads=1, seed=step, **choices
    )


def measures(model):
    return cm.dynamics.Measures.of(model, None, tasks=cm.dynamics.watched_tasks(model, ["induction"], n=8))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub with one model in four revisions, as huggingface_hub lays it out."""
    place = tmp_path / "models--org--tiny"
    for step in STEPS:
        commit = f"{step:040x}"
        write_checkpoint(small(step), place / "snapshots" / commit)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / f"step{step}").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(transformers.utils.hub, "HF_HUB_CACHE", str(tmp_path), raising=False)
    return place


def test_a_revision_is_read_from_the_local_cache(cache):
    for step in STEPS:
        model = cm.load("org/tiny", revision=f"step{step}")
        assert weights_hash(model) == weights_hash(small(step)) and model.name == f"org/tiny@step{step}"
    with pytest.raises(
        InputError, match=r"step8 of org/tiny is neither in the local cache.*hf download org/tiny --rev"
    ):
        cm.load("org/tiny", revision="step8")
    for name in ("known-ioi", str(cache / "snapshots" / f"{1:040x}")):
        with pytest.raises(InputError, match="has no revision step1"):
            cm.load(name, revision="step1")


@pytest.mark.slow
def test_a_series_of_revisions_passes_over_what_is_not_there(cache):
    revisions = [*(f"step{step}" for step in reversed(STEPS)), "step64"]
    found, passed_over = cm.dynamics.series("org/tiny", measures, revisions=revisions)
    assert found.steps == STEPS and list(passed_over) == ["step64"]
    assert "neither in the local cache" in passed_over["step64"]
    folder, _ = cm.dynamics.series(renamed(cache), measures)
    assert folder.to_dict()["curves"] == found.to_dict()["curves"]
    for wrong, words in (
        (["main", "step1"], "main has no step"),
        (["step1", "b-step1"], "two checkpoints of one step"),
    ):
        with pytest.raises(InputError, match=words):
            checkpoints("org/tiny", wrong)
    with pytest.raises(InputError, match="is a folder"):
        checkpoints(cache, ["step1"])


def renamed(cache):
    """The same checkpoints as a folder of folders."""
    for step in STEPS:
        (cache / "snapshots" / f"{step:040x}").rename(cache / "snapshots" / f"step-{step}")
    return cache / "snapshots"


@pytest.mark.slow
def test_one_checkpoint_is_measured_by_itself(tmp_path):
    for step in STEPS:
        write_checkpoint(small(step), tmp_path / f"step-{step}")
    fixed, shape = measures(small(1)), shape_of(small(1))
    whole, _ = cm.dynamics.series(tmp_path, measures, keep=tmp_path / "kept.json")
    rows = json.loads((tmp_path / "kept.json").read_text())["rows"]
    for checkpoint in checkpoints(tmp_path):
        assert json.loads(json.dumps(measured(checkpoint, fixed, shape))) == rows[str(checkpoint.step)]
    assert whole.circuits["induction"].steps == STEPS


def test_damaged_and_other_checkpoints_are_passed_over_and_circuits_go_on(tmp_path):
    for step in STEPS:
        write_checkpoint(small(step, layers=3 if step == 4 else 2), tmp_path / f"step-{step}")
    (tmp_path / "step-2" / "model.safetensors").write_bytes(b"damaged")
    found, passed_over = cm.dynamics.series(tmp_path, measures)
    assert found.steps == found.circuits["induction"].steps == (1, 512)
    assert set(passed_over) == {"step-2", "step-4"} and "num_hidden_layers is 3, not 2" in passed_over["step-4"]


def test_a_task_that_cannot_be_is_refused_before_checkpoints_are_passed_over(tmp_path):
    write_checkpoint(small(1), tmp_path / "step-1")
    with pytest.raises(TaskError, match="ioi does not suit the vocabulary"):
        cm.dynamics.series(
            tmp_path,
            lambda model: cm.dynamics.Measures.of(model, None, tasks=cm.dynamics.watched_tasks(model, ["ioi"])),
        )


@pytest.mark.slow
def test_a_series_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    for step in range(1, 9):
        write_checkpoint(small(step), tmp_path / "c" / f"step-{step}")
    (tmp_path / "text.txt").write_text("the old ship near these cats swims . " * 40)
    settings = Series(
        folder=str(tmp_path / "c"), texts=str(tmp_path / "text.txt"), tasks=("induction",), rows=4, length=16
    )
    perform(STUDY, settings, out=tmp_path / "whole")
    command = [sys.executable, "-m", *command_line("series", settings).split(), "--out", str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not kept(tmp_path, "killed"):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and 0 < len(kept(tmp_path, "killed")) < 8
    perform(STUDY, settings, out=tmp_path / "killed", resume=True)
    whole, again = ((tmp_path / name / "tensors.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == again
    results = [json.loads((tmp_path / name / "manifest.json").read_text())["results"] for name in ("whole", "killed")]
    assert results[0] == results[1] and len(results[0]["circuits"]["induction"]["steps"]) == 8


def kept(folder: Path, name: str) -> dict:
    """What is measured so far of a run that is not finished."""
    files = [path for path in folder.glob(f"*{name}*/measured.json") if path.parent.name != name]
    return json.loads(files[0].read_text())["rows"] if files else {}
