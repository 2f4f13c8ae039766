"""Heads that fetch a fact from a long text, and whether the answer needs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from circuitome.errors import InputError, unknown_name
from circuitome.present.blocks import Block, Cell, Column, Figure, HeatMap, Lede, Numbers, Table
from circuitome.studies.settings import ModelSettings, WholeNumbers
from circuitome.studies.settings import Numbers as SeveralNumbers
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.heads.long_context.masking import MaskCheck
    from circuitome.heads.long_context.retrieval import RetrievalScores
    from circuitome.studies.context import Context

NAMED = 20
"""Heads that a run names."""
STRONG = 0.5
"""Score above which a head is strong."""
NAMES = {"unmasked": "no head masked", "masked": "the strongest masked", "random": "random others masked"}


@dataclass(frozen=True, kw_only=True)
class Retrieval(ModelSettings):
    """Find the heads that fetch a fact from a long text, and mask them to see whether the answer needs them."""

    lengths: WholeNumbers = (128, 256, 512)
    """Tokens of the prompts, with commas between."""
    depths: SeveralNumbers = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of the text in front of the fact, 0 to 1, with commas between."""
    text: str | None = None
    """A UTF-8 file in which facts are hidden; the package's own prose by default."""
    needles: str | None = None
    """JSONL file with needle, question and answer a line; three of our own by default."""
    top_k: int = 10
    """Heads that are masked."""
    mode: str = "zero"
    """zero: a masked head's output is 0. even: it attends evenly, as in published code."""
    where: str = "decode"
    """decode: masked once the prompt was read. everywhere: while it is read as well."""
    draws: int = 3
    """How often as many random other heads are masked."""
    steps: int = 24
    """Tokens of an answer at most."""

    @override
    def check(self) -> None:
        from circuitome.heads.long_context.masking import MODES, WHERE

        for name, value, known in (("mode", self.mode, MODES), ("place to mask", self.where, WHERE)):
            if value not in known:
                raise unknown_name(name, value, known)
        for name, count in (("--top-k", self.top_k), ("--draws", self.draws), ("--steps", self.steps)):
            if count < 1:
                raise InputError(f"{name} must be at least 1, got {count}.")


def work(settings: Retrieval, context: "Context") -> Work:
    """Reading, answering, and answering again with heads masked; a step of an answer costs as much as reading some."""
    texts = 3 * len(settings.lengths) * len(settings.depths)
    again = settings.draws + 1
    return Work(texts=texts, tokens=max(settings.lengths), forward=1 + 0.1 * settings.steps * (1 + again))


def run(settings: Retrieval, context: "Context") -> Findings:
    """Scores of all heads, and answers with the strongest masked, and with as many random others masked."""
    from circuitome.heads.long_context.decoding import read_prompts
    from circuitome.heads.long_context.masking import mask_heads
    from circuitome.heads.long_context.needles import needle_cases, own_needles, read_needles
    from circuitome.heads.long_context.retrieval import score_read
    from circuitome.runs.texts import OWN, read_text, text_hash

    text = read_text(settings.text)
    needles = read_needles(Path(settings.needles)) if settings.needles else own_needles()
    model = context.model
    cases = needle_cases(model, lengths=settings.lengths, depths=settings.depths, text=text, needles=needles)
    batches = read_prompts(model, cases, more=settings.steps, max_memory=settings.max_memory)
    context.progress("reading prompts", 1, 1)
    scores = score_read(model, batches, steps=settings.steps, progress=context.tell("answering"))
    check = mask_heads(
        model,
        batches,
        scores.heads(settings.top_k),
        avoid=scores.retrieval_heads(),
        mode=settings.mode,
        where=settings.where,
        draws=settings.draws,
        steps=settings.steps,
        seed=settings.seed,
        progress=context.tell("answering with heads masked"),
    )
    hashed = text_hash(text, *(part for needle in needles for part in (needle.text, needle.question, needle.answer)))
    counted = "successful runs. " if scores.conditional else "ALL runs, since no run succeeded. "
    results = {**scored(scores), "masking": masking(check, scores)}
    return Findings(
        title=f"Retrieval heads of {settings.model}",
        sign=(
            "A score is the share of the needle's different tokens that a head copied while the model said them, mean "
            f"over {counted}Hits count every step, over the needle's tokens, and can exceed 1: published files are so."
        ),
        results=results,
        blocks=blocks(results),
        tensors={
            "scores": scores.samples,
            "hits": scores.hits,
            "recall": scores.recall,
            "masked_log_probs": check.log_probs,
            "masked_recall": check.recalls,
        },
        more={
            "data_hash": hashed,
            "prompts_of": {
                "text": settings.text or OWN,
                "needles": settings.needles or "the package's own three",
                "data_hash": hashed,
                "runs": len(cases),
                "chat_template": "none",
            },
        },
    )


def scored(scores: "RetrievalScores") -> dict[str, Any]:
    """The scores of all heads and every answer, as plain JSON values."""
    from circuitome.heads.long_context.retrieval import RETRIEVAL

    low, high = scores.interval
    layers, heads = scores.mean.shape
    return {
        "conditional": scores.conditional,
        "successes": int(scores.success.sum()),
        "runs": [
            {"length": len(case.ids), "depth": case.depth, "needle": case.needle, "recall": float(recall)}
            | {"said": said, "expected": case.answer}
            for case, said, recall in zip(scores.cases, scores.answers, scores.recall, strict=True)
        ],
        "heads": scores.mean.numel(),
        "retrieval_heads": [f"a{layer}.h{head}" for layer, head in scores.retrieval_heads()],
        "strong": int((scores.mean > STRONG).sum()),
        "never": int((scores.mean_hits == 0).sum()),
        "threshold": RETRIEVAL,
        "top": [
            {"label": name, "mean": e.value, "low": e.low, "high": e.high}
            | {"hits": float(scores.mean_hits[place]), "frequency": float(scores.frequency[place])}
            for place, (name, e) in zip(scores.heads(NAMED), scores.top(NAMED), strict=True)
        ],
        "map": {
            "name": "Retrieval score",
            "unit": "share of the needle's tokens",
            "rows": [f"a{layer}" for layer in range(layers)],
            "columns": [f"h{head}" for head in range(heads)],
            "mean": scores.mean.tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
        },
    }


def masking(check: "MaskCheck", scores: "RetrievalScores") -> dict[str, Any]:
    """What masking does, as plain JSON values."""
    return {
        "heads": [f"a{layer}.h{head}" for layer, head in check.heads],
        "draws": [[f"a{layer}.h{head}" for layer, head in draw] for draw in check.draws],
        "never_drawn": [f"a{layer}.h{head}" for layer, head in scores.retrieval_heads()],
        "mode": check.mode,
        "where": check.where,
        "estimates": {
            name: {condition: e.to_dict() for condition, e in rows.items()} for name, rows in check.estimates().items()
        },
        "by_draw": check.log_probs[2:].mean(1).tolist(),
    }


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """How many heads, which, whether the answer needs them, and every answer."""
    total, least, runs = results["heads"], results["threshold"], results["runs"]
    count = len(results["retrieval_heads"])
    text = (
        f"{count} of {total:,} heads score {least:g} or more; the model answered {results['successes']} of {len(runs)} "
    )
    text += "prompts." if results["conditional"] else "prompts. As it answered none, scores are over all prompts."
    cards = (
        Figure(name="Retrieval heads", value=count, style="count", about=f"score {least:g} or more, of {total}"),
        Figure(name="Strong ones", value=results["strong"], style="count", about=f"score above {STRONG}"),
        Figure(name="Never copied", value=results["never"], style="count", about=f"of {total} heads, in counted runs"),
        Figure(name="Answered", value=results["successes"], style="count", about=f"of {len(runs)} prompts"),
    )
    rows = tuple((t["label"], (t["mean"], t["low"], t["high"]), t["hits"], t["frequency"]) for t in results["top"])
    columns = (
        Column(name="head", style="node"),
        Column(name="score", style="estimate", decimals=3),
        Column(name="hits per needle token", style="number", decimals=3),
        Column(name="runs in which it copied", style="percent", narrow=False),
    )
    return [
        Lede(text=f"{text}\n{verdict(results['masking'])}"),
        Numbers(items=cards),
        head_map(results["map"]),
        Table(title="Strongest heads", columns=columns, rows=rows, top=10),
        needed(results["masking"]),
        *answers(runs),
    ]


def head_map(scores: Mapping[str, Any]) -> HeatMap:
    """The scores of all heads."""
    from circuitome.studies.pieces import finite

    values, low, high = (tuple(tuple(map(finite, row)) for row in scores[key]) for key in ("mean", "low", "high"))
    rows, columns = tuple(scores["rows"]), tuple(scores["columns"])
    return HeatMap(
        title=scores["name"],
        rows=rows,
        columns=columns,
        values=values,
        low=low,
        high=high,
        labels=tuple(tuple(f"{row}.{column}" for column in columns) for row in rows),
        unit=scores["unit"],
        scale="positive",
        upwards=True,
        top=0,
    )


def verdict(found: Mapping[str, Any]) -> str:
    """What masking did, in one sentence."""
    rows = found["estimates"]["log_prob"]
    unmasked, masked, others = (rows[name]["value"] for name in NAMES)
    return (
        f"Masking the top {len(found['heads'])} takes the right answer's log-probability from {unmasked:.2f} to "
        f"{masked:.2f} nats a token; as many random others, {len(found['draws'])} times, to {others:.2f}."
    )


def needed(found: Mapping[str, Any]) -> Table:
    """The answer with and without the strongest heads."""
    how = {"zero": "their output is 0", "even": "they attend evenly to all that they may see"}[found["mode"]]
    when = {"decode": "once the prompt was read", "everywhere": "from the first token on"}[found["where"]]
    note = (
        f"Masked {when}: {how}. The random others are drawn from heads outside the top {len(found['heads'])} and "
        f"outside all retrieval heads. Masked: {', '.join(found['heads'])}."
    )
    kinds = {"log_prob": "log-probability, nats a token", "recall": "words of the answer said, share"}
    columns = (Column(name=""), *(Column(name=name, style="estimate", decimals=3) for name in kinds.values()))
    rows: list[tuple[Cell, ...]] = []
    for condition, words in NAMES.items():
        estimates = [found["estimates"][kind][condition] for kind in kinds]
        rows.append((words, *((e["value"], e["low"], e["high"]) for e in estimates)))
    return Table(title="Are they needed?", note=note, columns=columns, rows=tuple(rows))


def answers(runs: Any) -> list[Block]:
    """How many prompts of each length and depth were answered, and every answer."""
    depths = sorted({run["depth"] for run in runs})
    rows = []
    for length in sorted({run["length"] for run in runs}):
        same = [[run for run in runs if run["length"] == length and run["depth"] == depth] for depth in depths]
        rows.append((length, *(f"{sum(run['recall'] > 0.5 for run in some)} of {len(some)}" for some in same)))
    heads = (Column(name="tokens", style="count"), *(Column(name=f"depth {100 * depth:.0f} %") for depth in depths))
    every = tuple(
        (r["length"], f"{r['depth']:.0%}", r["expected"], r["said"] or "(nothing)", r["recall"]) for r in runs
    )
    columns = (
        heads[0],
        *(Column(name=n) for n in ("depth", "expected", "said")),
        Column(name="recall", style="number"),
    )
    return [
        Table(title="Prompts answered", columns=heads, rows=tuple(rows), where="page"),
        Table(title=f"All {len(every)} answers", columns=columns, rows=every, folded=True),
    ]


STUDY = Study("retrieval", Retrieval, run, work)
