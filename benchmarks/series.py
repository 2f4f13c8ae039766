"""The circuit of induction in a few checkpoints of SmolLM2 that was trained on: by EAP-IG's ranking, and by mattr's.

    python benchmarks/series.py --folder /tmp/checkpoints --write [--steps 0,4,8] [--rankings eap-ig,mattr] [--n 32]

The checkpoints are made first, where they are not there: the model goes on with the language reference that comes with
Python, a batch of four rows of 64 tokens a step. What `cm.dynamics.series` has measured is written after each.
"""

import argparse
import json
import time
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

from speed import HERE, machine, one_thread

import circuitome as cm
from circuitome.models.saving import write_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoints are, or go")
    parser.add_argument("--steps", default="0,4,8", help="steps of the checkpoints")
    parser.add_argument("--rankings", default="eap-ig,mattr")
    parser.add_argument("--n", type=int, default=32, help="prompts that the circuit is looked for on, and measured on")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    made(options.folder, [int(step) for step in options.steps.split(",")])
    path = HERE / "results" / f"series-{date.today()}.json"
    result: dict[str, Any] = {"machine": machine(), "model": "smollm2-135m", "prompts": options.n}
    for ranking in options.rankings.split(","):
        result[ranking] = measured(options.folder, ranking, options.n, path if options.write else None, result)
        print(ranking, json.dumps(result[ranking]), flush=True)


def made(folder: Path, steps: list[int]) -> None:
    """Write a checkpoint after each of the steps, unless they are there."""
    places = [folder / f"step-{step:08d}" for step in steps]
    if all(place.is_dir() for place in places):
        return
    model = cm.load("smollm2-135m")
    stream = cm.training.text_stream(model, cm.dynamics.python_reference())
    write_checkpoint(model, places[0], replace=True)
    for (before, after), place in zip(pairwise(steps), places[1:], strict=True):
        schedule = cm.training.Schedule(steps=after - before, batch=4, length=64, learning_rate=1e-4, seed=before)
        print(cm.training.train(model, stream, schedule), flush=True)
        write_checkpoint(model, place, replace=True)


def measured(folder: Path, ranking: str, n: int, path: Path | None, result: dict[str, Any]) -> dict[str, Any]:
    """By step: how well the task is done, its circuit, and the seconds it took; kept beside the folder."""
    kept, began, seconds = folder / f"measured-{ranking}.json", time.monotonic(), list[float]()

    def measures(model: cm.Model) -> cm.dynamics.Measures:
        tasks = cm.dynamics.watched_tasks(model, ["induction"], n=n)
        return cm.dynamics.Measures(None, None, tasks=tasks, ranking=ranking)

    def tell(what: str, done: int, total: int) -> None:
        seconds.append(round(time.monotonic() - began - sum(seconds), 1))
        if path is not None and kept.is_file():
            rows = json.loads(kept.read_text())["rows"]
            path.write_text(json.dumps(result | {ranking: {**told(rows), "seconds": seconds}}, indent=1) + "\n")

    cm.dynamics.series(folder, measures, keep=kept, progress=tell)
    return {**told(json.loads(kept.read_text())["rows"]), "seconds": seconds}


def told(rows: dict[str, Any]) -> dict[str, Any]:
    """What is said of the circuits, by step."""
    ordered = sorted((int(step), row["circuits"]["induction"]) for step, row in rows.items())
    found = cm.dynamics.TaskCircuits.of_rows("induction", ordered)
    return {key: value for key, value in found.to_dict().items() if key not in ("edges", "since", "ablated")}


if __name__ == "__main__":
    main()
