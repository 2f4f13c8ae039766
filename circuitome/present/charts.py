"""Charts: heat maps, lines, bars and scatters as Vega-Lite specifications, made through Altair.

A page inlines the SVG that vl-convert draws of them, not the libraries that would draw them in the browser: those weigh
0.8 MB and compile expressions, which the page's content policy forbids. Colours are CSS variables of the page, so that
one drawing serves light and dark; every mark carries what it says as its label, which the page shows when hovered.
"""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import altair as alt

from circuitome.present.blocks import Bars, Block, HeatMap, Lines, Number, Scatter
from circuitome.report import formats

alt.data_transformers.disable_max_rows()

LIGHT = {
    "--paper": "#faf9f6", "--panel": "#ffffff", "--ink": "#1d1f23", "--muted": "#5c6068", "--line": "#dddad2",
    "--faint": "#b9b6ae", "--helps": "#1b6cb0", "--hurts": "#c2510a", "--chance": "#6f7279", "--m1": "#2f7d4f",
    "--m2": "#8a3fa0", "--m3": "#a8332f", "--m4": "#0f7f88", "--m5": "#7a6410", "--m6": "#4b4f9c",
}  # fmt: skip
"""Values of the page's colours on paper, for files that have no page around them."""
SAID: dict[str, Any] = {"description": "said:N", "tooltip": "said:N"}
"""What a mark carries."""
SERIES = ("--helps", "--hurts", "--m1", "--m2", "--m3", "--m4", "--m5", "--m6")
"""Colours of lines and groups, in order."""
WIDTH, HEIGHT = 640, 300
CELL = 18
"""Side of a cell of a heat map, in pixels."""


def chart(block: Block) -> Any:
    """The Vega-Lite chart of a heat map, lines, bars or a scatter. Raises `TypeError` for another block."""
    kinds: dict[type[Block], Any] = {HeatMap: _heat_map, Lines: _lines, Bars: _bars, Scatter: _scatter}
    if type(block) not in kinds:
        raise TypeError(f"A block of kind {type(block).__name__} is no chart.")
    return kinds[type(block)](block)


def _text(block: HeatMap, row: int, column: int) -> str:
    name = block.labels[row][column] if block.labels else f"{block.rows[row]}, {block.columns[column]}"
    ends = formats.interval(block.low[row][column], block.high[row][column], 3) if block.low else ""
    return f"{name}: {formats.plain(block.values[row][column])} {ends}".strip() + f" {block.unit}".rstrip()


def _heat_map(block: HeatMap) -> Any:
    cells = [
        {"row": row, "column": column, "value": value, "said": _text(block, i, j)}
        for i, row in enumerate(block.rows)
        for j, column in enumerate(block.columns)
        if (value := block.values[i][j]) is not None
    ]
    values = [abs(value) for row in block.values for value in row if value is not None]
    largest = max(values, default=1.0) or 1.0
    rows = list(reversed(block.rows)) if block.upwards else list(block.rows)
    steps = (-largest, 0.0, largest) if block.scale == "signed" else (0.0, largest)
    colours = ("#1b6cb0", "#d8d6d0", "#c2510a") if block.scale == "signed" else ("#e9e7e1", "#1b6cb0")
    scale = alt.Scale(domain=list(steps), range=list(colours), interpolate="rgb")
    return (
        alt.Chart(alt.Data(values=cells))
        .mark_rect(stroke=_var("--panel"), strokeWidth=1)
        .encode(
            x=alt.X("column:N", sort=list(block.columns), title=None, axis=_axis(len(block.columns), orient="top")),
            y=alt.Y("row:N", sort=rows, title=None, axis=_axis(len(block.rows))),
            color=alt.Color("value:Q", scale=scale, legend=alt.Legend(title=block.unit or None, gradientLength=160)),
            **SAID,
        )
        .properties(width=CELL * len(block.columns), height=CELL * len(block.rows))
    )


def _axis(labels: int, **options: Any) -> alt.Axis:
    return alt.Axis(labelAngle=0, ticks=False, domain=False, labelOverlap=labels > 40, **options)


def _lines(block: Lines) -> Any:
    points = [
        {
            "x": x,
            "y": y,
            "low": low,
            "high": high,
            "group": line.name,
            "said": f"{line.name}, {x:,.6g}: {_value(y, low, high)}",
        }
        for line in block.series
        for x, y, low, high in zip(line.x, line.y, _ends(line.low, line.y), _ends(line.high, line.y), strict=True)
        if x is not None and y is not None
    ]
    palette = ["--chance" if line.faint else SERIES[i % len(SERIES)] for i, line in enumerate(block.series)]
    colour = _colour([line.name for line in block.series], palette)
    ticks = alt.Axis(grid=False, format="~s" if block.log_x else ",", tickCount=8)
    x = alt.X("x:Q", title=block.x, scale=alt.Scale(type="log" if block.log_x else "linear", nice=False), axis=ticks)
    y = alt.Y("y:Q", title=block.y, scale=alt.Scale(zero=False))
    base = alt.Chart(alt.Data(values=points)).encode(x=x, color=colour)
    bands = base.transform_filter("isValid(datum.low) && isValid(datum.high)").mark_area(opacity=0.14)
    layers: list[Any] = [
        bands.encode(y=alt.Y("low:Q", title=block.y), y2="high:Q"),
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_circle(size=38, opacity=1).encode(y=y, **SAID),
    ]
    layers += [_rule("y", name, value) for name, value in block.levels]
    layers += [_rule("x", name, value) for name, value in block.marks]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _rule(axis: str, name: str, value: float) -> Any:
    """A named level or mark."""
    base = alt.Chart(alt.Data(values=[{"at": value, "name": name}]))
    place: dict[str, Any] = {axis: alt.Y("at:Q") if axis == "y" else alt.X("at:Q")}
    end: dict[str, Any] = {"x": alt.value(0)} if axis == "y" else {"y": alt.value(12)}
    word = base.mark_text(align="left", dx=4, dy=-5, color=_var("--muted")).encode(text="name:N", **place, **end)
    return alt.layer(base.mark_rule(strokeDash=[3, 4], color=_var("--muted")).encode(**place), word)


def _bars(block: Bars) -> Any:
    columns = (block.labels, block.values, _ends(block.low, block.values), _ends(block.high, block.values))
    rows = [
        {
            "label": label,
            "value": v,
            "low": low,
            "high": high,
            "group": group,
            "said": f"{label}: {_value(v, low, high)}",
        }
        for label, v, low, high, group in zip(*columns, block.groups or ("",) * len(block.labels), strict=True)
        if v is not None
    ]
    y = alt.Y("label:N", sort=list(block.labels), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=220))
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    x = alt.X("value:Q", title=block.x)
    bars = base.mark_bar(height={"band": 0.6}).encode(x=x, color=_colour(block.groups), **SAID)
    intervals = base.transform_filter("isValid(datum.low)").mark_rule(color=_var("--ink"))
    both = alt.layer(bars, intervals.encode(x="low:Q", x2="high:Q"))
    return both.properties(width=WIDTH, height=22 * max(1, len(rows)))


def _scatter(block: Scatter) -> Any:
    rows = [
        {"x": x, "y": y, "group": group, "said": f"{name}: {formats.plain(x)}, {formats.plain(y)}"}
        for (x, y, name), group in zip(block.points, block.groups or ("",) * len(block.points), strict=True)
    ]
    plain = alt.Scale(zero=False)
    x, y = alt.X("x:Q", title=block.x, scale=plain), alt.Y("y:Q", title=block.y, scale=plain)
    points = alt.Chart(alt.Data(values=rows)).mark_circle(size=60, opacity=0.8)
    layers: list[Any] = [points.encode(x=x, y=y, color=_colour(block.groups), **SAID)]
    if block.diagonal and rows:
        values = [value for x_, y_, _ in block.points for value in (x_, y_)]
        line = alt.Chart(alt.Data(values=[{"x": end, "y": end} for end in (min(values), max(values))]))
        dashed = line.mark_line(color=_var("--faint"), strokeDash=[4, 4], strokeWidth=1)
        layers.insert(0, dashed.encode(x="x:Q", y="y:Q"))
    return alt.layer(*layers).properties(width=420, height=420)


def _colour(groups: Sequence[str], palette: Sequence[str] = ()) -> Any:
    """A colour for each group with a legend, or one colour for all."""
    names = list(dict.fromkeys(groups))
    colours = [_var(name) for name in palette or [SERIES[i % len(SERIES)] for i in range(len(names))]]
    if len(names) < 2:
        return alt.value(colours[0] if colours else _var("--helps"))
    return alt.Color(
        "group:N",
        scale=alt.Scale(domain=names, range=colours),
        legend=alt.Legend(title=None, orient="top", symbolOpacity=1, symbolType="circle"),
    )


def _value(value: Number, low: Number, high: Number) -> str:
    return f"{formats.plain(value)} {formats.interval(low, high, 3)}".strip()


def _ends(ends: Sequence[Number], like: Sequence[Number]) -> Sequence[Number]:
    return ends or (None,) * len(like)


def _var(name: str) -> str:
    return f"var({name})"


def specification(block: Block) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, with the page's colours and fonts."""
    words = {"labelColor": _var("--muted"), "titleColor": _var("--ink"), "labelFontSize": 11, "titleFontSize": 12}
    lines = {name: _var("--line") for name in ("gridColor", "domainColor", "tickColor")}
    drawn = chart(block).configure(background="transparent", font="ui-sans-serif, system-ui, sans-serif")
    drawn = drawn.configure_axis(titleFontWeight="normal", **words, **lines).configure_legend(**words)
    return drawn.configure_view(stroke=None).to_dict()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=64)
def _drawn(specification: str) -> str:
    import vl_convert

    return vl_convert.vegalite_to_svg(json.loads(specification))  # type: ignore[no-any-return]


def svg(block: Block) -> str:
    """The chart as SVG whose colours are CSS variables of the page."""
    return _drawn(json.dumps(specification(block)))


def fixed_colours(drawing: str) -> str:
    """An SVG with the page's colours on paper written out, for files that have no page around them."""
    return re.sub(r"var\((--[\w]+)\)", lambda match: LIGHT.get(match[1], "#000000"), drawing)
