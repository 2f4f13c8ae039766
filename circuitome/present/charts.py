"""Heat maps, lines, bars and scatters as Vega-Lite charts, made through Altair.

A page inlines the SVG that vl-convert draws of them, not the libraries that would draw them in the browser: those weigh
0.8 MB and compile expressions, which the page's content policy forbids; thirteen maps of 270 cells take 0.4 MB. Charts
have the page's colours on paper, so that they look the same in files and notebooks; where a page inlines one, each
colour becomes the page's variable of that name, and so one drawing serves light and dark. Every mark carries what it
says as its label, which the page shows when it is hovered.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.etree import ElementTree

import altair as alt
from altair.utils.schemapi import debug_mode

from circuitome.errors import InputError
from circuitome.present import formats
from circuitome.present.assets import FONT, palette
from circuitome.present.blocks import Bars, Block, HeatMap, Lines, Scatter, Series
from circuitome.present.heat_maps import SAID, few, heat_map, many, with_rows

WIDTH, HEIGHT = 760, 300
"""Size of lines and bars, in pixels."""
COLOURS = ("helps", "hurts", "m1", "m2", "m4", "m5", "m3", "m6")
DASHES: tuple[list[int], ...] = ([1, 0], [7, 4], [2, 3])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
"""Looks of lines and groups in order, so that they are told apart without colour too: 8 x 3 x 7 differ."""
SVG = "{http://www.w3.org/2000/svg}"
DROPPED = {"role", "aria-roledescription", "aria-hidden", "pointer-events", "class", "version", "font-family"}
DEFAULTS = {"stroke-width": "1", "opacity": "1", "font-size": "11px", "fill-opacity": "1", "stroke-opacity": "1"}
PLACES = {"d", "transform", "x2", "y2"}
INHERITED = ("fill", "stroke", "stroke-width", "text-anchor", "font-size")
"""Attributes of Vega's SVG: left out, left out where they say nothing new, rounded, and said once for siblings."""


def chart(block: Block) -> Any:
    """The Altair chart of a heat map, lines, bars or a scatter. Raises `InputError` for another block."""
    if not is_chart(block):
        raise InputError(f"{type(block).__name__} blocks are no charts; heat maps, lines, bars and scatters are.")
    with debug_mode(
        False
    ):  # Altair would check every step against the schema, a second for a map; tests check the whole
        drawn = MAKERS[type(block)](block)
        drawn.config = _config()
    return drawn


def is_chart(block: Block) -> bool:
    """Whether a block is drawn as a chart."""
    return type(block) in MAKERS


def plain_svg(block: Block) -> str:
    """The chart as an SVG document that stands alone."""
    specification = json.dumps(chart(block).to_dict(validate=False), ensure_ascii=False)
    return _drawn(re.sub(r"(?<!\\)\\u00[01][0-9a-f]", "\ufffd", formats.CONTROL.sub("\ufffd", specification)))


def svg(block: Block) -> str:
    """The chart as SVG for a page: small, and with the page's variables in place of colours."""
    return themed(_slim(plain_svg(block), block.title or "Chart"))


def themed(drawing: str) -> str:
    """A drawing with each of the page's light colours replaced by the variable of its name."""
    names = {colour: f"var(--{name})" for name, colour in palette().items()}
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: names.get(match[0], match[0]), drawing)


@functools.lru_cache(maxsize=64)
def _drawn(specification: str) -> str:
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(specification)
    return svg


def _slim(drawing: str, title: str) -> str:
    """Vega's SVG without what is empty or said twice, and with what siblings share said once: a third of it is left."""
    root = ElementTree.fromstring(drawing)
    for element in list(root.iter()):
        for name in [name for name in element.attrib if name in DROPPED or element.get(name) == DEFAULTS.get(name)]:
            del element.attrib[name]
        for name in PLACES & element.attrib.keys():
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", element.attrib[name]))
        if label := element.attrib.pop("aria-label", None):  # ARIA allows no label on a mark without a role
            element.set("data-label", label)
        for child in list(element):
            if (child.tag == f"{SVG}path" and not child.get("d")) or child.get("class") in ("background", "foreground"):
                element.remove(child)
        for name in INHERITED:
            _hoist(element, name)
    root.attrib |= {"font-family": FONT, "font-size": "11px", "role": "img", "aria-label": title}
    ElementTree.register_namespace("", SVG[1:-1])
    return ElementTree.tostring(root, encoding="unicode")


def _hoist(group: ElementTree.Element, name: str) -> None:
    """Say at a group the most common value of an attribute that all its children have."""
    values = [child.get(name) for child in group]
    if len(values) > 1 and all(value is not None and value not in DEFAULTS.values() for value in values):
        common = max(values, key=values.count)  # of two as common the first, so that a page is the same every time
        group.set(name, str(common))
        for child in group:
            if child.get(name) == common:
                del child.attrib[name]


def _config() -> dict[str, Any]:
    """The page's colours and fonts."""
    colours = palette()
    words = {"labelColor": colours["muted"], "titleColor": colours["muted"], "labelFontSize": 11, "titleFontSize": 11}
    lines = {name: colours["line"] for name in ("gridColor", "domainColor", "tickColor")}
    return {
        "background": colours["panel"],
        "font": FONT,
        "padding": 12,
        "axis": {"titleFontWeight": "normal", **words, **lines},
        "legend": {"labelLimit": 0, **words},
        "view": {"stroke": None},
        "concat": {"spacing": 12},
    }


def _lines(block: Lines) -> Any:
    """Lines with points and bands, told apart by colour, dashes and shapes."""
    names = [line.name for line in block.series]
    points = [point for line in block.series for point in _points(line) if point["x"] > 0 or not block.log_x]
    base = many().encode(
        x=alt.X("x:Q", title=block.x, scale=_axis(block.log_x), axis=_ticks(block, points)),
        color=_by_name(alt.Color, names, _colours(block.series)),
    )
    heights = alt.Scale(domain=_heights(block, points), nice=True, zero=False)
    y: dict[str, Any] = {"y": alt.Y("y:Q", title=block.y, scale=heights)}
    bands = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_area(
        aria=False, clip=True, opacity=0.13
    )
    layers: list[Any] = [
        *(_named_line("y", *level) for level in block.levels),
        *(_named_line("x", *mark) for mark in block.marks),
        bands.encode(y=alt.Y("low:Q", title=block.y, scale=heights), y2="high:Q"),
        base.mark_line(aria=False, strokeWidth=2).encode(
            strokeDash=_by_name(alt.StrokeDash, names, _cycled(DASHES, names)), **y
        ),
        base.mark_point(size=34, filled=True, opacity=1).encode(
            shape=_by_name(alt.Shape, names, _cycled(SHAPES, names)), **y, **SAID
        ),
    ]
    return with_rows(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), points)


def _points(line: Series) -> list[dict[str, Any]]:
    known = [[formats.finite(value) for value in point] for point in line.points]
    return [
        {"x": x, "y": y, "low": low, "high": high, "name": line.name, "said": f"{line.name}, {x:,.6g}: {words}"}
        for x, y, low, high in known
        if x is not None and y is not None and (words := formats.estimate(y, low, high))
    ]


def _heights(block: Lines, points: Sequence[dict[str, Any]]) -> list[float]:
    """Ends of the vertical axis: all values and levels, and of intervals what does not flatten them."""
    values = [point["y"] for point in points] + [value for _, value in block.levels] or [0.0, 1.0]
    lowest, highest = min(values), max(values)
    room = 0.5 * (highest - lowest) or abs(highest) or 1.0
    lows, highs = ([point[end] for point in points if point[end] is not None] for end in ("low", "high"))
    return [max(lowest - room, min([lowest, *lows])), min(highest + room, max([highest, *highs]))]


def _axis(log: bool) -> alt.Scale:
    return alt.Scale(type="log" if log else "linear", nice=False, zero=False, padding=12)


def _ticks(block: Lines, points: Sequence[dict[str, Any]]) -> alt.Axis:
    """Of a logarithmic axis 1, 2 and 5 times powers of ten; none between whole numbers, such as layers."""
    if not block.log_x:
        whole = all(float(point["x"]).is_integer() for point in points)
        return alt.Axis(grid=False, format=",.3~f", tickCount=10, tickMinStep=1 if whole else alt.Undefined)
    values = [factor * 10**power for power in range(-6, 10) for factor in (1, 2, 5)]
    ends = [point["x"] for point in points] or [1]
    inside = [value for value in values if min(ends) * 0.9 <= value <= max(ends) * 1.1]
    return alt.Axis(grid=False, format="~s" if max(ends) >= 1e6 else ",.3~f", values=inside, labelOverlap="greedy")


def _named_line(axis: str, name: str, value: float) -> Any:
    """A line across the chart: at a height (axis y), its name behind its right end, or at a place (x), named on top."""
    base = few([{axis: value, "words": name}]).encode(**{axis: f"{axis}:Q"})
    rule = base.mark_rule(aria=False, strokeDash=[3, 4], color=palette()["chance"])
    dx, place = (6, {"x": alt.value(WIDTH)}) if axis == "y" else (5, {"y": alt.value(6)})
    return rule + base.mark_text(aria=False, align="left", dx=dx, color=palette()["chance"]).encode(
        text="words:N", **place
    )


def _bars(block: Bars) -> Any:
    """A bar for each label, with its interval as a line."""
    rows = [
        {"label": label, "value": v, "low": low, "high": high, "name": group, "said": f"{label}: {words}"}
        for label, v, low, high, group in block.bars
        if formats.finite(v) is not None and (words := formats.estimate(v, low, high))
    ]
    labels = alt.Axis(ticks=False, domain=False, labelLimit=320)
    base = many().encode(y=alt.Y("label:N", sort=list(block.labels), title=None, axis=labels))
    names = list(dict.fromkeys(block.groups))
    colour = _by_name(alt.Color, names, _cycled(_hexes(), names)) if names else alt.value(palette()["helps"])
    bars = base.mark_bar(height={"band": 0.62}, fillOpacity=0.75).encode(
        x=alt.X("value:Q", title=block.x or None), color=colour, **SAID
    )
    ends = base.transform_filter("isValid(datum.low) && isValid(datum.high)")
    line = ends.mark_rule(aria=False, color=palette()["ink"], strokeWidth=1.4).encode(x="low:Q", x2="high:Q")
    ticks = (
        ends.mark_tick(aria=False, color=palette()["ink"], size=7, thickness=1.4).encode(x=f"{end}:Q")
        for end in ("low", "high")
    )
    return with_rows(alt.layer(bars, line, *ticks).properties(width=WIDTH - 120, height=24 * max(1, len(rows))), rows)


def _scatter(block: Scatter) -> Any:
    """Points by group, with the line on which both values are the same where it is asked for."""
    groups = block.groups or ("",) * len(block.points)
    rows = [
        {"x": x, "y": y, "name": group, "said": f"{name}: {formats.plain(x)}, {formats.plain(y)}"}
        for (x, y, name), group in zip(block.points, groups, strict=True)
    ]
    places = {
        axis: kind(f"{axis}:Q", title=title, scale=alt.Scale(zero=False, padding=10))
        for axis, kind, title in (("x", alt.X, block.x), ("y", alt.Y, block.y))
    }
    names = list(dict.fromkeys(block.groups))
    looks: dict[str, Any] = {"color": alt.value(palette()["helps"])}
    if names:
        looks = {
            "color": _by_name(alt.Color, names, _cycled(_hexes(), names)),
            "shape": _by_name(alt.Shape, names, _cycled(SHAPES, names)),
        }
    layers = [many().mark_point(size=55, filled=True, opacity=0.8).encode(**places, **looks, **SAID)]
    if block.diagonal and rows:
        ends = [value for x, y, _ in block.points for value in (x, y)]
        line = few([{"x": end, "y": end} for end in (min(ends), max(ends))])
        layers.insert(
            0, line.mark_line(aria=False, color=palette()["faint"], strokeDash=[4, 4], strokeWidth=1).encode(**places)
        )
    return with_rows(alt.layer(*layers).properties(width=440, height=440), rows)


def _by_name(channel: Callable[..., Any], names: Sequence[str], looks: Sequence[Any]) -> Any:
    """What tells names apart, with a legend above the chart where there are several."""
    legend = None
    if len(names) > 1:
        legend = alt.Legend(
            title=None,
            orient="top",
            columns=5,
            symbolSize=70,
            symbolOpacity=1,
            symbolStrokeWidth=0,
            values=list(names),
            columnPadding=22,
        )
    return channel("name:N", scale=alt.Scale(domain=list(names), range=list(looks)), legend=legend)


def _hexes() -> list[str]:
    return [palette()[name] for name in COLOURS]


def _colours(series: Sequence[Series]) -> list[str]:
    """A colour for each line; those in the background share one."""
    fresh = iter(_cycled(_hexes(), series))
    return [palette()["chance"] if line.faint else next(fresh) for line in series]


def _cycled(looks: Sequence[Any], names: Sequence[Any]) -> list[Any]:
    """As many looks as there are names, from the first again when they run out."""
    return [looks[i % len(looks)] for i in range(len(names))]


MAKERS: dict[type[Block], Callable[[Any], Any]] = {HeatMap: heat_map, Lines: _lines, Bars: _bars, Scatter: _scatter}
"""By kind of block: what makes its chart."""
