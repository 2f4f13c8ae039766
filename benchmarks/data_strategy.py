"""What the choice of training texts does: questions behind documents, repeated patterns, agreement with a circuit.

    python benchmarks/data_strategy.py --write [--device cuda] [--texts FOLDER] [--parts instructions,selection]

instructions: a model of 4 blocks on made documents, on documents with questions and answers, and on the control, the
same questions behind other documents; the same tokens in all.
patterns: 2 blocks on texts alone, with rows of random tokens that come twice, and without the texts that repeat
themselves most, beside as many at random.
selection: SmolLM2 goes on with the texts that agree most with the circuit of indirect object identification, at random,
and least.
After every part the results are written, and a second call goes on with what is missing.
"""

import argparse
import copy
import functools
import json
from typing import Any

import torch
from training_runs import Results, collected, curve, memory, parser, texts_of

import circuitome as cm
from circuitome.applications import data_choices, instructions
from circuitome.engine.setting import Setting

LENGTH = 128


def main() -> None:
    defaults = {"steps": 1000, "batch": 64, "documents": 20_000, "windows": 1000, "selection_steps": 60}
    options = parser(__doc__, **defaults, parts="instructions,patterns,selection").parse_args()
    results = Results("data-strategy", options)
    parts = {"instructions": about_instructions, "patterns": about_patterns, "selection": about_selection}
    for name in options.parts.split(","):
        every(options, results, name, *parts[name](options, results))
    print(json.dumps(results.data["summary"], indent=1))


def every(
    options: argparse.Namespace, results: Results, part: str, choices: data_choices.Choices, asked: dict[str, Any]
) -> None:
    """All choices with all seeds, and the ends of what was measured, by choice and against the first."""
    results.write(facts={**results.data.get("facts", {}), part: dict(choices.facts)})
    names = [f"{part}, {name}" for name in choices.streams]
    for seed in range(options.seeds):
        for name, stream in zip(names, choices.streams.values(), strict=True):
            results.part(f"{name}/{seed}", functools.partial(trained, options, choices, stream, seed, asked))
        told: dict[str, Any] = {}
        for measure in choices.measures:
            found = collected(results.data["parts"], names, seed + 1, measure)
            for name in found.values if found else ():
                ends = {"final": found.final(name), "minus_first": found.difference(name, names[0])}
                told.setdefault(name, {})[measure] = {key: value.to_dict() for key, value in ends.items()}
                if measure == "induction":
                    told[name]["half_of_its_end_at_step"] = [formed(found, name, i) for i in range(seed + 1)]
        results.write(summary={**results.data.get("summary", {}), part: told})


def trained(
    options: argparse.Namespace, choices: data_choices.Choices, stream: Any, seed: int, asked: dict[str, Any]
) -> dict[str, Any]:
    numbers = {"steps": options.steps, "batch": options.batch, "length": LENGTH, **asked}
    at = sorted({*range(0, numbers["steps"] + 1, max(1, numbers["steps"] // 25)), numbers["steps"]})
    schedule = cm.training.Schedule(**numbers, seed=seed)
    more = {"watch": choices.watch, "at": at, "max_memory": memory(options)}
    return curve(cm.training.train(choices.begin(seed), stream, schedule, **more), *choices.measures)


def formed(found: cm.applications.Curves, name: str, seed: int) -> int | None:
    """First measured step with more than half of the final value, where the final value is more than .5 nats."""
    row = found[name][seed]
    above = (row > row[-1] / 2).nonzero()
    return int(found.steps[int(above[0])]) if float(row[-1]) > 0.5 and len(above) else None


def about_instructions(options: argparse.Namespace, results: Results) -> tuple[data_choices.Choices, dict[str, Any]]:
    texts = instructions.corpus(instructions.documents(2000), "augmented")
    tokenizer = cm.training.vocabulary(texts, size=600)
    begin = functools.partial(begun, options, tokenizer, 4, 128)
    return data_choices.instruction_streams(tokenizer, begin, documents=options.documents, length=LENGTH), {}


def about_patterns(options: argparse.Namespace, results: Results) -> tuple[data_choices.Choices, dict[str, Any]]:
    train, held = texts_of(options, 8_000_000)
    tokenizer = cm.training.vocabulary(train[:400], size=4096)
    begin = functools.partial(begun, options, tokenizer, 2, 256)
    first = begin(0)
    rows = [cm.training.text_stream(first, part) for part in (train, held)]
    return data_choices.pattern_streams(*rows, begin, length=LENGTH), {}


def begun(options: argparse.Namespace, tokenizer: Any, layers: int, width: int, seed: int) -> cm.Model:
    return data_choices.small_model(tokenizer, layers=layers, width=width, seed=seed, device=options.device)


def about_selection(options: argparse.Namespace, results: Results) -> tuple[data_choices.Choices, dict[str, Any]]:
    large = cm.load("smollm2-135m", device=options.device)
    train, held = texts_of(options, 8_000_000)
    task, other = (cm.tasks.ioi(large, n=32, seed=seed) for seed in (0, 1))
    cut = cm.neurons.windows(large, train, length=LENGTH, tokens=options.windows * LENGTH, seed=0)
    cut = cut.chosen((cut.lengths == LENGTH).nonzero()[:, 0])
    circuit = cm.eap_ig(large, task, steps=5).top(500)
    values = results.part(
        "agreement", lambda: {"values": cm.applications.agreement(large, task, cut, circuit=circuit).tolist()}
    )["values"]

    def begin(seed: int) -> cm.Model:
        return cm.Model(copy.deepcopy(large.hf), large.tokenizer, large.name)

    setting = Setting(large, task)
    choices = data_choices.selection_streams(
        setting,
        cut,
        cm.training.text_stream(large, held),
        begin,
        circuit=circuit,
        measured=other,
        values=torch.tensor(values),
    )
    return choices, {"steps": options.selection_steps, "batch": 16, "learning_rate": 2e-5}


if __name__ == "__main__":
    main()
