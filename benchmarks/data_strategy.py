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
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from distillation import gap
from training_runs import Results, collected, curve, held_out, memory, parser, texts_of

import circuitome as cm
from circuitome.applications import instructions

VOCABULARY, LENGTH = 4096, 128


def main() -> None:
    defaults = {"steps": 1000, "batch": 64, "documents": 20_000, "windows": 1000, "selection_steps": 60}
    options = parser(__doc__, **defaults, parts="instructions,patterns,selection").parse_args()
    results = Results("data-strategy", options)
    parts = {"instructions": about_instructions, "patterns": about_patterns, "selection": about_selection}
    for name in options.parts.split(","):
        parts[name](options, results)
    print(json.dumps(results.data["summary"], indent=1))


def small(
    options: argparse.Namespace, tokenizer: tf.PreTrainedTokenizerFast, layers: int, width: int, seed: int
) -> cm.Model:
    config = tf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4 if width < 256 else 8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return cm.training.untrained(config, seed=seed, tokenizer=tokenizer, device=options.device)


def fitted(
    options: argparse.Namespace, model: cm.Model, data: Any, seed: int, watch: list[Any], **more: Any
) -> cm.training.Training:
    steps = more.pop("steps", options.steps)
    schedule = cm.training.Schedule(**{"steps": steps, "batch": options.batch, "length": LENGTH, "seed": seed, **more})
    at = sorted({*range(0, steps + 1, max(1, steps // 25)), steps})
    return cm.training.train(model, data, schedule, watch=watch, at=at, max_memory=memory(options))


def every(
    options: argparse.Namespace,
    results: Results,
    part: str,
    conditions: dict[str, Callable[[int], Any]],
    what: list[str],
) -> None:
    """All conditions with all seeds, and the ends of what was measured, by condition and against the first."""
    names = [f"{part}, {name}" for name in conditions]
    for seed in range(options.seeds):
        for name, make in zip(names, conditions.values(), strict=True):
            results.part(f"{name}/{seed}", functools.partial(make, seed))
        told: dict[str, Any] = {}
        for measure in what:
            found = collected(results.data["parts"], names, seed + 1, measure)
            for name in found.values if found else ():
                ends = {"final": found.final(name), "minus_first": found.difference(name, names[0])}
                told.setdefault(name, {})[measure] = {key: value.to_dict() for key, value in ends.items()}
                if measure == "induction":
                    told[name]["half_of_its_end_at_step"] = [formed(found, name, i) for i in range(seed + 1)]
        results.write(summary={**results.data.get("summary", {}), part: told})


def formed(found: cm.applications.Curves, name: str, seed: int) -> int | None:
    """First measured step with more than half of the final value, where the final value is more than .5 nats."""
    row = found[name][seed]
    above = (row > row[-1] / 2).nonzero()
    return int(found.steps[int(above[0])]) if float(row[-1]) > 0.5 and len(above) else None


def about_instructions(options: argparse.Namespace, results: Results) -> None:
    made, others = instructions.documents(options.documents, seed=0), instructions.documents(200, seed=1)
    texts = {kind: instructions.corpus(made, kind) for kind in instructions.KINDS}
    tokenizer = cm.training.vocabulary(texts["augmented"][:2000], size=600)
    first = small(options, tokenizer, 1, 128, 0)
    held = cm.training.text_stream(first, [document.text for document in others])
    streams = {kind: cm.training.text_stream(first, some) for kind, some in texts.items()}
    tokens = {kind: len(stream.ids) for kind, stream in streams.items()}
    results.write(plain_share={kind: tokens["plain"] / count for kind, count in tokens.items()})

    def trained(kind: str, seed: int) -> dict[str, Any]:
        model = small(options, tokenizer, 4, 128, seed)
        look = [
            held_out(held, LENGTH),
            lambda model: {"answers": instructions.answer_accuracy(model, others[:60])},
            lambda model: {"induction": cm.applications.induction_gain(model)},
        ]
        return curve(fitted(options, model, streams[kind], seed, look), "held_out", "answers", "induction")

    conditions = {kind: functools.partial(trained, kind) for kind in instructions.KINDS}
    every(options, results, "instructions", conditions, ["held_out", "answers", "induction"])


def about_patterns(options: argparse.Namespace, results: Results) -> None:
    train, held = texts_of(options, 8_000_000)
    tokenizer = cm.training.vocabulary(train[:400], size=VOCABULARY)
    first = small(options, tokenizer, 1, 128, 0)
    plain, apart = cm.training.text_stream(first, train), cm.training.text_stream(first, held)
    rows = plain.ids[: len(plain.ids) // LENGTH * LENGTH].view(-1, LENGTH)
    share = cm.applications.repetition(cm.neurons.packed(rows.tolist()))
    kept = {which: cm.applications.chosen_windows(share, which, 2 / 3) for which in ("bottom", "random")}
    results.write(repeated_share={which: float(share[index].mean()) for which, index in kept.items()})
    drawn = cm.training.RepeatedStream(torch.arange(1, len(tokenizer)), shortest=8)
    streams = {
        "texts": plain,
        "texts and 10 % repeated": cm.training.MixedStream([(plain, 9.0), (drawn, 1.0)]),
        "the less repeated two thirds": cm.training.TextStream(rows[kept["bottom"]].flatten()),
        "two thirds at random": cm.training.TextStream(rows[kept["random"]].flatten()),
    }

    def trained(name: str, seed: int) -> dict[str, Any]:
        model = small(options, tokenizer, 2, 256, seed)
        look = [held_out(apart, LENGTH), lambda model: {"induction": cm.applications.induction_gain(model)}]
        return curve(fitted(options, model, streams[name], seed, look), "held_out", "induction")

    conditions = {name: functools.partial(trained, name) for name in streams}
    every(options, results, "patterns", conditions, ["held_out", "induction"])


def about_selection(options: argparse.Namespace, results: Results) -> None:
    large = cm.load("smollm2-135m", device=options.device)
    train, held = texts_of(options, 8_000_000)
    task, other = (cm.tasks.ioi(large, n=32, seed=seed) for seed in (0, 1))
    cut = cm.neurons.windows(large, train, length=LENGTH, tokens=options.windows * LENGTH, seed=0)
    cut = cut.chosen((cut.lengths == LENGTH).nonzero()[:, 0])
    apart = cm.training.text_stream(large, held)
    circuit = cm.eap_ig(large, task, steps=5).top(500)
    values = results.part(
        "agreement", lambda: {"values": cm.applications.agreement(large, task, cut, circuit=circuit).tolist()}
    )["values"]

    def trained(which: str, seed: int) -> dict[str, Any]:
        model = cm.Model(copy.deepcopy(large.hf), large.tokenizer, large.name)
        rows = cut.ids[cm.applications.chosen_windows(torch.tensor(values), which, 0.2, seed)]
        look = [held_out(apart, LENGTH), lambda model: {"ioi": gap(model, other)}]
        more = {"steps": options.selection_steps, "batch": 16, "learning_rate": 2e-5}
        return curve(
            fitted(options, model, cm.training.TextStream(rows.flatten()), seed, look, **more), "held_out", "ioi"
        )

    conditions = {which: functools.partial(trained, which) for which in ("random", "top", "bottom")}
    every(options, results, "selection", conditions, ["held_out", "ioi"])


if __name__ == "__main__":
    main()
