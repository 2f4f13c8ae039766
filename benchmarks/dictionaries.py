"""What gathering activations and learning from them cost, in processor seconds beside bare passes of the same windows.

    python benchmarks/dictionaries.py --texts FOLDER [--write]

Texts as `dictionary_texts.py` makes them. How good the trained dictionary is, `circuitome dictionary check` says.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from speed import HERE, machine, one_thread

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.features.activations import passes
from circuitome.runs.texts import documents

LAYER, WIDTH, LENGTH, WINDOWS, REPEATS = 15, 4608, 256, 8, 3


def seconds(job: Callable[[], object]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    one_thread()
    model, place = cm.load("smollm2-135m"), cm.features.Place("resid", LAYER)
    setting = Setting(model)
    cut = cm.neurons.windows(model, documents(options.texts), length=LENGTH, tokens=LENGTH * (WINDOWS + 1))
    cut = cut.chosen((cut.lengths == LENGTH).nonzero()[:WINDOWS, 0])
    inputs = cut.inputs(model, range(len(cut)))

    def bare() -> None:
        with torch.no_grad():
            model.logits(inputs)

    def harvest() -> None:
        for _ in passes(setting, place, cut):
            pass

    def learn() -> None:
        cm.features.train(model, cut, layer=LAYER, width=WIDTH)

    jobs = {"bare pass": bare, "harvest": harvest, "train": learn}
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(REPEATS):
        for name, job in jobs.items():
            times[name].append(seconds(job))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "tokens": cut.tokens,
        "seconds": {name: round(value, 2) for name, value in medians.items()},
        "harvest_over_bare": round(medians["bare pass"] / medians["harvest"], 2),
        "train_over_bare": round(medians["bare pass"] / medians["train"], 2),
    }
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"dictionaries-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
