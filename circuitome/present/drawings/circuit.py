"""A circuit drawn on the model's own grid."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from circuitome.graph.node import IN_STREAM, Node
from circuitome.present import formats
from circuitome.present.assets import rendered
from circuitome.present.blocks import CircuitMap, Edge, EdgeSet
from circuitome.present.drawings.grid import Grid, Point

STRONGEST = 150
"""Edges in the static drawing and at the page's first view."""
TITLED = 1000
"""Nodes above which the static drawing has plain dots, without their names under the pointer."""


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
    top = abs(formats.finite(edges[0].score) or 0.0) if edges else 0.0
    return Drawing(grid, tuple(_drawn(grid, edge, top) for edge in edges), dict(strengths))


def _on(grid: Grid, site: str) -> bool:
    node = grid.node_of(site)
    return node in grid.nodes or node in grid.brackets


def _drawn(grid: Grid, edge: Edge, top: float) -> DrawnEdge:
    reader = Node.parse(edge.reader)
    return DrawnEdge(
        edge=edge,
        target=grid.node_of(edge.reader),
        kind={"in": "mlp", "": "logits"}.get(reader.input, reader.input),
        layers=grid.layer(edge.reader) - grid.layer(edge.source),
        weight=(abs(formats.finite(edge.score) or 0.0) / top) ** 0.5 if top else 0.0,
    )


def path(drawing: Drawing, drawn: DrawnEdge) -> str:
    """The curve of an edge, as SVG path data; that of the page's view is the same."""
    grid, target, kind = drawing.grid, drawn.target, drawn.kind
    source = grid.node_of(drawn.edge.source)
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
    """From a head to the MLP of its own layer: a shallow arc over its neighbours."""
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
    shown, plain = drawing.edges[:STRONGEST], len(drawing.strengths) > TITLED
    return rendered("circuit.svg.j2", drawing=drawing, grid=drawing.grid, shown=shown, path=path, plain_dots=plain)


def strongest(drawing: Drawing) -> list[tuple[str, float, float]]:
    """The nodes with the largest sums of |score|: name, sum, and share of the largest."""
    rows = sorted(drawing.strengths.items(), key=lambda item: -item[1])[:12]
    top = rows[0][1] if rows and rows[0][1] else 1.0
    return [(name, value, round(value / top, 2)) for name, value in rows]


def view_data(block: CircuitMap) -> dict[str, Any]:
    """What the page's view works on: the grid, and sets of edges as columns whose nodes are numbers in `names`.

    Neurons and features have no places here: the view folds them into their MLPs.
    """
    sets = [EdgeSet(name=block.name, edges=block.edges, unit=block.unit, measured=block.measured), *block.others]
    grid = Grid.of(replace(block.shape, neurons=()), (edge.source for some in sets for edge in some.edges))
    names: dict[str, int] = {}
    columns = [_columns(block, some, names) for some in sets]
    return {
        "grid": _geometry(grid),
        "neurons": block.shape.neurons,
        "names": list(names),
        "sets": columns,
        "groups": block.groups,
        "also": block.also,
        "strongest": STRONGEST,
    }


def _geometry(grid: Grid) -> dict[str, Any]:
    """Where rows, columns, and what stands outside of them are."""
    shape, places = grid.shape, grid.nodes
    return {
        "rows": [grid.row(layer) for layer in range(shape.layers)],
        "columns": [grid.column(head) for head in range(shape.heads)],
        "mlp": [grid.column(shape.heads), 0.0 if shape.parallel else 0.42 * grid.cell.y] if shape.mlps else None,
        "ends": {name: places[name] for name in (*grid.embeds, "logits")},
        "brackets": [grid.brackets[str(Node("kv", 0, kv))][:2] for kv in range(shape.kv_heads)] if grid.shared else [],
        "shared": grid.groups if grid.shared else [],
        "drop": grid.reach + 2.5,
        "reach": grid.reach,
        "cell": grid.cell,
        "left": grid.origin.x,
        "right": grid.right,
        "size": [grid.width, grid.height],
    }


KINDS = ("q", "k", "v", "mlp", "logits")
"""Kinds of inputs, by number in the view's data."""


def _columns(block: CircuitMap, some: EdgeSet, names: dict[str, int]) -> dict[str, Any]:
    """A set's edges as columns, strongest first, numbers with six significant digits; fills `names`."""
    drawing = draw(replace(block, edges=some.edges))

    def numbered(texts: Iterable[str]) -> list[int]:
        return [names.setdefault(text, len(names)) for text in texts]

    edges = [drawn.edge for drawn in drawing.edges]
    return {
        "name": some.name,
        "about": some.about,
        "unit": some.unit,
        "decimals": drawing.decimals,
        "measured": [[point.edges, point.share, point.random] for point in some.measured],
        "from": numbered(edge.source for edge in edges),
        "to": numbered(edge.reader for edge in edges),
        "source": numbered(drawing.grid.node_of(edge.source) for edge in edges),
        "target": numbered(drawn.target for drawn in drawing.edges),
        "kind": [KINDS.index(drawn.kind) for drawn in drawing.edges],
        **{name: [_short(getattr(edge, name)) for edge in edges] for name in ("score", "low", "high")},
        "also": [[_short(edge.also[i]) for edge in edges] for i in range(len(block.also))],
    }


def _short(value: float | None) -> float | None:
    known = formats.finite(value)
    return None if known is None else float(f"{known:.6g}")
