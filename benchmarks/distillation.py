"""What a small student learns of SmolLM2: from text alone, from its predictions, and with heads of a circuit matched.

    python benchmarks/distillation.py --write [--device cuda] [--texts FOLDER] [--steps 200]

The student is a subclone of half the blocks and half the width. All conditions see the same rows in the same order.
After every part the results are written, and a second call goes on with what is missing.
"""

import argparse
import copy
import functools
import json
from typing import Any

from training_runs import Results, collected, curve, held_out, memory, parser, texts_of

import circuitome as cm
from circuitome.applications.data_choices import gap

SIZE = {"layers": 15, "width": 288, "neurons": 768, "heads": 6}
CONDITIONS: dict[str, dict[str, Any]] = {
    "text": {},
    "predictions": {"align": False},
    "predictions and heads": {"align": True},
}


def main() -> None:
    defaults = {"steps": 200, "batch": 32, "length": 256, "learning_rate": 1e-3, "measured": 8192, "layers": 15}
    options = parser(__doc__, **defaults).parse_args()
    results = Results("distillation", options)
    teacher = cm.load("smollm2-135m", device=options.device)
    train, held = texts_of(options)
    streams = [cm.training.text_stream(teacher, part) for part in (train, held)]
    cut = cm.neurons.windows(teacher, held, length=128, tokens=options.measured, seed=0)
    task = cm.tasks.ioi(teacher, n=32, seed=0)
    size = {**SIZE, "layers": options.layers}
    begun = cm.applications.subclone(teacher, cut, **size, by="importance").model
    results.write(
        teacher={**held_out(streams[1], options.length)(teacher), "ioi": gap(teacher, task)},
        beginning=cm.applications.resemblance(teacher, begun, task),
        untrained=cm.applications.resemblance(teacher, cm.training.untrained(begun), task),
    )
    for seed in range(options.seeds):
        for name in CONDITIONS:
            make = functools.partial(trained, options, teacher, begun, streams, task, name, seed)
            results.part(f"{name}/{seed}", make)
        results.write(summary=summary(results, seed + 1))
    print(json.dumps(results.data["summary"], indent=1))


def trained(
    options: argparse.Namespace,
    teacher: cm.Model,
    begun: cm.Model,
    streams: list[Any],
    task: cm.Task,
    name: str,
    seed: int,
) -> dict[str, Any]:
    student = cm.Model(copy.deepcopy(begun.hf), begun.tokenizer, begun.name)
    numbers = {key: getattr(options, key) for key in ("steps", "batch", "length", "learning_rate")}
    schedule = cm.training.Schedule(**numbers, seed=seed)
    at = sorted({*range(0, options.steps + 1, max(1, options.steps // 20)), options.steps})
    look = [held_out(streams[1], options.length), lambda model: {"ioi": gap(model, task)}]
    more = {"watch": look, "at": at, "max_memory": memory(options)}
    if name == "text":
        training = cm.training.train(student, streams[0], schedule, **more)
    else:
        aligned = task if CONDITIONS[name]["align"] else None
        training = cm.applications.distil(teacher, student, streams[0], schedule, align=aligned, **more)
    return {**curve(training, "held_out", "ioi"), "resemblance": cm.applications.resemblance(teacher, student, task)}


def summary(results: Results, seeds: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for what in ("held_out", "ioi"):
        found = collected(results.data["parts"], list(CONDITIONS), seeds, what)
        for name in found.values if found else ():
            told.setdefault(name, {})[what] = found.final(name).to_dict() | {"unit": what}
            parts = [results.data["parts"][f"{name}/{seed}"] for seed in range(seeds)]
            told[name]["resemblance"] = [part["resemblance"] for part in parts]
    return told


if __name__ == "__main__":
    main()
