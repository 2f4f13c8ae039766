"""Numbers, cells and tokens as a reader wants to see them, the same in every view."""

import json
import math
import re
from typing import Any

from circuitome.present.blocks import Cell, Column, Figure, Number, Table

MISSING = "n/a"
MINUS = "\N{MINUS SIGN}"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML forbids or that steer a terminal."""
SIGNS = {"good": "\N{HEAVY CHECK MARK}", "bad": "\N{HEAVY BALLOT X}", "unclear": "?", "": ""}
"""What stands in front of a row with a mark."""
SEARCHED = 50
"""Rows of a table above which a page lets them be searched."""


def finite(value: Any) -> float | None:
    """`value` as a float, or None when it is missing, NaN or infinite."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    known = finite(value)
    return MISSING if known is None else f"{int(known):,}".replace("-", MINUS)


def fixed(value: Any, decimals: int) -> str:
    """`value` with `decimals` digits and a true minus sign; what would round to nothing keeps its power of ten."""
    known = finite(value)
    if known is None:
        return MISSING
    tiny = 0 < abs(known) < 0.5 * 10**-decimals
    shown = f"{known:.1e}" if tiny else f"{known + 0.0:,.{decimals}f}"  # never minus zero
    return shown.replace("-", MINUS)


def rounded(value: float, decimals: int) -> str:
    """`value` with `decimals` digits and a true minus sign, never minus zero."""
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", MINUS)


def plain(value: Any) -> str:
    """`value` with three decimals, fewer above a hundred."""
    known = finite(value)
    return fixed(value, 3 if known is None or abs(known) < 100 else 1)


def interval(low: Any, high: Any, decimals: int = 3) -> str:
    """`[low, high]`, or nothing when there is no interval."""
    if finite(low) is None or finite(high) is None:
        return ""
    return f"[{fixed(low, decimals)}, {fixed(high, decimals)}]"


def estimate(value: Any, low: Any, high: Any, decimals: int = 3) -> str:
    """A value with its interval where it has one, e.g. `2.200 [1.900, 2.500]`."""
    return f"{fixed(value, decimals)} {interval(low, high, decimals)}".strip()


def percent(value: Any, low: Any = None, high: Any = None) -> str:
    """A share, e.g. `43 % [38, 48]`; one decimal when everything is below ten per cent."""
    known = [finite(end) for end in (value, low, high)]
    shares = [100 * share for share in known if share is not None]
    if known[0] is None:
        return MISSING
    decimals = 1 if 0 < max(map(abs, shares)) < 9.95 else 0
    middle, *ends = (rounded(share, decimals) for share in shares)
    return f"{middle}\N{NO-BREAK SPACE}%" + (f" [{ends[0]}, {ends[1]}]" if len(ends) == 2 else "")


def size(value: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.3g} {unit}" if unit != "GB" else f"{value:,.2f} GB"


def score_decimals(largest: float) -> int:
    """Digits after the point that give the largest score four significant ones; between 2 and 8."""
    if not largest:
        return 3
    return min(8, max(2, 3 - math.floor(math.log10(largest))))


def headline(item: Figure) -> tuple[str, str]:
    """A headline number, and its interval."""
    if item.style == "percent":
        value, _, ends = percent(item.value, item.low, item.high).partition(" [")
        return value, f"[{ends}" if ends else ""
    if item.style == "count":
        return count(item.value), interval(item.low, item.high, 0)
    large = max((abs(end) for end in (item.value, item.low, item.high) if end is not None), default=0.0)
    decimals = 3 if large < 100 else 1
    value = fixed(item.value, decimals)
    return _signed(value, item.value) if item.style == "signed" else value, interval(item.low, item.high, decimals)


def numeric(column: Column) -> bool:
    """Whether a column holds numbers, which stand at the right."""
    return column.style not in ("text", "node")


def decimals_of(table: Table, index: int) -> int:
    """Digits after the point that suit a column's numbers: four significant ones for the largest, two to four."""
    column = table.columns[index]
    if column.decimals is not None:
        return column.decimals
    cells = (row[index] for row in table.rows)
    numbers = (finite(value) for cell in cells for value in (cell if isinstance(cell, tuple) else (cell,)))
    return min(4, score_decimals(max((abs(value) for value in numbers if value is not None), default=1.0)))


def cell_text(cell: Cell, column: Column, decimals: int) -> str:
    """A cell in its column's style."""
    if isinstance(cell, str):
        return cell
    value, low, high = cell if isinstance(cell, tuple) else (cell, None, None)
    if finite(value) is None:
        return MISSING if numeric(column) else ""
    if column.style == "percent":
        return percent(value, low, high)
    if column.style == "count" or isinstance(cell, int):
        return count(value)
    text = estimate(value, low, high, decimals)
    return _signed(text, value) if column.style == "signed" else text


def texts(table: Table) -> list[list[str]]:
    """All cells of a table as text."""
    decimals = [decimals_of(table, index) for index in range(len(table.columns))]
    return [
        [cell_text(cell, column, places) for cell, column, places in zip(row, table.columns, decimals, strict=True)]
        for row in table.rows
    ]


def letters(table: Table, index: int) -> int:
    """Letters of a column's longest cell or heading, which decide how far a page may squeeze a column of texts."""
    column = table.columns[index]
    return max(len(column.name), *(len(cell_text(row[index], column, 0)) for row in table.rows), 0)


def _signed(text: str, value: Number) -> str:
    return f"+{text}" if value is not None and value > 0 else text


def visible(token: str) -> str:
    """A token with signs in place of spaces and line breaks."""
    return token.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def printable(text: str) -> str:
    """Text on one line that cannot steer a terminal: line breaks as signs, other control characters replaced."""
    return CONTROL.sub("\ufffd", text.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"))


def together(text: str) -> str:
    """A sentence whose percent signs stay with their numbers."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def quoted(text: str) -> str:
    """Text in quotes, so that its spaces can be seen."""
    return json.dumps(text, ensure_ascii=False)


def slug(title: str) -> str:
    """A title as a name for files and anchors: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
