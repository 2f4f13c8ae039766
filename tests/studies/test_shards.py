"""Streamed studies in shards: what comes out is that of one pass to the byte, also where a worker or all was killed."""

import os
import signal
import threading
import time
from random import Random
from typing import Any

import pytest

import circuitome as cm
from circuitome.errors import InputError, RunError, WorkersLostError
from circuitome.runs.executors import EXECUTORS
from circuitome.runs.store import partial_of
from circuitome.studies.catalog import STUDIES
from circuitome.studies.frame import perform

WORDS = ("Ann", "Bob", "met", "then", "gave", "to", "and")
SMALL = {"circuitome.neurons.text_windows.BLOCK": 64, "circuitome.neurons.counting.SEGMENT": 2}
SMALL |= {"circuitome.features.training.STRETCH": 100, "circuitome.discovery.routes.importance.BLOCK": 5}


@pytest.fixture
def texts(tmp_path):
    draw, path = Random(0), tmp_path / "texts.txt"
    path.write_text("\n".join(" ".join(draw.choice(WORDS) for _ in range(9)) for _ in range(90)))
    return str(path)


@pytest.fixture
def checkpoints(tmp_path):
    """Five checkpoints, one of them damaged."""
    from circuitome.models.saving import write_checkpoint

    model = cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer(), layers=1)
    for step in range(5):
        write_checkpoint(model, tmp_path / "series" / f"step-{step}")
    (tmp_path / "series" / "step-2" / "model.safetensors").write_bytes(b"damaged")
    return str(tmp_path / "series")


@pytest.fixture
def small_parts(monkeypatch):
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)


ASKED: dict[str, dict[str, Any]] = {
    "neurons": {"model": "known-ioi", "length": 9, "tokens": 800},
    "dictionary train": {"model": "known-ioi", "length": 9, "tokens": 800, "width": "20", "k": 3},
    "routes": {"model": "known-ioi"},
}


def one_after_another(call, given, **_):
    """An executor that does all calls here."""
    return enumerate(map(call, given))


def done(name, out, resume=False, **given):
    return perform(STUDIES[name], STUDIES[name].settings(**given), out=out, resume=resume)


def check_same(a, b):
    """Two runs of one thing: the same tensors to the byte, the same results."""
    assert (a[1] / "tensors.safetensors").read_bytes() == (b[1] / "tensors.safetensors").read_bytes()
    results = [{k: v for k, v in run.manifest["results"].items() if k != "tokens_a_second"} for run, _ in (a, b)]
    assert results[0] == results[1] and not partial_of(a[1]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ASKED))
def test_any_number_of_shards_gives_the_same(name, tmp_path, texts, monkeypatch, small_parts):
    monkeypatch.setitem(EXECUTORS, "local", one_after_another)
    given = {**ASKED[name], ("file" if name == "routes" else "texts"): texts}
    whole = done(name, tmp_path / "1", **given)
    for count in (2, 3, 7):
        check_same(whole, done(name, tmp_path / str(count), **given, shards=count))


@pytest.mark.slow
def test_any_number_of_shards_measures_the_same_checkpoints(tmp_path, checkpoints, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "local", one_after_another)
    given = {"folder": checkpoints, "rows": 2, "length": 16}
    whole = done("series", tmp_path / "1", **given)
    assert set(whole[0].manifest["results"]["passed_over"]) == {"step-2"}
    for count in (2, 7):
        check_same(whole, done("series", tmp_path / str(count), **given, shards=count))


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.slow
def test_only_the_shard_that_was_killed_is_repeated(tmp_path, texts, monkeypatch, small_parts):
    given, begun = {**ASKED["neurons"], "texts": texts, "shards": 3}, list[int]()

    def killed(call, given, **_):
        for i, one in enumerate(given):
            begun.append(one[3])
            if one[3] == 2 and len(begun) == 3:
                raise Killed
            yield i, call(one)

    monkeypatch.setitem(EXECUTORS, "local", killed)
    with pytest.raises(Killed):
        done("neurons", tmp_path / "killed", **given)
    with pytest.raises(RunError, match="Add --resume"):
        done("neurons", tmp_path / "killed", **given)
    again = done("neurons", tmp_path / "killed", resume=True, **given)
    assert begun == [0, 1, 2, 2]
    check_same(done("neurons", tmp_path / "whole", **{**given, "shards": 1}), again)


def test_workers_that_are_always_lost_keep_what_others_did(tmp_path, texts, monkeypatch):
    def lost(call, given, **_):
        yield 0, call(given[0])
        raise WorkersLostError("Workers were lost.")

    monkeypatch.setitem(EXECUTORS, "local", lost)
    with pytest.raises(WorkersLostError):
        done("neurons", tmp_path / "run", **ASKED["neurons"], texts=texts, shards=2)
    assert (partial_of(tmp_path / "run") / "shard-0.done").exists()


def test_shards_that_cannot_be(tmp_path, texts, monkeypatch):
    with pytest.raises(InputError, match="--shards must be at least 1, got 0"):
        done("neurons", tmp_path / "no", model="known-ioi", shards=0)
    monkeypatch.setitem(EXECUTORS, "local", one_after_another)
    with pytest.raises(RunError, match=r"Shard 0 of 2 failed\. .*windows"):
        done("neurons", tmp_path / "no", model="known-ioi", texts=texts, length=9, max_memory=1, shards=2)
    assert not list(tmp_path.glob("no*"))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Texts of three segments of their usual size, and their census in one pass."""
    draw, folder = Random(0), tmp_path_factory.mktemp("many")
    (folder / "texts.txt").write_text(" ".join(draw.choice(WORDS) for _ in range(70_000)))
    given = {"model": "known-ioi", "texts": str(folder / "texts.txt"), "length": 12}
    return given, done("neurons", folder / "whole", **given)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(many, tmp_path):
    def kill():
        while not (found := [p for p in psutil.Process().children(recursive=True) if "spawn" in " ".join(p.cmdline())]):
            time.sleep(0.01)
        time.sleep(1)
        os.kill(found[-1].pid, signal.SIGKILL)

    psutil = pytest.importorskip("psutil")
    thread = threading.Thread(target=kill)
    thread.start()
    check_same(many[1], done("neurons", tmp_path / "run", **many[0], shards=2))
    thread.join()


@pytest.mark.slow
def test_ray_gives_the_same(many, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other tests may fill the machine: no worker pays for it
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for the tests beside them
    check_same(many[1], done("neurons", tmp_path / "run", **many[0], shards=2, on="ray"))
