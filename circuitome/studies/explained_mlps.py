"""The MLPs of an explained circuit, as a sentence and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

import circuitome as cm
from circuitome.present import formats
from circuitome.present.blocks import Block, Cell, table

COLUMNS = (
    ("MLP", "node", None, "", "the MLP"),
    ("acts at", "text", None, "", "the token at which ablating it changes the metric most"),
    ("all, %", "number", 1, "", "total effect: change of the metric when ablated at all positions"),
    ("last, %", "number", 1, "", "total effect: the same at the last token"),
    ("direct, %", "number", 1, "", "effect on the metric through the logits alone"),
    ("raises", "text", None, "", "tokens whose logits rise most by what it writes at the last token"),
    ("lowers", "text", None, "", "tokens whose logits fall most", False),
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
        f"{mlp['mlp']} ({100 * share:+.0f} %{', at the token ' + mlp['acts_at'] if mlp['acts_at'] else ''})"
        for mlp, share in shares
        if abs(share) >= CLEAR
    ]
    if not named:
        return ""
    return f"Of its {len(shares)} MLPs these change the metric most when ablated: {', '.join(named[:NAMED])}."


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The MLPs, the most important first; nothing for a circuit without any."""
    if not results["mlps"]:
        return []
    note = (
        f"Effects on the first prompts, in % of the gap of {results['scale']:.3f} {results['unit']}; strongest first. "
        "Tokens are those of the last position alone: an MLP that acts earlier reaches the answer through heads."
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
        *(" ".join(repr(word) for word in mlp[name][:LISTED]) for name in ("raised", "lowered")),
        *(few(mlp[name]) for name in ("reads", "feeds")),
    )


def few(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:LISTED]) + (f" +{len(names) - LISTED}" if len(names) > LISTED else "")
