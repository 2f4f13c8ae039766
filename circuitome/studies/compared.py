"""What a comparison of methods shows: the best one, each one's circuit, faithfulness by size, and how scores agree."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.present import formats
from circuitome.present.blocks import Block, Column, Lede, Note, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell, series_of, size_lines

RANDOM = "random circuits"
"""Name of the row of random circuits."""


def blocks(context: Context, results: Mapping[str, Any], held: Mapping[str, Any] | None, exact: int) -> list[Block]:
    """The best method, each method's own circuit, faithfulness by size as figure and tables, what each method is."""
    rows = results["methods"]
    every = [*rows, {"name": RANDOM, "points": results["random"]}]
    counts = Counter(point["edges"] for row in rows for point in row["points"])
    sizes = sorted(size for size, count in counts.items() if count > 1) or sorted(counts)
    parts: list[Block] = [
        Lede(text=best(rows, results["random"], held, str(context.task.measure))),
        own_circuits(rows, held),
        *(
            [lines(every, "held_out", "Faithfulness by size, held out", f"{held['n']} held-out prompts")]
            if held
            else []
        ),
        of_scores(rows, exact),
        lines(every, "value", "Faithfulness by size", context.setting.over),
        by_size("Faithfulness by number of edges", "value", every, sizes),
    ]
    if held:
        parts.append(by_size(f"On {held['n']} held-out prompts of {held['name']}", "held_out", every, sizes))
    notes = [Note(text=f"{row['name']}: {row['note']}", where="terminal") for row in rows if row["note"]]
    return [*parts, every_circuit(every), what_methods_are(rows), *notes]


def own_point(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The circuit that a method found at the size asked for, or nearest to it."""
    return next(point for point in row["points"] if point["edges"] == row["edges"])


def best(
    rows: Sequence[Mapping[str, Any]], chance: Sequence[Mapping[str, Any]], held: Mapping[str, Any] | None, metric: str
) -> str:
    """The method whose circuit comes nearest to the whole model, by held-out prompts where there are any."""
    key = "held_out" if held else "value"
    row = min(rows, key=lambda row: abs(1 - own_point(row)[key]))
    point = own_point(row)
    null = min(chance, key=lambda random: abs(math.log(random["edges"] / point["edges"])))
    there = f" ({formats.percent(point['held_out'])} on {held['n']} held-out prompts)" if held else ""
    return (
        f"Of {len(rows)} methods {row['name']} comes nearest to the whole model: its circuit of {point['edges']:,} "
        f"edges recovers {formats.percent(point['value'])} of the {metric}{there}; random circuits of "
        f"{null['edges']:,} edges recover {formats.percent(null['value'])}."
    )


def lines(rows: Sequence[Mapping[str, Any]], key: str, title: str, over: str) -> Block:
    """Faithfulness of every method's circuits by size, here or on held-out prompts."""
    low, high = ("low", "high") if key == "value" else (f"{key}_low", f"{key}_high")
    return size_lines(
        (
            series_of(
                row["name"],
                [point["edges"] for point in row["points"]],
                [{"value": point[key], "low": point[low], "high": point[high]} for point in row["points"]],
                faint=row["name"] == RANDOM,
            )
            for row in rows
            if row["points"]
        ),
        title=title,
        note="Faithfulness of each method's circuits: 0 is the ablated run, 1 the whole model. Bands are 95 % "
        f"intervals over {over}, that of random circuits the range over circuits.",
        where="page",
    )


def own_circuits(rows: Sequence[Mapping[str, Any]], held: Mapping[str, Any] | None) -> Table:
    """Each method's own circuit: what it suffices for, what is lost without it, and what it took to find it."""
    columns = (
        *("method", ("edges", "count"), ("here", "number", 2)),
        *(("sufficiency", "estimate", 2), ("necessity", "estimate", 2), ("passes", "number", 1)),
    )
    rows_of_table = []
    for row in rows:
        point = own_point(row)
        sufficiency = [point[name] for name in ("held_out", "held_out_low", "held_out_high")]
        enough = tuple(sufficiency) if held else cell(point)
        line = (row["name"], point["edges"], _rounded(point["value"]), enough, cell(row["necessity"]), row["forwards"])
        rows_of_table.append(line)
    where = f"on {held['n']} held-out prompts" if held else "on these same prompts"
    note = (
        "here: faithfulness on the prompts of the search. Sufficiency: share of the gap that the circuit alone keeps; "
        f"necessity: share that the model without it loses; both {where}. passes: processor time of the search in bare "
        "forward passes over its prompts."
    )
    return table("The circuit of each method", columns, rows_of_table, note=note)


def of_scores(rows: Sequence[Mapping[str, Any]], exact: int) -> Table:
    """How far each method's scores agree over draws of prompts, and with exact ones."""
    words = {"spearman": "Spearman", "pearson": "Pearson", "pearson_abs": "Pearson of sizes"} if exact else {}
    columns = (
        *("method", ("two draws", "number", 2), ("resamples agree", "number", 2)),
        *(Column(name, "number", 2, narrow=key == "spearman") for key, name in words.items()),
    )
    known = [(row, row["stability"] or {}) for row in rows]
    lines_of_table = [
        (row["name"], shared.get("draws"), shared.get("agreed"), *(row.get(key) for key in words))
        for row, shared in known
    ]
    note = (
        "two draws: share of edges (Jaccard) that the circuits of two disjoint halves of the prompts have in common; "
        "resamples agree: the same of the edges that most bootstrap resamples of each half choose. Methods that keep "
        "no scores of single prompts have neither."
    )
    correlations = (
        f" Correlations are with the exact scores of {exact} edges, half of them the strongest by EAP-IG; Spearman's "
        "is of sizes."
    )
    note += correlations if exact else ""
    return table("The scores of each method", columns, lines_of_table, note=note)


def by_size(title: str, key: str, rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Table:
    """One number of the circuits of every size that several methods have, a row for each method."""
    points = [(row["name"], {point["edges"]: _rounded(point.get(key)) for point in row["points"]}) for row in rows]
    shown = (line for line in points if any(size in line[1] for size in sizes))
    numbers = ((name, *(values.get(size, "") for size in sizes)) for name, values in shown)
    return table(title, ("method", *((f"{size:,}", "number", 2) for size in sizes)), numbers)


def _rounded(value: Any) -> float | None:
    """To two digits, so that what is nearly nothing is 0.00; the table of every circuit has the number itself."""
    known = formats.finite(value)
    return None if known is None else round(known, 2)


def every_circuit(rows: Sequence[Mapping[str, Any]]) -> Table:
    """All circuits that were measured, with intervals."""
    columns = ("method", ("edges", "count"), ("faithfulness", "estimate", 3), ("held out", "number", 3))
    circuits = ((row["name"], p["edges"], cell(p), p.get("held_out")) for row in rows for p in row["points"])
    return table("Every circuit with its interval", columns, circuits, folded=True)


def what_methods_are(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line about each method."""
    lines = ((row["name"], " ".join(row[key] for key in ("description", "note") if row[key])) for row in rows)
    return table("Methods", ("method", "what it is"), lines, where="page")
