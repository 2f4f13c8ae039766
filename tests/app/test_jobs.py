"""Jobs in a server of its own: done in order, killed in the middle, gone on with, cancelled."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

pytest.importorskip("fastapi")

from circuitome.app.jobs import Jobs
from circuitome.app.runner import Runner
from circuitome.app.worker import perform_study, told
from circuitome.progress import WHOLE
from circuitome.runs.store import partial_of

WAIT = 90.0
SERVE = """
import sys
from pathlib import Path
from circuitome.app.server import serve
serve(Path(sys.argv[1]), 0, lambda address: print(address, flush=True))
"""


class Server:
    """A server in a process of its own."""

    def __init__(self, runs):
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, str(runs)], stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=WAIT) as answer:
            return json.loads(answer.read())

    def start(self, study, **values):
        return self.ask("api/jobs", {"study": study, "values": values})["id"]

    def jobs(self):
        return {job["id"]: job for job in self.ask("api/state")["jobs"]}

    def until(self, when):
        """The jobs, as soon as they are so."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if when(jobs := self.jobs()):
                return jobs
            time.sleep(0.02)
        raise AssertionError(f"it did not come so far: {jobs}")

    def worker(self):
        children = psutil.Process(self.process.pid).children()
        return next(child.pid for child in children if any("spawn_main" in word for word in child.cmdline()))

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(20)
        self.process.stdout.close()
        return code


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def ends(pid):
    """Whether a process ends within ten seconds."""
    end = time.monotonic() + 10
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


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
