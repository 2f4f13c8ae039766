"""The attribution graph of one prompt: tokens across, blocks up, nodes as dots in the cell of their token and block."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from circuitome.present import formats
from circuitome.present.assets import rendered
from circuitome.present.blocks import GraphDot, PromptGraph
from circuitome.present.drawings.grid import Point

ROW, LEFT, HEAD, FOOT = 19.0, 34.0, 122.0, 96.0
"""Height of a block's row, and room for labels, in pixels."""
COLUMN, STEP = 46.0, 9.5
"""Smallest width of a token's column, and distance of two dots in it."""
WIDEST = 34
"""Dots beside each other in a cell; more lie closer together."""
SHOWN = 80
"""Edges that are drawn."""


@dataclass(frozen=True)
class Map:
    """Where the nodes of a graph are."""

    block: PromptGraph
    """The graph."""

    @cached_property
    def cells(self) -> dict[tuple[int, int], list[int]]:
        """By block and token, places of the nodes there, most influence in the middle of the order they came in."""
        found: dict[tuple[int, int], list[int]] = defaultdict(list)
        for i, dot in enumerate(self.block.nodes):
            if dot.kind != "bias":
                found[dot.layer, dot.position].append(i)
        return found

    @cached_property
    def columns(self) -> list[tuple[float, float]]:
        """By token, left end and width of its column."""
        places, left = [], LEFT
        for position in range(len(self.block.tokens)):
            most = max((len(some) for (_, at), some in self.cells.items() if at == position), default=1)
            width = max(COLUMN, min(WIDEST, most) * STEP + 12)
            places.append((left, width))
            left += width
        return places

    @property
    def width(self) -> float:
        """Width of the figure."""
        return sum(self.columns[-1]) + 60 if self.columns else LEFT

    @property
    def ground(self) -> float:
        """Height of the tokens' row."""
        return HEAD + ROW * (self.block.layers + 1)

    @property
    def height(self) -> float:
        """Height of the figure."""
        return self.ground + FOOT

    def row(self, layer: int) -> float:
        """Height of a block's row; -1 for the tokens, the number of blocks for the logits."""
        return self.ground - ROW * (layer + 1)

    @cached_property
    def places(self) -> list[Point]:
        """Where each node is; biases stand left of the first token."""
        points = [Point(LEFT - 16, self.ground)] * len(self.block.nodes)
        for (layer, position), some in self.cells.items():
            left, width = self.columns[position]
            step = min(STEP, (width - 12) / len(some)) if layer < self.block.layers else max(STEP, 13.0)
            start = left + width / 2 - step * (len(some) - 1) / 2
            if layer == self.block.layers:
                start = max(LEFT, min(start, self.width - 50 - step * (len(some) - 1)))
            for k, i in enumerate(some):
                points[i] = Point(start + step * k, self.row(layer))
        return points

    @cached_property
    def largest(self) -> float:
        """The largest influence of a dot."""
        return max((dot.influence for dot in self.block.nodes if dot.kind in ROUND), default=0.0) or 1.0

    def radius(self, dot: GraphDot) -> float:
        """Radius of a dot: its area grows with its influence."""
        return 2.2 + 3.0 * min(1.0, dot.influence / self.largest) ** 0.5

    def path(self, source: int, target: int) -> str:
        """The curve of an edge."""
        a, b = self.places[source], self.places[target]
        pull = max(8.0, 0.4 * (a.y - b.y))
        return f"M{a.x:.1f} {a.y:.1f}C{a.x:.1f} {a.y - pull:.1f} {b.x:.1f} {b.y + pull:.1f} {b.x:.1f} {b.y:.1f}"

    @property
    def rows(self) -> range:
        """Blocks whose number is written."""
        return range(0, self.block.layers, 1 if self.block.layers <= 12 else 5)


ROUND = ("neuron", "feature", "mlp")
"""Kinds of nodes that are drawn as dots; tokens and logits are squares."""


def colour(value: float | None) -> str:
    """Name of the colour of a sign."""
    known = formats.finite(value) or 0.0
    return "muted" if not known else "helps" if known > 0 else "hurts"


def said(dot: GraphDot) -> str:
    """A node in words."""
    words = [dot.id, *([dot.label] if dot.label else [])]
    words += [f"effect {formats.plain(dot.effect)}"] * (dot.effect is not None)
    return ", ".join([*words, f"influence {formats.percent(dot.influence)}"])


def svg(block: PromptGraph) -> str:
    """Every node, and the edges with most influence."""
    places = Map(block)
    largest = max((edge[3] for edge in block.edges), default=0.0) or 1.0
    drawn = [
        (source, target, colour(weight), 0.5 + 2.5 * (score / largest) ** 0.5, places.path(source, target))
        for source, target, weight, score in block.edges[:SHOWN]
    ]
    return rendered(
        "attribution_graph.svg.j2",
        block=block,
        map=places,
        edges=drawn,
        colour=colour,
        said=said,
        round=ROUND,
        visible=formats.visible,
    )


def script_data(block: PromptGraph) -> dict[str, Any]:
    """What the page's view works on; it lays the nodes out itself, as it does those of files."""
    names = ("id", "key", "kind", "layer", "position", "label", "value", "influence", "effect", "others", "heads")
    groups: dict[str, list[int]] = {}
    for i, dot in enumerate(block.nodes):
        if dot.group:
            groups.setdefault(dot.group, []).append(i)
    return {
        "metadata": block.metadata,
        "tokens": block.tokens,
        "layers": block.layers,
        "explains": block.explains,
        "nodes": [{name: _short(getattr(dot, name)) for name in names} for dot in block.nodes],
        "edges": [[source, target, _short(weight)] for source, target, weight, _ in block.edges],
        "choice": {"pinned": block.pinned, "groups": [{"name": n, "members": some} for n, some in groups.items()]},
    }


def _short(value: Any) -> Any:
    """Numbers with as many digits as a file for Neuronpedia has."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
