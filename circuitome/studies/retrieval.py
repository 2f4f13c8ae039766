"""Heads that fetch a fact from a long text, and whether the answer needs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Block, Figure, Lede, Numbers, Table, table
from circuitome.studies.context import Context
from circuitome.studies.memory import plain_bytes
from circuitome.studies.pieces import cell, head_map, head_names, strongest
from circuitome.studies.settings import ModelSettings, WholeNumbers
from circuitome.studies.settings import Numbers as SeveralNumbers
from circuitome.studies.study import Findings, Study, Work

NAMED, LISTED = 20, 12
"""Heads that a run names, and of these in the terminal."""


DECODED = 0.02
"""What a decoded token costs in forward passes over its prompt; measured on SmolLM2."""


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
        from circuitome.heads.long_context.decoding import MODES
        from circuitome.heads.long_context.masking import WHERE

        for name, value, known in (("mode", self.mode, MODES), ("place to mask", self.where, WHERE)):
            if value not in known:
                raise unknown_name(name, value, known)
        for name, count in (("--top-k", self.top_k), ("--draws", self.draws), ("--steps", self.steps)):
            if count < 1:
                raise InputError(f"{name} must be at least 1, got {count}.")


def work(settings: Retrieval, context: Context) -> Work:
    """Reading, answering, and answering again with heads masked; a step of an answer costs as much as reading some."""
    texts = 3 * len(settings.lengths) * len(settings.depths)
    again, longest = settings.draws + 1, max(settings.lengths)
    taken = plain_bytes(context.model, settings.max_memory, 1, longest)
    return Work(texts=texts, tokens=longest, forward=1 + DECODED * settings.steps * (1 + again), bytes=taken)


def run(settings: Retrieval, context: Context) -> Findings:
    """Scores of all heads, and answers with the strongest masked, and with as many random others masked."""
    from circuitome.heads.long_context.decoding import prefill
    from circuitome.heads.long_context.needles import needle_prompts, own_needles
    from circuitome.heads.long_context.retrieval import score_prefilled
    from circuitome.runs.texts import OWN, read_text, text_hash

    text = read_text(settings.text)
    needles = cm.heads.read_needles(Path(settings.needles)) if settings.needles else own_needles()
    setting = context.setting
    prompts = needle_prompts(
        context.model, lengths=settings.lengths, depths=settings.depths, text=text, needles=needles
    )
    context.progress("reading prompts", 0, 1)
    batches = prefill(setting, prompts, more=settings.steps)
    context.progress("reading prompts", 1, 1)
    scores = score_prefilled(setting, batches, steps=settings.steps)
    options = {name: getattr(settings, name) for name in ("mode", "where", "draws", "steps")}
    masked, avoided = scores.heads(settings.top_k), scores.retrieval_heads()
    check = cm.mask_heads(setting, batches, masked, avoid=avoided, **options)
    facts = (part for needle in needles for part in (needle.text, needle.question, needle.answer))
    data = {"data_hash": text_hash(text, *facts)}
    counted = "successful runs. " if scores.conditional else "ALL runs, since no run succeeded. "
    results = {**scored(scores), "masking": masking(check, scores)}
    return Findings(
        title=f"Retrieval heads of {settings.model}",
        sign=(
            "A score is the share of the needle's different tokens that a head copied while the model said them, mean "
            f"over {counted}Hits count every step, over the needle's tokens, and can exceed 1, as in published files."
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
            **data,
            "prompts_of": {
                "text": settings.text or OWN,
                "needles": settings.needles or "the package's own three",
                **data,
                "runs": len(prompts),
                "chat_template": "none",
            },
        },
    )


def scored(scores: "cm.RetrievalScores") -> dict[str, Any]:
    """The scores of all heads and every answer, as plain JSON values."""
    from circuitome.heads.long_context.retrieval import RETRIEVAL, STRONG

    values, (rows, columns) = scores.score.to_dict(), map(list, scores.score.axes)
    drawn = {"name": "Retrieval score", "rows": rows, "columns": columns}
    top = zip(scores.heads(NAMED), strongest(scores.top(NAMED)), strict=True)
    return {
        "conditional": scores.conditional,
        "successes": int(scores.success.sum()),
        "runs": [
            {"length": len(prompt.ids), "depth": prompt.depth, "needle": prompt.needle, "recall": float(recall)}
            | {"said": said, "expected": prompt.answer}
            for prompt, said, recall in zip(scores.prompts, scores.answers, scores.recall, strict=True)
        ],
        "heads": scores.mean.numel(),
        "retrieval_heads": head_names(scores.retrieval_heads()),
        "strong": int((scores.mean > STRONG).sum()),
        "never": int((scores.mean_hits == 0).sum()),
        "threshold": RETRIEVAL,
        "top": [
            {**part, "hits": float(scores.mean_hits[head]), "frequency": float(scores.frequency[head])}
            for head, part in top
        ],
        "map": drawn | {key: values[key] for key in ("unit", "mean", "low", "high")},
    }


def masking(check: "cm.heads.MaskCheck", scores: "cm.RetrievalScores") -> dict[str, Any]:
    """What masking does, as plain JSON values."""
    return {
        "heads": head_names(check.heads),
        "draws": [head_names(draw) for draw in check.draws],
        "never_drawn": head_names(scores.retrieval_heads()),
        "mode": check.mode,
        "where": check.where,
        "estimates": {
            name: {condition: e.to_dict() for condition, e in rows.items()} for name, rows in check.estimates().items()
        },
        "by_draw": check.log_probs[2:].mean(1).tolist(),
    }


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """How many heads, which, whether the answer needs them, and every answer."""
    scores = results["map"]
    return [
        Lede(text=f"{sentence(results)} {verdict(results['masking'])}"),
        numbers(results),
        head_map(scores["name"], scores["mean"], scores["low"], scores["high"], unit=scores["unit"], top=0),
        strongest_table(results["top"]),
        needed(results["masking"]),
        answered(results["runs"]),
        answers(results["runs"]),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """How many heads there are, and how many prompts were answered."""
    text = (
        f"{len(results['retrieval_heads'])} of {results['heads']:,} heads score {results['threshold']:g} or more; the "
        f"model answered {results['successes']} of {len(results['runs'])} prompts."
    )
    return text if results["conditional"] else f"{text} As it answered none, scores are over all prompts."


def verdict(check: Mapping[str, Any]) -> str:
    """What masking did, in one sentence."""
    rows = check["estimates"]["log_prob"]
    unmasked, masked, others = (formats.fixed(rows[name]["value"], 2) for name in ("unmasked", "masked", "random"))
    return (
        f"Masking the top {len(check['heads'])} takes the right answer's log-probability from {unmasked} to {masked} "
        f"nats a token; as many random others, {len(check['draws'])} times, to {others}."
    )


def numbers(results: Mapping[str, Any]) -> Numbers:
    """Headline numbers."""
    from circuitome.heads.long_context.retrieval import STRONG

    total, least = results["heads"], results["threshold"]
    counts = (
        ("Retrieval heads", len(results["retrieval_heads"]), f"score {least:g} or more, of {total}"),
        ("Strong ones", results["strong"], f"score above {STRONG:g}"),
        ("Never copied", results["never"], f"of {total} heads, in the counted runs"),
        ("Answered", results["successes"], f"of {len(results['runs'])} prompts"),
    )
    return Numbers(items=tuple(Figure(name=n, value=value, style="count", about=about) for n, value, about in counts))


def strongest_table(top: Sequence[Mapping[str, Any]]) -> Table:
    """The heads that copy most."""
    columns = (("head", "node"), ("score", "estimate", 3), ("hits per needle token", "number", 3))
    rows = ((head["label"], cell(head), head["hits"], head["frequency"]) for head in top)
    return table("Strongest heads", (*columns, ("runs in which it copied", "percent")), rows, top=LISTED)


def needed(check: Mapping[str, Any]) -> Table:
    """The answer with and without the strongest heads."""
    count = len(check["heads"])
    how = {"zero": "their output is 0", "even": "they attend evenly to all that they may see"}[check["mode"]]
    when = {"decode": "once the prompt was read", "everywhere": "from the first token on"}[check["where"]]
    names = {
        "unmasked": "no head masked",
        "masked": f"top {count} masked",
        "random": f"{count} random others masked",
        "masked_minus_random": f"top {count} minus random others",
    }
    columns = (
        "",
        ("log-probability", "estimate", 3, "nats a token", "of the right answer"),
        ("recall", "estimate", 3, "", "share of the right answer's words that were said"),
    )
    kinds = ("log_prob", "recall")
    rows = ((name, *(cell(check["estimates"][kind][part]) for kind in kinds)) for part, name in names.items())
    note = (
        f"Log-probability of the right answer in nats a token; recall: the share of its words that were said. Masked "
        f"{when}: {how}. The random others are drawn from heads outside the top {count} and outside all retrieval "
        f"heads. Masked: {', '.join(check['heads'])}."
    )
    return table("Are they needed?", columns, rows, note=note)


def answered(runs: Sequence[Mapping[str, Any]]) -> Table:
    """How many prompts of each length and depth were answered."""
    from circuitome.heads.long_context.retrieval import SUCCESS

    depths = sorted({run["depth"] for run in runs})
    rows = []
    for length in sorted({run["length"] for run in runs}):
        same = [[run for run in runs if run["length"] == length and run["depth"] == depth] for depth in depths]
        rows.append((length, *(f"{sum(run['recall'] > SUCCESS for run in some)} of {len(some)}" for some in same)))
    columns = (("tokens", "count"), *(f"depth {100 * depth:.0f} %" for depth in depths))
    return table("Prompts answered, by length and depth", columns, rows)


def answers(runs: Sequence[Mapping[str, Any]]) -> Table:
    """Every answer."""
    columns = (("tokens", "count"), ("depth", "percent"), "expected", "said", ("recall", "number", 2))
    rows = [(run["length"], run["depth"], run["expected"], run["said"] or "(nothing)", run["recall"]) for run in runs]
    return table(f"All {len(rows)} answers", columns, rows, folded=True)


STUDY = Study("retrieval", Retrieval, run, work)
