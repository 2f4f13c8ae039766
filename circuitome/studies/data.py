"""What the choice of training data does: trainings that differ in nothing else, side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present.blocks import Block, Lede, Note, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell
from circuitome.studies.settings import Argument
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.training_settings import TaskTrainingSettings, lines, options, streams

if TYPE_CHECKING:
    from circuitome.applications.data_choices import Choices

PARTS = {
    "instructions": "questions and answers behind made documents",
    "patterns": "repeated patterns added to texts, and taken away",
    "selection": "texts that agree with a task's circuit",
}
"""By name: what is chosen."""
ABOUT = {
    "held_out": "loss on held-out texts",
    "answers": "right answers",
    "induction": "gain on random tokens that come again",
    "gap": "gap of clean and corrupted prompts",
}


@dataclass(frozen=True, kw_only=True)
class Data(TaskTrainingSettings):
    """Train on differently chosen data, nothing else changed: instructions, patterns or selection."""

    arguments: ClassVar[tuple[str, ...]] = ("part",)

    part: Annotated[str, Argument] = ""
    """instructions: questions behind documents; patterns: repeated text; selection: texts that agree with a circuit."""
    layers: int = 2
    """Blocks of the small models that instructions and patterns train from random weights."""
    width: int = 128
    """Their width, of heads of 32."""
    vocabulary: int = 2048
    """Tokens of their vocabulary, at most, learned from the texts."""
    documents: int = 4000
    """Made documents of instructions."""
    share: float = 0.5
    """Share of the documents with questions, of rows that repeat (a fifth of this), or of texts (two fifths of it)."""
    edges: int = 500
    """Of selection: edges of the task's circuit with which texts agree."""
    windows: int = 200
    """Of selection: rows of text that are ranked."""

    @override
    def check(self) -> None:
        super().check()
        if self.part not in PARTS:
            raise unknown_name("part", self.part, PARTS)
        if not 0 < self.share <= 1:
            raise InputError(f"--share is above 0 and at most 1, got {self.share}.")
        if self.steps < 1:
            raise InputError(f"--steps must be at least 1, got {self.steps}.")

    @override
    def subject(self) -> str:
        return self.part


def work(settings: Data, context: Context) -> Work:
    """Trainings of small models count little; those of the model itself are counted."""
    if settings.part != "selection":
        rows = settings.steps * settings.batch * settings.seeds * 4
        return Work(texts=rows, tokens=settings.length, seconds=rows * settings.length * settings.layers / 8e3)
    ranked = settings.windows / (settings.batch * settings.steps)
    return settings.work(3 * settings.seeds, passes=2.0 * ranked)


def run(settings: Data, context: Context) -> Findings:
    """All choices with all seeds."""
    choices, digest = CHOICES[settings.part](settings, context)

    def trained(name: str, seed: int) -> "cm.training.Training":
        told = options(settings, context, name, seed, watch=choices.watch)
        return cm.training.train(choices.begin(seed), choices.streams[name], settings.schedule(seed), **told)

    conditions = {name: partial(trained, name) for name in choices.streams}
    curves = cm.applications.compare_curves(conditions, range(settings.seeds), tuple(choices.measures))
    first = next(iter(conditions))
    results = {
        "part": settings.part,
        "facts": dict(choices.facts),
        "units": dict(choices.measures),
        "choices": {
            name: {
                what: {
                    "final": found.final(name).to_dict(),
                    "difference": found.difference(name, first).to_dict(),
                }
                for what, found in curves.items()
            }
            for name in conditions
        },
        "curves": {what: found.to_dict() for what, found in curves.items()},
    }
    return Findings(
        title=f"Choice of data: {PARTS[settings.part]}",
        sign="Losses are in nats a token, lower is better; all else is better when higher. Brackets are 95 % intervals "
        "over seeds. All trainings read the same number of tokens.",
        results=results,
        blocks=blocks(settings, results, curves),
        tensors={f"{what}.{name.replace(' ', '_')}": v for what, c in curves.items() for name, v in c.values.items()},
        more={"data_hash": digest},
    )


def _instructions(settings: Data, context: Context) -> "tuple[Choices, str]":
    from circuitome.applications import data_choices, instructions
    from circuitome.runs.texts import text_hash

    texts = instructions.corpus(instructions.documents(min(2000, settings.documents)), "augmented")
    tokenizer = cm.training.vocabulary(texts, size=settings.vocabulary)
    sizes = {"layers": settings.layers, "width": settings.width}
    begin = lambda seed: data_choices.small_model(tokenizer, **sizes, seed=settings.seed + seed)  # noqa: E731
    more: dict[str, Any] = {"documents": settings.documents, "share": settings.share, "length": settings.length}
    return data_choices.instruction_streams(tokenizer, begin, **more), text_hash(*texts)


def _patterns(settings: Data, context: Context) -> "tuple[Choices, str]":
    from circuitome.applications import data_choices
    from circuitome.runs.texts import each_document

    tokenizer = cm.training.vocabulary(each_document(settings.texts), size=settings.vocabulary)
    sizes = {"layers": settings.layers, "width": settings.width}
    begin = lambda seed: data_choices.small_model(tokenizer, **sizes, seed=settings.seed + seed)  # noqa: E731
    texts = streams(settings, begin(0))
    more: dict[str, Any] = {"added": settings.share / 5, "length": settings.length}
    return data_choices.pattern_streams(texts.trained, texts.held, begin, **more), texts.data_hash


def _selection(settings: Data, context: Context) -> "tuple[Choices, str]":
    from circuitome.applications import data_choices

    model, texts = context.model, streams(settings, context.model)
    rows = texts.trained.ids[: len(texts.trained.ids) // settings.length * settings.length].view(-1, settings.length)
    cut = cm.neurons.packed(rows[: settings.windows].tolist())
    task, other = (settings.origin(ahead).draw(model) for ahead in (0, 1))
    setting = context.setting.but(prompts=task)
    circuit = cm.eap_ig(setting).top(settings.edges)

    def begin(seed: int) -> "cm.Model":
        return model.copied("Training")

    made = data_choices.selection_streams(
        setting, cut, texts.held, begin, circuit=circuit, measured=other, share=0.4 * settings.share
    )
    return made, texts.data_hash


CHOICES = {"instructions": _instructions, "patterns": _patterns, "selection": _selection}


def blocks(settings: Data, results: Mapping[str, Any], curves: Mapping[str, "cm.applications.Curves"]) -> list[Block]:
    """The answer in a sentence a choice, the table, and a chart a measure."""
    names, units = list(results["choices"]), results["units"]
    sentences = [f"After {settings.steps:,} steps on the same number of tokens, beside {names[0]}:"]
    for name in names[1:]:
        said = ", ".join(
            f"{ABOUT[what]} {row['difference']['value']:+.3f} {units[what]}"
            for what, row in results["choices"][name].items()
        )
        sentences.append(f"{name}: {said}.")
    columns = (("data", "text"), *((ABOUT[what], "estimate", 3, unit) for what, unit in units.items()))
    rows = ((name, *(cell(row[what]["final"]) for what in units)) for name, row in results["choices"].items())
    charts = [lines(found, ABOUT[what].capitalize(), units[what]) for what, found in curves.items()]
    return [Lede(text="\n".join(sentences)), table("At the end", columns, rows), *charts, *_facts(results["facts"])]


def _facts(facts: Mapping[str, Any]) -> list[Block]:
    """What is known of the data, in words."""
    if shares := facts.get("plain_share"):
        said = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        text = (
            f"Share of the tokens that are documents: {said}. At equal plain tokens a choice is compared with the "
            "first one after that share of its steps."
        )
        return [Note(text=text)]
    if shares := facts.get("repeated_share"):
        text = (
            "Share of neighbouring tokens that stood in the same row before: "
            f"{shares['bottom']:.0%} in the less repeated two thirds, {shares['random']:.0%} in two thirds at random."
        )
        return [Note(text=text)]
    return []


STUDY = Study("data", Data, run, work)
