"""A heat map: one cell for each part, coloured by sign and size, outlined where its interval leaves out chance."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any

import altair as alt

from circuitome.present import formats
from circuitome.present.assets import palette
from circuitome.present.blocks import HeatMap

WIDEST, HIGHEST = 720, 560
"""What the cells take up at most, unless they would become too small to see."""
CELL_WIDTH, CELL_HEIGHT = (13, 42), (11, 22)
"""Smallest and largest cell."""
LETTER = 6.5
"""Width of a letter of a label."""
LEGEND = 32
"""Letters of a line below the colours, as long as those and their unit."""
WRITTEN = 0.22
"""Cells with at least this share of the largest value have their number written into them, where it fits."""
HALF, SWATCH = 5, 18
"""Colours of the scale on either side of 0, and their width."""
SAID: dict[str, Any] = {"description": "said:N", "tooltip": "said:N"}
"""The label that a mark carries."""


def few(rows: Sequence[dict[str, Any]]) -> Any:
    """A chart of these rows, without marks so far; they are copied with every step."""
    return alt.Chart(alt.Data(values=list(rows)))


def many() -> Any:
    """A chart of the rows that `with_rows` gives it at the end, without marks so far."""
    return alt.Chart(alt.NamedData(name="rows"))


def with_rows(chart: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """The same chart, its `many` marks drawn from these rows."""
    chart.datasets = {"rows": list(rows)}
    return chart


def cells(block: HeatMap) -> Iterator[tuple[int, int, float]]:
    """Row, column and value of every cell that exists."""
    for i, row in enumerate(block.values):
        for j, value in enumerate(row):
            if (known := formats.finite(value)) is not None:
                yield i, j, known


def name_of(block: HeatMap, row: int, column: int) -> str:
    """The name of a cell."""
    return block.labels[row][column] if block.labels else f"{block.rows[row]}, {block.columns[column]}"


def ends_of(block: HeatMap, row: int, column: int) -> tuple[float | None, float | None]:
    """The interval of a cell; None where it has none."""
    low, high = (formats.finite(end[row][column]) if end else None for end in (block.low, block.high))
    return low, high


def certain(block: HeatMap, row: int, column: int) -> bool:
    """Whether a cell's interval lies above chance, or leaves it out where chance is 0."""
    low, high = ends_of(block, row, column)
    return low is not None and high is not None and (low > block.chance or (high < 0 and not block.chance))


def certainty(block: HeatMap) -> str:
    """What is true of the interval of a certain cell, in words."""
    if block.chance:
        return f"the 95 % interval lies above chance ({formats.rounded(block.chance, 3)})"
    return "the 95 % interval leaves out 0"


def heat_map(block: HeatMap) -> Any:
    """Cells with the strongest numbers written into them, below their scale."""
    known = list(cells(block))
    largest = max((abs(value) for _, _, value in known), default=0.0)
    width = min(CELL_WIDTH[1], max(CELL_WIDTH[0], WIDEST // max(1, len(block.columns))))
    height = min(CELL_HEIGHT[1], max(CELL_HEIGHT[0], HIGHEST // max(1, len(block.rows))))
    base = many().encode(**_places(block, width))
    line = {"stroke": alt.Stroke("line:N", scale=None), "strokeOpacity": alt.StrokeOpacity("edge:Q", scale=None)}
    rect = base.mark_rect(width=width - 2, height=height - 2, strokeWidth=1)
    layers = [rect.encode(**_paint(), **line, **SAID), *_borders(block)]
    if width >= 36 and height >= 15 and largest >= 0.05:
        numbers = base.transform_filter("datum.number != ''").mark_text(aria=False, fontSize=9.5)
        layers.append(numbers.encode(text="number:N", color=alt.Color("ink:N", scale=None)))
    drawn = alt.layer(*layers).properties(width=width * len(block.columns), height=height * len(block.rows))
    legend = _scale(block, largest) if largest else _words("all values are 0" if known else "no values")
    return with_rows(alt.vconcat(legend, drawn), [_cell(block, *cell, largest) for cell in known])


def _paint() -> dict[str, Any]:
    return {"color": alt.Color("fill:N", scale=None), "fillOpacity": alt.FillOpacity("strength:Q", scale=None)}


def _strength(share: float) -> float:
    """Opacity of a value's colour: small values are a little stronger than in proportion."""
    return round(abs(share) ** 0.7, 2)


def _colour(block: HeatMap, value: float) -> str:
    return palette()["hurts" if value > 0 and block.scale == "signed" else "helps"]


def _cell(block: HeatMap, row: int, column: int, value: float, largest: float) -> dict[str, Any]:
    strength = _strength(value / largest) if largest else 0.0
    sure = certain(block, row, column)
    share = f", {formats.percent(value / block.whole)} of the gap" if block.whole else ""
    return {
        "row": row,
        "column": column,
        "fill": _colour(block, value),
        "strength": strength,
        "line": palette()["ink" if sure else "line"],
        "edge": round(0.4 + 0.6 * min(1.0, 2 * strength), 2) if sure else 1,
        "said": f"{name_of(block, row, column)}: {formats.estimate(value, *ends_of(block, row, column))}{share}",
        "number": formats.rounded(value, 2 if largest < 10 else 1) if abs(value) >= WRITTEN * largest else "",
        "ink": palette()["panel" if strength > 0.6 else "ink"],
    }


def _places(block: HeatMap, width: int) -> dict[str, Any]:
    """Axes by number, with the blocks' labels looked up, so that two rows may have the same name."""
    wide = max(map(len, block.columns), default=0) * LETTER > width
    crowded = wide and len(block.columns) > 40
    plain: dict[str, Any] = {"ticks": False, "domain": False, "grid": False, "labelLimit": 200}
    across = alt.Axis(
        orient="bottom" if block.upwards else "top",
        labelExpr=_looked_up(block.columns),
        labelAngle=-50 if wide and not crowded else 0,
        labelOverlap=crowded,
        **plain,
    )
    down = alt.Axis(labelExpr=_looked_up(block.rows), **plain)
    order = list(range(len(block.rows)))[:: -1 if block.upwards else 1]
    return {
        "x": alt.X("column:O", title=None, axis=across, scale=alt.Scale(domain=list(range(len(block.columns))))),
        "y": alt.Y("row:O", title=None, axis=down, scale=alt.Scale(domain=order)),
    }


def _looked_up(labels: Sequence[str]) -> str:
    """Vega's expression for the label of a row or column, given its number."""
    return f"{json.dumps([formats.printable(label) for label in labels], ensure_ascii=False)}[datum.value]"


def _borders(block: HeatMap) -> list[Any]:
    """Lines between layers, where these have several rows: a5.h0 to a5.h8."""
    layers = [name.rpartition(".")[0] for name in block.rows]
    if not all(layers) or len(set(layers)) == len(layers):
        return []
    starts = [{"row": i + 1} for i, (a, b) in enumerate(pairwise(layers)) if a != b]
    rule = few(starts).mark_rule(aria=False, color=palette()["faint"])
    return [rule.encode(y=alt.Y("row:O", bandPosition=1 if block.upwards else 0))] if starts else []


def _scale(block: HeatMap, largest: float) -> Any:
    """The colours with their values in the unit and as shares of the whole, and what an outline means."""
    steps = range(-HALF if block.scale == "signed" else 0, HALF + 1)
    swatches = [{"x": step, "fill": _colour(block, step), "strength": _strength(step / HALF)} for step in steps]
    place = alt.X("x:O", axis=None, scale=alt.Scale(domain=list(steps)))
    rect = (
        few(swatches)
        .mark_rect(aria=False, height=11, stroke=palette()["line"])
        .encode(x=place, y=alt.value(6), **_paint())
    )
    decimals = min(3, max(0, 2 - math.floor(math.log10(largest))))
    numbers: list[tuple[Callable[[float], str], str]] = [(lambda value: formats.rounded(value, decimals), block.unit)]
    if block.whole:
        whole = block.whole
        numbers.append((lambda value: formats.percent(value / whole), "of the gap"))
    layers, right = [rect], SWATCH * len(steps)
    for line, (written, unit) in enumerate(numbers):
        ticks = dict.fromkeys((steps[0], 0, HALF))
        labels = [{"x": step, "words": written(step / HALF * largest) if step else "0"} for step in ticks]
        y = alt.value(24 + 14 * line)
        layers.append(_text(labels).encode(x=place, y=y, text="words:N"))
        layers.append(_text([{"words": unit}], align="left", dx=26).encode(x=alt.value(right), y=y, text="words:N"))
    foot = 24 + 14 * len(numbers)
    if block.low:
        lines = wrap(f"outlined: {certainty(block)}", LEGEND)
        outline = _text([{"words": "\n".join(lines)}], align="left", lineBreak="\n")
        layers.append(outline.encode(x=alt.value(0), y=alt.value(foot), text="words:N"))
        foot += 13 * (len(lines) - 1)
    return alt.layer(*layers).properties(width=right, height=foot + (6 if block.low else -8))


def _text(rows: Sequence[dict[str, Any]], **options: Any) -> Any:
    return few(rows).mark_text(aria=False, fontSize=11, color=palette()["muted"], **options)


def _words(words: str) -> Any:
    return (
        _text([{"words": words}], align="left").encode(text="words:N", x=alt.value(0)).properties(width=200, height=14)
    )
