"""Faithfulness over circuit size, with random circuits of the same sizes beside it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from circuitome.report import formats
from circuitome.report.markup import Attributes, Markup, join, number, tag

WIDTH, HEIGHT = 760.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 118.0, 18.0, 46.0


class Sample(NamedTuple):
    """One point of a curve."""

    size: int
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Axes:
    """The ranges that the figure covers."""

    sizes: tuple[float, float]
    """Smallest and largest number of edges; the axis is logarithmic."""
    shares: tuple[float, float]
    """Lowest and highest normalised faithfulness."""

    def x(self, size: float) -> float:
        """Horizontal place of a number of edges."""
        first, last = (math.log10(end) for end in self.sizes)
        share = (math.log10(size) - first) / (last - first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        """Vertical place of a share, kept inside the figure."""
        low, high = self.shares
        return HEIGHT - BOTTOM - (min(high, max(low, share)) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)


def samples(curve: Mapping[str, Any], name: str) -> list[Sample]:
    """The points of one series, by size; those without a value or a positive size are left out."""
    rows = zip(curve.get("sizes") or [], curve.get(name) or [], strict=False)
    kept = [
        Sample(int(size), value, formats.finite(row.get("low")), formats.finite(row.get("high")))
        for size, row in rows
        if size > 0 and row is not None and (value := formats.finite(row.get("value"))) is not None
    ]
    return sorted(kept)


def has_curve(payload: Mapping[str, Any]) -> bool:
    """Whether the payload holds at least one point to draw."""
    return bool(samples(payload.get("curve") or {}, "circuit"))


def svg(payload: Mapping[str, Any]) -> Markup:
    """The figure, colours as CSS variables of the page; says so when there is nothing to draw."""
    curve = payload.get("curve") or {}
    circuit, chance = samples(curve, "circuit"), samples(curve, "random")
    if not circuit:
        return frame(tag("text", {"x": 20.0, "y": 40.0, "fill": "var(--muted)"}, "No curve was measured in this run."))
    axes = axes_over([*circuit, *chance])
    marked = formats.finite((payload.get("headline") or {}).get("edges"))
    return frame(
        guides(axes),
        _own_size(axes, marked),
        series(axes, chance, RANDOM),
        series(axes, circuit, _CIRCUIT),
        _names(axes, circuit, chance),
    )


class Style(NamedTuple):
    """How a curve is drawn."""

    name: str
    """What it is called."""
    colour: str
    """Its colour, a variable of the style sheet."""
    dash: str | None
    """Its dashes; None for a solid line."""


_CIRCUIT = Style("circuit", "var(--helps)", None)
_LABEL = "Normalised faithfulness over the number of edges, the circuit beside random circuits"
RANDOM = Style("random circuits", "var(--chance)", "5 4")


def axes_over(points: Sequence[Sample]) -> Axes:
    """Ranges that hold every value, and of the intervals at most half a unit beyond them."""
    values = [point.value for point in points]
    lows = [point.low for point in points if point.low is not None]
    highs = [point.high for point in points if point.high is not None]
    low = min([-0.06, *values, max(min(lows, default=0.0), min(values) - 0.5)])
    high = max([1.06, *values, min(max(highs, default=0.0), max(values) + 0.5)])
    first, last = min(p.size for p in points), max(p.size for p in points)
    return Axes((first / 1.15, last * 1.15), (low, high))


def frame(*children: str, label: str = _LABEL, more: float = 0.0) -> Markup:
    """The figure around its children, `more` higher than the axes need."""
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig",
            "id": "curve-svg",
            "viewBox": f"0 0 {number(WIDTH)} {number(HEIGHT + more)}",
            "width": WIDTH,
            "height": HEIGHT + more,
            "role": "img",
            "aria-label": label,
            "font-family": "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
            "font-size": 11.5,
        },
        tag("rect", {"class": "backdrop", "width": WIDTH, "height": HEIGHT + more, "fill": "var(--panel)"}),
        *children,
    )


def line(start: tuple[float, float], end: tuple[float, float], colour: str, dash: str | None = None) -> Markup:
    """A straight line."""
    ends: Attributes = {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1]}
    return tag("line", ends | {"stroke": colour, "stroke-dasharray": dash})


def words_at(words: str, x: float, y: float, anchor: str = "middle", colour: str = "var(--muted)") -> Markup:
    """A few words at a place."""
    return tag("text", {"x": x, "y": y, "text-anchor": anchor, "fill": colour}, words)


def guides(axes: Axes, zero: str = "corrupted run") -> Markup:
    """Ticks of both axes; 0 and 1 are drawn through as references."""
    right, foot = WIDTH - RIGHT, HEIGHT - BOTTOM
    shares, sizes = _share_ticks(axes.shares), _size_ticks(axes.sizes)
    lines = [line((LEFT, axes.y(y)), (right, axes.y(y)), "var(--line)") for y in shares if y not in (0, 1)]
    references = [line((LEFT, axes.y(y)), (right, axes.y(y)), "var(--muted)", "2 3") for y in (0.0, 1.0)]
    notes = [
        words_at("1 = clean run", right + 8, axes.y(1) + 4, "start"),
        words_at(f"0 = {zero}", right + 8, axes.y(0) + 4, "start"),
    ]
    left = [words_at(formats.rounded(y, 2), LEFT - 8, axes.y(y) + 4, "end") for y in shares]
    below = [words_at(f"{x:,}", axes.x(x), foot + 18) for x in sizes]
    marks = [line((axes.x(x), foot), (axes.x(x), foot + 4), "var(--muted)") for x in sizes]
    title = words_at("edges in the circuit (log scale)", (LEFT + right) / 2, HEIGHT - 8)
    return join(*lines, *references, *notes, *left, *below, *marks, title)


def _share_ticks(span: tuple[float, float]) -> list[float]:
    """Multiples of the smallest of 0.25, 0.5, 1, 2, 5, ... that gives at most eight."""
    steps = [0.25, 0.5] + [factor * 10.0**power for power in range(9) for factor in (1, 2, 5)]
    step = next((s for s in steps if (span[1] - span[0]) / s <= 8), steps[-1])
    return [i * step for i in range(math.ceil(span[0] / step), math.floor(span[1] / step) + 1)]


def _size_ticks(span: tuple[float, float]) -> list[int]:
    """1, 2 and 5 times powers of ten inside the span; powers only when those are enough, the end when none is."""
    decades = range(math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])) + 1)
    fine = [f * 10**d for d in decades if d >= 0 for f in (1, 2, 5) if span[0] <= f * 10**d <= span[1]]
    coarse = [tick for tick in fine if str(tick).startswith("1")]
    return (coarse if len(coarse) > 3 else fine) or [round(math.sqrt(span[0] * span[1]))]


def _own_size(axes: Axes, size: float | None) -> Markup:
    """A mark at the size of the circuit that this page shows."""
    if size is None or not axes.sizes[0] <= size <= axes.sizes[1]:
        return Markup("")
    x, foot = axes.x(size), HEIGHT - BOTTOM
    return join(line((x, TOP), (x, foot), "var(--line)"), words_at("this circuit", x, TOP - 5))


def series(axes: Axes, points: Sequence[Sample], style: Style) -> Markup:
    """A curve: a band of intervals, the line, and its points."""
    if not points:
        return Markup("")
    track = "M" + "L".join(f"{number(axes.x(p.size))} {number(axes.y(p.value))}" for p in points)
    paint: Attributes = {"fill": "none", "stroke": style.colour, "stroke-width": 2.0, "stroke-dasharray": style.dash}
    return join(
        *(_band(axes, run, style) for run in _runs(points)),
        tag("path", {"d": track} | paint),
        *(_point(axes, point, style) for point in points),
    )


def _runs(points: Sequence[Sample]) -> list[list[Sample]]:
    """Stretches of neighbouring points that all have an interval."""
    runs: list[list[Sample]] = [[]]
    for point in points:
        if point.low is None or point.high is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if run]


def _band(axes: Axes, run: Sequence[Sample], style: Style) -> Markup:
    if len(run) == 1:
        return _whisker(axes, run[0], style)
    upper = _corners(axes, run, lambda point: point.high)
    lower = _corners(axes, run, lambda point: point.low)[::-1]
    return tag("path", {"d": "M" + "L".join(upper + lower) + "Z", "fill": style.colour, "opacity": 0.16})


def _corners(axes: Axes, run: Sequence[Sample], end: Callable[[Sample], float | None]) -> list[str]:
    return [f"{number(axes.x(point.size))} {number(axes.y(end(point) or 0.0))}" for point in run]


def _whisker(axes: Axes, point: Sample, style: Style) -> Markup:
    x = axes.x(point.size)
    return line((x, axes.y(point.low or 0.0)), (x, axes.y(point.high or 0.0)), style.colour)


def _point(axes: Axes, point: Sample, style: Style) -> Markup:
    words = f"{style.name}, {point.size:,} edges: {formats.plain(point.value)}"
    ends = formats.interval(point.low, point.high, 3)
    place: Attributes = {"cx": axes.x(point.size), "cy": axes.y(point.value), "r": 4.0}
    paint: Attributes = {"class": "point", "fill": "var(--panel)", "stroke": style.colour, "stroke-width": 2.0}
    return tag("circle", place | paint, tag("title", None, f"{words} {ends}".strip()))


def _names(axes: Axes, circuit: Sequence[Sample], chance: Sequence[Sample]) -> Markup:
    """The names of the curves at their right ends, moved away from the reference notes and each other."""
    taken = [axes.y(1), axes.y(0)]
    parts = []
    for points, style in ((circuit, _CIRCUIT), (chance, RANDOM)):
        if points:
            y = _free(axes.y(points[-1].value), taken)
            taken.append(y)
            parts.append(words_at(style.name, WIDTH - RIGHT + 8, y + 4, "start", style.colour))
    return join(*parts)


def _free(wanted: float, taken: Sequence[float]) -> float:
    """The place nearest to `wanted` that is 14 units from all that are taken."""
    steps = sorted((d for d in range(-80, 81, 2)), key=abs)
    return next((wanted + d for d in steps if all(abs(wanted + d - t) >= 14 for t in taken)), wanted)
