"""Induction heads, learning in context, and what is lost when the strongest of these heads are switched off."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import circuitome as cm
from circuitome.present import formats
from circuitome.present.blocks import Block, Lede, Lines, Numbers, Series, Table, table
from circuitome.studies.context import Context
from circuitome.studies.heads import score_map, sequences
from circuitome.studies.memory import plain_bytes
from circuitome.studies.pieces import cell, figure, written
from circuitome.studies.settings import ModelSettings
from circuitome.studies.study import Findings, Study, Work

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


def work(settings: Induction, context: Context) -> Work:
    """A pass for the patterns, and one for each set of heads that is switched off, on sequences and pieces of text."""
    from circuitome.heads.atlas.repeated import usual_period

    period = settings.period or usual_period(context.model)
    taken = plain_bytes(context.model, settings.max_memory, settings.n, 2 * period)
    return Work(texts=settings.n, tokens=2 * period, forward=4.0 * (2 + settings.draws), bytes=taken)


def run(settings: Induction, context: Context) -> Findings:
    """Induction heads of a model, and what goes without them."""
    from circuitome.heads.atlas.head_score import named
    from circuitome.runs.texts import read_text

    text = None if settings.text is None else read_text(settings.text)
    options = {name: getattr(settings, name) for name in ("n", "period", "k", "draws")}
    measured = cm.heads.induction(context.setting, text=text, **options)
    scores = named([score for score in (measured.prefix, measured.copying) if score])
    tensors = {name: score.samples for name, score in scores.items()}
    for name, losses in {"whole": measured.whole, "without": measured.without}.items():
        tensors |= {f"{name}.repeated": losses.repeated}
        tensors |= {} if losses.text is None else {f"{name}.text": losses.text}
    results = measured.to_dict()
    return Findings(
        title=f"Induction in {settings.model}",
        sign=SIGN,
        results=results,
        blocks=blocks(results),
        tensors=tensors,
        more=sequences(context.model, measured.layout, text or ""),
    )


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """What switching heads off costs, learning in context, losses by position, and the scores of all heads."""
    return [
        Lede(text=f"{sentence(results)} {comparison(results)}"),
        learning(results),
        effects(results),
        losses(results["loss_by_position"]),
        *(score_map(score) for score in (results["prefix"], results["copying"]) if score),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """What switching off the strongest heads does, and random ones."""
    effects, heads = results["effects"], results["heads"]
    return (
        f"Without {', '.join(heads)} the loss on repeated tokens rises by {written(effects['without'])} nats "
        f"a token, without as many random heads by {written(effects['random'])}."
    )


def comparison(results: Mapping[str, Any]) -> str:
    """What follows from the difference between the strongest heads and random ones."""
    difference, n = results["effects"]["difference"], results["sequences"]
    low, high = (formats.finite(difference[end]) for end in ("low", "high"))
    said = f"The difference is {written(difference)}"
    if low is None or high is None:
        return f"{said}; {n} sequence gives it no interval, so that this does not tell them apart."
    if low <= 0 <= high:
        return f"{said} and may be 0: {n} sequences do not tell the strongest induction heads from random heads."
    more = "more" if low > 0 else "less"
    return f"{said}: the model clearly loses {more} without the strongest induction heads than without random ones."


def learning(results: Mapping[str, Any]) -> Numbers:
    """What the model loses on random tokens, on the same again, and late rather than early in a text."""
    titles = {
        "first_half": ("First time", "loss on random tokens said for the first time"),
        "second_half": ("Again", "loss when they are said again"),
        "advantage": ("Advantage", "the first minus the second"),
        "in_context": ("In-context learning", "on text: loss late minus loss early in a piece"),
    }
    cards = (figure(title, results[name], about) for name, (title, about) in titles.items() if results[name])
    return Numbers(title="Learning in context", items=tuple(cards))


def effects(results: Mapping[str, Any]) -> Table:
    """What is switched off, the rise of the loss on repeated tokens, and that of the in-context-learning score."""
    count = len(results["heads"])
    names = {
        "without": f"the {count} strongest",
        "random": f"{count} random ones, mean of {len(results['random_heads'])} draws",
        "difference": "the difference",
    }
    kinds = ("effects", "context_effects")
    rows = ((name, *(cell(results[kind].get(part)) for kind in kinds)) for part, name in names.items())
    estimates = ((name, "estimate", 3, "nats a token") for name in ("loss on repeats", "in-context learning"))
    note = (
        f"In nats a token, means over {results['sequences']} sequences of {results['period']} random tokens said "
        f"{results['repeats']} times and {results['pieces']} pieces of text. Heads switched off write nothing; "
        "patterns stay as they were."
    )
    return table("Rise without heads", ("switched off", *estimates), rows, note=note)


def losses(by_position: Mapping[str, Any]) -> Lines:
    """Mean loss of each token of the repeated sequences, one line for each set of heads."""
    tokens = tuple(range(2, 2 + len(by_position["whole"])))
    return Lines(
        title="Loss by position",
        note="Mean loss of each token of the repeated sequences.",
        x="token of the sequence",
        y="loss, nats",
        series=tuple(Series(name=name, x=tokens, y=tuple(by_position[part])) for part, name in LINES.items()),
        where="page",
    )


STUDY = Study("induction", Induction, run, work)
