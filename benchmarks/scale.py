"""What shards, texts at size and sweeps cost: `python benchmarks/scale.py [shards] [texts] [sweep]`, all by default.

Writes benchmarks/results/scale-DATE.json after every part. Times are processor seconds of one thread, or seconds by the
clock where processes are started.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results" / f"scale-{date.today()}.json"
HERE = str(Path(__file__).parent)
TOKENS = 34_000
"""Tokens of the sharded census: two segments."""
MEGABYTES = (10, 40)
"""Sizes of the texts that are read."""
PLAN = """
study: measure
set: {model: smollm2-135m, task: ioi}
vary:
  n: [4, 8]
  seed: [0, 1, 2, 3, 4, 5]
"""


def shards() -> dict[str, Any]:
    """A census of SmolLM2-135M in one pass and in shards, one after another, beside bare passes."""
    import circuitome as cm
    from circuitome.engine.setting import Setting

    model = cm.load("smollm2-135m")
    cut = cm.neurons.windows(model, cm.dynamics.python_reference(), length=512, tokens=TOKENS)
    found: dict[str, Any] = {"tokens": cut.tokens}
    start = time.process_time()
    with torch.no_grad():
        for rows in list(cut.blocks())[:4]:
            model.logits(cut.inputs(model, rows))
    found["bare"] = (time.process_time() - start) * cut.tokens / int(cut.lengths[: rows.stop].sum())
    start = time.process_time()
    whole = cm.neurons.census(model, cut)
    found["one_pass"] = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        parts = []
        for number in range(2):
            setting = Setting(model, checkpoint=Path(folder) / f"{number}.safetensors")
            parts.append(cm.neurons.Counting(setting, cut, shard=(number, 2)))
            parts[-1].run()
        parts[0].add(parts[1])
        split = parts[0].census()
        found["two_shards"] = time.process_time() - start
        found["bytes_of_a_shard"] = max(path.stat().st_size for path in Path(folder).iterdir())
    pairs = zip(whole.tensors().values(), split.tensors().values(), strict=True)
    found["same_bytes"] = all(a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes() for a, b in pairs)
    found["certain"] = float(whole.certain.double().mean())
    return found


def texts() -> dict[str, Any]:
    """Peak memory and speed of reading 100,000 tokens of a small and a large file, in a process each."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in MEGABYTES:
            for path in _written(Path(folder), size):
                code = f"import sys; sys.path.insert(0, {HERE!r}); import scale; scale.read({str(path)!r})"
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
                found[path.name] = json.loads(done.stdout.splitlines()[-1])
    return found


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


def sweep() -> dict[str, Any]:
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
    return {"runs": len(jobs), "studies": alone, "sweep": swept, "more_a_run": (swept - alone) / len(jobs)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"shards": shards, "texts": texts, "sweep": sweep}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or PARTS:
        found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"torch": torch.__version__}
        found[name] = PARTS[name]()
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found[name], indent=1))


if __name__ == "__main__":
    main()
