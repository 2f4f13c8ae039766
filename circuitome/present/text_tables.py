"""Tables in the terminal, at any width: no word is broken, no number wraps, and what does not fit is said.

Columns that need not be seen in a narrow terminal are left out first; then long texts stand below their rows; what
still does not fit stands in a further table that repeats the first column.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from circuitome.present import formats
from circuitome.present.blocks import Column, Table
from circuitome.present.formats import printable

GAP, INDENT = 2, 4
"""Spaces between columns, and in front of a text below its row."""
COMFORT, LONG = 16, 24
"""Width below which a text is not squeezed, and above which it may stand below its row."""
UNIT = re.compile(r'(?:"(?:[^"\\]|\\.){0,24}"|[^ ])+')
"""What is not broken: words, and short texts in quotes, such as tokens."""
STYLES = {"good": "green", "bad": "red", "unclear": "yellow", "": ""}
"""By mark of a row."""


def print_table(table: Table, console: Console) -> None:
    """Print a table, and say what it leaves out."""
    rows = [[printable(cell) for cell in row] for row in formats.texts(table)[: table.top]]
    layout = _layout(table, rows, console.width - (GAP if table.marks else 0))
    for columns in layout.tables:
        if columns is not layout.tables[0]:
            console.print()
        widths = _widths(columns, layout, console.width - (GAP if table.marks else 0))
        heads = [layout.heads[i] for i in columns]
        if any(heads):
            _print_row(console, heads, columns, widths, table, style="bold")
        for number, row in enumerate(rows):
            mark = table.marks[number] if table.marks else ""
            _print_row(console, [row[i] for i in columns], columns, widths, table, mark=mark)
            for i in layout.below if columns is layout.tables[0] else ():
                _print_below(console, layout.heads[i], row[i])
    left = [f"{len(table.rows) - len(rows):,} more rows"] if len(rows) < len(table.rows) else []
    left += [f"the column {layout.heads[i]!r}" for i in layout.dropped]
    if left:
        console.print(Text(f"Also in the report: {', '.join(left)}.", style="dim"))


@dataclass(frozen=True)
class _Layout:
    """Which columns stand where."""

    heads: list[str]
    """Headings, with units."""
    least: list[int]
    """Width below which each column is not squeezed."""
    full: list[int]
    """Width that each column would like."""
    tables: list[list[int]]
    """Columns of each table, one below the other."""
    below: list[int]
    """Columns whose texts stand below their rows."""
    dropped: list[int]
    """Columns that are left out."""


def _layout(table: Table, rows: Sequence[Sequence[str]], room: int) -> _Layout:
    heads = [printable(f"{column.name} ({column.unit})" if column.unit else column.name) for column in table.columns]
    texts = [[head, *(row[i] for row in rows)] for i, head in enumerate(heads)]
    full = [max(map(cell_len, column)) for column in texts]
    least = [_least(*pair, COMFORT) for pair in zip(table.columns, texts, strict=True)]
    shown = list(range(len(heads)))
    dropped: list[int] = []
    below: list[int] = []

    def fits() -> bool:
        return sum(least[i] + GAP for i in shown) - GAP <= room

    for i in [i for i in reversed(shown) if not table.columns[i].narrow]:
        if not fits():
            shown.remove(i)
            dropped.insert(0, i)
    for i in sorted(shown[1:], key=lambda i: -full[i]):
        if not fits() and not formats.numeric(table.columns[i]) and full[i] > LONG:
            shown.remove(i)
            below.append(i)
    if not fits():
        least = [_least(*pair, 0) for pair in zip(table.columns, texts, strict=True)]
    return _Layout(heads, least, full, _chunks(shown, least, room), sorted(below), dropped)


def _least(column: Column, texts: Sequence[str], comfort: int) -> int:
    """Numbers need all of their width, texts that of their longest word and enough to read well."""
    if formats.numeric(column):
        return max([0, *map(cell_len, [*texts[1:], *UNIT.findall(texts[0])])])
    words = (cell_len(word) for text in texts for word in UNIT.findall(text))
    return max([min(comfort, max(map(cell_len, texts))), *words])


def _chunks(shown: list[int], least: Sequence[int], room: int) -> list[list[int]]:
    """Columns by table, as many as fit; every table starts with the first."""
    first, *rest = shown
    tables: list[list[int]] = [[first]]
    for i in rest:
        if sum(least[k] + GAP for k in tables[-1]) + least[i] > room and len(tables[-1]) > 1:
            tables.append([first])
        tables[-1].append(i)
    return tables


def _widths(columns: Sequence[int], layout: _Layout, room: int) -> list[int]:
    """What each column gets: all it would like, or as much less as must be, the widest giving first."""
    widths = [max(layout.full[i], layout.least[i]) for i in columns]
    least = [layout.least[i] for i in columns]
    while sum(widths) + GAP * (len(widths) - 1) > room:
        spare = [width - smallest for width, smallest in zip(widths, least, strict=True)]
        if not any(spare):
            break
        widths[max(range(len(widths)), key=lambda i: (spare[i] > 0, widths[i]))] -= 1
    return widths


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, broken at spaces only; words and short texts in quotes stay whole."""
    lines = [""]
    for word in UNIT.findall(text):
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines


def _print_row(
    console: Console,
    cells: Sequence[str],
    columns: Sequence[int],
    widths: Sequence[int],
    table: Table,
    *,
    style: str = "",
    mark: str = "",
) -> None:
    parts = [wrapped(cell, width) for cell, width in zip(cells, widths, strict=True)]
    starts = [start + GAP * i for i, start in enumerate(accumulate(widths, initial=0))]
    for line in range(max(map(len, parts))):
        text = Text(style=style)
        if table.marks:
            text.append(f"{formats.SIGNS[mark] if not line else '':<{GAP}}", style=STYLES[mark])
        text_start = text.cell_len
        for i, part, width, start in zip(columns, parts, widths, starts, strict=False):
            words = part[line] if line < len(part) else ""
            pad = width - cell_len(words) if formats.numeric(table.columns[i]) else 0
            text.append(" " * (text_start + start + pad - text.cell_len) + words)
        text.rstrip()
        console.print(text, no_wrap=True, overflow="ignore", crop=False)


def _print_below(console: Console, head: str, text: str) -> None:
    for line in wrapped(f"{head}: {text}", console.width - INDENT) if text else ():
        console.print(Text(" " * INDENT + line, style="dim"), no_wrap=True, overflow="ignore", crop=False)
