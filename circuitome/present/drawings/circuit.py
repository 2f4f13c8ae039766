"""A circuit drawn on the model's looks grid."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from circuitome.graph.node import IN_STREAM, Node
from circuitome.present import formats
from circuitome.present.assets import rendered
from circuitome.present.blocks import CircuitMap, Edge
from circuitome.present.drawings.grid import Grid, Point

STRONGEST = 150
"""Edges in the static drawing and at the page's first view."""


@dataclass(frozen=True)
class DrawnEdge:
    """One edge of the circuit with everything its drawing needs."""

    edge: Edge
    """Its ends and its score."""
    target: str
    """Node or bracket that holds the reader."""
    kind: str
    """q, k, v, mlp or logits."""
    layers: int
    """Layers from the writer to the reader."""
    weight: float
    """Square root of |score| over the largest one: 0 to 1."""
    path: str
    """The curve, as SVG path data."""

    @property
    def colour(self) -> str:
        """Name of the colour of the score's sign."""
        return "hurts" if (self.edge.score or 0) > 0 else "helps"

    @property
    def width(self) -> float:
        """Width of the stroke."""
        return round(0.7 + 3.3 * self.weight**1.5, 2)

    @property
    def opacity(self) -> float:
        """Opacity of the stroke."""
        return round(0.22 + 0.68 * self.weight, 2)

    @property
    def said(self) -> str:
        """Its ends and its score in words."""
        score = formats.estimate(self.edge.score, self.edge.low, self.edge.high)
        return f"{self.edge.source} \N{RIGHTWARDS ARROW} {self.edge.reader}: {score}"


@dataclass(frozen=True)
class Drawing:
    """A circuit placed on its grid."""

    grid: Grid
    """Where nodes are."""
    edges: tuple[DrawnEdge, ...]
    """Strongest first."""
    strengths: dict[str, float]
    """Sum of |score| over the edges that touch a node or bracket; its keys are the circuit's nodes."""

    @property
    def decimals(self) -> int:
        """Digits after the point that suit the scores."""
        return formats.score_decimals(
            max((abs(formats.finite(drawn.edge.score) or 0.0) for drawn in self.edges), default=0.0)
        )

    def live(self, node: str) -> bool:
        """Whether a node is one of the circuit."""
        return node in self.strengths

    def radius(self, node: str) -> float:
        """Radius of a node: from 30 % to all of the grid's reach, growing with strength."""
        most = self.grid.reach
        if Node.parse(node).kind in ("neuron", "feature", *IN_STREAM):
            most = min(most, 0.42 * self.grid.neuron_cell)
        return most * (0.3 + 0.7 * self.share(node)) if self.live(node) else 1.5

    @cached_property
    def top(self) -> float:
        """The largest strength among heads and MLPs."""
        return max((strength for name, strength in self.strengths.items() if is_part(name)), default=0.0)

    def share(self, node: str) -> float:
        """Square root of a node's strength over the largest one among heads and MLPs: 0 to 1."""
        return min(1.0, (self.strengths[node] / self.top) ** 0.5) if self.top else 0.0


def is_part(node: str) -> bool:
    """Whether a node is a head, a key/value head, an MLP, a neuron or a feature, which are circles and brackets."""
    return Node.parse(node).kind in ("head", "kv", "mlp", "neuron", "feature", *IN_STREAM)


def draw(block: CircuitMap) -> Drawing:
    """The block's circuit, placed; edges are ordered by |score|, ties as they came."""
    grid = Grid.of(block.shape, (edge.source for edge in block.edges))
    edges = [edge for edge in block.edges if _on(grid, edge.source) and _on(grid, edge.reader)]
    edges.sort(key=lambda edge: -abs(formats.finite(edge.score) or 0.0))
    strengths: dict[str, float] = defaultdict(float)
    for edge in edges:
        for node in (grid.node_of(edge.source), grid.node_of(edge.reader)):
            strengths[node] += abs(formats.finite(edge.score) or 0.0)
    bare = Drawing(grid, (), dict(strengths))
    top = abs(formats.finite(edges[0].score) or 0.0) if edges else 0.0
    return Drawing(grid, tuple(_drawn(bare, edge, top) for edge in edges), bare.strengths)


def _on(grid: Grid, site: str) -> bool:
    node = grid.node_of(site)
    return node in grid.nodes or node in grid.brackets


def _drawn(drawing: Drawing, edge: Edge, top: float) -> DrawnEdge:
    grid, reader = drawing.grid, Node.parse(edge.reader)
    source, target = grid.node_of(edge.source), grid.node_of(edge.reader)
    kind = {"in": "mlp", "": "logits"}.get(reader.input, reader.input)
    return DrawnEdge(
        edge=edge,
        target=target,
        kind=kind,
        layers=grid.layer(edge.reader) - grid.layer(edge.source),
        weight=(abs(formats.finite(edge.score) or 0.0) / top) ** 0.5 if top else 0.0,
        path=_path(drawing, source, target, kind),
    )


def _path(drawing: Drawing, source: str, target: str, kind: str) -> str:
    grid = drawing.grid
    start = grid.nodes[source]
    leave = Point(start.x, start.y - _half_height(drawing, source))
    if grid.layer(source) == grid.layer(target):
        return _sideways(leave, grid.nodes[target], drawing.radius(target))
    return _upwards(leave, _end(drawing, target, kind), grid)


def _end(drawing: Drawing, target: str, kind: str) -> Point:
    """Where an edge meets its reader: the bracket, or the lower rim of the node."""
    if target in drawing.grid.brackets:
        return drawing.grid.brackets[target].anchor(kind)
    place = drawing.grid.nodes[target]
    return Point(place.x, place.y + _half_height(drawing, target))


def _half_height(drawing: Drawing, node: str) -> float:
    return drawing.radius(node) if is_part(node) else 10.0


def _sideways(start: Point, node: Point, radius: float) -> str:
    """From a head to the MLP of its looks layer: a shallow arc over its neighbours."""
    lift = min(start.y, node.y) - 7
    return _curve(start, Point(start.x + 8, lift), Point(node.x - 24, lift), Point(node.x - radius, node.y))


def _upwards(start: Point, end: Point, grid: Grid) -> str:
    """A curve that leaves upwards and arrives from below; within one column it bows out to the right."""
    rise = start.y - end.y
    near = max(0.0, 1 - abs(start.x - end.x) / (0.9 * grid.cell.x))
    outside = grid.shape.mlps and start.x > grid.column(grid.shape.heads) - 1
    bow = near * (min(118.0, 8 + 0.2 * rise) if outside else min(0.62 * grid.cell.x, 5 + 0.2 * rise))
    pull = 0.36 * rise
    return _curve(start, Point(start.x + bow, start.y - pull), Point(end.x + bow, end.y + pull), end)


def _curve(a: Point, b: Point, c: Point, d: Point) -> str:
    pairs = [f"{point.x:.0f} {point.y:.0f}" for point in (a, b, c, d)]
    return f"M{pairs[0]}C{' '.join(pairs[1:])}"


def svg(drawing: Drawing) -> str:
    """The drawing with its strongest edges, colours as CSS variables of the page."""
    return rendered("circuit.svg.j2", drawing=drawing, grid=drawing.grid, shown=drawing.edges[:STRONGEST])


def strongest(drawing: Drawing) -> list[tuple[str, float, float]]:
    """The nodes with the largest sums of |score|: name, sum, and share of the largest."""
    rows = sorted(drawing.strengths.items(), key=lambda item: -item[1])[:12]
    top = rows[0][1] if rows and rows[0][1] else 1.0
    return [(name, value, round(value / top, 2)) for name, value in rows]


def script_data(block: CircuitMap, drawing: Drawing) -> dict[str, Any]:
    """What the page's script works on: the edges with their curves, and the places of the nodes."""
    grid = drawing.grid
    places = {name: [point.x, point.y] for name, point in grid.nodes.items() if drawing.live(name)}
    places |= {name: [(b.left + b.right) / 2, b.y] for name, b in grid.brackets.items() if drawing.live(name)}
    groups = {f"h{head}": f"kv{kv}" for kv, group in enumerate(grid.groups) for head in group} if grid.shared else {}
    return {
        "unit": block.unit,
        "decimals": drawing.decimals,
        "strongest": STRONGEST,
        "strengths": {name: float(f"{value:.4g}") for name, value in drawing.strengths.items()},
        "places": places,
        "groups": groups,
        "edges": _columns(drawing.edges),
    }


def _columns(edges: Sequence[DrawnEdge]) -> dict[str, list[Any]]:
    """The edges as columns, numbers with six significant digits."""
    names = {"from": [drawn.edge.source for drawn in edges], "to": [drawn.edge.reader for drawn in edges]}
    ends = {name: [_short(getattr(drawn.edge, name)) for drawn in edges] for name in ("score", "low", "high")}
    shapes = {name: [getattr(drawn, name) for drawn in edges] for name in ("target", "kind", "layers", "path")}
    return {**names, **ends, **shapes, "weight": [round(drawn.weight, 3) for drawn in edges]}


def _short(value: float | None) -> float | None:
    known = formats.finite(value)
    return None if known is None else float(f"{known:.6g}")
