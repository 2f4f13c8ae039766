"""Induction heads, learning in context, and what is lost when the strongest of these heads are switched off."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuitome.present.blocks import Block, Cell, Column, Figure, Lede, Lines, Numbers, Series, Table
from circuitome.studies.heads import score_map, sequences
from circuitome.studies.settings import ModelSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.studies.context import Context

LINES = {"whole": "whole model", "without": "without the strongest", "random": "without random ones"}
SIGN = (
    "Effects are rises of the loss in nats a token when heads write nothing and every pattern stays as it was; "
    "in-context learning is loss late in a text minus loss early in it, negative where context helps."
)


@dataclass(frozen=True, kw_only=True)
class Induction(ModelSettings):
    """Find induction heads, measure learning in context, and switch off the strongest heads or random ones."""

    n: int = 8
    """Number of random sequences."""
    period: int | None = None
    """Tokens of a sequence before it starts again; as many as suit the model by default."""
    k: int = 5
    """Heads that are switched off."""
    draws: int = 3
    """Random sets of as many heads."""
    text: str | None = None
    """A plain text for in-context learning, in place of the package's own."""


def work(settings: Induction, context: "Context") -> Work:
    """A pass for the patterns, and one for each set of heads that is switched off."""
    return Work(texts=settings.n, tokens=2 * (settings.period or 24), forward=4.0 * (2 + settings.draws))


def run(settings: Induction, context: "Context") -> Findings:
    """Induction heads of a model, and what goes without them."""
    from circuitome.heads.atlas.head_score import named
    from circuitome.heads.atlas.induction_heads import induction
    from circuitome.runs.texts import read_text

    text = None if settings.text is None else read_text(settings.text)
    found = induction(
        context.model,
        n=settings.n,
        period=settings.period,
        k=settings.k,
        draws=settings.draws,
        text=text,
        seed=settings.seed,
        max_memory=settings.max_memory,
        progress=context.tell("batches with heads switched off"),
    )
    scores = named([score for score in (found.prefix, found.copying) if score])
    tensors = {name: score.samples for name, score in scores.items()}
    for name, losses in {"whole": found.whole, "without": found.without}.items():
        tensors |= {f"{name}.repeated": losses.repeated}
        tensors |= {} if losses.text is None else {f"{name}.text": losses.text}
    results = found.to_dict()
    return Findings(
        title=f"Induction in {settings.model}",
        sign=SIGN,
        results=results,
        blocks=blocks(results),
        tensors=tensors,
        more=sequences(context.model, found.layout, text or ""),
    )


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """What switching heads off costs, losses by position, and the scores of all heads."""
    titles = {
        "first_half": ("First time", "loss on random tokens said for the first time"),
        "second_half": ("Again", "loss when they are said again"),
        "advantage": ("Advantage", "the first minus the second"),
        "in_context": ("In-context learning", "on text: loss late minus loss early in a piece"),
    }
    cards = tuple(
        Figure(name=title, value=e["value"], low=e["low"], high=e["high"], unit="nats", about=about)
        for name, (title, about) in titles.items()
        if (e := results.get(name))
    )
    note = (
        f"Means over {results['sequences']} sequences of {results['period']} random tokens said {results['repeats']} "
        f"times and {results['pieces']} pieces of text. Heads switched off write nothing; patterns stay as they were."
    )
    lines = tuple(
        Series(
            name=word,
            x=tuple(range(2, 2 + len(results["loss_by_position"][name]))),
            y=tuple(results["loss_by_position"][name]),
        )
        for name, word in LINES.items()
        if name in results["loss_by_position"]
    )
    return [
        Lede(text=sentence(results)),
        Numbers(items=cards),
        effects(results, note),
        Lines(title="Loss by position", x="token of the sequence", y="loss, nats", series=lines, where="page"),
        *(score_map(score) for score in (results["prefix"], results["copying"]) if score),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """What switching off the strongest heads does, compared with random ones, and whether that is more."""
    effects, heads = results["effects"], results["heads"]

    def said(name: str) -> str:
        e = effects[name]
        return f"{e['value']:.2f}" + ("" if e["low"] is None else f" [{e['low']:.2f}, {e['high']:.2f}]")

    low, high = effects["difference"]["low"], effects["difference"]["high"]
    follows = "these prompts cannot tell the two apart"
    if low is not None and low > 0:
        follows = "the strongest heads matter more than others"
    elif high is not None and high < 0:
        follows = "random heads matter more than these"
    return (
        f"Without {', '.join(heads)} the loss on repeated tokens rises by {said('without')} nats a token, without as "
        f"many random heads by {said('random')}: a difference of {said('difference')}, so {follows}."
    )


def effects(results: Mapping[str, Any], note: str) -> Table:
    """What is switched off, the rise of the loss on repeated tokens, and that of the in-context-learning score."""
    count = len(results["heads"])
    names = {
        "without": f"the {count} strongest",
        "random": f"{count} random ones, mean of {len(results['random_heads'])} draws",
        "difference": "the difference",
    }

    def cell(value: Mapping[str, Any] | None) -> Cell:
        return None if value is None else (value["value"], value["low"], value["high"])

    rows = tuple((w, cell(results["effects"][p]), cell(results["context_effects"].get(p))) for p, w in names.items())
    columns = (
        Column(name="switched off"),
        Column(name="loss on repeats", style="estimate", unit="nats", decimals=3),
        Column(name="in-context learning", style="estimate", unit="nats", decimals=3),
    )
    return Table(title="Rise without heads", note=note, columns=columns, rows=rows)


STUDY = Study("induction", Induction, run, work)
