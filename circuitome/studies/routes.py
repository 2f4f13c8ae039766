"""How much each head and MLP matters to the routes of a file of texts, by group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from circuitome.errors import InputError
from circuitome.present.blocks import Block, Column, HeatMap, Lede, Table
from circuitome.studies.settings import ModelSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.discovery.routes.importance import RouteImportance
    from circuitome.studies.context import Context

SHOWN = 12
"""Heads in a table."""
TOKEN_LABELS = ("position", "subword")
"""Groups of tokens rather than of texts."""


@dataclass(frozen=True, kw_only=True)
class RoutesOf(ModelSettings):
    """Measure how much each head and MLP matters to the routes of a file of texts, by group."""

    file: str = ""
    """A .txt file with one text a line, or JSONL or CSV with a column `text` and columns of labels."""
    by: str | None = None
    """A column of labels, or position or subword (labels of tokens); one group by default."""
    norm: str = "l1"
    """How far apart vectors are: l1 or l2."""

    @override
    def check(self) -> None:
        if not self.file:
            raise InputError(
                "Give a file of texts with --file: .txt, one a line, or .jsonl or .csv with a column text."
            )

    @override
    def subject(self) -> str:
        return f"{Path(self.file).stem}-{super().subject()}"


def _texts(settings: RoutesOf) -> tuple[list[str], list[str] | None]:
    from circuitome.runs.texts import read_texts

    return read_texts(Path(settings.file), None if settings.by in TOKEN_LABELS else settings.by)


def work(settings: RoutesOf, context: "Context") -> Work:
    """About 2.7 passes over the texts."""
    texts, _ = _texts(settings)
    longest = max(len(context.model.encode(text)) for text in texts)
    return Work(texts=len(texts), tokens=longest, forward=2.7)


def run(settings: RoutesOf, context: "Context") -> Findings:
    """Importances of heads and MLPs over a file of texts, by group."""
    from circuitome.discovery.routes.importance import route_importance, token_labels
    from circuitome.discovery.routes.tracing import plain_task, prompt_ids

    texts, labels = _texts(settings)
    model = context.model
    given: Any = token_labels(model, texts, settings.by) if settings.by in TOKEN_LABELS else labels
    found = route_importance(context.setting, texts, given, norm=settings.norm)
    results = {"groups": [group_of(found, name) for name in found.groups], "general": general(found)}
    return Findings(
        title=f"Importances over {len(texts)} texts in {settings.model}",
        sign="An importance is the share of a token's stream that a head or an MLP makes up, mean over tokens.",
        results=results,
        blocks=blocks(results),
        tensors={"mean": found.mean, "sums": found.sums, "counts": found.counts, "group_of": found.group_of},
        more={
            "by": settings.by,
            "texts": len(texts),
            "data_hash": plain_task([prompt_ids(model, text) for text in texts]).data_hash(),
        },
    )


def general(found: "RouteImportance") -> list[dict[str, Any]]:
    """Heads that matter in every group, with their importance in each."""
    return [
        {"head": name, "least": value, "by_group": {g: found.estimate(name, g).to_dict() for g in found.groups}}
        for name, value in found.general(SHOWN)
    ]


def group_of(found: "RouteImportance", name: str) -> dict[str, Any]:
    """Importances in one group, and the heads that lead over every other group."""
    rows = found.specific(name, SHOWN) if len(found.groups) > 1 else []
    return {
        "name": name,
        "tokens": found.tokens(name),
        "heads": [[round(x, 6) for x in row] for row in found.heads(name).tolist()],
        "mlps": [round(x, 6) for x in found.mlps(name).tolist()],
        "specific": [
            {"head": head, "lead": lead, "mean": found.estimate(head, name).to_dict()}
            for head, lead in rows
            if lead > 0
        ],
    }


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """Heads that matter everywhere, those of single groups, and a map of each group."""
    groups, rows = results["groups"], results["general"]
    names = [f"{group['name']} ({group['tokens']:,} tokens)" for group in groups]
    everywhere = "in every group" if len(groups) > 1 else "most"
    text = f"Heads that matter {everywhere}: {', '.join(row['head'] for row in rows[:5])}."
    columns = (Column(name="head", style="node"), *(Column(name=n, style="estimate", decimals=4) for n in names))
    table = tuple((row["head"], *(_cell(row["by_group"][group["name"]]) for group in groups)) for row in rows)
    parts: list[Block] = [Lede(text=text), Table(title=f"Heads that matter {everywhere}", columns=columns, rows=table)]
    for name, group in zip(names, groups, strict=True):
        parts += _group(name, group)
    return parts


def _cell(estimate: Mapping[str, Any]) -> Any:
    return estimate["value"], estimate["low"], estimate["high"]


def _group(name: str, group: Mapping[str, Any]) -> Sequence[Block]:
    heads, mlps = group["heads"], group["mlps"]
    drawn = HeatMap(
        title=f"All heads and MLPs: {name}",
        rows=tuple(f"a{layer}" for layer in range(len(heads))),
        columns=(*(f"h{head}" for head in range(len(heads[0]))), "mlp"),
        values=tuple((*row, mlp) for row, mlp in zip(heads, mlps, strict=True)),
        unit="share of a token's stream",
        scale="positive",
        upwards=True,
        top=5,
        where="page",
    )
    own = tuple((row["head"], row["lead"], _cell(row["mean"])) for row in group["specific"])
    columns = (
        Column(name="head", style="node"),
        Column(name="lead", style="number", decimals=4),
        Column(name="importance here", style="estimate", decimals=4),
    )
    lead = Table(title=f"Heads of {name}", note="Lead over every other group.", columns=columns, rows=own)
    return [lead, drawn] if own else [drawn]


STUDY = Study("routes", RoutesOf, run, work)
