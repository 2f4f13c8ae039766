"""Maps of effects and comparisons of methods in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitome.report import formats, heatmap
from circuitome.report.compare_page import sizes_of

SHADES = " ·░▒▓█"
"""From nothing to the largest effect; readable without colour."""
COLOURS = {True: "dark_orange3", False: "dodger_blue2"}
"""Above zero, below zero."""
SHOWN = 12
"""Strongest cells."""
ROWS = 60
"""Rows of a map at most; of longer ones those with the largest effects."""


def effects(payload: Mapping[str, Any], console: Console) -> None:
    """Every map, the strongest cells, and the tree of a trace back."""
    console.print(f"\n[bold]{payload['title']}[/]")
    if payload.get("tree"):
        _print(console, f"Trace back from the logits, edges kept: {payload['circuit_edges']}", _tree(payload))
    else:
        for one in payload["maps"]:
            _print(console, *_map(one, console.width))
    _print(console, f"Strongest effects ({payload['unit']})", _strongest(payload))


def compare(payload: Mapping[str, Any], console: Console) -> None:
    """Faithfulness by size, one row a method, and what each took."""
    console.print(f"\n[bold]{payload['title']}[/]")
    held = payload.get("held_out")
    title = "Faithfulness by edges" + (f", in brackets on {held['n']} held-out prompts" if held else "")
    drawn = _table()
    sizes = sizes_of(payload)
    drawn.add_column("method", no_wrap=True)
    for size in sizes:
        drawn.add_column(f"{size:,}", justify="right")
    for name, justify in (("seconds", "right"), ("spearman", "right")):
        drawn.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in payload["methods"]:
        points = {int(point["edges"]): point for point in one["points"]}
        values = [_value(points.get(size)) for size in sizes]
        drawn.add_row(one["name"], *values, formats.fixed(one["seconds"], 0), formats.fixed(one.get("spearman"), 2))
    chance = {int(point["edges"]): point for point in payload["random"]}
    drawn.add_row("random circuits", *(_value(chance.get(size)) for size in sizes), "", "")
    _print(console, title, drawn)
    if payload.get("exact_edges"):
        console.print(f"spearman: of score sizes with those of {payload['exact_edges']} exactly patched edges")


def _value(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return ""
    held = formats.finite(point.get("held_out"))
    return formats.rounded(point["value"], 3) + ("" if held is None else f" ({formats.rounded(held, 2)})")


def _table() -> Table:
    return Table(box=None, header_style="bold", padding=(0, 1))


def _print(console: Console, title: str, drawn: Table) -> None:
    """A table below its title, which may be wider."""
    console.print(Text(f"\n{title}", style="italic"))
    console.print(drawn)


def _map(one: Mapping[str, Any], width: int) -> tuple[str, Table]:
    """Title and map, one sign a cell, as many columns as fit."""
    rows, columns = one["rows"], one["columns"]
    room = max(1, (width - 14) // 4)
    step = max(1, -(-len(columns) // room))
    largest = heatmap.largest_effect(one)
    title = f"{heatmap.title_of(one)}: blue below zero, orange above; █ is {formats.fixed(largest, 3)} {one['unit']}"
    title += f"; every {step}th column" if step > 1 else ""
    chosen = _rows(one)
    title += f"; the strongest {len(chosen)} of {len(rows)} rows" if len(chosen) < len(rows) else ""
    drawn = _table()
    drawn.add_column("", justify="right")
    for name in columns[::step]:
        drawn.add_column(str(name), justify="center", min_width=2)
    for row in reversed(chosen):
        drawn.add_row(str(rows[row]), *(_cell(one["mean"][row][i], largest) for i in range(0, len(columns), step)))
    return title, drawn


def _rows(one: Mapping[str, Any]) -> Sequence[int]:
    count = len(one["rows"])
    if count <= ROWS:
        return range(count)
    sizes = [max((abs(v) for x in row if (v := formats.finite(x)) is not None), default=0.0) for row in one["mean"]]
    return sorted(sorted(range(count), key=lambda row: -sizes[row])[:ROWS])


def _cell(value: Any, largest: float) -> Text:
    known = formats.finite(value)
    if known is None or not largest:
        return Text(" ")
    level = round((abs(known) / largest) ** 0.7 * (len(SHADES) - 1))
    return Text(SHADES[level] * 2, style=COLOURS[known > 0])


def _strongest(payload: Mapping[str, Any]) -> Table:
    several = len(payload["maps"]) > 1
    drawn = _table()
    for name in (("map",) if several else ()) + ("part", "effect", "95 % interval"):
        drawn.add_column(name, justify="right" if name == "effect" else "left")
    for cell in sorted(payload["top"], key=lambda one: -abs(formats.finite(one["mean"]) or 0.0))[:SHOWN]:
        ends = formats.interval(cell["low"], cell["high"], 3) or "no interval"
        values = [Text(str(cell["label"])), Text(formats.fixed(cell["mean"], 3)), Text(ends)]
        drawn.add_row(*([Text(str(cell["map"]))] if several else []), *values)
    return drawn


def _tree(payload: Mapping[str, Any]) -> Table:
    drawn = _table()
    for name in ("depth", "into", "kept senders"):
        drawn.add_column(name, overflow="fold")
    for receiver in payload["tree"]:
        kept = [s for s in receiver["senders"] if s["kept"]]
        words = ", ".join(f"{s['label']} {formats.fixed(s['mean'], 3)}" for s in kept) or "-"
        drawn.add_row(str(receiver["depth"]), receiver["receiver"], words)
    return drawn
