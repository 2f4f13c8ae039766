"""A map of effects as a figure: one cell for each part, coloured by sign and size, outlined where surely not zero."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.report import formats
from circuitome.report.markup import Attributes, Markup, join, number, tag

LEFT, TOP, FOOT = 64.0, 22.0, 58.0
WIDEST, HIGHEST = 720.0, 560.0
"""What the cells take up at most, unless they would become too small to see."""
CELL_WIDTH, CELL_HEIGHT = (12.0, 46.0), (11.0, 24.0)
"""Smallest and largest cell."""
LABEL_ROOM = 16.0
"""Room that a row's label needs; where rows are narrower, some stay without."""


def heatmap_svg(effects: Mapping[str, Any], name: str = "heatmap") -> Markup:
    """The figure, colours as CSS variables of the page. Layers go upwards, as in the drawing of the circuit.

    `effects` holds `rows`, `columns`, `mean`, `low`, `high` (lists of lists, None for cells that do not exist) and
    `unit`. Orange cells are above zero, blue ones below; an outline says that the interval does not hold zero.
    """
    rows, columns = list(effects["rows"]), list(effects["columns"])
    width = _between(WIDEST / max(1, len(columns)), CELL_WIDTH)
    height = _between(HIGHEST / max(1, len(rows)), CELL_HEIGHT)
    largest = largest_effect(effects)
    wide, high = LEFT + width * len(columns) + 24, TOP + height * len(rows) + FOOT
    cells = [
        _cell(effects, row, column, LEFT + column * width, TOP + (len(rows) - 1 - row) * height, width, height, largest)
        for row in range(len(rows))
        for column in range(len(columns))
    ]
    foot = TOP + height * len(rows)
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig heatmap",
            "id": name,
            "viewBox": f"0 0 {number(max(wide, 360.0))} {number(high)}",
            "width": max(wide, 360.0),
            "height": high,
            "role": "img",
            "aria-label": f"{title_of(effects)}, mean effects in {effects.get('unit', '')}",
            "font-family": "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
            "font-size": 11,
        },
        tag("rect", {"class": "backdrop", "width": max(wide, 360.0), "height": high, "fill": "var(--panel)"}),
        *cells,
        *_row_labels(rows, height),
        *_column_labels(columns, width, foot),
        _scale(largest, str(effects.get("unit", "")), foot + 34),
    )


def title_of(effects: Mapping[str, Any]) -> str:
    """What a map shows."""
    return str(effects.get("title") or effects.get("name") or "effects")


def largest_effect(effects: Mapping[str, Any]) -> float:
    """The largest |mean| of a map, 0 where there is none."""
    return max((abs(v) for row in effects["mean"] for x in row if (v := formats.finite(x)) is not None), default=0.0)


def label(effects: Mapping[str, Any], row: int, column: int) -> str:
    """Name of a cell: a5.h1, m3, or part and position."""
    name, at = str(effects["rows"][row]), str(effects["columns"][column])
    if at.startswith("h"):
        return f"{name}.{at}"
    if at == "mlp":
        return name.replace("a", "m", 1) if name.startswith("a") else name
    return f"{name}@{at}"


def certain(effects: Mapping[str, Any], row: int, column: int) -> bool:
    """Whether a cell's interval leaves out zero."""
    low, high = (formats.finite(effects[end][row][column]) for end in ("low", "high"))
    return low is not None and high is not None and (low > 0 or high < 0)


def _between(wanted: float, ends: tuple[float, float]) -> float:
    return min(max(wanted, ends[0]), ends[1])


def _cell(
    effects: Mapping[str, Any],
    row: int,
    column: int,
    x: float,
    y: float,
    width: float,
    height: float,
    largest: float,
) -> Markup:
    value = formats.finite(effects["mean"][row][column])
    place: Attributes = {"x": x + 0.5, "y": y + 0.5, "width": width - 1, "height": height - 1}
    if value is None:
        return tag("rect", place | {"fill": "none", "stroke": "var(--line)", "stroke-dasharray": "1 3"})
    ends = formats.interval(effects["low"][row][column], effects["high"][row][column], 3)
    words = f"{label(effects, row, column)}: {formats.fixed(value, 3)} {ends}".strip()
    colour = "var(--hurts)" if value > 0 else "var(--helps)"
    strength = 0.0 if not largest else (abs(value) / largest) ** 0.7
    outline = "var(--ink)" if certain(effects, row, column) and strength > 0.15 else "var(--line)"
    return join(
        tag("rect", place | {"fill": "var(--panel)"}),
        tag(
            "rect",
            place | {"fill": colour, "fill-opacity": round(strength, 2), "stroke": outline, "stroke-width": 0.7},
            tag("title", None, words),
        ),
    )


def _row_labels(rows: Sequence[str], height: float) -> list[Markup]:
    every = max(1, -(-int(LABEL_ROOM) // max(1, int(height)))) if height < LABEL_ROOM - 4 else 1
    return [
        tag(
            "text",
            {
                "x": LEFT - 6,
                "y": TOP + (len(rows) - 1 - i) * height + height / 2 + 4,
                "text-anchor": "end",
                "fill": "var(--muted)",
            },
            str(name),
        )
        for i, name in enumerate(rows)
        if i % every == 0
    ]


def _column_labels(columns: Sequence[str], width: float, foot: float) -> list[Markup]:
    longest = max((len(str(name)) for name in columns), default=1)
    every = max(1, -(-int(7.0 * longest + 4) // int(width)))
    return [
        tag(
            "text",
            {"x": LEFT + (i + 0.5) * width, "y": foot + 15, "text-anchor": "middle", "fill": "var(--muted)"},
            str(name),
        )
        for i, name in enumerate(columns)
        if i % every == 0 or name == "mlp"
    ]


def _scale(largest: float, unit: str, y: float) -> Markup:
    """Seven swatches from the most negative to the most positive effect, with numbers."""
    shares = (-1.0, -0.66, -0.33, 0.0, 0.33, 0.66, 1.0)
    swatches = [
        tag(
            "rect",
            {
                "x": LEFT + i * 22,
                "y": y,
                "width": 22.0,
                "height": 10.0,
                "fill": "var(--hurts)" if share > 0 else "var(--helps)",
                "fill-opacity": round(abs(share) ** 0.7, 2),
                "stroke": "var(--line)",
            },
        )
        for i, share in enumerate(shares)
    ]
    below, above = formats.fixed(-largest, 2), formats.fixed(largest, 2)
    return join(
        tag("text", {"x": LEFT - 6, "y": y + 9, "text-anchor": "end", "fill": "var(--muted)"}, below),
        *swatches,
        tag("text", {"x": LEFT + 7 * 22 + 6, "y": y + 9, "fill": "var(--muted)"}, f"+{above} {unit}"),
    )
