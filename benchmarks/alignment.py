"""Causal abstraction on SmolLM2-135M: its cost, and where variables of IOI and Greater-Than are, beside controls.

    python benchmarks/alignment.py [cost] [ioi] [greater-than] [--n 256] [--epochs 20] [--device cuda] [--write]

Places are chosen and directions learned on some prompts, and judged on prompts of other templates with other words.
Results are written after each part, and what a file of today holds already is not measured again.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from random import Random
from typing import Any

import torch
from speed import HERE, bare_forward, machine, one_thread

import circuitome as cm
from circuitome.causal.alignment import align_trials
from circuitome.causal.interchanges import answers_at, right_at, shares
from circuitome.causal.located import controlled
from circuitome.causal.searches import BATCH, TRIED, learned
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import Subspace
from circuitome.causal.suffixes import Suffixes
from circuitome.causal.trials import Trials, trials
from circuitome.engine.setting import Setting
from circuitome.tasks.generators.greater_than import TEMPLATE as YEARS
from circuitome.tasks.generators.words import EVENTS
from circuitome.tasks.sampling import Template, draw_task, one_token_words

SEARCHES = (("das", 1), ("das", 4), ("das", 16), ("pca", 16), ("boundless", 1), ("mask", 1))
MAP_PAIRS = 64
UNITS = (
    YEARS.text.replace("{YY}{_rest}", "{YY}"),
    "The {noun} began in {XX}{YY} and ended in {_again}",
    "The {noun} started in the year {XX}{YY} and was over in the year {_again}",
    "There was a {noun} from {XX}{YY} to {_again}",
)
OTHER_UNITS = (
    "The {noun} took place between {XX}{YY} and {_again}",
    "The {noun} broke out in {XX}{YY}, and it was over by {_again}",
)
TENS = (
    "The {noun} was born in {XX}{YY}{_rest} and died in {_again}",
    "The {noun} lived from {XX}{YY}{_rest} to {_again}",
    "The famous {noun} was born in the year {XX}{YY}{_rest} and died in the year {_again}",
)
OTHER_TENS = ("Born in {XX}{YY}{_rest}, the {noun} died in {_again}",)
PEOPLE = ("painter", "composer", "poet", "king", "writer", "artist", "teacher", "doctor", "queen", "priest")


@dataclass
class Results:
    """What was measured today, part by part."""

    write: bool
    values: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path = HERE / "results" / f"alignment-{date.today()}.json"
        if self.write and self.path.is_file():
            self.values = json.loads(self.path.read_text())

    def add(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure a part unless it is there, and write it down."""
        if name not in self.values:
            start = time.perf_counter()
            self.values[name] = measure() | {"seconds": round(time.perf_counter() - start, 1)}
            print(name, json.dumps(self.values[name]), flush=True)
            if self.write:
                self.path.write_text(json.dumps(self.values, indent=1) + "\n")
        return self.values[name]


# Cost


def cost(model: cm.Model, epochs: int) -> dict[str, Any]:
    """The map of three variables, and learning at two sites, over the bare passes that they stand for."""
    task = cm.tasks.ioi(model, n=MAP_PAIRS)
    causal, setting = cm.causal.ready("ioi"), Setting(model, task)
    whole = ("first", "position", "name")  # the first name is read at its token, so that every role is looked at
    ids = padded(model, task)
    forward = seconds(model, lambda: bare_forward(model, ids), rounds=3)
    mapping = seconds(model, lambda: align_trials(trials(setting, causal, whole)))
    found: dict[str, Any] = {"forward_s": round(forward, 3), "map_ratio": round(mapping / forward, 2)}
    pairs = trials(setting, causal)
    for place, variable in (("x18@S2", "position"), ("x24@end", "name")):
        found[f"das_{place}"] = learning_ratio(pairs, place, variable, epochs)
    return found


def learning_ratio(pairs: Trials, place: str, variable: str, epochs: int) -> dict[str, float]:
    """DAS of four directions over bare forward and backward passes of the suffixes, one for each of its steps.

    Prompts are recorded once for a place, before the first step: that is counted in steps by itself.
    """
    model, where = pairs.model, Place.parse(place, pairs.model)
    recording = seconds(model, lambda: learned(pairs, place, variable, 4, epochs=1))
    (rests,) = pairs.begun.values()
    steps = len(rests) * (epochs + max(1, round(TRIED * epochs)))  # the second start takes steps as well
    bare = seconds(model, lambda: [bare_suffix(model, rest, where.first) for rest in rests], rounds=3) / len(rests)
    learning = seconds(model, lambda: learned(pairs, place, variable, 4, epochs=epochs))
    return {
        "bare_step_ms": round(1000 * bare, 2),
        "steps": steps,
        "ratio": round(learning / (bare * steps), 3),
        "recording_in_steps": round(recording / bare - 2 * len(rests), 1),
    }


def bare_suffix(model: cm.Model, rest: Suffixes, layer: int) -> None:
    """A forward and a backward pass of the model's own blocks from `layer` on over the tokens of some suffixes."""
    inputs, stack = rest.rest.steps.inputs, model.hf.model
    x = rest.activations.resid_pre[layer].detach().clone().requires_grad_(True)
    blocks = stack.layers
    try:
        stack.layers = blocks[layer:]
        with model.frozen_parameters():
            logits = model.hf(
                inputs_embeds=x,
                attention_mask=inputs.mask,
                position_ids=inputs.positions,
                past_key_values=inputs.cache,
                logits_to_keep=1,
            ).logits
            logits.float().logsumexp(-1).sum().backward()
    finally:
        stack.layers = blocks


def seconds(model: cm.Model, job: Callable[[], object], rounds: int = 1) -> float:
    """Median seconds, of the processor or until another device is done; one more round warms up where there are any."""
    taken = []
    for counted in range(rounds + (rounds > 1)):
        waited = model.device.type != "cpu"
        clock = time.perf_counter if waited else time.process_time
        if waited:
            torch.cuda.synchronize()
        start = clock()
        job()
        if waited:
            torch.cuda.synchronize()
        if counted or rounds == 1:
            taken.append(clock() - start)
    return statistics.median(taken)


def padded(model: cm.Model, task: cm.Task) -> torch.Tensor:
    """The clean prompts as one batch."""
    longest = max(len(pair.clean) for pair in task.pairs)
    rows = [[*pair.clean, *[0] * (longest - len(pair.clean))] for pair in task.pairs]
    return torch.tensor(rows, device=model.device)


# Prompts


def some(task: cm.Task, pairs: Sequence[Any], n: int) -> cm.Task:
    """A task of the first `n` of some pairs."""
    return replace(task, pairs=tuple(pairs[:n]))


def ioi_prompts(model: cm.Model, n: int) -> dict[str, cm.Task]:
    """Prompts to search with; others of the same names and sentences; and of other names in other sentences."""
    names = sorted({word for pair in cm.tasks.ioi(model, n=400, seed=9).pairs for word in texts(model, pair)})
    known = set(Random(0).sample(names, len(names) // 2))

    def drawn(seed: int, inside: bool, **options: Any) -> cm.Task:
        task = cm.tasks.ioi(model, n=8 * n + 64, seed=seed, **options)
        return some(task, [p for p in task.pairs if all((w in known) == inside for w in texts(model, p))], n)

    return {
        "search": drawn(0, True),
        "same words": drawn(1, True),
        "held out": drawn(2, False, paraphrased=True),
    }


def texts(model: cm.Model, pair: Any) -> tuple[str, ...]:
    """The two names of a prompt."""
    return tuple(model.decode([pair.clean[pair.roles[role]]]) for role in ("IO", "S1"))


def year_prompts(model: cm.Model, n: int, digit: str) -> dict[str, cm.Task]:
    """Prompts whose next digit is the tens or units digit of a later year; held out are other words and sentences."""
    sentences, others = (TENS, OTHER_TENS) if digit == "tens" else (UNITS, OTHER_UNITS)
    nouns = one_token_words(model, PEOPLE if digit == "tens" else EVENTS, "nouns", 6)
    half = len(nouns) // 2

    def drawn(seed: int, texts: Sequence[str], words: Sequence[str]) -> cm.Task:
        def draw(rng: Random, index: int) -> Any:
            number = index % len(texts)
            return year_pair(model, Template(f"{digit}-{number}-{texts[0]}", texts[number]), rng, words, digit)

        return draw_task(f"greater-than ({digit})", n, seed, draw, "prob_diff")

    return {
        "search": drawn(0, sentences, nouns[:half]),
        "same words": drawn(1, sentences, nouns[:half]),
        "held out": drawn(2, others, nouns[half:]),
    }


def year_pair(model: cm.Model, template: Template, rng: Random, nouns: Sequence[str], digit: str) -> Any:
    """A year, and the digits that may follow."""
    year = f"{rng.randint(11, 17)}{rng.randint(0, 8)}{rng.randint(0, 8)}"
    given = 2 if digit == "tens" else 3
    key = year[given]
    words = {
        "noun": rng.choice(nouns),
        "XX": year[:given],
        "YY": key,
        "_rest": year[given + 1 :],
        "_again": year[:given],
    }
    keys = [str(i) for i in range(10)]
    return template.pair(
        model, words, {"YY": "9"}, answers=[k for k in keys if k > key], wrongs=[k for k in keys if k <= key]
    )


# Accuracies


def mapped(model: cm.Model, prompts: dict[str, cm.Task], causal: Any, least: float) -> dict[str, Any]:
    """Base accuracy, and the best place of each variable, on the prompts to search with."""
    task = some(prompts["search"], prompts["search"].pairs, MAP_PAIRS)
    found = cm.causal.align(model, task, causal, least=least)
    return {
        "base_accuracy": found.base_accuracy.value,
        "prompts": {name: len(task) for name, task in prompts.items()},
        "best": {name: [place, estimate.value, found[name].chance] for name, (place, estimate) in found.best.items()},
        "maps": {
            name: {
                "rows": accuracy.axes[0],
                "columns": accuracy.axes[1],
                "mean": [[round(value, 3) for value in row] for row in accuracy.mean.tolist()],
            }
            for name, accuracy in found.maps.items()
        },
    }


@dataclass
class Case:
    """One variable at one place."""

    pairs: dict[str, Trials]
    variable: str
    place: str
    epochs: int

    @classmethod
    def of(
        cls, model: cm.Model, prompts: dict[str, cm.Task], causal: Any, variable: str, place: str, options: Any
    ) -> Any:
        """Pairs of the variable from all sets of prompts."""
        pairs = {
            n: trials(Setting(model, task), causal, [variable], least=options.least) for n, task in prompts.items()
        }
        return cls(pairs, variable, place, options.epochs)

    def accuracy(self, name: str, subspace: Subspace | None = None) -> list[float]:
        """Interchange accuracy on a set of prompts, with its interval."""
        pairs = self.pairs[name]
        said = answers_at(pairs, Place.parse(self.place, pairs.model), subspace)
        return listed(shares(pairs, right_at(pairs, self.variable, said)))

    def whole(self) -> dict[str, Any]:
        """The whole value of the place."""
        return {name: self.accuracy(name) for name in self.pairs} | {"controls": self.controls(None)}

    def searched(self, search: str, k: int, *, controls: bool) -> dict[str, Any]:
        """A search, on all sets of prompts, beside controls on the held-out ones."""
        subspace = learned(self.pairs["search"], self.place, self.variable, k, epochs=self.epochs, search=search)
        found: dict[str, Any] = {"k": subspace.k} | {name: self.accuracy(name, subspace) for name in self.pairs}
        if subspace.losses:
            found["loss"] = [round(subspace.losses[0], 3), round(subspace.losses[-1], 3)]
        return found | ({"controls": self.controls(subspace)} if controls else {})

    def controls(self, subspace: Subspace | None) -> dict[str, list[float]]:
        """What there is where nothing is to be found, of the same size and after as many steps."""
        held = self.pairs["held out"]
        values = controlled(self.pairs["search"], held, self.place, subspace, self.epochs)
        return {name: listed(shares(held, right)) for name, right in values.items()}


def listed(estimate: cm.Estimate) -> list[float]:
    return [round(value, 3) for value in (estimate.value, estimate.low, estimate.high)]


def measure(
    results: Results, model: cm.Model, name: str, prompts: dict[str, cm.Task], causal: Any, options: Any
) -> None:
    """Map, whole places, and all searches of all variables of a causal model."""
    found = results.add(f"{name}: map", lambda: mapped(model, prompts, causal, options.least))
    for variable, (place, *_) in found["best"].items():
        case = Case.of(model, prompts, causal, variable, place, options)
        results.add(f"{name}, {variable} at {place}: whole", case.whole)
        for search, k in SEARCHES:
            controls = search == "das"
            results.add(
                f"{name}, {variable} at {place}: {search} {k if search in ('das', 'pca') else ''}".strip(),
                lambda case=case, search=search, k=k, controls=controls: case.searched(search, k, controls=controls),
            )


def more_prompts(results: Results, model: cm.Model, options: Any) -> None:
    """Directions that hold the name of IOI, learned from more prompts: do they hold for other names?"""
    place = results.values["ioi: map"]["best"]["name"][0]
    for n in (max(32, options.n // 4), 4 * options.n):
        prompts = ioi_prompts(model, n) | {"held out": ioi_prompts(model, options.n)["held out"]}
        case = Case.of(model, prompts, cm.causal.ready("ioi"), "name", place, options)
        results.add(
            f"ioi, name at {place}: das 16 from {n} prompts", lambda case=case: case.searched("das", 16, controls=False)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["cost", "ioi", "greater-than"])
    parser.add_argument("--n", type=int, default=256, help="prompts of each set")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--least", type=float, default=0.4, help="share of the prompts that the model must do")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    if options.device == "cpu":
        one_thread()
    model = cm.load("smollm2-135m")
    model.hf.to(options.device)
    results = Results(options.write)
    results.values |= {
        "machine": machine() if options.device == "cpu" else torch.cuda.get_device_name(),
        "prompts": options.n,
        "epochs": options.epochs,
        "batch": BATCH,
    }
    if "cost" in options.parts:
        results.add("cost", lambda: cost(model, options.epochs))
    if "ioi" in options.parts:
        measure(results, model, "ioi", ioi_prompts(model, options.n), cm.causal.ready("ioi"), options)
        more_prompts(results, model, options)
    if "greater-than" in options.parts:
        for digit in ("units", "tens"):
            prompts = year_prompts(model, options.n, digit)
            measure(results, model, f"greater-than ({digit})", prompts, cm.causal.ready("greater-than"), options)


if __name__ == "__main__":
    main()
