"""Sweeps: what a file asks for, done once each, wherever the runs are done and whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import circuitome as cm
from circuitome.errors import CircuitomeError, InputError, RunError
from circuitome.present import blocks
from circuitome.runs import executors
from circuitome.runs.store import locked
from circuitome.studies.catalog import STUDIES
from circuitome.studies.frame import perform
from circuitome.studies.sweep import Sweep, perform_job, shown
from circuitome.studies.sweep_plan import read_plan

PLAN = """
study: find
set: {n: 8, edges: 13, model: known-ioi, task: known-ioi}
vary:
  method: [eap, eap-ig]
  seed: [0, 1, 2, 3, 4, 5]
"""


def plan(folder: Path, text: str = PLAN) -> str:
    path = folder / "plan.yaml"
    path.write_text(text)
    return str(path)


def swept(folder: Path, text: str = PLAN, **settings: Any) -> dict[str, Any]:
    asked = Sweep(file=plan(folder, text), runs=str(folder / "runs"), **settings)
    run, _ = perform(STUDIES["sweep"], asked, out=folder / f"sweep-{time.monotonic_ns()}")
    return run.manifest["results"]


def tensors(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in (folder / "runs").glob("*/tensors.safetensors")}


@pytest.fixture(scope="module")
def sequential(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The runs of the plan, done one after another here."""
    folder = tmp_path_factory.mktemp("sequential")
    for job in read_plan(plan(folder), STUDIES):
        perform(STUDIES[job.study], job.settings, out=job.folder(folder / "runs"))
    return tensors(folder)


def test_a_plan_is_every_combination_once(tmp_path: Path) -> None:
    jobs = read_plan(plan(tmp_path), STUDIES)
    assert len(jobs) == 12 == len({job.folder(Path()) for job in jobs})
    assert jobs[1].varied == {"method": "eap", "seed": 1} and jobs[1].settings.n == 8  # type: ignore[attr-defined]
    twice = read_plan(plan(tmp_path, "\n".join("- " + PLAN.strip().replace("\n", "\n  ") for _ in range(2))), STUDIES)
    assert len(twice) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "study: fnd": "Did you mean 'find'",
        "study: find\nset: {tsk: ioi}": "There is no setting of find 'tsk'.*Did you mean 'task'",
        "study: find\nvary: {task: ioi}": "vary must give a list of values for task, got 'ioi'",
        "study: find\nset: {n: many}": "n of find cannot be 'many': Input should be a valid integer",
        "study: find\nset: {n: 0}": "--n is the number of prompt pairs and must be at least 1",
        "study: find\nvaried: {}": "There is no key 'varied'",
        "study: find\nvary: {seed: []}": "asks for no run",
        "just text": "expected a mapping with the keys study, set and vary",
        "a: [": "is no YAML file",
    }.items(),
)
def test_files_that_are_no_plans(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CircuitomeError, match=message):
        read_plan(plan(tmp_path, text), STUDIES)


@pytest.mark.slow
def test_a_lost_worker_loses_nothing(tmp_path: Path, sequential: dict[str, bytes]) -> None:
    results = swept_while_killing(tmp_path, on="local", workers=2)
    assert [row["state"] for row in results["runs"]] == ["done"] * 12
    assert tensors(tmp_path) == sequential
    again = swept(tmp_path)
    assert [row["state"] for row in again["runs"]] == ["was there"] * 12
    gone = next((tmp_path / "runs").iterdir())
    (gone / "tensors.safetensors").write_bytes(b"damaged")
    states = {row["folder"]: row["state"] for row in swept(tmp_path)["runs"]}
    assert states.pop(gone.name) == "done" and set(states.values()) == {"was there"}
    assert tensors(tmp_path) == sequential


def test_a_run_whose_worker_was_lost_before_it_said_so(tmp_path: Path) -> None:
    text = "study: weights\nset: {model: known-ioi, head: a2.h0}"
    (job,) = read_plan(plan(tmp_path, text), STUDIES)
    given = (job.study, job.settings, str(job.folder(tmp_path / "runs")))
    assert perform_job(given)["state"] == "done"
    made = job.folder(tmp_path / "runs") / "manifest.json"
    before = made.stat().st_mtime_ns
    assert perform_job(given)["state"] == "done" and made.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same(
    tmp_path: Path, sequential: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other tests may fill the machine: no worker pays for it
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for the tests beside them
    results = swept_while_killing(tmp_path, on="ray", workers=2)
    assert [row["state"] for row in results["runs"]] == ["done"] * 12
    assert tensors(tmp_path) == sequential


@pytest.mark.slow
def test_slurm_is_tried_out_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    text = "study: weights\nset: {model: known-ioi}\nvary: {head: [a2.h0, a1.h0]}"
    assert [row["state"] for row in swept(tmp_path, text, on="slurm", address="local")["runs"]] == ["done"] * 2


def swept_while_killing(folder: Path, **settings: Any) -> dict[str, Any]:
    """A sweep one of whose workers is killed when two runs are there."""

    def kill() -> None:
        while len(tensors(folder)) < 2:
            time.sleep(0.02)
        os.kill(busy_worker(), signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    results = swept(folder, **settings)
    thread.join()
    return results


def busy_worker() -> int:
    """A process below this one that does runs."""
    import psutil

    while True:
        for process in psutil.Process().children(recursive=True):
            name = " ".join(process.cmdline())
            if "multiprocessing.spawn" in name or "ray::perform_job" in name:
                return process.pid
        time.sleep(0.01)


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    text = "study: weights\nset: {model: known-ioi}\nvary: {head: [a2.h0, a9.h9]}"
    results = swept(tmp_path, text)
    assert [row["state"] for row in results["runs"]] == ["done", "failed"] and results["failed"] == 1
    assert "a9.h9" in results["runs"][1]["message"]
    with pytest.raises(RunError, match=r"All 1 runs failed. The first said: .*a9\.h9"):
        swept(tmp_path, text.replace("a2.h0, ", ""))


@pytest.mark.slow
def test_workers_that_are_always_lost(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Workers were lost 4 times one after another, 2 jobs are left"):
        list(executors.local(os._exit, [1, 1], workers=2))


@pytest.mark.slow
def test_what_workers_leave_in_their_temporary_folder_goes_with_them() -> None:
    paths = [Path(path) for _, path in executors.local(tempfile.mkdtemp, ["-left", "-left"], workers=2)]
    assert len({path.parent for path in paths}) == 1
    assert not any(path.exists() or path.parent.exists() for path in paths)


def test_where_there_is_no_cluster(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Local processes take no --address"):
        list(executors.local(abs, [1], workers=1, address="somewhere"))
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match="There is no Slurm here"):
        list(executors.on_slurm(abs, [1], workers=1))


@pytest.mark.slow
def test_two_sweeps_share_one_folder(tmp_path: Path, sequential: dict[str, bytes]) -> None:
    code = (
        "from pathlib import Path; from circuitome.studies.sweep import Sweep; from circuitome.studies.catalog import "
        "STUDIES; from circuitome.studies.frame import perform; "
        f"r = perform(STUDIES['sweep'], Sweep(file={plan(tmp_path)!r}, runs={str(tmp_path / 'runs')!r}), "
        f"out=Path({str(tmp_path)!r}) / 'second'); print(r[0].manifest['results']['failed'])"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        results = swept(tmp_path)
        assert other.stdout is not None and other.stdout.read().split()[-1] == "0"
    assert {row["state"] for row in results["runs"]} <= {"done", "was there"}
    assert tensors(tmp_path) == sequential
    assert not [path for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")]


def test_a_run_that_another_process_makes(tmp_path: Path) -> None:
    asked = STUDIES["weights"].settings(head="a2.h0", model="known-ioi")  # type: ignore[call-arg]
    with locked(tmp_path / "run", wait=False), pytest.raises(RunError, match="Another process is at work on"):
        perform(STUDIES["weights"], asked, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    waited = list[float]()

    def wait() -> None:
        with locked(tmp_path / "run", wait=True):
            waited.append(time.monotonic())

    with locked(tmp_path / "run", wait=True):
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        freed = time.monotonic()
    for thread in threads:
        thread.join()
    assert len(waited) == 3 and min(waited) >= freed and not list(tmp_path.iterdir())


@pytest.mark.parametrize("look", [1, 2])
def test_a_lock_that_goes_before_a_look_is_taken_anew(
    look: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, stat = list[Path](), os.stat

    def gone(path: Path, *more: Any, **named: Any) -> os.stat_result:
        if str(path).endswith(".run.lock"):
            looks.append(path)
            if len(looks) == look:
                Path(path).unlink()
        return stat(path, *more, **named)

    monkeypatch.setattr(os, "stat", gone)
    with locked(tmp_path / "run", wait=True):
        assert looks
    assert not list(tmp_path.iterdir())


def test_many_runs_stay_readable(tmp_path: Path) -> None:
    rows = [
        {"study": "find", "task": f"t{i % 4}", "seed": i, "state": "done", "seconds": 1.0, "folder": f"f{i}"}
        | {"message": "", "share value": i % 4 + i / 100, "edges": 10}
        for i in range(200)
    ]
    by_setting, runs = shown(rows)
    assert isinstance(by_setting, blocks.Table) and isinstance(runs, blocks.Table)
    assert len(runs.rows) == 200 and runs.top == 20
    assert [row[:3] for row in by_setting.rows] == [("task", f"t{i}", 50) for i in range(4)]
    assert by_setting.rows[0][3] == pytest.approx(sum(i / 100 for i in range(0, 200, 4)) / 50)


def test_runs_are_compared_in_a_table(tmp_path: Path) -> None:
    text = "study: measure\nset: {model: known-ioi, task: known-ioi}\nvary: {n: [4, 8]}"
    rows = swept(tmp_path, text)["runs"]
    assert [row["n"] for row in rows] == [4, 8] and {row["state"] for row in rows} == {"done"}
    assert {row["state"] for row in swept(tmp_path, text)["runs"]} == {"was there"}
    run = min(tmp_path.glob("sweep-*"))  # the first of the two
    lines = (run / "runs.csv").read_text().splitlines()
    assert lines[0].startswith("study,n,state,seconds,folder,message") and len(lines) == 3
    assert load_file(run / "tensors.safetensors") == {}
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(run / "runs.parquet").to_pylist() == rows
    cm.open(run).export(tmp_path / "all.parquet")
    cm.open(run).export(tmp_path / "shown.parquet", "runs")
    assert parquet.read_table(tmp_path / "all.parquet").to_pylist() == rows
    assert parquet.read_table(tmp_path / "shown.parquet")["n"].to_pylist() == ["4", "8"]
