"""What the weights of one head say: tokens it looks for, what it copies, which heads it reads and feeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Block, Figure, Lede, Note, Numbers, Table, table
from circuitome.studies.context import Context
from circuitome.studies.memory import weight_bytes
from circuitome.studies.settings import Argument, ModelSettings
from circuitome.studies.study import Findings, Study, Work

SURE = 0.99
"""Share of random pairs below the score that is called the limit of chance."""
PAIRS = {
    "qk": ("QK: tokens that look for tokens", "query", "key"),
    "ov_promoted": ("OV: attending to a token raises the logits of", "attended to", "raised"),
    "ov_suppressed": ("OV: attending to a token lowers the logits of", "attended to", "lowered"),
}


@dataclass(frozen=True, kw_only=True)
class Weights(ModelSettings):
    """What the weights of one head say: tokens it looks for, what it copies, which heads it reads and feeds."""

    arguments: ClassVar[tuple[str, ...]] = ("head",)

    head: Annotated[str, Argument] = ""
    """A head, e.g. a5.h1."""
    tokens: str | None = None
    """Text whose tokens are the queries, and those attended to; by default the strongest of the vocabulary."""
    offset: int = 0
    """How many tokens the key lies before the query, for rotary models."""
    top: int = 8
    """Rows of each table."""
    rows: int = 2048
    """Tokens of the vocabulary that are searched, those with the longest vectors first; 0 for all."""


def work(settings: Weights, context: Context) -> Work:
    """No pass of the model: products of its weights."""
    return Work(texts=1, tokens=1, bytes=weight_bytes(context.model))


def run(settings: Weights, context: Context) -> Findings:
    """The strongest pairs of QK and OV, the copying score, and composition with other heads."""
    model, head, tell = context.model, settings.head, context.tell(f"weights of {settings.head}")
    qk = cm.weights.qk_circuit(model, head, offset=settings.offset)  # refuses a wrong head before anything long begins
    ids = model.encode_answer(settings.tokens) if settings.tokens else []
    if settings.tokens is not None and not ids:
        raise InputError("--tokens is empty; give text, or leave it out for the strongest tokens of the vocabulary.")
    search: dict[str, Any] = {"k": settings.top, "rows": settings.rows or None, "tokens": ids}
    pairs = {"qk": cm.weights.qk_pairs(model, head, offset=settings.offset, **search).to_dict()}
    tell(1, 4)
    pairs |= {
        "ov_promoted": cm.weights.ov_pairs(model, head, **search).to_dict(),
        "ov_suppressed": cm.weights.ov_pairs(model, head, suppressed=True, **search).to_dict(),
    }
    tell(2, 4)
    copying = copying_of(model, head)
    tell(3, 4)
    results = {
        "head": head,
        "offset": settings.offset,
        "tokens": settings.tokens,
        "norms": {"qk": float(qk.norm()), "ov": float(cm.weights.ov_circuit(model, head).norm())},
        "copying": copying,
        "pairs": pairs,
        "composition": composition_of(model, head, settings.top, settings.seed),
    }
    tell(4, 4)
    return Findings(
        title=f"{head} in {settings.model} by its weights",
        sign="Values of pairs are products of weights, norm gains folded in; composition is a share of norms.",
        results=results,
        blocks=blocks(results),
    )


def copying_of(model: "cm.Model", head: str) -> dict[str, Any]:
    """Copying score and its rank; None where outputs are not input tokens."""
    layer, index = (int(part[1:]) for part in head.split("."))
    try:
        scores = cm.copying_scores(model)
    except InputError as error:
        return {"score": None, "rank": None, "heads": None, "note": str(error)}
    score = scores[layer, index]
    return {"score": float(score), "rank": int((scores > score).sum()) + 1, "heads": scores.numel(), "note": ""}


def composition_of(model: "cm.Model", head: str, top: int, seed: int) -> dict[str, Any]:
    """The strongest partners of a head through q, k and v, and what chance would give."""
    from circuitome.weights.head_composition import KINDS, chance

    if model.graph.n_layers < 2:
        return {"baseline": None, "kinds": {}}
    composed = cm.composition(model)
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        kinds[kind] = {"chance_99": float(chance(model, kind, seed=seed).quantile(SURE))}
        for side, partners in composed.with_head(head, kind, top).items():
            kinds[kind][side] = [{"head": name, "score": score} for name, score in partners]
    return {"baseline": composed.baseline, "kinds": kinds}


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """Copying, norms, the strongest pairs, and composition."""
    norms, copying = results["norms"], results["copying"]
    text = f"No copying score: {copying['note']}"
    if copying["score"] is not None:
        text = (
            f"Copying score {copying['score']:+.3f} (1 copies, -1 does the opposite), rank {copying['rank']} of "
            f"{copying['heads']} heads."
        )
    cards = tuple(Figure(name=f"Norm of W_{name.upper()}", value=value) for name, value in norms.items())
    apart = f", key {results['offset']} before the query" if results["offset"] else ", rotation left out"
    tables = list[Table]()
    for name, (title, first, second) in PAIRS.items():
        part = results["pairs"][name]
        rows = [(repr(pair["from"]), repr(pair["to"]), pair["value"]) for pair in part["pairs"]]
        unit = part["unit"] + (apart if name == "qk" else "")
        tables.append(table(f"{title} ({unit})", (first, second, ("value", "number", 2)), rows, note=_searched(part)))
    return [Lede(text=text), Numbers(items=cards), *tables, _composed(results["composition"])]


def _searched(part: Mapping[str, Any]) -> str:
    words = f"{part['rows_searched']:,} of {part['rows']:,} rows searched, the longest vectors first"
    return f"{words}: no other row can hold a stronger pair." if part["proven"] else f"{words}; --rows 0 searches all."


def _composed(composed: Mapping[str, Any]) -> Block:
    if not composed["kinds"]:
        return Note(text="One layer: no head composes with another.")
    rows = []
    for kind, sides in composed["kinds"].items():
        limit = sides["chance_99"]
        for side, words in (("earlier", "reads"), ("later", "is read by")):
            best = ", ".join(
                f"{p['head']}\N{NO-BREAK SPACE}{p['score']:.3f}{'*' * (p['score'] > limit)}" for p in sides[side][:5]
            )
            rows.append((f"{kind} {words}", best or "-", limit))
    note = f"Chance gives {composed['baseline']:.3f}; *: above 99 % of random pairs."
    return table("Composition", ("through", "strongest heads", ("99 %", "number", 3)), rows, note=note)


STUDY = Study("weights", Weights, run, work)
