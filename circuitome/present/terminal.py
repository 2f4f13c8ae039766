"""Blocks in the terminal, at any width: no word is broken, and what does not fit is left out, which is said."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from circuitome.present import blocks
from circuitome.present.written import SIGNS, cell_text, ends, numeric, visible, written
from circuitome.report import formats

SHADES = " .:-=+*#%@"
"""Signs of a map, from nothing to the largest."""
STYLES = {"good": "green", "bad": "red", "unclear": "yellow", "": ""}
"""By mark of a row."""
TALL = (
    (0.6, "bold white on rgb(176,70,5)", "bold white on rgb(27,108,176)"),
    (0.3, "black on rgb(238,176,130)", "black on rgb(150,192,230)"),
    (0.0, "dark_orange3", "dodger_blue2"),
)
"""Share of the largest value from which on a cell above zero, and one below, looks so."""
ROOM = 14
"""Room for the labels of a map's rows."""
MOST_ROWS = 60
"""Rows of a map at most."""


def show(document: blocks.Document, console: Console) -> None:
    """Print all that a run says, how to repeat it, and where its page is."""
    console.print(Text(f"\n{document.title}", style="bold"))
    for block in document.blocks:
        if block.where != "page" and not block.folded:
            print_block(block, console)
    if document.sign:
        console.print(Text(f"\n{document.sign}"))
    console.print(Text(f"Again:  {document.command}"), soft_wrap=True)
    if document.folder:
        console.print(Text(f"Report: {document.folder}/report.html"), soft_wrap=True)


def print_block(block: blocks.AnyBlock, console: Console) -> None:
    """Print one block under its heading."""
    if block.title:
        console.print(Text(f"\n{block.title}", style="italic"))
    PRINTED[block.block](block, console)
    if block.note:
        console.print(Text(block.note, style="dim"))


def _lede(block: blocks.Lede, console: Console) -> None:
    console.print(Text(block.text))


def _note(block: blocks.Note, console: Console) -> None:
    console.print(Text(block.text, style="yellow" if block.level == "warning" else ""))


def _numbers(block: blocks.Numbers, console: Console) -> None:
    drawn = plain_grid(("", "left"), ("", "right"), ("", "left"))
    for item in block.items:
        value = f"{written(item.value, item.style)} {ends(item)}".strip()
        drawn.add_row(Text(item.name), Text(value, no_wrap=True), Text(item.unit if item.style != "percent" else ""))
    console.print(drawn)


def _table(block: blocks.Table, console: Console) -> None:
    rows = block.rows[: block.top]
    shown = _fitting(block, rows, console.width)
    heads = [(block.columns[i].name, "right" if numeric(block.columns[i]) else "left") for i in shown]
    drawn = plain_grid(*([("", "left")] if block.marks else []), *heads)
    for number, row in enumerate(rows):
        mark = block.marks[number] if block.marks else ""
        cells = [Text(cell_text(row[i], block, i), no_wrap=numeric(block.columns[i])) for i in shown]
        drawn.add_row(*([Text(SIGNS[mark], style=STYLES[mark])] if block.marks else []), *cells)
    console.print(drawn)
    left = [block.columns[i].name for i in range(len(block.columns)) if i not in shown]
    words = [f"{len(block.rows) - len(rows):,} more rows"] if len(rows) < len(block.rows) else []
    words += [f"the columns {', '.join(left)}"] if left else []
    if words:
        console.print(Text(f"The report also has {' and '.join(words)}.", style="dim"))


def _fitting(block: blocks.Table, rows: Sequence[Sequence[blocks.Cell]], width: int) -> list[int]:
    """Columns that fit without breaking a word: text may wrap between words; the last and the not narrow go first."""
    least = []
    for i, column in enumerate(block.columns):
        texts = [cell_text(row[i], block, i) for row in rows]
        parts = texts if numeric(column) else [word for text in texts for word in text.split()]
        heads = [column.name] if numeric(column) else column.name.split()
        least.append(max(map(len, [*parts, *heads, ""])))
    shown = list(range(len(block.columns)))
    room = width - (3 if block.marks else 0)
    for i in sorted(shown[1:], key=lambda i: (block.columns[i].narrow, -i)):
        if sum(least[k] + 2 for k in shown) <= room:
            break
        shown.remove(i)
    return shown


def _heat_map(block: blocks.HeatMap, console: Console) -> None:
    """Digits are tenths of the largest value; rows and columns without any are left out."""
    values = {(i, j): v for i, row in enumerate(block.values) for j, v in enumerate(row) if v is not None}
    largest = max((abs(v) for v in values.values()), default=0.0)
    if not largest:
        console.print(Text("all values are 0" if values else "no values"))
        return
    cell = max(3, *(len(name) for name in block.columns))
    rows = _strongest(values, 0, MOST_ROWS, largest)
    columns = _strongest(values, 1, max(1, (console.width - ROOM) // (cell + 1)), largest)
    drawn = plain_grid(("", "right"), *((block.columns[j], "left") for j in columns), gap=1)
    for i in reversed(rows) if block.upwards else rows:
        label = Text(block.rows[i], overflow="ellipsis", no_wrap=True)
        drawn.add_row(label, *(_map_cell(values.get((i, j)), largest, _sure(block, i, j)) for j in columns))
    drawn.columns[0].max_width = ROOM - 2
    console.print(drawn)
    above = "blue below zero, orange above" if block.scale == "signed" else "darker is more"
    words = f"Digits 1 to 9 are tenths of {formats.fixed(largest, 3)} {block.unit}; {above}"
    words += "; *: the interval does not hold 0" if block.low else ""
    for axis, kept, place in (("rows", rows, 0), ("columns", columns, 1)):
        count = len({index[place] for index in values})
        words += f"; {len(kept)} of {count} {axis} are shown" if len(kept) < count else ""
    console.print(Text(f"{words}.", style="dim"))
    _strongest_cells(block, values, console)


def _strongest(values: dict[tuple[int, int], Any], axis: int, most: int, largest: float) -> list[int]:
    """Rows (axis 0) or columns (axis 1) with a value of a tenth of the largest, in order; of too many the strongest."""
    sizes: dict[int, float] = {}
    for place, value in values.items():
        sizes[place[axis]] = max(sizes.get(place[axis], 0.0), abs(value))
    seen = [index for index, size in sizes.items() if size >= largest / 10]
    return sorted(sorted(seen, key=lambda index: -sizes[index])[:most])


def _sure(block: blocks.HeatMap, row: int, column: int) -> bool:
    if not block.low:
        return False
    low, high = block.low[row][column], block.high[row][column]
    return low is not None and high is not None and (low > 0 or high < 0)


def _map_cell(value: float | None, largest: float, sure: bool) -> Text:
    if value is None:
        return Text("")
    share = abs(value) / largest
    tenths = min(9, int(10 * share))
    if not tenths:
        return Text("")
    style = next(above if value > 0 else below for least, above, below in TALL if share >= least)
    return Text(f"{'+' if value > 0 else '-'}{tenths}{'*' if sure else ' '}", style=style)


def _strongest_cells(block: blocks.HeatMap, values: dict[tuple[int, int], Any], console: Console) -> None:
    order = sorted(values, key=lambda place: -abs(values[place]))[: block.top]
    if not order:
        return
    drawn = plain_grid(
        ("strongest", "left"), (block.unit or "value", "right"), ("95 % interval" if block.low else "", "left")
    )
    for i, j in order:
        name = block.labels[i][j] if block.labels else f"{block.rows[i]} {block.columns[j]}"
        low, high = (block.low[i][j], block.high[i][j]) if block.low else (None, None)
        drawn.add_row(Text(name), Text(formats.fixed(values[i, j], 3)), Text(formats.interval(low, high, 3)))
    console.print(drawn)


def _lines(block: blocks.Lines, console: Console) -> None:
    """The points as a table, one row for each place on the axis."""
    places = sorted({x for line in block.series for x in line.x if x is not None})
    columns = (blocks.Column(name=block.x, style="count" if all(float(x).is_integer() for x in places) else "number"),)
    lines = tuple(blocks.Column(name=line.name, style="estimate", decimals=3) for line in block.series)
    points = [dict(zip(line.x, _points(line), strict=True)) for line in block.series]
    rows = tuple((x, *(point.get(x) for point in points)) for x in places)
    _table(blocks.Table(columns=columns + lines, rows=rows), console)


def _points(line: blocks.Series) -> list[blocks.Cell]:
    low, high = (end or (None,) * len(line.y) for end in (line.low, line.high))
    return [None if y is None else (y, a, b) for y, a, b in zip(line.y, low, high, strict=True)]


def _bars(block: blocks.Bars, console: Console) -> None:
    low, high = (end or (None,) * len(block.values) for end in (block.low, block.high))
    columns = (blocks.Column(name=""), blocks.Column(name=block.x, style="estimate"))
    rows = tuple((label, (v, a, b)) for label, v, a, b in zip(block.labels, block.values, low, high, strict=True))
    _table(blocks.Table(columns=columns, rows=rows), console)


def _scatter(block: blocks.Scatter, console: Console) -> None:
    names = (block.x, block.y)
    columns = (blocks.Column(name=""), *(blocks.Column(name=name, style="number") for name in names))
    rows = tuple((name, x, y) for x, y, name in block.points)
    _table(blocks.Table(columns=columns, rows=rows, top=12), console)


def _circuit(block: blocks.CircuitMap, console: Console) -> None:
    """Heads across, layers upwards; a darker sign for a node that more of the circuit's score touches; then edges."""
    strength: dict[str, float] = {}
    for edge in block.edges:
        for node in dict.fromkeys((edge.source, *_readers(edge.reader, block.shape))):
            strength[node] = strength.get(node, 0.0) + abs(edge.score or 0.0)
    top = max((value for node, value in strength.items() if node != "embed"), default=0.0) or 1.0
    drawn = plain_grid(("", "right"), *((str(h), "left") for h in range(block.shape.heads)), ("mlp", "left"), gap=1)
    for layer in reversed(range(block.shape.layers)):
        names = [*(f"a{layer}.h{head}" for head in range(block.shape.heads)), f"m{layer}"]
        signs = [_shade(strength.get(name, 0.0) / top) for name in names]
        if any(sign.strip() for sign in signs):
            drawn.add_row(str(layer), *signs)
    console.print(drawn)
    console.print(
        Text(
            f"Layers up, heads across, MLP last. Sum of |score| over a node's edges: {' '.join(SHADES[1:])} from least "
            f"to most; layers without a node are left out.",
            style="dim",
        )
    )
    edges = tuple((edge.source, edge.reader, (edge.score, edge.low, edge.high)) for edge in block.edges[: block.top])
    columns = (
        blocks.Column(name="from", style="node"),
        blocks.Column(name="to", style="node"),
        blocks.Column(name="score", style="estimate", decimals=4),
    )
    console.print(Text(f"\nStrongest edges ({block.unit}), with 95 % intervals", style="italic"))
    _table(blocks.Table(columns=columns, rows=edges), console)


def _readers(reader: str, shape: blocks.Shape) -> list[str]:
    """The nodes that a reader is an input of: every head of a group for a shared key or value."""
    part, _, kind = reader.rpartition(".")
    layer, _, head = part.partition(".")
    if head.startswith("kv"):
        group = shape.heads // shape.kv_heads
        return [f"{layer}.h{h}" for h in range(int(head[2:]) * group, (int(head[2:]) + 1) * group)]
    return [part] if kind in ("q", "k", "v", "in") else []


def _shade(share: float) -> str:
    return SHADES[0 if share <= 0 else max(1, round(min(1.0, share) ** 0.5 * (len(SHADES) - 1)))]


def _roles(block: blocks.Roles, console: Console) -> None:
    columns = (blocks.Column(name="role"), blocks.Column(name="parts"), blocks.Column(name="leads to"))
    rows = tuple(
        (
            role.name,
            ", ".join(role.members),
            ", ".join(f"{end} ({by})" for start, end, by, _ in block.arrows if start == role.name),
        )
        for role in block.classes
    )
    _table(blocks.Table(columns=columns, rows=rows), console)


def _routes(block: blocks.Routes, console: Console) -> None:
    edges = sorted((edge for edge in block.edges if edge.importance >= block.threshold), key=lambda e: -e.importance)
    columns = (blocks.Column(name="from"), blocks.Column(name="to"), blocks.Column(name="importance", style="number"))
    rows = tuple((edge.source, edge.target, edge.importance) for edge in edges)
    console.print(Text(f"{block.label}: {len(edges)} edges of at least {block.threshold:g}"))
    _table(blocks.Table(columns=columns, rows=rows, top=12), console)


def _tokens(block: blocks.Tokens, console: Console) -> None:
    largest = max((abs(v) for line in block.lines for _, v in line if v is not None), default=1.0) or 1.0
    for number, line in enumerate(block.lines):
        text = Text(f"{block.labels[number]} " if block.labels else "")
        for token, value in line:
            text.append(visible(token), style="bold" if value is not None and abs(value) > largest / 2 else "")
        console.print(text)


def _attention(block: blocks.Attention, console: Console) -> None:
    for head, pattern in block.heads:
        console.print(Text(head, style="bold"))
        for token, row in zip(block.tokens, pattern, strict=True):
            known = [(value, j) for j, value in enumerate(row) if value is not None]
            value, at = max(known, default=(None, 0))
            console.print(Text(f"  {visible(token)} attends to {visible(block.tokens[at])} {written(value, 'number')}"))


def _pairs(block: blocks.Pairs, console: Console) -> None:
    for pair in block.pairs[:3]:
        console.print(Text(f"clean      {pair.clean}\ncorrupted  {pair.corrupted}"))


def plain_grid(*columns: tuple[str, str], gap: int = 2) -> Grid:
    """A grid without lines; columns are (name, left or right)."""
    drawn = Grid(box=None, header_style="bold", padding=(0, gap, 0, 0), pad_edge=False)
    for name, side in columns:
        drawn.add_column(Text(name), justify=side)  # type: ignore[arg-type]
    drawn.show_header = any(name for name, _ in columns)
    return drawn


PRINTED: dict[str, Callable[[Any, Console], None]] = {
    "lede": _lede,
    "note": _note,
    "numbers": _numbers,
    "table": _table,
    "heat map": _heat_map,
    "lines": _lines,
    "bars": _bars,
    "scatter": _scatter,
    "circuit": _circuit,
    "roles": _roles,
    "routes": _routes,
    "tokens": _tokens,
    "attention": _attention,
    "pairs": _pairs,
}
"""By kind of block: what prints it."""
