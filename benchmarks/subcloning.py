"""How soon a smaller model that begins with parts of SmolLM2 is where one of random weights ends.

    python benchmarks/subcloning.py --write [--device cuda] [--texts FOLDER] [--steps 400]

Half the blocks and half the width, with 6 of 9 heads and half the neurons. Every beginning is trained with the same
rows in the same order; the loss is that on held-out texts. Parts are written as they are finished, and a second call
goes on with what is missing.
"""

import argparse
import copy
import functools
import json
from typing import Any

from training_runs import Results, collected, curve, held_out, memory, parser, texts_of

import circuitome as cm

SIZE = {"layers": 15, "width": 288, "neurons": 768, "heads": 6}
BEGINNINGS = {
    "untrained": {},
    "magnitude": {"by": "magnitude"},
    "importance": {"by": "importance"},
    "circuit": {"by": "circuit"},
    "random": {"by": "random"},
    "uniform": {"by": "uniform"},
    "importance, cut alone": {"by": "importance", "scale": "none"},
    "magnitude, fan-in": {"by": "magnitude", "scale": "fan-in"},
}
"""By name: options of `cm.applications.subclone`; the last two only with the first seed."""
ONCE = ("importance, cut alone", "magnitude, fan-in")


def main() -> None:
    defaults = {"steps": 400, "batch": 32, "length": 256, "learning_rate": 1e-3, "layers": SIZE["layers"]}
    defaults |= {"measured": 8192, "watched": 40, "held_batches": 4, "beginnings": "/".join(BEGINNINGS)}
    options = parser(__doc__, **defaults).parse_args()
    results = Results("subcloning", options)
    large = cm.load("smollm2-135m", device=options.device)
    train, held = texts_of(options)
    streams = [cm.training.text_stream(large, part) for part in (train, held)]
    cut = cm.neurons.windows(large, held, length=128, tokens=options.measured, seed=0)
    for seed in range(options.seeds):
        for name in options.beginnings.split("/"):
            if seed == 0 or name not in ONCE:
                make = functools.partial(trained, options, large, streams, cut, name, seed)
                results.part(f"{name}/{seed}", make)
        results.write(summary=summary(results, options, seed + 1))
    print(json.dumps(results.data["summary"], indent=1))


def trained(
    options: argparse.Namespace, large: cm.Model, streams: list[Any], cut: Any, name: str, seed: int
) -> dict[str, Any]:
    if name == "untrained":
        like = beginning(options, large, cut, {"by": "uniform", "scale": "none"}, seed)
        model = cm.training.untrained(like, seed=seed)
    else:
        model = beginning(options, large, cut, BEGINNINGS[name], seed)
    numbers = {key: getattr(options, key) for key in ("steps", "batch", "length", "learning_rate")}
    schedule = cm.training.Schedule(**numbers, seed=seed)
    at = sorted({*range(0, options.steps + 1, max(1, options.steps // options.watched)), options.steps})
    look = [held_out(streams[1], options.length, options.held_batches)]
    training = cm.training.train(model, streams[0], schedule, watch=look, at=at, max_memory=memory(options))
    return {"parameters": sum(p.numel() for p in model.hf.parameters()), **curve(training, "held_out")}


MADE: dict[str, cm.Model] = {}
"""Beginnings by their options, made once; what is trained is a copy."""


def beginning(options: argparse.Namespace, large: cm.Model, cut: Any, asked: dict[str, str], seed: int) -> cm.Model:
    key = str((asked, seed if asked.get("by") == "random" else 0))
    if key not in MADE:
        task = cm.tasks.ioi(large, n=32, seed=0)
        size = {**SIZE, "layers": options.layers}
        MADE[key] = cm.applications.subclone(large, task, cut, **size, **asked, seed=seed).model
    made = MADE[key]
    return cm.Model(copy.deepcopy(made.hf), made.tokenizer, made.name)


def summary(results: Results, options: argparse.Namespace, seeds: int) -> dict[str, Any]:
    found = collected(
        results.data["parts"], [name for name in options.beginnings.split("/") if name not in ONCE], seeds, "held_out"
    )
    told: dict[str, Any] = {"unit": "nats a token on held-out texts"}
    if found is None:
        return told
    for name in found.values:
        told[name] = {
            "before": found[name][:, 0].mean().item(),
            "after": found.final(name).to_dict(),
            "minus_untrained": found.difference(name, "untrained").to_dict(),
            "share_of_steps": found.share_of_steps(name, "untrained").to_dict(),
        }
    return told


if __name__ == "__main__":
    main()
