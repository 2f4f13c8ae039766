"""Numbers and cells of blocks as text, the same in every view."""

import math
from typing import Any

from circuitome.present.blocks import Cell, Column, Figure, Table
from circuitome.report import formats

SIGNS = {"good": "\N{HEAVY CHECK MARK}", "bad": "\N{HEAVY BALLOT X}", "unclear": "?", "": ""}
"""What stands in front of a row with a mark."""


def written(value: Any, style: str) -> str:
    """A number in its style; text as it is."""
    if value is None:
        return formats.MISSING
    if isinstance(value, str):
        return value
    if style == "count":
        return formats.count(value)
    if style == "percent":
        return formats.percent({"value": value, "low": None, "high": None})
    return ("+" if style == "signed" and value > 0 else "") + formats.plain(value)


def ends(item: Figure) -> str:
    """The interval of a headline number."""
    if item.style == "percent":
        low, high = (None if end is None else 100 * end for end in (item.low, item.high))
        return formats.interval(low, high, 0)
    return formats.bounds({"low": item.low, "high": item.high})


def decimals_of(block: Table, index: int) -> int:
    """Digits after the point that suit a column's numbers: four significant ones for the largest, four at most."""
    column = block.columns[index]
    if column.decimals is not None:
        return column.decimals
    cells = (row[index] for row in block.rows)
    numbers = [v for cell in cells for v in (cell if isinstance(cell, tuple) else (cell,))]
    values = [abs(v) for v in numbers if isinstance(v, (int, float)) and math.isfinite(v)]
    return min(4, formats.score_decimals(max(values, default=1.0)))


def numeric(column: Column) -> bool:
    """Whether a column holds numbers, which stand at the right."""
    return column.style not in ("text", "node")


def cell_text(cell: Cell, block: Table, index: int) -> str:
    """A cell in its column's style."""
    column = block.columns[index]
    if cell is None:
        return formats.MISSING if numeric(column) else ""
    if isinstance(cell, str):
        return cell
    if column.style == "percent":
        value, low, high = cell if isinstance(cell, tuple) else (cell, None, None)
        return formats.percent({"value": value, "low": low, "high": high})
    if column.style == "count" or isinstance(cell, int):
        return formats.count(cell)
    decimals = decimals_of(block, index)
    if isinstance(cell, tuple):
        value, low, high = cell
        return f"{formats.fixed(value, decimals)} {formats.interval(low, high, decimals)}".strip()
    text = formats.fixed(cell, decimals)
    return f"+{text}" if column.style == "signed" and cell > 0 else text


def visible(token: str) -> str:
    """A token with signs in place of spaces and line breaks."""
    return token.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")
