"""The page of a comparison of methods: faithfulness over circuit size in one figure and one table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from circuitome.report import curve, formats, shell
from circuitome.report.curve import Axes, Sample
from circuitome.report.markup import Attributes, Markup, join, number, tag

DASHES = (None, "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "6 2 2 2 2 2")
"""Dashes tell methods apart without colour; after the last they start again."""
COLOURS = ("--helps", "--hurts", "--m1", "--m2", "--m3", "--m4", "--m5", "--m6")
"""Variables of the style sheet."""
MARKS = ("circle", "square", "diamond", "triangle", "cross")
"""Shapes of points; their number and that of the dashes have no common factor, so pairs repeat late."""
KEYS = 3
"""Entries in a row of the legend."""
AGREEMENT = (("pearson", "Pearson"), ("pearson_abs", "Pearson of sizes"), ("spearman", "Spearman of sizes"))
"""Correlations with exact scores, where they were measured."""


def render_compare(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: the same data gives the same text.

    `payload` holds `title`, `command`, `unit`, `manifest`, `methods` (`name`, `description`, `seconds`, `points` of
    `edges`, `value`, `low`, `high`, `held_out`; where measured `pearson`, `pearson_abs`, `spearman`; `note`), and,
    where there are any, `random` (`edges`, `value`, `low`, `high`), `held_out` (`name`, `n`), `exact_edges` and a
    `goal` (`edges`, `value`).
    """
    figure = tag("figure", None, tag("div", {"class": "scroll"}, compare_svg(payload)))
    note = (
        "Normalised faithfulness of each method's circuits: 0 is the ablated run, 1 the whole model. Bars are 95 % "
        "intervals over prompts; the grey band is the range of random circuits. Marks of one size stand side by side."
    )
    parts: list[shell.Section] = [
        ("front", "Faithfulness by size", join(tag("p", {"class": "note"}, note), figure)),
        ("table", "In numbers", _table(payload)),
        ("methods", "Methods", _methods(payload)),
    ]
    return shell.page(payload, parts)


class _Look(NamedTuple):
    """What tells a method's line apart."""

    colour: str
    dash: str | None
    mark: str
    shift: float
    """How far its points stand beside their size, so that intervals do not hide each other."""


def _look(index: int, count: int) -> _Look:
    shift = (index - (count - 1) / 2) * min(5.0, 28.0 / count)
    colour = f"var({COLOURS[index % len(COLOURS)]})"
    return _Look(colour, DASHES[index % len(DASHES)], MARKS[index % len(MARKS)], shift)


def compare_svg(payload: Mapping[str, Any]) -> Markup:
    """The figure: one line a method, told apart by colour, dash and mark, with a legend below."""
    methods = [(str(one["name"]), _samples(one["points"])) for one in payload["methods"]]
    looks = [_look(i, len(methods)) for i in range(len(methods))]
    drawn = [(name, points, look) for (name, points), look in zip(methods, looks, strict=True) if points]
    chance, goal = _samples(payload.get("random") or []), _samples([payload["goal"]] if payload.get("goal") else [])
    every = [point for _, points, _ in drawn for point in points] + chance + goal
    if not every:
        return curve.frame(curve.words_at("No circuit was measured.", 20, 40, "start"))
    axes = curve.axes_over(every)
    signs = [*(_key(name, look) for name, _, look in drawn), *([_RANDOM_KEY] if chance else []), *map(_goal_key, goal)]
    return curve.frame(
        curve.guides(axes, "ablated run"),
        curve.words_at(str(payload.get("unit", "")), curve.LEFT - 40, 10, "start"),
        curve.series(axes, chance, curve.RANDOM),
        *(_line(axes, name, points, look) for name, points, look in drawn),
        *(tag("circle", _RING | {"cx": axes.x(point.size), "cy": axes.y(point.value)}) for point in goal),
        *(_placed(sign, i) for i, sign in enumerate(signs)),
        label="Normalised faithfulness over the number of edges, one line for each method",
        more=20.0 * -(-len(signs) // KEYS) + 10,
    )


def _samples(rows: Sequence[Mapping[str, Any]]) -> list[Sample]:
    kept = [
        Sample(int(row["edges"]), value, formats.finite(row.get("low")), formats.finite(row.get("high")))
        for row in rows
        if row["edges"] > 0 and (value := formats.finite(row.get("value"))) is not None
    ]
    return sorted(kept)


def _line(axes: Axes, name: str, points: Sequence[Sample], look: _Look) -> Markup:
    places = [(axes.x(point.size) + look.shift, axes.y(point.value)) for point in points]
    track = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in places)
    paint: Attributes = {"fill": "none", "stroke": look.colour, "stroke-width": 1.8, "stroke-dasharray": look.dash}
    parts = [tag("path", {"d": track} | paint)]
    for point, (x, y) in zip(points, places, strict=True):
        if point.low is not None and point.high is not None:
            parts.append(curve.line((x, axes.y(point.low)), (x, axes.y(point.high)), look.colour))
        interval = formats.interval(point.low, point.high, 3)
        words = f"{name}, {point.size:,} edges: {formats.plain(point.value)} {interval}".strip()
        parts.append(_mark(look, x, y, words))
    return tag("g", None, *parts)


def _mark(look: _Look, x: float, y: float, words: str) -> Markup:
    paint: Attributes = {"class": "point", "fill": "var(--panel)", "stroke": look.colour, "stroke-width": 1.8}
    title = [tag("title", None, words)] if words else []
    if look.mark == "circle":
        return tag("circle", {"cx": x, "cy": y, "r": 3.8} | paint, *title)
    shape = {
        "square": "m-3.4 -3.4h6.8v6.8h-6.8z",
        "diamond": "m0 -4.8l4.8 4.8l-4.8 4.8l-4.8 -4.8z",
        "triangle": "m0 -4.6l4.4 8.2h-8.8z",
        "cross": "m-3.8 -3.8l7.6 7.6m0 -7.6l-7.6 7.6",
    }[look.mark]
    return tag("path", {"d": f"M{number(x)} {number(y)}{shape}"} | paint, *title)


def _key(name: str, look: _Look) -> Markup:
    """A method's entry in the legend."""
    ends: Attributes = {"x1": 0.0, "x2": 34.0, "y1": 0.0, "y2": 0.0}
    line = tag("line", ends | {"stroke": look.colour, "stroke-width": 1.8, "stroke-dasharray": look.dash})
    return join(line, _mark(look, 17, 0, ""), _entry(name))


def _goal_key(point: Sample) -> Markup:
    words = f"goal: {formats.rounded(point.value, 2)} at {point.size:,} edges"
    return join(tag("circle", _RING | {"cx": 17.0, "cy": 0.0}), _entry(words))


def _entry(words: str) -> Markup:
    short = words if len(words) <= 26 else words[:25] + "\N{HORIZONTAL ELLIPSIS}"
    return tag("text", {"x": 42.0, "y": 4.0, "fill": "var(--ink)"}, short)


def _placed(sign: Markup, index: int) -> Markup:
    """An entry of the legend in its place."""
    x, y = curve.LEFT + 225.0 * (index % KEYS), curve.HEIGHT + 12.0 + 20.0 * (index // KEYS)
    return tag("g", {"transform": f"translate({number(x)} {number(y)})"}, sign)


_RING: Attributes = {"r": 7.0, "fill": "none", "stroke": "var(--ink)", "stroke-width": 1.4}
"""Around the size and faithfulness aimed at."""
_RANDOM_KEY = join(
    tag("rect", {"y": -6.0, "width": 34.0, "height": 12.0, "fill": curve.RANDOM.colour, "opacity": 0.25}),
    curve.line((0, 0), (34, 0), curve.RANDOM.colour, curve.RANDOM.dash),
    _entry(curve.RANDOM.name),
)


def sizes_of(payload: Mapping[str, Any]) -> list[int]:
    """Every size that some method has a circuit of."""
    return sorted({int(point["edges"]) for one in payload["methods"] for point in one["points"]})


def shared_sizes(payload: Mapping[str, Any]) -> list[int]:
    """Sizes that several methods have circuits of; those of a lone method are all its own."""
    counts = Counter(int(point["edges"]) for one in payload["methods"] for point in one["points"])
    several = sorted(size for size, count in counts.items() if count > 1)
    return several or sizes_of(payload)


def points_of(one: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
    """A method's circuits by size."""
    return {int(point["edges"]): point for point in one["points"]}


def _table(payload: Mapping[str, Any]) -> Markup:
    """Rows are methods, columns sizes; the held-out value stands below. Sizes that one method alone has come last."""
    sizes = shared_sizes(payload)
    held, exact = payload.get("held_out"), payload.get("exact_edges")
    agreements = [
        (key, name)
        for key, name in AGREEMENT
        if exact or any(formats.finite(one.get(key)) is not None for one in payload["methods"])
    ]
    chance = {"name": "random circuits", "points": payload.get("random") or []}
    others = any(set(points_of(one)) - set(sizes) for one in payload["methods"])
    rows: list[list[str]] = []
    for one in [*payload["methods"], *([chance] if chance["points"] else [])]:
        points = points_of(one)
        own = [_other(size, point) for size, point in points.items() if size not in sizes and one is not chance]
        took = formats.fixed(one.get("seconds"), 1) if one is not chance else ""
        agree = [formats.fixed(one.get(key), 3) if one is not chance else "" for key, _ in agreements]
        cells = [_value(points.get(size)) for size in sizes]
        rows.append([tag("b", None, str(one["name"])), *cells, *([join(*own)] if others else []), took, *agree])
    heads = ["method", *(f"{size:,} edges" for size in sizes), *(["other sizes"] if others else []), "seconds"]
    heads += [name for _, name in agreements]
    note = "Value with its interval"
    note += f"; below, the value on {held['n']} held-out prompts of {held['name']}." if held else "; nothing held out."
    note += f" Correlations are with the exact scores of {exact} edges, half of them the strongest by EAP-IG."
    note = note if exact else note.partition(" Correlations")[0]
    return join(tag("p", {"class": "note"}, note), shell.table(heads, rows, range(1, len(heads))))


def _other(size: int, point: Mapping[str, Any]) -> Markup:
    """A circuit whose size no other method has."""
    return tag("div", {"class": "own"}, tag("span", {"class": "note"}, f"{size:,} edges"), _value(point))


def _value(point: Mapping[str, Any] | None) -> Markup:
    if point is None:
        return Markup("")
    value, held = formats.finite(point.get("value")), formats.finite(point.get("held_out"))
    first = formats.MISSING if value is None else formats.rounded(value, 3)
    lines = [_ends(point), "" if held is None else f"held out {formats.rounded(held, 3)}"]
    return join(tag("b", None, first), *(tag("span", {"class": "below"}, line) for line in lines if line))


def _ends(point: Mapping[str, Any]) -> str:
    """The interval with two decimals."""
    low, high = formats.finite(point.get("low")), formats.finite(point.get("high"))
    return "" if low is None or high is None else f"[{formats.rounded(low, 2)}, {formats.rounded(high, 2)}]"


def _methods(payload: Mapping[str, Any]) -> Markup:
    """What each method is."""
    lines = [
        part
        for one in payload["methods"]
        for part in (
            tag("dt", None, str(one["name"])),
            tag("dd", None, " ".join(str(one[key]) for key in ("description", "note") if one.get(key))),
        )
    ]
    return tag("dl", {"class": "methods"}, *lines)
