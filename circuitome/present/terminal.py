"""Blocks in the terminal, at any width."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

from circuitome.present import blocks, formats, text_figures
from circuitome.present.blocks import Column, Number, table
from circuitome.present.text_figures import say, tell
from circuitome.present.text_tables import print_table

POINTS = 12
"""Places of lines that are listed; more are drawn as bars."""
BARS = "▁▂▃▄▅▆▇█"
LISTED = 12
"""Points of a scatter, and places of heads' attention, that are listed."""
PAIRS = 3
"""Example pairs that are listed."""


def show(document: blocks.Document, console: Console) -> None:
    """Print all that a run says, how to repeat it, and where its page is."""
    tell(console, f"\n{document.title}", "bold")
    for block in document.blocks:
        if block.where != "page" and not block.folded:
            print_block(block, console)
    folded = sum(block.folded and block.where != "terminal" for block in document.blocks)
    console.print()
    if document.sign:
        tell(console, document.sign)
    if folded and document.folder:
        say(console, f"Also in the report: {folded} folded part{'s' * (folded > 1)}.")
    tell(console, f"Again:  {document.command}", soft_wrap=True)
    if document.folder:
        tell(console, f"Report: {document.folder}/report.html", soft_wrap=True)


def print_block(block: blocks.AnyBlock, console: Console) -> None:
    """Print one block under its heading."""
    if block.title:
        tell(console, f"\n{block.title}", "italic")
    elif block.block == "numbers":
        console.print()
    if block.note:
        say(console, block.note)
    PRINTED[block.block](block, console)


def _lede(block: blocks.Lede, console: Console) -> None:
    tell(console, block.text)


def _note(block: blocks.Note, console: Console) -> None:
    tell(console, block.text, "yellow" if block.level == "warning" else "")


def _numbers(block: blocks.Numbers, console: Console) -> None:
    rows = []
    for item in block.items:
        value, ends = formats.headline(item)
        rows.append((item.name, value, " ".join(part for part in (ends, item.unit) if part), item.about))
    print_table(table("", ("", ("", "number"), "", Column("", narrow=False)), rows), console)


def _lines(block: blocks.Lines, console: Console) -> None:
    """The points as a table, lines across or down, whichever are fewer; of many points their course."""
    places = sorted({x for line in block.series for x in line.x if x is not None})
    if len(places) > POINTS:
        _courses(block, console)
        return
    points = [{x: None if y is None else (y, *ends) for x, y, *ends in line.points} for line in block.series]
    names = [f"{x:,.6g}" for x in places]
    if len(block.series) <= 3:
        first, across = (block.x, "count"), [line.name for line in block.series]
        rows: list[Any] = [(name, *(point.get(x) for point in points)) for name, x in zip(names, places, strict=True)]
    else:
        first, across = (block.x, "text"), names
        rows = [(line.name, *map(point.get, places)) for line, point in zip(block.series, points, strict=True)]
    print_table(table("", (first, *((name, "estimate", 3) for name in across)), rows), console)
    _levels(block, console)


def _courses(block: blocks.Lines, console: Console) -> None:
    """The course of each line in a few bars, with its ends."""
    values = [y for line in block.series for y in line.y if y is not None]
    lowest, highest = min(values, default=0.0), max(values, default=0.0)
    rows = []
    for line in block.series:
        known = [y for y in line.y if y is not None]
        step = max(1, -(-len(line.y) // 30))
        course = "".join(_bar(y, lowest, highest) for y in line.y[::step])
        rows.append((line.name, course, known[0] if known else None, known[-1] if known else None))
    columns = ("", f"over {block.x}", ("first", "number"), ("last", "number"))
    print_table(table("", columns, rows), console)
    say(console, f"{block.y}; bars from {formats.plain(lowest)} to {formats.plain(highest)}.")
    _levels(block, console)


def _bar(value: Number, lowest: float, highest: float) -> str:
    if value is None:
        return " "
    share = (value - lowest) / (highest - lowest) if highest > lowest else 0.0
    return BARS[min(len(BARS) - 1, int(share * len(BARS)))]


def _levels(block: blocks.Lines, console: Console) -> None:
    """Named lines, other than the ends of the scale that are said on the axis."""
    words = [f"{name}: {value:,.6g}" for name, value in (*block.levels, *block.marks)]
    if words:
        say(console, f"{'; '.join(words)}.")


def _bars(block: blocks.Bars, console: Console) -> None:
    rows: list[Any] = [(name, (value, low, high), group) for name, value, low, high, group in block.bars]
    shown = slice(None if block.groups else -1)
    heads: tuple[Any, ...] = ("", (block.x, "estimate"), Column("", narrow=False))
    print_table(table("", heads[shown], (row[shown] for row in rows)), console)


def _scatter(block: blocks.Scatter, console: Console) -> None:
    heads = ("", (block.x, "number"), (block.y, "number"))
    print_table(table("", heads, ((name, x, y) for x, y, name in block.points), top=LISTED), console)


def _roles(block: blocks.Roles, console: Console) -> None:
    rows = []
    for role in block.classes:
        ends = (end if by == end else f"{end} ({by})" for start, end, by, _ in block.arrows if start == role.name)
        rows.append((role.name, role.position, ", ".join(role.members), ", ".join(ends)))
    print_table(table("", ("role", Column("at", narrow=False), "parts", "leads to"), rows), console)


def _causal_map(block: blocks.CausalMap, console: Console) -> None:
    rows = [
        (v.name, ", ".join(v.parents) or "(an input)", v.place, v.accuracy, "" if v.accuracy is None else _stands(v))
        for v in block.variables
    ]
    heads = ("variable", Column("computed from", narrow=False), ("judged at", "node"), ("IIA", "estimate", 2), "")
    print_table(table("", heads, rows), console)


def _stands(variable: blocks.CausalVariable) -> str:
    return "has a place" if variable.holds else "not above controls"


def _tokens(block: blocks.Tokens, console: Console) -> None:
    """The text, its strongest tokens bold and listed with their values."""
    largest = max((abs(v) for line in block.lines for _, v in line if v is not None), default=0.0) or 1.0
    for number, line in enumerate(block.lines):
        text = Text(f"{formats.printable(block.labels[number])}  " if block.labels else "")
        strong = sorted(((v, t) for t, v in line if v is not None and abs(v) >= largest / 4), key=lambda p: -abs(p[0]))
        for token, value in line:
            loud = value is not None and abs(value) >= largest / 4
            text.append(formats.printable(token), style="bold reverse" if loud else "")
        console.print(text)
        words = ", ".join(f"{formats.quoted(token)} {formats.plain(value)}" for value, token in strong[:5])
        say(console, f"strongest: {words} {block.unit}".rstrip() if words else "no strong tokens")


def _neurons(block: blocks.NeuronIndex, console: Console) -> None:
    count = len(block.layers) * block.width
    say(console, f"The report finds any of {count:,} neurons by name or token; circuitome neuron NAME RUN shows one.")


def _checkpoints(block: blocks.Checkpoints, console: Console) -> None:
    names = ", ".join(f"{run.name} ({len(run.steps)} steps to {run.steps[-1]:,})" for run in block.runs)
    say(console, f"The report shows heads, attention and circuits at each step of {names}.")


def _attention(block: blocks.Attention, console: Console) -> None:
    """Where each head attends most, the first token and the query itself left out."""
    rows = []
    for head, pattern in block.heads:
        places = [
            (value, i, j)
            for i, row in enumerate(pattern)
            for j, value in enumerate(row)
            if value is not None and 0 < j != i
        ]
        for value, i, j in sorted(places, key=lambda place: -place[0])[: max(2, LISTED // len(block.heads))]:
            rows.append((head, formats.quoted(block.tokens[i]), formats.quoted(block.tokens[j]), value))
    print_table(table("", (("head", "node"), "from", "attends to", ("share", "percent")), rows), console)
    say(console, "The strongest places; attention to the first token and to the token itself is left out.")


def _pairs(block: blocks.Pairs, console: Console) -> None:
    for pair in block.pairs[:PAIRS]:
        tell(console, f"clean      {pair.clean}\ncorrupted  {pair.corrupted}")


PRINTED: dict[str, Callable[[Any, Console], None]] = {
    "lede": _lede,
    "note": _note,
    "numbers": _numbers,
    "table": print_table,
    "heat map": text_figures.heat_map,
    "lines": _lines,
    "bars": _bars,
    "scatter": _scatter,
    "circuit": text_figures.circuit,
    "roles": _roles,
    "causal model": _causal_map,
    "routes": text_figures.routes,
    "attribution graph": text_figures.prompt_graph,
    "tokens": _tokens,
    "neurons": _neurons,
    "checkpoints": _checkpoints,
    "attention": _attention,
    "pairs": _pairs,
}
"""By kind of block: what prints it."""
