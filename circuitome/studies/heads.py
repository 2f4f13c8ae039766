"""The atlas of a model's heads: where each attends on repeated random tokens, and whether it copies from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuitome.present.blocks import Block, Column, HeatMap, Lede, Note, Table
from circuitome.studies.settings import Flag, ModelSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.heads.atlas.head_score import HeadScore
    from circuitome.heads.atlas.repeated import Repeated
    from circuitome.models.model import Model
    from circuitome.studies.context import Context

STRONGEST = 10
"""Heads of each score that a run names."""
LISTED = 3
"""Heads of each score in the table."""
KINDS = {
    "previous": ("P", "attend to the previous token"),
    "duplicate": ("D", "to the same token earlier"),
    "induction": ("I", "to the token after the same one"),
    "self": ("=", "to themselves"),
    "sink4": ("s", "rest on the first tokens"),
}
"""By score: sign and name of heads with much of it."""
CALLED = 0.4
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


def work(settings: Heads, context: "Context") -> Work:
    """Three models are read: the model itself, and two with noise for weights."""
    return Work(texts=settings.n, tokens=2 * (settings.period or 24), forward=6.0)


def run(settings: Heads, context: "Context") -> Findings:
    """The scores of every head."""
    from circuitome.heads.atlas.all_heads import head_atlas

    atlas = head_atlas(
        context.model,
        n=settings.n,
        period=settings.period,
        seed=settings.seed,
        max_memory=settings.max_memory,
        progress=context.tell("models read, with and without noise for weights"),
    )
    more: dict[str, Any] = sequences(context.model, atlas.repeated)
    if settings.retrieval:
        from circuitome.heads.long_context.retrieval import retrieval_scores

        found = retrieval_scores(context.model, progress=context.tell("needles found"))
        atlas = atlas.joined(retrieval_score(found))
        more["retrieval"] = {"runs": len(found.cases), "answered": int(found.success.sum())}
    scores = atlas.to_dict()["scores"]
    top = {name: strongest(score, STRONGEST) for name, score in atlas.scores.items()}
    return Findings(
        title=f"Heads of {settings.model}",
        sign=SIGN,
        results={"scores": scores, "top": top},
        blocks=blocks(scores, top),
        tensors={name: score.samples for name, score in atlas.scores.items()},
        more=more,
    )


def sequences(model: "Model", repeated: "Repeated", text: str = "") -> dict[str, Any]:
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


def retrieval_score(found: Any) -> "HeadScore":
    """Retrieval as a column of the atlas: the paper's score on the runs that count."""
    from circuitome.heads.atlas.head_score import HeadScore

    what = "tokens of a needle that the head copies while the model answers"
    return HeadScore("retrieval", what, "share of the needle", found.samples[found.counted], 0.0)


def strongest(score: "HeadScore", count: int) -> list[dict[str, Any]]:
    """The heads with the largest values of a score, as plain JSON values."""
    return [{"label": head, "mean": e.value, "low": e.low, "high": e.high} for head, e in score.top(count)]


def blocks(scores: Mapping[str, Any], top: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Block]:
    """How many heads are of which kind, the strongest of every score, and a map of each."""
    note = (
        f"A head is counted where a share of attention is at least {CALLED} at the lower end of its interval. Chance: "
        "even attention over all a head may see, or 0. Noise: the largest value of any head when each weight matrix is "
        "noise of the same size."
    )
    columns = (
        Column(name="score"),
        Column(name="chance", style="number"),
        Column(name="noise", style="number"),
        Column(name="strongest heads, with 95 % intervals"),
        Column(name="what it says", narrow=False),
    )
    rows = tuple(
        (s["name"], s["chance"], s["random_ceiling"], words(top[s["name"]][:LISTED]), s["what"])
        for s in scores.values()
    )
    return [
        Lede(text=kinds_sentence(scores)),
        Note(text=note),
        Table(title="Strongest heads of every score", columns=columns, rows=rows),
        *(
            score_map(score, folded=i >= 4, where="everywhere" if name == "induction" else "page")
            for i, (name, score) in enumerate(scores.items())
        ),
    ]


def kinds_sentence(scores: Mapping[str, Any]) -> str:
    """How many heads are of each kind: what each does most besides resting."""
    known = {name: scores[name] for name in KINDS if name in scores}
    first = next(iter(scores.values()))["mean"]
    signs = [_kind(known, layer, head) for layer in range(len(first)) for head in range(len(first[layer]))]
    parts = [f"{signs.count(name)} {what}" for name, (_, what) in KINDS.items() if name in signs]
    if not parts:
        return f"None of {len(signs)} heads follows a simple rule."
    return f"Of {len(signs)} heads {', '.join(parts)}; {signs.count('')} follow no such rule."


def _kind(scores: Mapping[str, Any], layer: int, head: int) -> str:
    """The score of which a head has most; a head rests whenever its rule finds nothing, so resting comes last."""
    reached = {}
    for name, score in scores.items():
        low, value = score["low"][layer][head], score["mean"][layer][head]
        if (value if low is None else low or 0.0) >= CALLED:
            reached[name] = value
    return max(reached, key=lambda name: (name != "sink4", reached[name]), default="")


def words(heads: Sequence[Mapping[str, Any]]) -> str:
    """Heads with value and interval in a line that breaks between heads only."""
    from circuitome.present import formats

    parts = (f"{h['label']} {formats.rounded(h['mean'], 2)} {formats.interval(h['low'], h['high'], 2)}" for h in heads)
    return ", ".join(part.strip().replace(" ", "\N{NO-BREAK SPACE}") for part in parts)


def score_map(score: Mapping[str, Any], **options: Any) -> HeatMap:
    """A score as a map with layers as rows and heads as columns."""
    from circuitome.studies.pieces import finite

    mean, low, high = (
        tuple(tuple(finite(value) for value in row) for row in score[key]) for key in ("mean", "low", "high")
    )
    return HeatMap(
        title=f"{score['name']}: {score['what']}",
        rows=tuple(f"a{layer}" for layer in range(len(mean))),
        columns=tuple(f"h{head}" for head in range(len(mean[0]))),
        labels=tuple(tuple(f"a{i}.h{j}" for j in range(len(mean[0]))) for i in range(len(mean))),
        values=mean,
        low=low,
        high=high,
        unit=score["unit"],
        scale="signed" if any((value or 0.0) < 0 for row in mean for value in row) else "positive",
        upwards=True,
        **options,
    )


STUDY = Study("heads", Heads, run, work)
