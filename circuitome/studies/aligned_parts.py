"""Which variables of a causal model the parts of a circuit hold, from a finished run of align."""

from collections.abc import Mapping
from typing import Any

import circuitome as cm
from circuitome.errors import RunError
from circuitome.present import formats
from circuitome.present.blocks import Table, table

COLUMNS = (
    ("part", "node"),
    ("holds", "text"),
    ("at", "text"),
    ("IIA", "estimate", 2),
    ("chance", "number", 2),
    ("judged on held-out prompts", "text"),
)


def held_variables(run: str | None, model: "cm.Model", circuit: "cm.Circuit") -> list[Table]:
    """The parts of a circuit at which a variable's interchange accuracy lies above chance; nothing without a run.

    Raises `RunError` for a run of another kind or model, and for one that looked at the stream, where no part is.
    """
    if run is None:
        return []
    from circuitome.causal.sites import units
    from circuitome.models.loading import weights_hash

    opened = cm.open(run)
    if opened.kind != "align":
        raise RunError(f"{run} is a {opened.kind} run. Give one of circuitome align.")
    if opened.manifest["model"]["weights_hash"] != weights_hash(model):
        raise RunError(f"{run} is of {opened.manifest['model']['name']}, not of {model.name} with its weights.")
    maps = opened.results["alignment"]["maps"]
    rows = [row for found in maps.values() for row in _above_chance(found, opened.results["verdicts"])]
    if opened.manifest["settings"]["sites"] in ("resid", "mid"):
        raise RunError(f"{run} looked at the stream, which is no part of a circuit. Give one with --sites heads.")
    nodes = units(circuit.graph, circuit.nodes)
    rows = sorted((row for row in rows if str(cm.Node.parse(row[0]).whole) in nodes), key=lambda row: -row[3][0])
    note = (
        "Interchange accuracy: the share of pairs that come out as the causal model says when the part has the value "
        f"that it has on another prompt; from {opened.manifest['command']}. Only accuracies whose interval lies above "
        "chance, each part at its best token. They were looked for on the prompts that they are given for, unless "
        "the last column says more."
    )
    return [table("Variables that its parts hold", COLUMNS, rows, note=note, top=12)]


def _above_chance(found: Mapping[str, Any], verdicts: list[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """By site, the token at which a variable is most accurate, where that is above chance."""
    rows = []
    judged = {verdict["place"]: verdict for verdict in verdicts if verdict["variable"] == found["variable"]}
    for name, mean, low, high in zip(found["rows"], found["mean"], found["low"], found["high"], strict=True):
        best = max(range(len(mean)), key=lambda column: mean[column])
        if low[best] > found["chance"]:
            place = f"{name}@{found['columns'][best]}"
            rows.append(
                (
                    name,
                    found["variable"],
                    found["columns"][best],
                    (mean[best], low[best], high[best]),
                    found["chance"],
                    _judged(judged.get(place)),
                )
            )
    return rows


def _judged(verdict: Mapping[str, Any] | None) -> str:
    """A verdict in a few words."""
    if verdict is None:
        return ""
    ends = (verdict["accuracy"][name] for name in ("value", "low", "high"))
    return f"{'has a place' if verdict['holds'] else 'not above controls'}, {formats.percent(*ends)}"
