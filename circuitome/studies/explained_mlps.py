"""The MLPs of an explained circuit, as a sentence and a table."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.present import formats
from circuitome.present.blocks import Block, Cell, Figure, Lede, Numbers, Table, table
from circuitome.studies.explained_roles import diagram

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.engine.setting import Setting

COLUMNS = (
    ("MLP", "node", None, "", "the MLP"),
    ("acts at", "text", None, "", "the token at which ablating it surely changes the metric, and most"),
    ("all, %", "number", 1, "", "total effect: change of the metric when ablated at all positions"),
    ("last, %", "number", 1, "", "total effect: the same at the last token"),
    ("direct, %", "number", 1, "", "effect on the metric through the logits alone"),
    ("raises", "text", None, "", "tokens whose probability it raises most through the logits alone, and by how much"),
    ("lowers", "text", None, "", "tokens whose probability it lowers most through the logits alone", False),
    ("reads", "text", None, "", "writers from which the circuit's edges lead to it", False),
    ("feeds", "text", None, "", "inputs to which the circuit's edges lead from it", False),
)
"""What is said of each MLP, as fields of columns; effects are shares of the gap of clean and ablated metric."""
LISTED, ON_TERMINAL, NAMED = 3, 8, 3
"""Names in a cell, rows of the terminal's table, MLPs in the sentence."""
CLEAR = 0.05
"""Share of the gap from which on an MLP is named in the sentence."""


def tensors(mlps: "cm.heads.MlpExplanation") -> dict[str, Any]:
    """Effects of the MLPs, in the order of their layers."""
    names = ("all_positions", "last_position", "direct", "by_role")
    return {f"mlps_{name}": getattr(mlps, name) for name in names} if mlps.names else {}


def sentence(results: Mapping[str, Any]) -> str:
    """Which MLPs matter most, and where; empty for a circuit in which none does."""
    shares = [(mlp, mlp["effects"]["all_positions"]["value"] / results["scale"]) for mlp in results["mlps"]]
    named = [
        f"{mlp['mlp']} ({percent(share)}{', at the token ' + mlp['acts_at'] if mlp['acts_at'] else ''})"
        for mlp, share in shares
        if abs(share) >= CLEAR
    ]
    if not named:
        return ""
    return f"Of its {len(shares)} MLPs these change the metric most when ablated: {', '.join(named[:NAMED])}."


def percent(share: float) -> str:
    """A share in percent with its sign."""
    return f"{'+' if share > 0 else ''}{formats.rounded(100 * share, 0)} %"


def metrics(setting: "Setting") -> dict[str, "Tensor"]:
    """Metric of the clean prompts and with everything ablated, for a circuit without heads."""
    from circuitome.graph.circuits import Circuit
    from circuitome.validation.faithfulness.evaluator import Evaluator

    evaluator = Evaluator(setting)
    nothing = Circuit.empty(setting.model.graph)
    return {"metric": evaluator.clean, "ablated_metric": evaluator.circuits([nothing])[0]}


def numbers(mlps: "cm.heads.MlpExplanation", metrics: Mapping[str, "Tensor"]) -> dict[str, Any]:
    """What is said of the heads of a circuit, for one without any."""
    from circuitome.heads.roles.measure import scale_of

    return {
        "unit": mlps.unit,
        "scale": scale_of(metrics["metric"], metrics["ablated_metric"]),
        "roles": {},
        "heads": [],
        "token_roles": list(mlps.roles),
    }


def opening(mlps: "cm.heads.MlpExplanation", task: str) -> str:
    """What a circuit without heads holds."""
    number = f"{len(mlps.names)} MLP{'s' if len(mlps.names) > 1 else ''}"
    return f"The circuit of {len(mlps.circuit):,} edges for {task} holds {number} and no heads."


def counts(mlps: "cm.heads.MlpExplanation") -> list[Figure]:
    """How many MLPs surely matter; nothing for a circuit without any."""
    about = f"of {len(mlps.names)} surely change the metric by 2 % of the gap or more"
    sure = sum(map(len, mlps.classes.values()))
    return [Figure(name="Active MLPs", value=sure, style="count", about=about)] if mlps.names else []


def alone(mlps: "cm.heads.MlpExplanation", results: Mapping[str, Any], task: str, gap: Sequence[Figure]) -> list[Block]:
    """A circuit without heads: in words, its MLPs by where they act, and each of them."""
    return [
        Lede(text=f"{opening(mlps, task)}\n{sentence(results)}".strip()),
        Numbers(items=(*counts(mlps), *gap)),
        *diagram(None, mlps, results),
        *blocks(results),
    ]


def blocks(results: Mapping[str, Any]) -> list[Table]:
    """The MLPs, the most important first; nothing for a circuit without any."""
    if not results["mlps"]:
        return []
    note = (
        f"Effects on the first prompts, in % of the gap of {results['scale']:.3f} {results['unit']}; strongest first. "
        "Tokens have the change of their probability, 0 to 1: with the MLP minus with its ablation seen by the logits "
        "alone, mean over prompts. An MLP that acts earlier reaches the answer through heads."
    )
    rows = (row(mlp, results["scale"]) for mlp in results["mlps"])
    return [table("MLPs", COLUMNS, rows, note=note, top=ON_TERMINAL)]


def row(mlp: Mapping[str, Any], scale: float) -> tuple[Cell, ...]:
    """An MLP's row under `COLUMNS`."""
    effects = (formats.finite(mlp["effects"][name]["value"]) for name in ("all_positions", "last_position", "direct"))
    return (
        mlp["mlp"],
        mlp["acts_at"],
        *(None if value is None else 100 * value / scale for value in effects),
        *(", ".join(map(changed, mlp[name][:LISTED])) for name in ("raised", "lowered")),
        *(few(mlp[name]) for name in ("reads", "feeds")),
    )


def changed(token: Mapping[str, Any]) -> str:
    """A token with the change of its probability, which stay on one line."""
    change = f"{'+' if token['change'] > 0 else ''}{formats.fixed(token['change'], 3)}"
    return f"{formats.quoted(token['token'])}\N{NO-BREAK SPACE}{change}"


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:LISTED]) + (f" +{len(names) - LISTED}" if len(names) > LISTED else "")
