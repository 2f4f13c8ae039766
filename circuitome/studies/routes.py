"""How much each head and MLP matters to the routes of a file of texts, by group."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Block, Lede, table
from circuitome.studies.context import Context
from circuitome.studies.memory import batch_of_routes
from circuitome.studies.pieces import cell, head_map
from circuitome.studies.settings import ModelSettings, ShardSettings
from circuitome.studies.shards import spread
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.discovery.routes.importance import RouteImportance

SHOWN = 12
"""Heads in a table."""
TOKEN_LABELS = ("position", "subword")
"""Groups of tokens rather than of texts."""


@dataclass(frozen=True, kw_only=True)
class RoutesOf(ShardSettings, ModelSettings):
    """Measure how much each head and MLP matters to the routes of a file of texts, by group."""

    file: str = ""
    """A .txt file with one text a line, or .jsonl, .csv or .parquet with a column `text` and columns of labels."""
    by: str | None = None
    """A column of labels, or position or subword (labels of tokens); one group by default."""
    norm: str = "l1"
    """How far apart vectors are: l1 or l2."""

    @override
    def check(self) -> None:
        super().check()
        if not self.file:
            raise InputError(
                "Give a file of texts with --file: .txt, one a line, or .jsonl, .csv or .parquet with a column text."
            )

    @override
    def subject(self) -> str:
        return f"{Path(self.file).stem}-{super().subject()}"


def _texts(settings: RoutesOf) -> tuple[list[str], list[str] | None]:
    from circuitome.runs.texts import read_texts

    return read_texts(Path(settings.file), None if settings.by in TOKEN_LABELS else settings.by)


def work(settings: RoutesOf, context: Context) -> Work:
    """One pass over the texts, what each head adds, and as long as 1.5 passes for proximities."""
    texts, _ = _texts(settings)
    longest = max(len(context.model.encode(text)) for text in texts)
    taken = batch_of_routes(context.model, settings.max_memory, len(texts), longest)
    return Work(texts=len(texts), tokens=longest, forward=1.2, rest=1.5, bytes=taken)


def shard(settings: RoutesOf, context: Context, number: int) -> "RouteImportance":
    """The importances over the texts of a shard; they are kept."""
    from circuitome.discovery.routes.importance import token_labels

    texts, labels = _texts(settings)
    given: Any = token_labels(context.model, texts, settings.by) if settings.by in TOKEN_LABELS else labels
    setting = context.setting.but(checkpoint=context.file(f"routes-{number}.safetensors"))
    return cm.route_importance(setting, texts, given, norm=settings.norm, shard=(number, settings.shards))


def run(settings: RoutesOf, context: Context) -> Findings:
    """Importances of heads and MLPs over a file of texts, by group."""
    from circuitome.discovery.routes.importance import RouteImportance
    from circuitome.discovery.routes.tracing import plain_task, prompt_ids

    spread("routes", settings, context)
    measured = RouteImportance.joined([shard(settings, context, number) for number in range(settings.shards)])
    texts, model = _texts(settings)[0], context.model
    ids = [prompt_ids(model, text) for text in texts]
    results = {"groups": [group_of(measured, name) for name in measured.groups], "general": general(measured)}
    return Findings(
        title=f"Importances over {len(texts)} texts in {settings.model}",
        sign="An importance is the share of a token's stream that a head or an MLP makes up, mean over tokens.",
        results=results,
        blocks=blocks(results),
        tensors={name: getattr(measured, name) for name in ("mean", "sums", "counts", "group_of")},
        more={"by": settings.by, "texts": len(texts), "data_hash": plain_task(ids).data_hash()},
    )


def general(measured: "RouteImportance") -> list[dict[str, Any]]:
    """Heads that matter in every group, with their importance in each."""
    return [
        {"head": head, "least": value, "by_group": {g: measured.estimate(head, g).to_dict() for g in measured.groups}}
        for head, value in measured.general(SHOWN)
    ]


def group_of(measured: "RouteImportance", name: str) -> dict[str, Any]:
    """Importances in one group, and the heads that lead over every other group."""
    leads = measured.specific(name, SHOWN) if len(measured.groups) > 1 else []
    return {
        "name": name,
        "tokens": measured.tokens(name),
        "heads": [[round(x, 6) for x in row] for row in measured.heads(name).tolist()],
        "mlps": [round(x, 6) for x in measured.mlps(name).tolist()],
        "specific": [
            {"head": head, "lead": lead, "mean": measured.estimate(head, name).to_dict()}
            for head, lead in leads
            if lead > 0
        ],
    }


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """Heads that matter everywhere, those of single groups, and a map of each group."""
    groups, rows = results["groups"], results["general"]
    names = [f"{group['name']} ({group['tokens']:,} tokens)" for group in groups]
    everywhere = "in every group" if len(groups) > 1 else "most"
    text = f"Heads that matter {everywhere}: {', '.join(row['head'] for row in rows[:5])}."
    columns = (("head", "node"), *((name, "estimate", 4) for name in names))
    means = ((row["head"], *(cell(row["by_group"][group["name"]]) for group in groups)) for row in rows)
    parts: list[Block] = [Lede(text=text), table(f"Heads that matter {everywhere}", columns, means)]
    for name, group in zip(names, groups, strict=True):
        parts += of_group(name, group)
    return parts


def of_group(name: str, group: Mapping[str, Any]) -> list[Block]:
    """Heads that lead over every other group, where there are any, and a map of all heads and MLPs."""
    values = [[*heads, mlp] for heads, mlp in zip(group["heads"], group["mlps"], strict=True)]
    title, unit = f"All heads and MLPs: {name}", "share of a token's stream"
    drawn = head_map(title, values, unit=unit, extra="mlp", top=5, where="page")
    leads = [(row["head"], row["lead"], cell(row["mean"])) for row in group["specific"]]
    columns = (("head", "node"), ("lead", "number", 4), ("importance here", "estimate", 4))
    return [*([table(f"Heads of {name}", columns, leads, note="Lead over every other group.")] if leads else []), drawn]


STUDY = Study("routes", RoutesOf, run, work, shard=shard)
