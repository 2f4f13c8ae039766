"""What shards, texts at size and sweeps cost: `python benchmarks/scale.py [shards] [texts] [trained] [sweep]`, or all.

Writes benchmarks/results/scale-DATE.json after every part. Times are processor seconds of one thread, or seconds by the
clock where processes are started.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / f"scale-{date.today()}.json"
HERE = str(Path(__file__).parent)
TOKENS = 6_000
"""Tokens of the sharded census, of three blocks, each of which is a segment here: else 32,768 tokens are one."""
TEXTS, ROUTED = 256, 32
"""Texts whose routes are measured, four blocks of them, and tokens of each."""
SPLITS = {"routes": ((1, 1), (2, 2), (3, 1)), "neurons": ((1, 1), (2, 1), (3, 1))}
"""By study: shards, and processes that do them. A census has short segments in its own process alone."""
MEGABYTES, TRAINED = (10, 40), (5, 20)
"""Sizes of the texts that are read for windows, and for a training."""
PLAN = """
study: measure
set: {model: smollm2-135m, task: ioi}
vary:
  n: [4, 8]
  seed: [0, 1, 2, 3, 4, 5]
"""


def shards() -> Iterator[dict[str, Any]]:
    """`routes` on SmolLM2-135M in one piece, two processes and three shards of one process, and a census in shards."""
    import circuitome as cm

    found: dict[str, Any] = {"tokens": TOKENS, "texts": TEXTS, "tokens_of_a_text": ROUTED}
    with tempfile.TemporaryDirectory() as folder:
        whole, lines = Path(folder) / "whole.txt", Path(folder) / "texts.jsonl"
        whole.write_text(cm.dynamics.python_reference())
        model = cm.load("smollm2-135m")
        cut = cm.neurons.windows(model, whole.read_text(), length=ROUTED, tokens=TEXTS * ROUTED)
        lines.write_text("".join(json.dumps({"text": model.decode(row)}) + "\n" for row in cut.ids.tolist()))
        del model
        asked: dict[str, dict[str, Any]] = {
            "routes": {"file": str(lines)},
            "neurons": {"tokens": TOKENS, "texts": str(whole)},
        }
        for study, settings in asked.items():
            runs = dict[str, dict[str, Any]]()
            for number, processes in SPLITS[study]:
                runs[f"{number} shards, {processes} processes"] = _sharded(folder, study, settings, number, processes)
                found[study] = {"runs": runs, "same_bytes": len({run["bytes"] for run in runs.values()}) == 1}
                yield found


def _sharded(folder: str, study: str, settings: Mapping[str, Any], number: int, processes: int) -> dict[str, Any]:
    """What a study in so many shards takes in a process of its own, and a hash of all that it found."""
    code = f"import sys; sys.path.insert(0, {HERE!r}); import scale; scale.run_shards(*{(folder, study, settings)!r}"
    load, start = os.getloadavg()[0], time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", f"{code}, {number}, {processes})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spent, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    seconds = spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"processor_seconds": seconds, "seconds": wall, "load": [load, os.getloadavg()[0]], **found}


def run_shards(folder: str, study: str, settings: Mapping[str, Any], number: int, processes: int) -> None:
    """Do the study, and print its seconds and a hash of its tensors and results."""
    from circuitome.runs import executors
    from circuitome.studies.catalog import STUDIES
    from circuitome.studies.frame import perform

    torch.set_num_threads(1)

    def local(call: Any, given: Any, **options: Any) -> Any:
        return executors.local(call, given, **{**options, "workers": processes})

    executors.EXECUTORS["local"] = local
    given: dict[str, Any] = {**settings, "model": "smollm2-135m", "shards": number}
    asked, start, place = STUDIES[study].settings(**given), time.perf_counter(), Path(folder) / f"{study}-{number}"
    if study == "neurons":
        tensors = _census(asked, place)
        found = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors.values())
    else:
        run, _ = perform(STUDIES[study], asked, out=place)
        found = json.dumps([run.manifest[name] for name in ("results", "data_hash")]).encode()
        found += (place / "tensors.safetensors").read_bytes()
    digest = hashlib.blake2b(found, digest_size=16).hexdigest()
    print(json.dumps({"study_seconds": time.perf_counter() - start, "bytes": digest}))


def _census(settings: Any, folder: Path) -> dict[str, torch.Tensor]:
    """What `neurons` counts, without its page, whose index of all neurons takes longer."""
    from circuitome.neurons import counting
    from circuitome.studies.context import Context
    from circuitome.studies.neurons import counted
    from circuitome.studies.shards import spread
    from circuitome.studies.texts_read import windows_of

    counting.SEGMENT = 1
    folder.mkdir()
    context = Context(settings, folder=folder)
    cut = windows_of(settings, context)
    spread("neurons", settings, context)
    return counted(settings, context, cut).tensors()


def texts() -> Iterator[dict[str, Any]]:
    """Peak memory and speed of reading 100,000 tokens of a small and a large file, in a process each."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in MEGABYTES:
            for path in _written(Path(folder), size):
                code = f"import sys; sys.path.insert(0, {HERE!r}); import scale; scale.read({str(path)!r})"
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
                found[path.name] = json.loads(done.stdout.splitlines()[-1])
                yield found


def _written(folder: Path, megabytes: int) -> list[Path]:
    """A file of so many megabytes of random words in each format."""
    import pyarrow
    import pyarrow.parquet
    import zstandard

    draw, words = Random(0), [f"word{i}" for i in range(5000)]
    lines, size = list[str](), 0
    while size < megabytes * 1_000_000:
        lines.append(" ".join(draw.choices(words, k=300)))
        size += len(lines[-1])
    paths = [folder / f"{megabytes}MB{suffix}" for suffix in (".jsonl", ".jsonl.zst", ".parquet")]
    raw = "".join(json.dumps({"text": line}) + "\n" for line in lines).encode()
    paths[0].write_bytes(raw)
    paths[1].write_bytes(zstandard.compress(raw))
    pyarrow.parquet.write_table(pyarrow.table({"text": lines}), paths[2], row_group_size=1000)
    return paths


def trained() -> Iterator[dict[str, Any]]:
    """Peak memory and speed of reading all texts of a small and a large file for a training, in a process each."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in TRAINED:
            path = _written(Path(folder), size)[0]
            code = f"import sys; sys.path.insert(0, {HERE!r}); import scale; scale.read_all({str(path)!r})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            found[path.name] = json.loads(done.stdout.splitlines()[-1])
            yield found


def read_all(path: str) -> None:
    """Read all texts of a file as a stream for a training; prints seconds and peak memory."""
    import circuitome as cm
    from circuitome.runs.texts import each_document

    model = cm.load("smollm2-135m")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    ids = cm.training.text_stream(model, each_document(path)).ids
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.process_time() - start
    print(json.dumps({"tokens": len(ids), "seconds": seconds, "more_MB": (peak - before) / 1024}))


def read(path: str) -> None:
    """Read 100,000 tokens of a file into windows; prints seconds and peak memory."""
    import circuitome as cm
    from circuitome.runs.reading import read_windows

    model = cm.load("smollm2-135m")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    cut = read_windows(model, path, length=512, tokens=100_000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = time.process_time() - start
    print(json.dumps({"tokens": cut.tokens, "seconds": seconds, "more_MB": (peak - before) / 1024}))


def sweep() -> Iterator[dict[str, Any]]:
    """Twelve runs as a sweep, and the same studies one after another, in one process and without folders."""
    from circuitome.studies.catalog import STUDIES
    from circuitome.studies.context import Context
    from circuitome.studies.frame import perform
    from circuitome.studies.sweep import Sweep
    from circuitome.studies.sweep_plan import read_plan

    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.yaml"
        plan.write_text(PLAN)
        jobs, models = read_plan(plan, STUDIES), dict[Any, Any]()
        Context(jobs[0].settings, models=models).model  # noqa: B018  # loaded before the clock starts
        start = time.process_time()
        for job in jobs:
            STUDIES[job.study].run(job.settings, Context(job.settings, models=models))
        alone = time.process_time() - start
        start = time.process_time()
        perform(STUDIES["sweep"], Sweep(file=str(plan), runs=f"{folder}/runs"), out=Path(folder) / "sweep")
        swept = time.process_time() - start
    yield {"runs": len(jobs), "studies": alone, "sweep": swept, "more_a_run": (swept - alone) / len(jobs)}


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "shards": shards,
    "texts": texts,
    "trained": trained,
    "sweep": sweep,
}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        for part in PARTS[name]():
            found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"torch": torch.__version__}
            found[name] = part
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")
            print(name, json.dumps(part, indent=1))


if __name__ == "__main__":
    main()
