"""Neurons of single languages: which they are, what switching them off does, and whether they choose the language."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Block, HeatMap, Lede, Lines, Note, Series, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell
from circuitome.studies.settings import ModelSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.neurons.text_windows import Windows

LETTERS = 16
"""Letters of a token at most, on average."""
OPENING = 24
"""Tokens of a held-out window from which the model goes on."""
UNEVEN = 10
"""Times that a language may have more text than another before it is said."""


@dataclass(frozen=True, kw_only=True)
class Languages(ModelSettings):
    """Find the neurons of each language, switch them off, and generate with them held."""

    texts: str = ""
    """A folder with a file or a folder of texts for each language, named by its code, such as en.txt and de.txt."""
    tokens: int = 20_000
    """Tokens of each language that neurons are selected on, at most."""
    held: int = 5_000
    """Other tokens of each language on which they are switched off, at most."""
    length: int = 256
    """Tokens of a window."""
    selection: Literal["balanced", "paper"] = "balanced"
    """Equally many neurons for each language, or as published; the other one is counted beside it."""
    draws: int = 2
    """Sets of random neurons of the same layers beside each language's."""
    source: str | None = None
    """A language to start from: texts in it are gone on with, its neurons off and those of --target held."""
    target: str | None = None
    """The language that they should go on in; needs py3langid."""
    n: int = 20
    """Texts that are gone on with."""

    @override
    def check(self) -> None:
        if not self.texts:
            raise InputError("Give --texts: a folder with a file or a folder of texts for each language.")
        if (self.source is None) != (self.target is None):
            raise InputError("Give both --source and --target, or neither.")
        for name in ("tokens", "held", "length", "draws", "n"):
            if getattr(self, name) < 1 + (name == "length"):
                raise InputError(f"--{name} must be at least {1 + (name == 'length')}, got {getattr(self, name)}.")


def work(settings: Languages, context: Context) -> Work:
    """A pass over all texts, one over the held-out ones for each language and draw, and what is generated."""
    from circuitome.runs.texts import by_name

    count = len(by_name(settings.texts))
    evaluations = 1 + count * (1 + settings.draws)
    tokens = count * (settings.tokens + evaluations * settings.held)
    return Work(texts=max(1, tokens // settings.length), tokens=settings.length, forward=1.2)


def run(settings: Languages, context: Context) -> Findings:
    """The neurons of each language, the deactivation matrix, and the language of what is generated."""
    from circuitome.runs.texts import by_name, text_hash

    texts = by_name(settings.texts)
    for name in (settings.source, settings.target):
        if name is not None and name not in texts:
            raise unknown_name("language", name, texts)
    model, setting = context.model, context.setting
    if len(texts) < 2:
        raise InputError(
            f"{settings.texts} holds texts of {len(texts)} language; a neuron's language shows beside others."
        )
    apart = {name: split(settings, model, name, parts) for name, parts in texts.items()}
    chosen = {name: some for name, (some, _) in apart.items()}
    neurons = cm.neurons.language_neurons(setting, chosen, selection=settings.selection)
    matrix = cm.neurons.deactivation(
        setting, neurons, {k: held for k, (_, held) in apart.items()}, draws=settings.draws
    )
    results = measured(neurons, matrix, {name: some.tokens for name, some in chosen.items()})
    if settings.source is not None and settings.target is not None:
        openings = [model.decode(row[:OPENING]) for row in apart[settings.source][1].ids.tolist()[: settings.n]]
        spoken = cm.neurons.output_language(setting, neurons, openings, settings.source, settings.target)
        results["control"] = control(settings, spoken)
    return Findings(
        title=f"Language neurons of {settings.model}",
        sign=(
            "Change of the loss in nats a token on held-out text when neurons are switched off; positive: they help. "
            "Intervals are over windows."
        ),
        results=results,
        blocks=blocks(results),
        tensors={
            "active": neurons.active,
            "mean": neurons.mean,
            "entropy": neurons.entropy,
            "selected": neurons.selected,
            "stream": neurons.stream,
        },
        more={"data_hash": text_hash(*(text for parts in texts.values() for text in parts))},
    )


def split(settings: Languages, model: "cm.Model", name: str, texts: Sequence[str]) -> "tuple[Windows, Windows]":
    """Windows to select on, and held-out ones: of other texts where a language has several, else of the same text.

    Languages with as many texts, such as translations of the same pages, hold the same ones out, so that no language
    is told from another by what its pages are about. Raises `InputError` for too little text for both.
    """
    import torch

    share, sizes = settings.held / (settings.tokens + settings.held), (settings.tokens, settings.held)
    options: Any = {"length": settings.length, "seed": settings.seed}
    if len(texts) > 1:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(settings.seed)).tolist()
        held = max(1, round(len(texts) * share))
        parts = [
            enough([texts[i] for i in some], size)
            for some, size in zip((order[held:], order[:held]), sizes, strict=True)
        ]
        chosen, apart = (
            cm.neurons.windows(model, part, tokens=size, **options) for part, size in zip(parts, sizes, strict=True)
        )
        return chosen, apart
    cut = cm.neurons.windows(model, texts, tokens=sum(sizes), **options)
    if len(cut) < 2:
        raise InputError(
            f"The texts of {name} hold {cut.tokens} tokens, one window; some must be held out. Give more, or a "
            f"--length of at most {max(2, cut.tokens // 2)}."
        )
    held = max(1, round(len(cut) * share))
    return cut.chosen(range(held, len(cut))), cut.chosen(range(held))


def enough(texts: Sequence[str], tokens: int) -> list[str]:
    """The first texts that surely hold some tokens: no tokenizer makes fewer than one of `LETTERS` letters of prose."""
    sizes = accumulate(map(len, texts), initial=0)
    return [text for text, before in zip(texts, sizes, strict=False) if before < LETTERS * tokens]


def measured(
    neurons: "cm.neurons.LanguageNeurons", matrix: "cm.neurons.Deactivation", given: Mapping[str, int]
) -> dict[str, Any]:
    """Everything as plain JSON values."""
    other = neurons.reselected("paper" if neurons.selection == "balanced" else "balanced")
    return {
        "languages": list(neurons.languages),
        "tokens": dict(zip(neurons.languages, neurons.tokens, strict=True)),
        "given": dict(given),
        "selection": neurons.selection,
        "neurons": neurons.by_layer(),
        "names": {name: neurons.of(name) for name in neurons.languages},
        "other": {"selection": other.selection, "neurons": other.by_layer()},
        "plain": [loss.to_dict() for loss in matrix.plain],
        "change": [[estimate.to_dict() for estimate in row] for row in matrix.change],
        "random": [[estimate.to_dict() for estimate in row] for row in matrix.random],
        "perplexity": matrix.perplexity().tolist(),
    }


def control(settings: Languages, spoken: "cm.neurons.OutputLanguage") -> dict[str, Any]:
    """Share of texts in the wanted language, by way."""
    ways = spoken.axes[0]
    return {
        "source": settings.source,
        "target": settings.target,
        "n": len(spoken.samples),
        "ways": {
            way: {
                "share": spoken[way].to_dict(),
                "loss": None if (loss := spoken.losses[i]) is None else loss.to_dict(),
                "example": spoken.examples[i],
            }
            for i, way in enumerate(ways)
        },
    }


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The answer, counts, the deactivation matrix beside random neurons, where they lie, and what is generated."""
    return [
        Lede(text=sentence(results)),
        counts(results),
        *uneven(results),
        matrix_map("Change of the loss, by language read and language off", results["languages"], results["change"]),
        matrix_map("With random neurons of the same layers off", results["languages"], results["random"]),
        matrix_table(results),
        where(results),
        *control_table(results.get("control")),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """Whether switching a language's neurons off harms that language most."""
    names, values = results["languages"], [[cell["value"] for cell in row] for row in results["change"]]
    own = [i for i, row in enumerate(values) if row[i] == max(row) and row[i] > 0]
    random = [i for i in own if results["change"][i][i]["low"] > results["random"][i][i]["high"]]
    return (
        f"Switching a language's neurons off harms that language most for {len(own)} of {len(names)} languages, and "
        f"more than random neurons of the same layers for {len(random)}."
    )


def counts(results: Mapping[str, Any]) -> Table:
    """By language: text, loss, and neurons of both selections."""
    columns = (
        "language",
        ("tokens", "count"),
        ("loss", "estimate", 2, "nats a token"),
        (f"neurons, {results['selection']}", "count"),
        (f"neurons, {results['other']['selection']}", "count"),
    )
    rows = (
        (
            name,
            results["tokens"][name],
            cell(loss),
            sum(results["neurons"][name]),
            sum(results["other"]["neurons"][name]),
        )
        for name, loss in zip(results["languages"], results["plain"], strict=True)
    )
    return table("Languages", columns, rows, note="A language with a high loss is one that the model hardly knows.")


def uneven(results: Mapping[str, Any]) -> list[Block]:
    """A warning where one language has much less text than another."""
    given = results["given"]
    least, most = min(given, key=given.__getitem__), max(given, key=given.__getitem__)
    if given[most] < UNEVEN * given[least]:
        return []
    text = f"{least} has {given[least]:,} tokens and {most} {given[most]:,}. "
    balanced = "As many tokens were read of each language as of the shortest."
    published = "The published selection reads all of them; --selection balanced would read as many of each."
    return [Note(text=text + (balanced if results["selection"] == "balanced" else published), level="warning")]


def matrix_map(title: str, names: Sequence[str], rows: Sequence[Sequence[Mapping[str, Any]]]) -> HeatMap:
    """Change of the loss: rows switched off, columns read."""
    parts = {key: tuple(tuple(cell[key] for cell in row) for row in rows) for key in ("value", "low", "high")}
    return HeatMap(
        title=title,
        rows=tuple(f"{name} off" for name in names),
        columns=tuple(names),
        values=parts["value"],
        low=parts["low"],
        high=parts["high"],
        unit="nats a token",
        top=0,
        where="page",
    )


def matrix_table(results: Mapping[str, Any]) -> Table:
    """Change of perplexity and of the loss, in numbers, with that of random neurons."""
    columns = ("off", "read", ("perplexity", "signed", 2), ("loss", "estimate", 3), ("random", "estimate", 3))
    names = results["languages"]
    rows = (
        (a, b, results["perplexity"][i][j], cell(results["change"][i][j]), cell(results["random"][i][j]))
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    )
    return table("Neurons switched off", columns, rows, note="Changes on held-out text; loss in nats a token.")


def where(results: Mapping[str, Any]) -> Lines:
    """Neurons of each language by layer."""
    series = tuple(
        Series(name=name, x=tuple(map(float, range(len(row)))), y=tuple(map(float, row)))
        for name, row in results["neurons"].items()
    )
    return Lines(title="Where they lie", x="layer", y="neurons", series=series, where="page")


def control_table(control: Mapping[str, Any] | None) -> list[Block]:
    """What is generated, by way."""
    if control is None:
        return []
    a, b = control["source"], control["target"]
    about = {
        "plain": "the model as it is",
        "neurons": f"{a} off, {b} at their means",
        "random": "as many random neurons of the same layers",
        "direction": f"mean stream of {b} less that of {a} added",
    }
    columns = ("way", "what", (f"in {b}", "percent"), ("interval", "text"), ("loss", "estimate", 2), "example")
    rows = (
        (
            way,
            about[way],
            found["share"]["value"],
            formats.interval(found["share"]["low"], found["share"]["high"]),
            cell(found["loss"]),
            found["example"][:80].replace("\n", " "),
        )
        for way, found in control["ways"].items()
    )
    note = f"{control['n']} texts in {a} gone on with; loss of what was generated, of the plain model, nats a token."
    return [table(f"From {a} to {b}", columns, rows, note=note)]


STUDY = Study("languages", Languages, run, work)
