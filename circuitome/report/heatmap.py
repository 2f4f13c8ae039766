"""A map of effects as a figure: one cell for each part, coloured by sign and size, outlined where surely not zero."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from circuitome.report import formats
from circuitome.report.markup import Attributes, Markup, join, number, tag

LEGEND = 82.0
"""Height of the legend above the cells."""
WIDEST, HIGHEST = 720.0, 560.0
"""What the cells take up at most, unless they would become too small to see."""
CELL_WIDTH, CELL_HEIGHT = (12.0, 42.0), (11.0, 24.0)
"""Smallest and largest cell; labels of columns may widen it further."""
LETTER = 7.0
"""Width of a letter of a label."""
SWATCH, SWATCHES = 18.0, 11
"""Width of a colour of the scale, and how many there are."""
WRITTEN = 0.22
"""Cells with at least this share of the largest effect have their number written into them, where it fits."""
NARROW = 480.0
"""Figures below this width shrink on small screens; wider ones scroll."""
DARK = "#1d1f23"
"""Text on colours of middling strength, in light and dark pages alike."""


def heatmap_svg(effects: Mapping[str, Any], name: str = "heatmap") -> Markup:
    """The figure, colours as CSS variables of the page. Layers go upwards, as in the drawing of the circuit.

    `effects` holds `title` (or `name`), `unit`, `rows`, `columns`, and `mean`, `low`, `high` (lists of lists, None for
    cells that do not exist); with `clean` and `corrupted`, effects are also given as shares of the gap between them.
    Orange cells are above zero, blue ones below; an outline says that the interval leaves out zero.
    """
    layout = _layout(effects)
    width, height = number(layout.figure_width), number(layout.figure_height)
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig heatmap narrow" if layout.figure_width < NARROW else "fig heatmap",
            "id": name,
            "viewBox": f"0 0 {width} {height}",
            "width": width,
            "height": height,
            "role": "img",
            "aria-label": f"{title_of(effects)}: mean effects in {effects.get('unit', '')}",
            "font-family": "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
            "font-size": 11,
        },
        tag("rect", {"class": "backdrop", "width": width, "height": height, "fill": "var(--panel)"}),
        _legend(effects, layout),
        tag("g", {"fill": "var(--muted)"}, _row_labels(layout), _column_labels(layout)),
        _cells(effects, layout),
    )


def title_of(effects: Mapping[str, Any]) -> str:
    """What a map shows."""
    return str(effects.get("title") or effects.get("name") or "effects")


def values(effects: Mapping[str, Any]) -> Iterator[tuple[int, int, float]]:
    """Row, column and mean of every cell that exists."""
    for i, row in enumerate(effects["mean"]):
        for j, mean in enumerate(row):
            value = formats.finite(mean)
            if value is not None:
                yield i, j, value


def largest_effect(effects: Mapping[str, Any]) -> float:
    """The largest |mean| of a map, 0 where there is none."""
    return max((abs(value) for _, _, value in values(effects)), default=0.0)


def label(effects: Mapping[str, Any], row: int, column: int) -> str:
    """Name of a cell: a5.h1, m3, or part and position."""
    name, at = str(effects["rows"][row]), str(effects["columns"][column])
    if re.fullmatch(r"h\d+", at):
        return f"{name}.{at}"
    if at == "mlp":
        return name.replace("a", "m", 1) if name.startswith("a") else name
    return f"{name}@{at}"


def certain(effects: Mapping[str, Any], row: int, column: int) -> bool:
    """Whether a cell's interval leaves out zero or, where the map has a `chance` level above it, lies above that."""
    low, high = (formats.finite(effects[end][row][column]) for end in ("low", "high"))
    chance = formats.finite(effects.get("chance"))
    return low is not None and high is not None and (low > (chance or 0.0) or (high < 0 and not chance))


def certainty(effects: Mapping[str, Any], zero: str = "0") -> str:
    """What is true of the interval of a certain cell, in words."""
    chance = formats.finite(effects.get("chance"))
    return f"interval lies above chance ({formats.rounded(chance, 3)})" if chance else f"interval leaves out {zero}"


def gap(effects: Mapping[str, Any]) -> float | None:
    """Metric of the clean run minus that of the corrupted one; None where it is unknown or 0."""
    clean, corrupted = (formats.finite((effects.get(run) or {}).get("value")) for run in ("clean", "corrupted"))
    return None if clean is None or corrupted is None else (clean - corrupted) or None


def share(effects: Mapping[str, Any], mean: Any, decimals: int = 1) -> str:
    """A mean as a percentage of the gap, `-40.0 %`; nothing where there is no gap."""
    value, whole = formats.finite(mean), gap(effects)
    if value is None or whole is None:
        return ""
    return f"{formats.rounded(100 * value / whole, decimals)}\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class _Layout:
    """Where everything is, in figure units; row 0 is the lowest."""

    rows: tuple[str, ...]
    """Labels of the rows."""
    columns: tuple[str, ...]
    """Labels of the columns."""
    unit: str
    """Unit of the effects."""
    largest: float
    """The |effect| of the strongest colour."""

    @cached_property
    def groups(self) -> list[tuple[str, int, int]]:
        """Rows of the same layer, `a5.h0` to `a5.h8`: layer, first row and one past the last; else nothing."""
        layers = [name.rpartition(".")[0] for name in self.rows]
        if not all(layers) or len(set(layers)) == len(layers):
            return []
        starts = [i for i, layer in enumerate(layers) if i == 0 or layers[i - 1] != layer]
        return [(layers[a], a, b) for a, b in pairwise([*starts, len(layers)])]

    @cached_property
    def left(self) -> float:
        """Room for the rows' labels, as much as the longest needs; those of very long names are cut."""
        longest = max((len(self.row_label(i)) for i in range(len(self.rows))), default=0)
        layers = max((len(layer) for layer, _, _ in self.groups), default=-2) + 2
        return max(34.0, LETTER * (longest + layers) + 10)

    def row_label(self, row: int) -> str:
        """A row's name; under its layer's name only the rest of it."""
        name = self.rows[row].rpartition(".")[2] if self.groups else self.rows[row]
        return name if len(name) <= 28 else name[:27] + "\N{HORIZONTAL ELLIPSIS}"

    @cached_property
    def width(self) -> float:
        """Width of a cell."""
        longest = max((len(name) for name in self.columns), default=0)
        own = max(CELL_WIDTH[1], LETTER * longest + 8)
        return min(own, max(CELL_WIDTH[0], WIDEST / max(1, len(self.columns))))

    @cached_property
    def height(self) -> float:
        """Height of a cell."""
        return min(CELL_HEIGHT[1], max(CELL_HEIGHT[0], HIGHEST / max(1, len(self.rows))))

    @property
    def tall(self) -> bool:
        """Whether the map is so high that columns need their labels on top as well."""
        return self.height * len(self.rows) > HIGHEST

    @property
    def top(self) -> float:
        """Upper end of the cells."""
        return (LEGEND if self.largest else 34) + (18 if self.tall else 2)

    @property
    def foot(self) -> float:
        """Lower end of the cells."""
        return self.top + self.height * len(self.rows)

    @property
    def figure_width(self) -> float:
        """Width of the figure, the legend's at least."""
        legend = self.left + SWATCH * SWATCHES + LETTER * max(len(self.unit), len("of the gap")) + 32
        return max(self.left + self.width * len(self.columns) + 18, legend)

    @property
    def figure_height(self) -> float:
        """Height of the figure."""
        return self.foot + 28

    def x(self, column: float) -> float:
        """Left end of a column."""
        return self.left + column * self.width

    def y(self, row: float) -> float:
        """Upper end of a row."""
        return self.top + (len(self.rows) - 1 - row) * self.height

    def strength(self, value: float) -> float:
        """Opacity of an effect's colour, 0 to 1: small effects are a little stronger than in proportion."""
        return (abs(value) / self.largest) ** 0.7 if self.largest else 0.0


def _layout(effects: Mapping[str, Any]) -> _Layout:
    rows, columns = (tuple(str(name) for name in effects[axis]) for axis in ("rows", "columns"))
    return _Layout(rows, columns, str(effects.get("unit", "")), largest_effect(effects))


def _cells(effects: Mapping[str, Any], layout: _Layout) -> Markup:
    """All cells: what does not exist is struck out, the strongest carry their number."""
    known = list(values(effects))
    there = {(row, column) for row, column, _ in known}
    holes = [(i, j) for i in range(len(layout.rows)) for j in range(len(layout.columns)) if (i, j) not in there]
    strokes = "".join(
        f"M{number(layout.x(j) + 1)} {number(layout.y(i) + layout.height - 1)}"
        f"l{number(layout.width - 2)} {number(2 - layout.height)}"
        for i, j in holes
    )
    numbers = [_written(layout, *cell) for cell in known] if layout.width >= 36 and layout.height >= 15 else []
    return join(
        tag("path", {"d": strokes, "stroke": "var(--line)", "fill": "none"}) if strokes else Markup(""),
        tag("g", {"stroke": "var(--line)", "stroke-width": 0.7}, *(_cell(effects, layout, *cell) for cell in known)),
        tag("g", {"class": "numbers", "font-size": 9.5, "text-anchor": "middle", "pointer-events": "none"}, *numbers),
        _borders(layout),
    )


def _cell(effects: Mapping[str, Any], layout: _Layout, row: int, column: int, value: float) -> Markup:
    ends = formats.interval(effects["low"][row][column], effects["high"][row][column], 3)
    words = f"{label(effects, row, column)}: {formats.fixed(value, 3)} {ends}".strip()
    part = share(effects, value)
    box: Attributes = {
        "x": layout.x(column) + 1,
        "y": layout.y(row) + 1,
        "width": layout.width - 2,
        "height": layout.height - 2,
        "fill": f"var(--{'hurts' if value > 0 else 'helps'})",
        "fill-opacity": round(layout.strength(value), 2),
    }
    title = tag("title", None, f"{words}, {part} of the gap" if part else words)
    return tag("rect", box | _outline(effects, layout, row, column, value), title)


def _outline(effects: Mapping[str, Any], layout: _Layout, row: int, column: int, value: float) -> Attributes:
    """A dark outline for a cell that is surely not zero, fainter where the effect is small."""
    if not certain(effects, row, column):
        return {}
    return {"stroke": "var(--ink)", "stroke-opacity": round(0.4 + 0.6 * min(1.0, 2 * layout.strength(value)), 2)}


def _written(layout: _Layout, row: int, column: int, value: float) -> Markup:
    """The number in a cell, if its effect is among the strong ones."""
    if abs(value) < WRITTEN * layout.largest or layout.largest < 0.05:
        return Markup("")
    strength = layout.strength(value)
    ink = "var(--ink)" if strength < 0.65 else DARK if strength < 0.88 else "var(--panel)"
    x, y = layout.x(column + 0.5), layout.y(row) + layout.height / 2 + 3.5
    return tag("text", {"x": x, "y": y, "fill": ink}, formats.rounded(value, 2 if layout.largest < 10 else 1))


def _borders(layout: _Layout) -> Markup:
    """Lines between layers, where these have several rows."""
    ends = f"H{number(layout.x(len(layout.columns)))}"
    lines = "".join(f"M8 {number(layout.y(first - 1))}{ends}" for _, first, _ in layout.groups[1:])
    return tag("path", {"d": lines, "stroke": "var(--faint)", "fill": "none"}) if lines else Markup("")


def _row_labels(layout: _Layout) -> Markup:
    small: Attributes = {"font-size": 9.5} if layout.height < 13 else {}
    names: list[Markup] = []
    for i, name in enumerate(layout.rows):
        words = layout.row_label(i)
        full = [tag("title", None, name)] if words.endswith("\N{HORIZONTAL ELLIPSIS}") else []
        at: Attributes = {"x": layout.left - 6, "y": layout.y(i) + layout.height / 2 + 3.5, "text-anchor": "end"}
        names.append(tag("text", at | small, words, *full))
    for layer, first, end in layout.groups:
        names.append(tag("text", {"x": 8.0, "y": layout.y((first + end - 1) / 2) + layout.height / 2 + 4}, layer))
    return join(*names)


def _column_labels(layout: _Layout) -> Markup:
    """The names below, of high maps also above; as many as there is room for, the last among them."""
    longest = max((len(name) for name in layout.columns), default=1)
    every = max(1, math.ceil((LETTER * longest + 5) / layout.width))
    last = len(layout.columns) - 1
    shown = [i for i in range(0, last, every) if last - i >= every] + [last] * (last >= 0)
    heights = [layout.foot + 15, *([layout.top - 6] if layout.tall else [])]
    return join(
        *(
            tag("text", {"x": layout.x(i + 0.5), "y": y, "text-anchor": "middle"}, layout.columns[i])
            for y in heights
            for i in shown
        )
    )


def _legend(effects: Mapping[str, Any], layout: _Layout) -> Markup:
    """The scale with numbers in the unit and as shares of the gap, and what outlines and strokes mean."""
    if not layout.largest:
        words = "all effects are 0" if any(True for _ in values(effects)) else "no effects"
        return tag("text", {"x": layout.left, "y": 22.0, "fill": "var(--muted)"}, words)
    return tag("g", {"fill": "var(--muted)"}, _scale(effects, layout), _signs(effects, layout))


def _scale(effects: Mapping[str, Any], layout: _Layout) -> Markup:
    half = SWATCHES // 2
    swatches = [
        tag(
            "rect",
            {
                "x": layout.left + (step + half) * SWATCH,
                "y": 10.0,
                "width": SWATCH,
                "height": 11.0,
                "fill": f"var(--{'hurts' if step > 0 else 'helps'})",
                "fill-opacity": round(layout.strength(step / half * layout.largest), 2),
                "stroke": "var(--line)",
            },
        )
        for step in range(-half, half + 1)
    ]
    largest, right = layout.largest, layout.left + SWATCHES * SWATCH
    decimals = min(3, max(0, 2 - math.floor(math.log10(largest))))
    lines = [(34.0, [formats.fixed(-largest, decimals), "0", formats.fixed(largest, decimals)], layout.unit)]
    whole = gap(effects)
    if whole is not None:
        digits = 0 if largest / abs(whole) > 0.1 else 1
        lines.append((48.0, [share(effects, -largest, digits), "0", share(effects, largest, digits)], "of the gap"))
    numbers = [
        tag("text", {"x": layout.left + (half * (1 + i) + 0.5) * SWATCH, "y": y, "text-anchor": "middle"}, words)
        for y, ticks, _ in lines
        for i, words in zip((-1, 0, 1), ticks, strict=True)
    ]
    units = [tag("text", {"x": right + 24, "y": y}, unit) for y, _, unit in lines]
    return join(*swatches, *numbers, *units)


def _signs(effects: Mapping[str, Any], layout: _Layout) -> Markup:
    box: Attributes = {"y": 60.0, "width": 16.0, "height": 10.0, "fill": "none"}
    parts = [
        tag("rect", box | {"x": layout.left, "stroke": "var(--ink)", "stroke-width": 0.9}),
        tag("text", {"x": layout.left + 22, "y": 69.0}, certainty(effects)),
    ]
    if sum(1 for _ in values(effects)) < len(layout.rows) * len(layout.columns):
        start = layout.left + 152 + (80 if formats.finite(effects.get("chance")) else 0)
        parts += [
            tag("path", {"d": f"M{number(start)} 70l16 -10", "stroke": "var(--faint)", "fill": "none"}),
            tag("text", {"x": start + 22, "y": 69.0}, "no such part"),
        ]
    return join(*parts)
