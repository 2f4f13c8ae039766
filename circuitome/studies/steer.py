"""Steering: what the model says with a direction, heads or neurons turned up and down, and at what price."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present import formats
from circuitome.present.blocks import Block, Lede, Lines, Note, Series, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell, series_of
from circuitome.studies.settings import Argument, ModelSettings, Names, Numbers
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.editing.steering import Turned

SHOWN = 3
"""Texts that are shown of each strength."""
NEUTRAL = 2_000
"""Tokens of neutral text on which the price is measured."""
PLACES = ("all", "prompt", "generated", "end")
"""Where a change can act in any prompt."""
NEVER = (
    "This feature fires on no token of the package's prose, so it is not known how large it gets by itself: strengths "
    "may be far from what the model ever sees, or the feature may be dead. `circuitome features DICT --feature NUMBER "
    "--texts FILES` says whether it fires on other texts."
)


@dataclass(frozen=True, kw_only=True)
class Steer(ModelSettings):
    """Turn a direction, heads, neurons or a feature up and down: what the model then says, and at what price."""

    arguments: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: Annotated[str, Argument] = ""
    """The prompt that is gone on with."""
    toward: str | None = None
    """Texts to steer toward, one a line of a file (or .jsonl or .csv), or one text."""
    away: str | None = None
    """Texts to steer away from, in the same way; the direction is the difference of the two means."""
    layer: int | None = None
    """Block behind which the direction is; the middle one by default."""
    tokens: str = "all"
    """Tokens of a text that count for its mean: all, or end, the last one."""
    parts: Names = ()
    """Heads or neurons, e.g. a9.h6 or m5.n123, multiplied by the strength, in place of a direction."""
    feature: str | None = None
    """A feature of a dictionary to hold at the strength, DICT:NUMBER, in place of a direction."""
    strength: Numbers = ()
    """Strengths, with commas between; of a direction in lengths of the stream there, of parts as factors."""
    at: str = "all"
    """Where it acts: all, prompt, generated, or end, the prompt's last token."""
    wanted: Names = ()
    """A text is as wanted where a word in it begins with one of these, with commas between, whatever their case."""
    samples: int = 8
    """Texts that are generated at each strength, with the same random numbers."""
    new: int = 30
    """New tokens of each text."""
    texts: str | None = None
    """Neutral text, on which the price is measured; the package's own prose by default."""
    draws: int = 2
    """Random directions, or other parts of the same layers, beside it."""

    @override
    def check(self) -> None:
        if not self.prompt:
            raise InputError("Give a prompt to go on with.")
        if (self.toward is None) != (self.away is None):
            raise InputError("A direction needs both --toward and --away.")
        if [bool(self.parts), self.feature is not None, self.toward is not None].count(True) != 1:
            raise InputError(
                "Give --toward and --away, texts for a direction, or --parts, heads or neurons, or --feature."
            )
        if self.feature is not None and not self.feature.rpartition(":")[2].isdigit():
            raise InputError(
                f"--feature is DICT:NUMBER, a dictionary's file or run and a number; got {self.feature!r}."
            )
        if not self.wanted:
            raise InputError("Give --wanted: how words begin that a text has where it is as wanted.")
        if self.at not in PLACES:
            raise InputError(f"--at is {', '.join(PLACES)}, got {self.at!r}.")
        for name in ("samples", "new"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} must be at least 1, got {getattr(self, name)}.")
        if self.draws < 0:
            raise InputError(f"--draws must be at least 0, got {self.draws}.")

    def strengths(self) -> tuple[float, ...]:
        """The strengths asked for, or those that suit what is turned."""
        factors, held, lengths = (0.0, 0.5, 1.0, 2.0), (0.0, 5.0, 10.0, 20.0), (-0.4, -0.2, 0.0, 0.2, 0.4)
        return self.strength or (factors if self.parts else held if self.feature else lengths)


def work(settings: Steer, context: Context) -> Work:
    """At every strength: texts, token by token, and two passes over the neutral text."""
    ids = len(context.model.encode(settings.prompt))
    rows = len(settings.strengths()) * (1 + settings.draws)
    # A token at a time takes several times as long as in one pass.
    tokens = rows * (settings.samples * (ids + 4 * settings.new) + 2 * NEUTRAL)
    return Work(texts=max(1, tokens // 128), tokens=128, forward=1.0)


def run(settings: Steer, context: Context) -> Findings:
    """The sweep."""
    from circuitome.runs.texts import read_text, text_hash

    model, neutral = context.model, read_text(settings.texts)
    words = re.compile("|".join(rf"\b{re.escape(word)}" for word in settings.wanted), re.IGNORECASE)
    what = turned(settings, model)
    steering = cm.steer(
        context.setting,
        what,
        settings.prompt,
        lambda text: words.search(text) is not None,
        strengths=settings.strengths(),
        neutral=neutral,
        at=settings.at,
        samples=settings.samples,
        new=settings.new,
        draws=settings.draws,
    )
    results: dict[str, Any] = {"what": str(what), "rows": [asdict(row) for row in steering.rows]}
    if isinstance(what, cm.Direction):
        results["separation"] = what.separation
    if isinstance(what, cm.Feature):
        from circuitome.features.loading import firing

        results["density"] = float(firing(model, what.dictionary)[what.number])
    return Findings(
        title=f"Steering {settings.model}: {what}",
        sign=(
            "As wanted: the share of texts with one of the words, with Wilson's 95 % intervals. Change of the loss and "
            "divergence from the plain model are in nats a token of neutral text, with intervals over windows."
        ),
        results=results,
        blocks=blocks(settings, results),
        tensors={"direction": what.vector} if isinstance(what, cm.Direction) else {},
        more={"prompt": settings.prompt, "data_hash": text_hash(settings.prompt, neutral)},
    )


def turned(settings: Steer, model: "cm.Model") -> "Turned":
    """What is turned: parts, a feature, or a direction between two sets of texts."""
    if settings.parts:
        return cm.Parts(settings.parts)
    if settings.feature is not None:
        dictionary, _, number = settings.feature.rpartition(":")
        return cm.Feature(cm.features.load(dictionary, model=model), int(number))
    toward, away = (lines(given or "") for given in (settings.toward, settings.away))
    return cm.direction(model, toward, away, layer=settings.layer, tokens=settings.tokens)


def lines(given: str) -> list[str]:
    """The texts of a file, one a line or row, or the one text that was given."""
    from circuitome.runs.texts import read_texts

    path = Path(given)
    is_file = path.suffix.lower() in (".txt", ".jsonl", ".csv")
    return read_texts(path, None)[0] if is_file else [given]


def blocks(settings: Steer, results: Mapping[str, Any]) -> list[Block]:
    """What it comes to, shares and prices by strength, and the texts side by side."""
    rows = results["rows"]
    own = [row for row in rows if not row["random"]]
    return [
        Lede(text=summary(results["what"], own)),
        by_strength(own),
        sweep(rows, "wanted", "How often as wanted", "share of texts"),
        sweep(rows, "loss", "What it costs", "change of the loss, nats a token"),
        said(own),
        everything(rows),
        *([Note(text=NEVER)] if results.get("density") == 0 else []),
        *([] if settings.draws else [Note(text="There is nothing random to compare with; give --draws.")]),
    ]


def summary(what: str, own: Sequence[Mapping[str, Any]]) -> str:
    """The strength that changes most, beside the model itself and what is random."""
    best = max(own, key=lambda row: (row["wanted"]["value"], -row["loss"]["value"]))
    plain = next((row for row in own if not row["divergence"]["value"]), None)
    if plain is not None and best["wanted"]["value"] <= plain["wanted"]["value"]:
        often = f"{formats.percent(plain['wanted']['value'])} of {plain['wanted']['n']}"
        return f"No strength makes texts more often as wanted than the model itself does: {often}."
    base = f" ({formats.percent(plain['wanted']['value'])} without)" if plain else ""
    text = (
        f"With the {what} at {best['strength']:g}, {formats.percent(best['wanted']['value'])} of {best['wanted']['n']} "
        f"texts are as wanted{base}, for {best['loss']['value']:+.3f} nats a token on neutral text."
    )
    if best["p"] is None:
        return f"{text} No random change costs as much, so chance is not told."
    often = "more often than" if best["p"] < 0.05 else "not surely more often than"
    return f"{text} That is {often} random changes that cost at least as much do (p = {best['p']:.2g})."


def by_strength(own: Sequence[Mapping[str, Any]]) -> Table:
    """Every strength of what is turned."""
    columns = (
        *(("strength", "number", 2), ("as wanted", "estimate", 2), ("change of loss", "estimate", 3)),
        *(("divergence", "number", 3), ("p", "number", 3)),
    )
    cells = [
        (row["strength"], cell(row["wanted"]), cell(row["loss"]), row["divergence"]["value"], row["p"]) for row in own
    ]
    note = "p: Fisher's test against random changes that cost at least as much, each at its cheapest such strength."
    return table("By strength", columns, cells, note=note)


def sweep(rows: Sequence[Mapping[str, Any]], key: str, title: str, unit: str) -> Lines:
    """One number by strength, with intervals, and random changes faint without theirs."""
    series = list[Series]()
    for name in dict.fromkeys(row["what"] for row in rows):
        own = sorted((row for row in rows if row["what"] == name), key=lambda row: row["strength"])
        faint = own[0]["random"]
        line = series_of(name if faint else "turned", [row["strength"] for row in own], [row[key] for row in own])
        series.append(replace(line, faint=True, low=(), high=()) if faint else line)
    return Lines(title=title, series=tuple(series), x="strength", y=unit, where="page")


def said(own: Sequence[Mapping[str, Any]]) -> Table:
    """What the model said, strength by strength."""
    cells = [(row["strength"], " ".join(text.split())) for row in own for text in row["texts"][:SHOWN]]
    return table("What it says", (("strength", "number", 2), ("text", "text")), cells, top=len(own))


def everything(rows: Sequence[Mapping[str, Any]]) -> Table:
    """All strengths of everything."""
    columns = ("what", ("strength", "number", 2), ("as wanted", "estimate", 2), ("change of loss", "estimate", 3))
    cells = [(row["what"], row["strength"], cell(row["wanted"]), cell(row["loss"])) for row in rows]
    return table("Random changes too", columns, cells, folded=True)


STUDY = Study("steer", Steer, run, work)
