"""What the app costs: answers of its prompt box beside bare forwards, routes, jobs on a loaded model, the demo page.

Every answer goes over HTTP and stands beside a bare Hugging Face forward of the same prompt, taken just before it.
Seconds are those of a clock, and those of the processor in the process that answers, which other programs leave alone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import torch
from speed import HERE, bare_forward, machine, one_thread

import circuitome as cm

MODEL = "smollm2-135m"
NAMES = ("Laura", "Peter", "John", "Anna", "Kate", "Paul", "Mark", "James")
SHORT = "When Mary and {} went to the store, John gave a drink to"
LONG = (
    "The teacher wrote on the blackboard and the pupils opened their books. Then they all went out of the school, over "
    "the street and into the park, where the trees were green and the sun stood high above the houses of the little "
    "town. "
) + SHORT
SINGLE = {**os.environ, "OMP_NUM_THREADS": "1"}
HEADS = ("a9.h6", "a12.h2", "a20.h1", "a3.h4", "a15.h7", "a7.h0", "a25.h3", "a1.h1")


class App:
    """The app on an empty folder, in a process of its own."""

    def __init__(self, folder: str) -> None:
        words = [sys.executable, "-m", "circuitome", "app", folder, "--port", "0", "--no-browser"]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=SINGLE)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[-1]

    def ask(self, path: str, body: Any = None) -> Any:
        """What the app answers."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.loads(answer.read())

    def processor(self) -> float:
        """Processor seconds of the app and its workers so far."""
        me = psutil.Process(self.process.pid)
        return sum(sum(each.cpu_times()[:2]) for each in (me, *me.children(recursive=True)))


def timed(work: Callable[[], Any], processor: Callable[[], float]) -> dict[str, float]:
    start, before = time.perf_counter(), processor()
    work()
    return {"clock": time.perf_counter() - start, "processor": processor() - before}


def beside_bare(app: App, requests: list[dict[str, Any]], model: cm.Model) -> dict[str, Any]:
    """Medians over requests of their seconds, of those of bare forwards, and what two forwards and 0.1 s would be."""
    answers, bare = [], []
    for request in requests:
        ids = torch.tensor([model.encode(request["prompt"])])
        bare.append(timed(lambda ids=ids: bare_forward(model, ids), time.process_time))
        answers.append(timed(lambda request=request: app.ask("api/prompt", request), app.processor))
    result: dict[str, Any] = {"tokens": len(ids[0]), "answers": len(answers)}
    for kind in ("clock", "processor"):
        answer, forward = (statistics.median(one[kind] for one in all_) for all_ in (answers, bare))
        result[kind] = {"answer": round(answer, 3), "bare": round(forward, 3), "allowed": round(2 * forward + 0.1, 3)}
    return result


def prompts(app: App, model: cm.Model) -> dict[str, Any]:
    """Answers to new prompts, to the same with a head switched off, and routes."""
    found = {}
    app.ask("api/prompt", {"model": MODEL, "prompt": "A first one"})  # the process starts and loads the model
    for name, text in (("short", SHORT), ("long", LONG)):
        asked = [{"model": MODEL, "prompt": text.format(person)} for person in NAMES]
        found[f"new prompt, {name}"] = beside_bare(app, asked, model)
        app.ask("api/prompt", asked[0])
        off = [{**asked[0], "ablate": [head]} for head in HEADS]
        found[f"a head switched off, {name}"] = beside_bare(app, off, model)
        found[f"route, {name}"] = beside_bare(app, [{**one, "routes": True} for one in asked[:4]], model)
    return found


def jobs(app: App) -> dict[str, Any]:
    """Seconds from the request to the run of a first job, which loads the model, and of jobs after it."""

    def one(seed: int) -> tuple[float, float]:
        asked = time.time()
        values = {"head": "a9.h6", "model": MODEL, "seed": str(seed)}
        number = app.ask("api/jobs", {"study": "weights", "values": values})["id"]
        while True:
            job = next(job for job in app.ask("api/state")["jobs"] if job["id"] == number)
            if job["state"] in ("done", "failed"):
                assert job["state"] == "done", job["message"]
                return job["began"] - asked, job["ended"] - asked
            time.sleep(0.02)

    first, *later = [one(seed) for seed in range(6)]
    begun, done = (statistics.median(part) for part in zip(*later, strict=True))
    return {"first done": round(first[1], 2), "later begun": round(begun, 3), "later done": round(done, 2)}


def demo() -> dict[str, float]:
    """Seconds of `circuitome demo`, of a clock and of the processor."""

    def children() -> float:
        return sum(os.times()[2:4])

    words = [sys.executable, "-m", "circuitome", "demo", "--no-browser"]
    told = [timed(lambda: subprocess.run(words, check=True, stdout=subprocess.DEVNULL), children) for _ in range(5)]
    return {kind: round(statistics.median(one[kind] for one in told), 2) for kind in ("clock", "processor")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load(MODEL)
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine()}
    path = HERE / "results" / f"app-{result['date']}.json"
    with tempfile.TemporaryDirectory() as folder:
        app = App(str(Path(folder) / "runs"))
        parts: dict[str, Callable[[], Any]] = {
            "demo": demo,
            "jobs": lambda: jobs(app),
            "prompts": lambda: prompts(app, model),
        }
        try:
            for name, measure in parts.items():
                result[name] = measure()
                print(name, json.dumps(result[name], indent=1), flush=True)
                if options.write:
                    path.write_text(json.dumps(result, indent=1) + "\n")
        finally:
            app.process.kill()


if __name__ == "__main__":
    main()
