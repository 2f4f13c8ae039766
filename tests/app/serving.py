"""The app's server in a process of its own, and what becomes of processes."""

import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

WAIT = 240.0
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
