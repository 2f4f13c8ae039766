"""The circuit drawn on the model's own grid."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitome.report import formats
from circuitome.report.grid import Grid, Point, make_grid
from circuitome.report.markup import Attributes, Markup, join, number, tag

STRONGEST = 150
"""Edges in the static drawing and at the page's first view."""


_HIT: Attributes = {"fill": "none", "stroke-width": 7, "pointer-events": "stroke"}
"""An unseen, wider line that catches the pointer."""


@dataclass(frozen=True)
class DrawnEdge:
    """One edge of the circuit with everything its drawing needs."""

    source: str
    """Writer, and the node it is."""
    reader: str
    """Reader in text form, `a9.kv2.k`."""
    target: str
    """Node or bracket that holds the reader."""
    kind: str
    """q, k, v, mlp or logits."""
    score: float | None
    """Effect on the metric, in its unit."""
    low: float | None
    """Lower end of the score's interval."""
    high: float | None
    """Upper end of the score's interval."""
    layers: int
    """Layers from the writer to the reader."""
    weight: float
    """Square root of |score| over the largest one: 0 to 1."""
    path: str
    """The curve, as SVG path data."""

    @property
    def colour(self) -> str:
        """Name of the colour of the score's sign."""
        return "hurts" if (self.score or 0) > 0 else "helps"

    @property
    def width(self) -> float:
        """Width of the stroke."""
        return round(0.7 + 3.3 * math.pow(self.weight, 1.5), 2)

    @property
    def opacity(self) -> float:
        """Opacity of the stroke."""
        return round(0.22 + 0.68 * self.weight, 2)


@dataclass(frozen=True)
class Drawing:
    """A circuit placed on its grid."""

    grid: Grid
    """Where nodes are."""
    edges: tuple[DrawnEdge, ...]
    """Strongest first."""
    strengths: dict[str, float]
    """Sum of |score| over the edges that touch a node or bracket; its keys are the circuit's nodes."""

    def radius(self, node: str) -> float:
        """Radius of a node: from 30 % to all of the grid's reach, growing with strength."""
        return self.grid.reach * (0.3 + 0.7 * self.share(node)) if node in self.strengths else 1.5

    def share(self, node: str) -> float:
        """Square root of a node's strength over the largest one among heads and MLPs: 0 to 1."""
        top = max((s for name, s in self.strengths.items() if name[0] in "am"), default=0.0)
        return min(1.0, (self.strengths[node] / top) ** 0.5) if top else 0.0


def draw(payload: Mapping[str, Any]) -> Drawing:
    """The payload's circuit, placed; edges are ordered by |score|, ties as they came."""
    rows = sorted(payload["edges"], key=lambda row: -abs(formats.finite(row.get("score")) or 0.0))
    grid = make_grid(payload["model"], (row["from"] for row in rows))
    strengths: dict[str, float] = defaultdict(float)
    for row in rows:
        for node in (row["from"], grid.reader_node(row["to"])):
            strengths[node] += abs(formats.finite(row.get("score")) or 0.0)
    bare = Drawing(grid, (), dict(strengths))
    top = abs(formats.finite(rows[0].get("score")) or 0.0) if rows else 0.0
    return Drawing(grid, tuple(_edge(bare, row, top) for row in rows), dict(strengths))


def _edge(drawing: Drawing, row: Mapping[str, Any], top: float) -> DrawnEdge:
    source, reader = str(row["from"]), str(row["to"])
    score, grid = formats.finite(row.get("score")), drawing.grid
    target, kind = grid.reader_node(reader), _kind(reader)
    return DrawnEdge(
        source=source,
        reader=reader,
        target=target,
        kind=kind,
        score=score,
        low=formats.finite(row.get("low")),
        high=formats.finite(row.get("high")),
        layers=grid.layer(reader) - grid.layer(source),
        weight=(abs(score or 0.0) / top) ** 0.5 if top else 0.0,
        path=_path(drawing, source, target, kind),
    )


def _kind(reader: str) -> str:
    suffix = reader.rpartition(".")[2]
    return "mlp" if suffix == "in" else suffix


def _path(drawing: Drawing, source: str, target: str, kind: str) -> str:
    grid = drawing.grid
    start, end = grid.nodes[source], _end(drawing, target, kind)
    rise = _half_height(drawing, source)
    leave = Point(start.x, start.y - rise)
    if grid.layer(source) == grid.layer(target):
        return _sideways(leave, grid.nodes[target], drawing.radius(target))
    return _upwards(leave, end, grid)


def _end(drawing: Drawing, target: str, kind: str) -> Point:
    """Where an edge meets its reader: the bracket, or the lower rim of the node."""
    if target in drawing.grid.brackets:
        return drawing.grid.brackets[target].anchor(kind)
    place = drawing.grid.nodes[target]
    return Point(place.x, place.y + _half_height(drawing, target))


def _half_height(drawing: Drawing, node: str) -> float:
    return drawing.radius(node) if node[0] in "am" else 10.0


def _sideways(start: Point, node: Point, radius: float) -> str:
    """From a head to the MLP of its own layer: a shallow arc over its neighbours."""
    lift = min(start.y, node.y) - 7
    return _curve(start, Point(start.x + 8, lift), Point(node.x - 24, lift), Point(node.x - radius, node.y))


def _upwards(start: Point, end: Point, grid: Grid) -> str:
    """A curve that leaves upwards and arrives from below; within one column it bows out to the right."""
    rise = start.y - end.y
    near = max(0.0, 1 - abs(start.x - end.x) / (0.9 * grid.cell.x))
    outside = grid.mlps and start.x > grid.column(grid.heads) - 1
    bow = near * (min(118.0, 8 + 0.2 * rise) if outside else min(0.62 * grid.cell.x, 5 + 0.2 * rise))
    pull = 0.36 * rise
    return _curve(start, Point(start.x + bow, start.y - pull), Point(end.x + bow, end.y + pull), end)


def _curve(a: Point, b: Point, c: Point, d: Point) -> str:
    pairs = [f"{point.x:.0f} {point.y:.0f}" for point in (a, b, c, d)]
    return f"M{pairs[0]}C{' '.join(pairs[1:])}"


def svg(drawing: Drawing) -> Markup:
    """The drawing with its strongest edges, colours as CSS variables of the page."""
    grid = drawing.grid
    shown = drawing.edges[:STRONGEST]
    label = f"The circuit on the model's grid: its strongest {len(shown):,} of {len(drawing.edges):,} edges"
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig",
            "id": "circuit-svg",
            "viewBox": f"0 0 {number(grid.width)} {number(grid.height)}",
            "width": grid.width,
            "height": grid.height,
            "role": "img",
            "aria-label": label,
            "font-family": "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
        },
        tag("rect", {"class": "backdrop", "width": grid.width, "height": grid.height, "fill": "var(--panel)"}),
        tag("g", {"aria-hidden": "true"}, _guides(grid)),
        tag("g", {"class": "brackets"}, *(_bracket(drawing, name) for name in grid.brackets)),
        tag("g", {"class": "edges"}, *(_edge_path(edge) for edge in reversed(shown))),
        tag("g", {"class": "overlay"}),
        tag("g", {"class": "nodes"}, *(_node(drawing, name) for name in grid.nodes)),
    )


def _guides(grid: Grid) -> Markup:
    """Layer numbers with hairlines, and the names of the columns."""
    right = grid.column(grid.heads if grid.mlps else grid.heads - 1) + 0.4 * grid.cell.x
    left = grid.origin.x
    lines = [
        tag(
            "line",
            {"x1": left, "x2": right, "y1": grid.row(i), "y2": grid.row(i), "stroke": "var(--line)", "opacity": 0.55},
        )
        for i in range(grid.layers)
    ]
    numbers = [_label(str(i), Point(left - 8, grid.row(i) + 3.5), "end") for i in range(grid.layers)]
    foot = grid.height - 10
    every = 1 if grid.cell.x >= 22 else 2
    columns = [_label(str(i), Point(grid.column(i), foot), "middle") for i in range(0, grid.heads, every)]
    names = [_label("layer", Point(left - 8, grid.origin.y - 2), "end"), _label("head", Point(left - 8, foot), "end")]
    mlp = [_label("MLP", Point(grid.column(grid.heads), foot), "middle")] if grid.mlps else []
    return join(*lines, *numbers, *columns, *names, *mlp)


def _label(words: str, place: Point, anchor: str) -> Markup:
    attributes: Attributes = {
        "x": place.x,
        "y": place.y,
        "text-anchor": anchor,
        "font-size": 10.5,
        "fill": "var(--muted)",
    }
    return tag("text", attributes, words)


def _edge_path(edge: DrawnEdge) -> Markup:
    attributes: Attributes = {
        "d": edge.path,
        "fill": "none",
        "stroke": f"var(--{edge.colour})",
        "stroke-width": edge.width,
        "opacity": edge.opacity,
    }
    score = f"{formats.plain(edge.score)} {formats.interval(edge.low, edge.high, 3)}".strip()
    return tag("path", attributes, tag("title", None, f"{edge.source} \N{RIGHTWARDS ARROW} {edge.reader}: {score}"))


def _bracket(drawing: Drawing, name: str) -> Markup:
    line = drawing.grid.brackets[name]
    live = name in drawing.strengths
    shape = f"M{number(line.left)} {number(line.y - 3)}V{number(line.y)}H{number(line.right)}v-3"
    paint: Attributes = {
        "d": shape,
        "fill": "none",
        "stroke": "var(--ink)" if live else "var(--faint)",
        "stroke-width": 1 + 1.6 * drawing.share(name) if live else 0.7,
        "opacity": 0.35 + 0.55 * drawing.share(name) if live else 0.5,
    }
    if not live:
        return tag("path", paint)
    hit = tag("path", _HIT | {"d": shape})
    return tag("g", {"class": "node", "data-node": name}, tag("path", paint), hit)


def _node(drawing: Drawing, name: str) -> Markup:
    place, live = drawing.grid.nodes[name], name in drawing.strengths
    if name[0] not in "am":
        return _pill(name, place, live)
    if not live:
        return tag("circle", {"cx": place.x, "cy": place.y, "r": 1.5, "fill": "var(--faint)"})
    radius = drawing.radius(name)
    centre: Attributes = {"cx": place.x, "cy": place.y}
    share = 0.35 + 0.65 * drawing.share(name)
    return tag(
        "g",
        {"class": "node", "data-node": name},
        tag("circle", centre | {"class": "hit", "r": radius + 2.5, "fill": "none", "pointer-events": "all"}),
        tag("circle", centre | {"class": "rim", "r": radius + 1, "fill": "var(--panel)"}),
        tag("circle", centre | {"class": "core", "r": radius, "fill": "var(--ink)", "fill-opacity": share}),
        tag("title", None, f"{name}, strength {formats.plain(drawing.strengths[name])}"),
    )


def _pill(name: str, place: Point, live: bool) -> Markup:
    width = 7.0 * len(name) + 22
    colour = "var(--ink)" if live else "var(--faint)"
    box: Attributes = {"x": place.x - width / 2, "y": place.y - 10, "width": width, "height": 20.0, "rx": 10.0}
    words: Attributes = {
        "x": place.x,
        "y": place.y + 4,
        "text-anchor": "middle",
        "font-size": 11.5,
        "fill": "var(--ink)",
    }
    return tag(
        "g",
        {"class": "node", "data-node": name} if live else {"opacity": 0.6},
        tag("rect", box | {"class": "rim", "fill": "var(--panel)", "stroke": colour, "stroke-width": 1.2}),
        tag("text", words, name),
    )


def columns(edges: Sequence[DrawnEdge]) -> dict[str, list[Any]]:
    """The edges as columns for the page's script: what it draws and lists, with six significant digits."""
    return {
        "from": [edge.source for edge in edges],
        "to": [edge.reader for edge in edges],
        "target": [edge.target for edge in edges],
        "kind": [edge.kind for edge in edges],
        "score": [_short(edge.score) for edge in edges],
        "low": [_short(edge.low) for edge in edges],
        "high": [_short(edge.high) for edge in edges],
        "layers": [edge.layers for edge in edges],
        "path": [edge.path for edge in edges],
        "width": [edge.width for edge in edges],
        "opacity": [edge.opacity for edge in edges],
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
