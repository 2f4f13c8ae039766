"""Several quantities over positions of a text, as a figure."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from circuitome.report import formats
from circuitome.report.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, frame, line, words_at
from circuitome.report.markup import Attributes, Markup, join, number, tag

COLOURS = ("var(--helps)", "var(--hurts)", "var(--m1)", "var(--m2)")
"""Of the series, in order."""
GAP = 14.0
"""Smallest distance between two names."""


class Point(NamedTuple):
    """Mean of a stretch of positions."""

    start: float
    """First position."""
    end: float
    """One past the last."""
    value: float
    """Mean."""
    low: float | None
    """Lower end of its interval."""
    high: float | None
    """Upper end."""

    @property
    def middle(self) -> float:
        """Where it is drawn."""
        return (self.start + self.end) / 2


def lines_svg(
    series: Mapping[str, Sequence[Point]], *, x_label: str, y_label: str, mark: tuple[float, str] | None = None
) -> Markup:
    """The figure: a line a series with a band of intervals, names at the right; `mark` is a vertical line with a note.

    Colours are CSS variables of the page. Intervals are cut where they leave the range of the means by more than half
    of it, so that one wide interval does not flatten everything.
    """
    points = [point for some in series.values() for point in some]
    if not points:
        return frame(words_at("Nothing was measured.", 20.0, 40.0, "start"), label=y_label)
    axes = _Axes.over(points)
    names = _names(axes, series)
    label = f"{y_label} over {x_label}: {', '.join(series)}"
    drawn = [_series(axes, name, some, colour) for (name, some), colour in zip(series.items(), COLOURS, strict=False)]
    return frame(_guides(axes, x_label, y_label), _mark(axes, mark), *drawn, names, label=label)


class _Axes(NamedTuple):
    first: float
    last: float
    low: float
    high: float

    @classmethod
    def over(cls, points: Sequence[Point]) -> "_Axes":
        values = [point.value for point in points]
        low, high = min(values), max(values)
        room = (high - low) / 2 or 0.5
        lows = [point.low for point in points if point.low is not None]
        highs = [point.high for point in points if point.high is not None]
        low, high = max(min([low, *lows]), low - room), min(max([high, *highs]), high + room)
        pad = 0.04 * (high - low) or 0.5
        return cls(min(p.start for p in points), max(p.end for p in points), low - pad, high + pad)

    def x(self, position: float) -> float:
        return LEFT + (position - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(self.high, max(self.low, value)) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, `most` at most."""
    step = next(
        step
        for power in range(math.floor(math.log10((high - low) / most)), 12)
        for step in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if (high - low) / step <= most
    )
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _guides(axes: _Axes, x_label: str, y_label: str) -> Markup:
    right, foot = WIDTH - RIGHT, HEIGHT - BOTTOM
    across, up = _ticks(axes.first, axes.last, 8), _ticks(axes.low, axes.high, 7)
    decimals = 0 if up[-1] - up[0] >= 5 else 1 if len(up) < 2 or up[1] - up[0] > 0.09 else 2
    return join(
        *(line((LEFT, axes.y(y)), (right, axes.y(y)), "var(--line)") for y in up),
        *(words_at(formats.rounded(y, decimals), LEFT - 8, axes.y(y) + 4, "end") for y in up),
        *(line((axes.x(x), foot), (axes.x(x), foot + 4), "var(--muted)") for x in across),
        *(words_at(f"{x:,.0f}", axes.x(x), foot + 18) for x in across),
        words_at(x_label, (LEFT + right) / 2, HEIGHT - 8),
        words_at(y_label, 8.0, 12.0, "start"),
    )


def _mark(axes: _Axes, mark: tuple[float, str] | None) -> Markup:
    if mark is None or not axes.first <= mark[0] <= axes.last:
        return Markup("")
    x = axes.x(mark[0])
    note = words_at(mark[1], x + 6, TOP + 8, "start")
    return join(line((x, TOP), (x, HEIGHT - BOTTOM), "var(--muted)", "3 4"), note)


def _series(axes: _Axes, name: str, points: Sequence[Point], colour: str) -> Markup:
    track = "L".join(f"{number(axes.x(p.middle))} {number(axes.y(p.value))}" for p in points)
    paint: Attributes = {"fill": "none", "stroke": colour, "stroke-width": 2.0}
    return join(
        _band(axes, points, colour),
        tag("path", {"d": f"M{track}"} | paint) if track else Markup(""),
        *(_dot(axes, name, point, colour) for point in points),
    )


def _band(axes: _Axes, points: Sequence[Point], colour: str) -> Markup:
    known = [(p.middle, p.low, p.high) for p in points if p.low is not None and p.high is not None]
    if len(known) < 2:
        return Markup("")
    upper = [f"{number(axes.x(x))} {number(axes.y(high))}" for x, _, high in known]
    lower = [f"{number(axes.x(x))} {number(axes.y(low))}" for x, low, _ in reversed(known)]
    return tag("path", {"d": "M" + "L".join(upper + lower) + "Z", "fill": colour, "opacity": 0.13})


def _dot(axes: _Axes, name: str, point: Point, colour: str) -> Markup:
    ends = formats.interval(point.low, point.high, 3)
    words = f"{name}, {point.start:,.0f} to {point.end - 1:,.0f}: {formats.plain(point.value)} {ends}".strip()
    place: Attributes = {"cx": axes.x(point.middle), "cy": axes.y(point.value), "r": 2.6, "fill": colour}
    return tag("circle", place | {"class": "point"}, tag("title", None, words))


def _names(axes: _Axes, series: Mapping[str, Sequence[Point]]) -> Markup:
    """The series' names at the right, in the order of their last values, never on top of each other."""
    ends = [
        (axes.y(points[-1].value), name, colour)
        for (name, points), colour in zip(series.items(), COLOURS, strict=False)
        if points
    ]
    parts, lowest = [], -math.inf
    for y, name, colour in sorted(ends):
        lowest = max(y, lowest + GAP)
        parts.append(words_at(name, WIDTH - RIGHT + 8, lowest + 4, "start", colour))
    return join(*parts)
