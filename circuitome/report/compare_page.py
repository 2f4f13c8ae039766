"""The page of a comparison of methods: faithfulness over circuit size in one figure and one table."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.report import curve, formats, shell
from circuitome.report.curve import Axes, Sample
from circuitome.report.markup import Attributes, Markup, join, number, tag

DASHES = (None, "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "6 2 2 2 2 2")
"""Dashes tell methods apart without colour; after the last they start again."""
COLOURS = ("--helps", "--hurts", "--m1", "--m2", "--m3", "--m4", "--m5", "--m6")
"""Variables of the style sheet."""
MARKS = ("circle", "square", "diamond", "triangle")


def render_compare(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: the same data gives the same text.

    `payload` holds `title`, `command`, `unit`, `methods` (`name`, `description`, `seconds`, `points` of `edges`,
    `value`, `low`, `high`, `held_out`; `pearson`, `pearson_abs`, `spearman`), `random` (`edges`, `value`, `low`,
    `high`), `held_out` and `exact_edges`.
    """
    figure = tag("figure", None, tag("div", {"class": "scroll"}, compare_svg(payload)))
    note = (
        "Normalised faithfulness of each method's circuits: 0 is the ablated run, 1 the whole model. Bars are 95 % "
        "intervals over prompts; the grey band is the range of random circuits."
    )
    parts: list[shell.Section] = [
        ("front", "Faithfulness by size", join(tag("p", {"class": "note"}, note), figure)),
        ("table", "In numbers", _table(payload)),
        ("methods", "Methods", _methods(payload)),
    ]
    return shell.page(payload, parts)


def compare_svg(payload: Mapping[str, Any]) -> Markup:
    """The figure: one line a method, told apart by colour, dash and mark, with a legend below."""
    methods = [(str(one["name"]), _samples(one["points"])) for one in payload["methods"]]
    methods = [(name, points) for name, points in methods if points]
    chance = _samples(payload.get("random") or [])
    every = [point for _, points in methods for point in points] + chance
    if not every:
        return tag("svg", {"xmlns": "http://www.w3.org/2000/svg", "width": 10, "height": 10})
    axes = curve._axes(every)
    rows = -(-len(methods) // 3)
    height = curve.HEIGHT + 20.0 * rows + 10
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig",
            "id": "curve-svg",
            "viewBox": f"0 0 {number(curve.WIDTH)} {number(height)}",
            "width": curve.WIDTH,
            "height": height,
            "role": "img",
            "aria-label": "Normalised faithfulness over the number of edges, one line for each method",
            "font-family": "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
            "font-size": 11.5,
        },
        tag("rect", {"class": "backdrop", "width": curve.WIDTH, "height": height, "fill": "var(--panel)"}),
        curve._grid(axes),
        _band(axes, chance),
        *(_line(axes, name, points, i) for i, (name, points) in enumerate(methods)),
        *(_key(name, i) for i, (name, _) in enumerate(methods)),
    )


def _samples(rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    kept = [
        Sample(int(row["edges"]), value, formats.finite(row.get("low")), formats.finite(row.get("high")))
        for row in rows
        if row["edges"] > 0 and (value := formats.finite(row.get("value"))) is not None
    ]
    return sorted(kept)


def _band(axes: Axes, points: Sequence[Sample]) -> Markup:
    """The range of random circuits."""
    if not points:
        return Markup("")
    known = [p for p in points if p.low is not None and p.high is not None]
    upper = [f"{number(axes.x(p.size))} {number(axes.y(p.high or 0.0) - 2)}" for p in known]
    lower = [f"{number(axes.x(p.size))} {number(axes.y(p.low or 0.0) + 2)}" for p in known][::-1]
    path = "M" + "L".join(upper + lower) + "Z" if known else ""
    title = tag("title", None, "range of random circuits of the same size")
    return tag("path", {"d": path, "fill": "var(--chance)", "opacity": 0.35}, title)


def _paint(index: int) -> tuple[str, str | None, str]:
    colour = f"var({COLOURS[index % len(COLOURS)]})"
    return colour, DASHES[index % len(DASHES)], MARKS[index % len(MARKS)]


def _line(axes: Axes, name: str, points: Sequence[Sample], index: int) -> Markup:
    colour, dash, mark = _paint(index)
    track = "M" + "L".join(f"{number(axes.x(p.size))} {number(axes.y(p.value))}" for p in points)
    parts = [tag("path", {"d": track, "fill": "none", "stroke": colour, "stroke-width": 1.8, "stroke-dasharray": dash})]
    for point in points:
        x, y = axes.x(point.size), axes.y(point.value)
        if point.low is not None and point.high is not None:
            ends: Attributes = {"x1": x, "x2": x, "y1": axes.y(point.low), "y2": axes.y(point.high)}
            parts.append(tag("line", ends | {"stroke": colour, "opacity": 0.6}))
        interval = formats.interval(point.low, point.high, 3)
        words = f"{name}, {point.size:,} edges: {formats.plain(point.value)} {interval}".strip()
        parts.append(_mark(mark, x, y, colour, words))
    return tag("g", None, *parts)


def _mark(kind: str, x: float, y: float, colour: str, words: str) -> Markup:
    paint: Attributes = {"class": "point", "fill": "var(--panel)", "stroke": colour, "stroke-width": 1.8}
    title = [tag("title", None, words)] if words else []
    if kind == "circle":
        return tag("circle", {"cx": x, "cy": y, "r": 3.8} | paint, *title)
    corners = {
        "square": [(-3.4, -3.4), (3.4, -3.4), (3.4, 3.4), (-3.4, 3.4)],
        "diamond": [(0, -4.8), (4.8, 0), (0, 4.8), (-4.8, 0)],
        "triangle": [(0, -4.6), (4.4, 3.6), (-4.4, 3.6)],
    }[kind]
    track = "M" + "L".join(f"{number(x + a)} {number(y + b)}" for a, b in corners) + "Z"
    return tag("path", {"d": track} | paint, *title)


def _key(name: str, index: int) -> Markup:
    """One entry of the legend."""
    colour, dash, mark = _paint(index)
    x, y = curve.LEFT + 225.0 * (index % 3), curve.HEIGHT + 12.0 + 20.0 * (index // 3)
    ends: Attributes = {"x1": x, "x2": x + 34, "y1": y, "y2": y}
    return join(
        tag("line", ends | {"stroke": colour, "stroke-width": 1.8, "stroke-dasharray": dash}),
        _mark(mark, x + 17, y, colour, ""),
        tag("text", {"x": x + 42, "y": y + 4, "fill": "var(--ink)"}, name),
    )


def sizes_of(payload: Mapping[str, Any]) -> list[int]:
    """Every size that some method has a circuit of."""
    return sorted({int(point["edges"]) for one in payload["methods"] for point in one["points"]})


def _table(payload: Mapping[str, Any]) -> Markup:
    """Rows are sizes, columns methods; the held-out value stands below."""
    names = [str(one["name"]) for one in payload["methods"]]
    cells = {(str(one["name"]), int(p["edges"])): p for one in payload["methods"] for p in one["points"]}
    chance = {int(p["edges"]): p for p in payload.get("random") or []}
    rows: list[list[str]] = []
    for size in sizes_of(payload):
        values = [_value(cells.get((name, size))) for name in names]
        rows.append([f"{size:,}", *values, _value(chance.get(size))])
    held = payload.get("held_out")
    note = "Value with its interval"
    note += f"; below, the value on {held['n']} held-out prompts of {held['name']}." if held else "; nothing held out."
    table = shell.table(["edges", *names, "random circuits"], rows, range(len(names) + 2))
    return join(tag("p", {"class": "note"}, note), table)


def _value(point: Mapping[str, Any] | None) -> Markup:
    if point is None:
        return Markup("")
    first = formats.rounded(formats.finite(point.get("value")) or 0.0, 3)
    ends = formats.interval(point.get("low"), point.get("high"), 2)
    held = formats.finite(point.get("held_out"))
    parts = [tag("b", None, first), tag("br"), tag("span", {"class": "note"}, ends)]
    if held is not None:
        parts += [tag("br"), tag("span", {"class": "note"}, f"held out {formats.rounded(held, 3)}")]
    return join(*parts)


def _methods(payload: Mapping[str, Any]) -> Markup:
    """What each method is, what it took, and how far its scores agree with exact ones."""
    rows = [
        [
            str(one["name"]),
            str(one.get("description") or ""),
            formats.fixed(one.get("seconds"), 1),
            *(formats.fixed(one.get(key), 3) for key in ("pearson", "pearson_abs", "spearman")),
        ]
        for one in payload["methods"]
    ]
    heads = ["method", "what it does", "seconds", "Pearson", "Pearson of sizes", "Spearman of sizes"]
    edges = payload.get("exact_edges")
    note = f"Correlations are with the exact scores of {edges} edges, half of them the strongest by EAP-IG."
    lead = tag("p", {"class": "note"}, note) if edges else Markup("")
    return join(lead, shell.table(heads, rows, range(2, 6)))
