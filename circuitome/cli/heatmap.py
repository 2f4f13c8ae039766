"""Maps of effects and comparisons of methods in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitome.report import formats, heatmap
from circuitome.report.compare_page import points_of, shared_sizes, sizes_of

SHADES = (
    (0.6, "bold white on rgb(176,70,5)", "bold white on rgb(27,108,176)"),
    (0.3, "black on rgb(238,176,130)", "black on rgb(150,192,230)"),
    (0.0, "dark_orange3", "dodger_blue2"),
)
"""Share of the largest effect from which on a cell above zero, and one below, looks so."""
SHOWN = 12
"""Strongest cells."""
ROWS = 60
"""Rows of a map at most; of longer ones those with the largest effects."""
MAPS = 2
"""Maps at most; after a trace back only the one it starts from."""
MARGIN = 14
"""Room for the rows' labels."""


def effects(payload: Mapping[str, Any], console: Console) -> None:
    """The first maps, the strongest cells with intervals, and the tree of a trace back."""
    console.print(Text(f"\n{payload['title']}", style="bold"))
    maps, tree = payload["maps"], payload.get("tree")
    shown = maps[: 1 if tree else MAPS]
    for one in shown:
        print_table(console, *map_table(one, console.width))
    if len(maps) > len(shown):
        console.print(Text(f"{len(maps) - len(shown)} more maps are in the report."))
    unit = payload.get("unit") or next((one.get("unit", "") for one in maps), "")
    print_table(console, f"Strongest effects ({unit})", _strongest(payload))
    if tree:
        print_table(console, f"Trace back from the logits, edges kept: {payload.get('circuit_edges')}", _tree(tree))
        nothing = sum(not _kept(one) for one in tree)
        if nothing:
            console.print(Text(f"into {nothing} more receivers nothing was kept"))


def compare(payload: Mapping[str, Any], console: Console) -> None:
    """Faithfulness by size, one row a method, as many sizes beside each other as fit; then what each took."""
    console.print(Text(f"\n{payload['title']}", style="bold"))
    held, exact, chance = payload.get("held_out"), payload.get("exact_edges"), payload.get("random") or []
    rows = [*payload["methods"], *([{"name": "random circuits", "points": chance}] if chance else [])]
    title = "Faithfulness by edges" + (f", in brackets on {held['n']} held-out prompts" if held else "")
    sizes = shared_sizes(payload)
    name = max((len(str(one["name"])) for one in rows), default=0)
    values = [_value(point, "\n").plain for one in rows for point in points_of(one).values()]
    wide = max((len(line) for value in values for line in value.split("\n")), default=0)
    fit = max(1, (console.width - name - 2) // (wide + 2))
    for start in range(0, len(sizes), fit):
        print_table(console, title if not start else "continued", _faithfulness(rows, sizes[start : start + fit]))
    print_table(console, "What each took", _methods(payload["methods"], set(sizes_of(payload)) - set(sizes)))
    if exact:
        console.print(Text(f"spearman: of score sizes with those of {exact} exactly patched edges"))


def plain_table(*columns: tuple[str, Literal["left", "right"]], gap: int = 1) -> Table:
    """A table without lines."""
    drawn = Table(box=None, header_style="bold", padding=(0, gap, 0, 0), pad_edge=False)
    for name, justify in columns:
        drawn.add_column(Text(name), justify=justify)
    return drawn


def print_table(console: Console, title: str, drawn: Table) -> None:
    """A table below its title, which may be wider."""
    console.print(Text(f"\n{title}", style="italic"))
    console.print(drawn)


def map_table(one: Mapping[str, Any], width: int) -> tuple[str, Table]:
    """Title and map: sign and tenths of the largest effect in each cell, as many columns as fit."""
    names = [str(name) for name in one["columns"]]
    cell = max(3, *(len(name) for name in names)) if names else 3
    rows = _strong(one, 0, ROWS)
    columns = _strong(one, 1, max(1, (width - MARGIN) // (cell + 1)))
    largest = heatmap.largest_effect(one)
    drawn = plain_table(("", "right"), *((names[column], "left") for column in columns))
    for row in reversed(rows):
        label = Text(str(one["rows"][row]), overflow="ellipsis", no_wrap=True)
        drawn.add_row(label, *(_cell(one, row, column, largest) for column in columns))
    drawn.columns[0].max_width = MARGIN - 2
    return _caption(one, rows, columns), drawn


def _caption(one: Mapping[str, Any], rows: Sequence[int], columns: Sequence[int]) -> str:
    largest = heatmap.largest_effect(one)
    if not largest:
        return f"{heatmap.title_of(one)}: " + ("all effects are 0" if rows else "no effects")
    share = heatmap.share(one, largest, 0)
    words = f"{heatmap.title_of(one)}: digits 1 to 9 are tenths of {formats.fixed(largest, 3)} {one.get('unit', '')}"
    words += f", {share} of the gap" if share else ""
    words += f"; blue below zero, orange above; *: the {heatmap.certainty(one, 'zero')}"
    for axis, shown, place in (("rows", rows, 0), ("columns", columns, 1)):
        known = {cell[place] for cell in heatmap.values(one)}
        words += f"; the strongest {len(shown)} of {len(known)} {axis}" if len(shown) < len(known) else ""
    return words


def _strong(one: Mapping[str, Any], axis: int, most: int) -> list[int]:
    """Rows (axis 0) or columns (axis 1) with any effect, in order; of too many those with the largest effects."""
    sizes: dict[int, float] = {}
    for *place, value in heatmap.values(one):
        index = int(place[axis])
        sizes[index] = max(sizes.get(index, 0.0), abs(value))
    return sorted(sorted(sizes, key=lambda index: -sizes[index])[:most])


def _cell(one: Mapping[str, Any], row: int, column: int, largest: float) -> Text:
    value = formats.finite(one["mean"][row][column])
    if value is None:
        return Text("")
    share = abs(value) / largest if largest else 0.0
    tenths = min(9, int(10 * share))
    sure = "*" if heatmap.certain(one, row, column) else " "
    if not tenths:
        return Text(f" \N{MIDDLE DOT}{sure}", style="dim")
    style = next(above if value > 0 else below for least, above, below in SHADES if share >= least)
    return Text(f"{'+' if value > 0 else '-'}{tenths}{sure}", style=style)


def _strongest(payload: Mapping[str, Any]) -> Table:
    several = len(payload["maps"]) > 1
    drawn = plain_table(*((("map", "left"),) if several else ()), ("part", "left"), ("effect", "right"), gap=2)
    drawn.add_column("95 % interval")
    known = [cell for cell in payload.get("top") or [] if formats.finite(cell.get("mean")) is not None]
    for cell in sorted(known, key=lambda one: -abs(one["mean"]))[:SHOWN]:
        ends = formats.interval(cell.get("low"), cell.get("high"), 3) or "no interval"
        values = [Text(str(cell["label"])), Text(formats.fixed(cell["mean"], 3)), Text(ends)]
        drawn.add_row(*([Text(str(cell.get("map", "")))] if several else []), *values)
    return drawn


def _tree(tree: Sequence[Mapping[str, Any]]) -> Table:
    """Receivers into which something was kept, further in the deeper they are."""
    drawn = plain_table(("into", "left"), ("kept senders", "left"), gap=2)
    for one in tree:
        kept = _kept(one)
        if kept:
            words = ", ".join(f"{sender['label']} {formats.fixed(sender['mean'], 3)}" for sender in kept)
            drawn.add_row(Text("  " * int(one["depth"]) + str(one["receiver"])), Text(words))
    return drawn


def _kept(receiver: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [sender for sender in receiver["senders"] if sender.get("kept")]


def _faithfulness(rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Table:
    drawn = plain_table(("method", "left"), *((f"{size:,}", "right") for size in sizes), gap=2)
    for one in rows:
        points = points_of(one)
        drawn.add_row(Text(str(one["name"]), no_wrap=True), *(_value(points.get(size), "\n") for size in sizes))
    return drawn


def _value(point: Mapping[str, Any] | None, between: str) -> Text:
    """Faithfulness, the held-out one in brackets, and the interval."""
    if point is None:
        return Text("")
    value, held = formats.finite(point.get("value")), formats.finite(point.get("held_out"))
    words = Text(formats.MISSING if value is None else formats.rounded(value, 3))
    words.append("" if held is None else f" ({formats.rounded(held, 2)})")
    ends = [formats.finite(point.get(end)) for end in ("low", "high")]
    low, high = ("" if end is None else formats.rounded(end, 2) for end in ends)
    return words.append(f"{between}[{low}, {high}]", style="dim") if low and high else words


def _methods(methods: Sequence[Mapping[str, Any]], others: set[int]) -> Table:
    """Seconds, agreement with exact scores, and circuits of sizes that no other method has."""
    drawn = plain_table(("method", "left"), ("seconds", "right"), ("spearman", "right"), gap=2)
    if others:
        drawn.add_column("circuits of other sizes")
    for one in methods:
        own = [(size, point) for size, point in sorted(points_of(one).items()) if size in others]
        lines = Text("\n").join(Text(f"{size:,}: ").append_text(_value(point, " ")) for size, point in own)
        numbers = [Text(formats.fixed(one.get("seconds"), 1)), Text(formats.fixed(one.get("spearman"), 2))]
        drawn.add_row(Text(str(one["name"])), *numbers, *([lines] if others else []))
    return drawn
