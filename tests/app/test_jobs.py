"""Jobs in a server of its own: done in order, killed in the middle, gone on with, cancelled."""

import json
import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from app.serving import Server, ends

from circuitome.app.jobs import Jobs
from circuitome.app.runner import Runner
from circuitome.app.worker import perform_study, told
from circuitome.progress import WHOLE
from circuitome.runs.store import partial_of


@pytest.mark.slow
def test_a_server_that_is_killed_loses_no_job_and_leaves_no_worker(tmp_path):
    server = Server(tmp_path)
    heads = ("a0.h0", "a1.h0", "a2.h0")
    numbers = [
        server.start("weights", head=head, model="known-ioi", seed=str(seed)) for seed in range(2) for head in heads
    ]
    jobs = server.until(
        lambda jobs: jobs[numbers[1]]["state"] == "done" and any(j["state"] == "running" for j in jobs.values())
    )
    worker = server.worker()
    finished = [job for job in jobs.values() if job["state"] == "done"]
    before = {job["folder"]: (Path(job["folder"]) / "manifest.json").stat().st_mtime_ns for job in finished}
    server.kill()
    assert ends(worker)
    again = Server(tmp_path)
    jobs = again.until(lambda jobs: all(job["state"] == "done" for job in jobs.values()))
    assert sorted(jobs) == numbers
    for job in jobs.values():
        assert (Path(job["folder"]) / "tensors.safetensors").is_file()
    assert before == {folder: (Path(folder) / "manifest.json").stat().st_mtime_ns for folder in before}
    second = again.start("weights", head="a1.h0", model="known-ioi", seed="7")
    again.until(lambda jobs: jobs[second]["state"] == "done")
    assert again.stop() == 0
    assert Jobs(tmp_path).get(second).state == "done"


@pytest.mark.slow
def test_a_running_job_is_cancelled_and_the_worker_goes_on_with_its_model(tmp_path):
    server = Server(tmp_path)
    try:
        long = server.start("find", task="known-ioi", model="known-ioi", n="3000")
        short = server.start("weights", head="a0.h0", model="known-ioi")
        server.until(lambda jobs: jobs[long]["state"] == "running" and server.ask("api/state")["progress"])
        worker = server.worker()
        server.ask(f"api/jobs/{long}/cancel", {})
        jobs = server.until(lambda jobs: jobs[short]["state"] == "done")
        assert jobs[long]["state"] == "cancelled"
        assert server.worker() == worker
        os.kill(worker, signal.SIGKILL)
        assert ends(worker)
        next_one = server.start("weights", head="a1.h0", model="known-ioi")
        jobs = server.until(lambda jobs: jobs[next_one]["state"] in ("done", "failed"))
        assert jobs[next_one]["state"] == "done"
    finally:
        server.stop()


def test_what_a_stopped_run_kept_is_used(tmp_path):
    folder = tmp_path / "run"
    partial = partial_of(folder)
    partial.mkdir()
    (partial / "command.txt").write_text("circuitome weights a2.h0 --model known-ioi")
    perform_study(lambda message: None, "weights", ["--model=known-ioi", "--", "a2.h0"], str(folder))
    assert (folder / "manifest.json").is_file() and not partial.exists()


def test_a_job_whose_run_was_saved_before_the_server_ended_is_done_and_any_other_is_queued(tmp_path):
    jobs = Jobs(tmp_path)
    saved, interrupted, older = (
        jobs.add("weights", [], f"circuitome weights {i}", tmp_path / str(i)) for i in range(3)
    )
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "manifest.json").write_text(json.dumps({"command": "circuitome weights 2"}))
    os.utime(tmp_path / "2" / "manifest.json", (1, 1))
    for job in (saved, interrupted, older):
        jobs.begin(job.id)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "manifest.json").write_text(json.dumps({"command": "circuitome weights 0"}))
    Runner(jobs)
    assert [jobs.get(job.id).state for job in (saved, interrupted, older)] == ["done", "queued", "queued"]
    jobs.close()


def test_progress_is_told_at_both_ends_of_a_phase_and_now_and_then_between():
    sent, time_now = [], [0.0]
    tell = told(sent.append, every=1.0, clock=lambda: time_now[0])
    for done in range(11):
        time_now[0] += 0.3
        tell(WHOLE, done, 20)
        tell("scoring", done, 10)
    said = [(message["done"], message["whole"]) for _, message in sent]
    assert said[0] == (0, (0, 20)) and said[-1] == (10, (10, 20))
    assert 3 <= len(said) <= 5
