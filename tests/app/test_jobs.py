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


def stamps(files):
    """Bytes and time of writing of each file that is there."""
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files if file.is_file()}


@pytest.mark.slow
def test_of_twenty_jobs_none_is_lost_when_the_server_is_killed_and_the_interrupted_one_goes_on(tmp_path):
    def weights(seed):
        return server.start("weights", head=f"a{seed % 3}.h0", model="known-ioi", seed=str(seed))

    server = Server(tmp_path)
    long = {"task": "known-ioi", "model": "known-ioi", "n": "16", "methods": "eap,eap-ig,mattr", "edges": "8"}
    numbers = [weights(0), weights(1), server.start("compare", **long), *(weights(seed) for seed in range(2, 19))]
    partial = partial_of(Path(server.jobs()[numbers[2]]["folder"]))
    jobs = server.until(lambda jobs: (partial / "search-mattr").is_dir())
    worker = server.worker()
    server.kill()
    assert ends(worker)
    assert len(numbers) == 20 and [jobs[number]["state"] for number in numbers[:4]] == [
        "done",
        "done",
        "running",
        "queued",
    ]
    finished = stamps(file for number in numbers[:2] for file in Path(jobs[number]["folder"]).rglob("*"))
    kept, seen = stamps(partial.glob("found-*")), {}
    assert len(finished) >= 6 and {file.stem for file in kept} == {"found-eap", "found-eap-ig"}

    def all_done(jobs):
        seen.update(stamps(partial.glob("found-*")))
        return all(job["state"] == "done" for job in jobs.values())

    again = Server(tmp_path)
    jobs = again.until(all_done)
    assert sorted(jobs) == numbers
    assert all((Path(job["folder"]) / "tensors.safetensors").is_file() for job in jobs.values())
    assert finished == stamps(finished)
    assert seen.items() > kept.items()  # what was found before is not found again, and more was added to it
    second = again.start("weights", head="a1.h0", model="known-ioi", seed="70")
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
        assert jobs[next_one]["state"] == "done", jobs[next_one]["message"]
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
    (tmp_path / "2" / "manifest.json").write_text(json.dumps({"key": "k", "command": "circuitome weights 2"}))
    os.utime(tmp_path / "2" / "manifest.json", (1, 1))
    for job in (saved, interrupted, older):
        jobs.begin(job.id)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "manifest.json").write_text(json.dumps({"key": "k", "command": "circuitome weights 0"}))
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
