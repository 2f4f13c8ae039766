"""Syntax in attention: which arcs of dependency trees single heads find, beside fixed offsets, and minimal pairs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present.blocks import Block, Column, Lede, Numbers, Table, table
from circuitome.studies.context import Context
from circuitome.studies.memory import plain_bytes
from circuitome.studies.pieces import cell, figure, head_map, written
from circuitome.studies.settings import Argument, ModelSettings
from circuitome.studies.study import Findings, Study, Work

GRAMMAR = "grammar"
"""In place of a file: sentences of the package's own grammar."""
SIGN = (
    "An arc is found where a head's strongest attention from one of its words, over all other words, is to the other. "
    "The best head and the best offset of a relation are chosen on one half of the sentences and scored on the other."
)


@dataclass(frozen=True, kw_only=True)
class Syntax(ModelSettings):
    """Find syntax in attention: which arcs of dependency trees heads show, and which minimal pairs come out right."""

    arguments: ClassVar[tuple[str, ...]] = ("model", "trees")

    model: Annotated[str, Argument] = "smollm2-135m"
    """A name that `circuitome models` lists, a hub name, a folder or a .gguf file."""
    trees: Annotated[str, Argument] = GRAMMAR
    """A CoNLL-U file or a folder of them, or grammar: sentences of a small grammar of our own."""
    n: int = 300
    """Sentences at most, the first of a file."""
    min_arcs: int = 100
    """Arcs that a relation needs to be counted."""
    pairs: str | None = None
    """A JSONL file or folder with sentence_good, sentence_bad and UID, as BLiMP has; the grammar's pairs by default."""
    n_pairs: int = 20
    """Minimal pairs of each rule, at most."""

    @override
    def check(self) -> None:
        for name, least in (("n", 2), ("min_arcs", 1), ("n_pairs", 1)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise InputError(f"--{option} must be at least {least}, got {getattr(self, name)}.")


def work(settings: Syntax, context: Context) -> Work:
    """A pass over the sentences, and one over both sentences of each pair."""
    trees, pairs = sentences(settings.trees, settings.n, settings.seed), minimal_pairs(settings)
    longest = max(len(tree.words) for tree in trees)
    masked = 0.0 if context.model.causal else longest * len(pairs) * 2 / len(trees)
    passes = 2.0 + 2 * len(pairs) / len(trees) + masked
    taken = plain_bytes(context.model, settings.max_memory, len(trees), 2 * longest)
    return Work(texts=len(trees), tokens=2 * longest, forward=passes, bytes=taken)


def sentences(trees: str, n: int, seed: int) -> "list[cm.dynamics.Tree]":
    """At most `n` sentences of a file or folder of trees, or of the grammar; none for an empty name.

    Raises as `cm.dynamics.read_trees`.
    """
    if trees == GRAMMAR:
        return cm.dynamics.grammar_trees(n, seed=seed)
    if trees and not Path(trees).exists():
        raise unknown_name("file, folder or kind of trees", trees, (GRAMMAR,), "Trees are read from CoNLL-U files.")
    return cm.dynamics.read_trees(trees)[:n] if trees else []


def minimal_pairs(settings: Syntax) -> "list[cm.dynamics.MinimalPair]":
    """The pairs that are asked for, so many of each rule."""
    if settings.pairs is None:
        return cm.dynamics.grammar_pairs(settings.n_pairs, seed=settings.seed + 1)
    by_kind: dict[str, list[cm.dynamics.MinimalPair]] = {}
    for pair in cm.dynamics.read_pairs(settings.pairs):
        by_kind.setdefault(pair.kind, []).append(pair)
    return [pair for some in by_kind.values() for pair in some[: settings.n_pairs]]


def run(settings: Syntax, context: Context) -> Findings:
    """Implicit parses of the trees, and the scores of the pairs."""
    from circuitome.runs.texts import text_hash

    trees, pairs = sentences(settings.trees, settings.n, settings.seed), minimal_pairs(settings)
    parses = cm.dynamics.syntax(context.setting, trees, min_arcs=settings.min_arcs)
    scores = cm.dynamics.pair_scores(context.setting, pairs)
    results = {"syntax": parses.to_dict(), "pairs": scores.to_dict()}
    texts = [*(f"{tree.text} {tree.heads} {tree.relations}" for tree in trees), *(str(pair) for pair in pairs)]
    return Findings(
        title=f"Syntax in the attention of {settings.model}",
        sign=SIGN,
        results=results,
        blocks=blocks(results),
        tensors={
            "by_head": parses.by_head,
            "by_offset": parses.by_offset,
            "kind": parses.kind,
            "sentence": parses.sentence,
            "half": parses.half,
            "good": scores.good,
            "bad": scores.bad,
        },
        more={"data_hash": text_hash(*texts), "trees": {"source": settings.trees, "sentences": len(trees)}},
    )


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """Arcs that heads and offsets find, relation by relation, all heads, and the minimal pairs."""
    syntax, pairs = results["syntax"], results["pairs"]
    return [
        Lede(text=sentence(results)),
        Numbers(
            items=(
                figure("Arcs found", syntax["uas"], "by the best head of each relation"),
                figure("By offsets", syntax["offset_uas"], "by the best fixed distance of each relation"),
                figure("Minimal pairs", pairs["accuracy"], "right sentence likelier; chance is 0.5"),
            )
        ),
        relations_table(syntax, where="page"),
        relations_table(syntax, where="terminal"),
        pairs_table(pairs),
        head_map("Share of all arcs that each head alone finds", syntax["head_share"], unit="share of arcs", top=10),
    ]


def sentence(results: Mapping[str, Any]) -> str:
    """How much of the trees heads show beyond offsets, and where they do."""
    syntax = results["syntax"]
    beyond = [row["kind"] for row in syntax["kinds"] if (row["head"]["low"] or 0) > (row["offset"]["high"] or 1)]
    kinds = len(syntax["kinds"])
    where = f"clearly for {len(beyond)} of {kinds} kinds of arcs" if beyond else f"clearly for none of {kinds} kinds"
    return (
        f"The best head of each relation finds {written(syntax['uas'])} of {syntax['arcs']:,} arcs, the best fixed "
        f"distance {written(syntax['offset_uas'])}; heads are better {where}."
    )


def relations_table(syntax: Mapping[str, Any], where: str) -> Table:
    """Relations with the share of arcs that the best head and the best offset find."""
    wide = where == "page"
    columns: tuple[Any, ...] = (
        "arc",
        *((("arcs", "count"),) if wide else ()),
        "best head",
        ("found", "estimate", 2),
        "offset",
        ("found by offset", "estimate", 2),
    )
    rows = []
    for row in syntax["kinds"]:
        head, offset = row["best_head"], row["best_offset"]
        names = (head, offset) if wide else (head.split(",")[0], offset.split(",")[0])
        cells = (row["kind"], row["arcs"], names[0], cell(row["head"]), names[1], cell(row["offset"]))
        rows.append(cells if wide else (cells[0], *cells[2:]))
    note = (
        "Intervals are over sentences. The head and the offset that are named are best on all sentences; the shares "
        "are of those that are best on the other half."
    )
    return table("Arcs by relation", columns, rows, note=note if wide else "", where=where)


def pairs_table(pairs: Mapping[str, Any]) -> Table:
    """Minimal pairs that come out right, by rule."""
    columns = ("rule", ("pairs", "count"), ("right sentence likelier", "estimate", 2), Column("chance", "number", 1))
    rows = ((kind, estimate["n"], cell(estimate), 0.5) for kind, estimate in pairs["kinds"].items())
    return table("Minimal pairs", columns, rows, top=12)


STUDY = Study("syntax", Syntax, run, work)
