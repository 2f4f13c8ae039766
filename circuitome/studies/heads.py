"""The atlas of a model's heads: where each attends on repeated random tokens, and whether it copies from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import circuitome as cm
from circuitome.present import formats
from circuitome.present.blocks import Block, Column, HeatMap, Lede, Note, Table, table
from circuitome.studies.context import Context
from circuitome.studies.memory import plain_bytes
from circuitome.studies.pieces import head_map, head_names, strongest
from circuitome.studies.settings import Flag, ModelSettings
from circuitome.studies.study import Findings, Study, Work

STRONGEST = 10
"""Heads of each score that a run names."""
LISTED, LISTED_NARROW = 5, 3
"""Heads of each score in the table of the page, and of the terminal."""
OPEN_MAPS = 3
"""Maps shown without opening their folds."""
KINDS = {
    "previous": ("previous token", "to the token before"),
    "duplicate": ("duplicate token", "to earlier copies of a token"),
    "induction": ("induction", "to what stands behind earlier copies of a token (induction)"),
    "self": ("self", "to the token itself"),
    "sink4": ("resting", "only to the first four positions"),
}
"""Scores by which a head is called something: its kind, and what such heads do."""
CALLED = 0.3
"""Share of attention that the lower end of the interval must reach for that."""
SIGN = (
    "Scores are means over repeated random tokens; chance is even attention, or 0; noise is the largest score of any "
    "head when the weights are noise of the same size."
)


@dataclass(frozen=True, kw_only=True)
class Heads(ModelSettings):
    """Map what every head does: where it attends on repeated random tokens, and whether it copies from there."""

    n: int = 16
    """Number of random sequences."""
    period: int | None = None
    """Tokens of a sequence before it starts again; as many as suit the model by default."""
    retrieval: Flag = False
    """Measure retrieval from a long text as well, which takes some minutes."""


def work(settings: Heads, context: Context) -> Work:
    """A pass over the sequences and one with noise for weights; copying by weights costs as much again."""
    from circuitome.heads.atlas.repeated import usual_period

    period = settings.period or usual_period(context.model)
    taken = plain_bytes(context.model, settings.max_memory, settings.n, 2 * period)
    # a copy with noise for weights
    return Work(texts=settings.n, tokens=2 * period, forward=6.0, copies=1, bytes=taken)


def run(settings: Heads, context: Context) -> Findings:
    """The scores of every head."""
    atlas = cm.heads.head_atlas(context.setting, n=settings.n, period=settings.period)
    more: dict[str, Any] = sequences(context.model, atlas.repeated)
    if settings.retrieval:
        retrieval = cm.retrieval_scores(context.setting)
        atlas = atlas.joined(retrieval.score)
        more["retrieval"] = {"runs": len(retrieval.prompts), "answered": int(retrieval.success.sum())}
    scores = atlas.to_dict()["scores"]
    top = {name: strongest(score.top(STRONGEST)) for name, score in atlas.scores.items()}
    return Findings(
        title=f"Heads of {settings.model}",
        sign=SIGN,
        results={"scores": scores, "top": top},
        blocks=blocks(scores, top),
        tensors={name: score.samples for name, score in atlas.scores.items()},
        more=more,
    )


def sequences(model: "cm.Model", repeated: "cm.heads.Repeated", text: str = "") -> dict[str, Any]:
    """What the repeated sequences were, as entries of a manifest."""
    import hashlib

    ids = repeated.inputs.ids
    data = hashlib.sha256(ids.cpu().numpy().tobytes() + text.encode()).hexdigest()
    front = ids[0, : repeated.front].tolist()
    about = {
        "n": len(ids),
        "period": repeated.period,
        "repeats": repeated.repeats,
        "in_front": model.decode(front) if front else "nothing",
        "data_hash": data,
    }
    return {"sequences": about, "data_hash": data}


def blocks(scores: Mapping[str, Any], top: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Block]:
    """How many heads are of which kind, the strongest of every score, and a map of each."""
    note = (
        f"A head is counted where a share of attention is at least {CALLED} at the lower end of its interval, as what "
        "it does most besides resting on the first positions. Chance: even attention over all a head may see, or 0. "
        "Noise: the largest value of any head when each weight matrix is noise of the same size."
    )
    by_kind, total = kinds(scores)
    return [
        Lede(text=kinds_sentence(by_kind, total)),
        *kinds_table(by_kind),
        score_map(scores["induction"], where="terminal"),
        strongest_table(scores, top, LISTED, where="page"),
        strongest_table(scores, top, LISTED_NARROW, where="terminal"),
        Note(text=note, where="page"),
        *(score_map(score, folded=i >= OPEN_MAPS, where="page") for i, score in enumerate(scores.values())),
    ]


def kinds(scores: Mapping[str, Any]) -> tuple[dict[str, list[str]], int]:
    """Heads by the score that names their kind, in the order of `KINDS` and layers, and how many heads there are."""
    known = {name: scores[name] for name in KINDS if name in scores}
    first = next(iter(scores.values()))["mean"]
    places = [(layer, head) for layer in range(len(first)) for head in range(len(first[layer]))]
    kind_of = {place: _kind(known, *place) for place in places}
    by_kind = {name: head_names(place for place in places if kind_of[place] == name) for name in known}
    return {name: heads for name, heads in by_kind.items() if heads}, len(places)


def _kind(scores: Mapping[str, Any], layer: int, head: int) -> str:
    """The score of which a head has most; a head rests whenever its rule finds nothing, so resting comes last."""
    reached = {}
    for name, score in scores.items():
        low, value = (formats.finite(score[end][layer][head]) for end in ("low", "mean"))
        if ((value if low is None else low) or 0.0) >= CALLED:
            reached[name] = value or 0.0
    return max(reached, key=lambda name: (name != "sink4", reached[name]), default="")


def kinds_sentence(by_kind: Mapping[str, Sequence[str]], total: int) -> str:
    """How many heads are of each kind."""
    if not by_kind:
        return f"None of {total} heads follows a simple rule."
    parts = [
        f"{len(heads)}{'' if i else ' attend'} {KINDS[name][1]}" for i, (name, heads) in enumerate(by_kind.items())
    ]
    return f"Of {total} heads, {', '.join(parts)}; {total - sum(map(len, by_kind.values()))} follow no such rule."


def kinds_table(by_kind: Mapping[str, Sequence[str]]) -> list[Table]:
    """Which heads are of each kind. Most rest, which says little, so a terminal leaves them out."""
    rows = [(KINDS[name][0], len(heads), ", ".join(heads)) for name, heads in by_kind.items()]
    top = len(rows) - ("sink4" in by_kind)
    return [table("Heads by kind", ("kind", ("count", "count"), "heads"), rows, top=top)] if top else []


def strongest_table(
    scores: Mapping[str, Any], top: Mapping[str, Sequence[Mapping[str, Any]]], count: int, where: str
) -> Table:
    """The strongest heads of every score, what it says, and what heads reach by chance and with noise for weights."""
    shown = slice(None if where == "page" else -1)
    columns = ("score", ("chance", "number", 3), ("noise", "number", 3), "strongest heads")
    rows = [
        (score["name"], score["chance"], score["random_ceiling"], strongest_words(top[name][:count]), score["what"])
        for name, score in scores.items()
    ]
    title = f"Strongest {count} heads of every score, with 95 % intervals"
    every: tuple[Any, ...] = (*columns, Column("what it says", narrow=False))
    return table(title, every[shown], (row[shown] for row in rows), where=where)


def strongest_words(heads: Sequence[Mapping[str, Any]]) -> str:
    """Heads with value and interval in a line that breaks between heads only."""
    parts = (f"{h['label']} {formats.rounded(h['mean'], 2)} {_ends(h)}" for h in heads)
    return ", ".join(part.strip().replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def _ends(head: Mapping[str, Any]) -> str:
    low, high = formats.finite(head["low"]), formats.finite(head["high"])
    return "" if low is None or high is None else f"[{formats.rounded(low, 2)}, {formats.rounded(high, 2)}]"


def score_map(score: Mapping[str, Any], **options: Any) -> HeatMap:
    """A score of all heads as a map."""
    title = f"{score['name']}: {score['what']}"
    ends = score["low"], score["high"]
    chance = formats.finite(score["chance"]) or 0.0
    return head_map(title, score["mean"], *ends, unit=score["unit"], chance=chance, top=0, **options)


STUDY = Study("heads", Heads, run, work)
