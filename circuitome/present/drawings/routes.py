"""Information flow routes: tokens across, blocks up, from the tokens to the prediction."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from circuitome.graph.node import Node
from circuitome.present.assets import rendered
from circuitome.present.blocks import RouteEdge, Routes
from circuitome.present.drawings.grid import Point

COLUMN, ROW, LEFT, TOP, FOOT = 58.0, 26.0, 46.0, 34.0, 96.0
"""Size of a token's column and a block's row, and room for labels, in pixels."""
FITS = 1200.0
"""Width up to which a figure is scaled down to the page; wider ones scroll."""
COLOURS = {"attention": "helps", "stay": "faint", "mlp": "hurts", "reads": "hurts"}
"""By kind of edge."""
SAID = 4
"""Heads of an edge that are named when it is hovered."""


def on_route(block: Routes, threshold: float) -> list[int]:
    """Indices of the edges on the route at a threshold: the same as `onRoute` of the page's view.

    Those of at least the threshold that are reached from the target over such edges; what an MLP reads is always kept.
    """
    into: dict[str, list[int]] = {}
    for index, edge in enumerate(block.edges):
        into.setdefault(edge.target, []).append(index)
    reached, todo, kept = {block.target}, [block.target], []
    while todo:
        for index in into.get(todo.pop(), []):
            edge = block.edges[index]
            if edge.kind == "reads" or edge.importance >= threshold:
                kept.append(index)
                if edge.source not in reached:
                    reached.add(edge.source)
                    todo.append(edge.source)
    return sorted(kept)


def shown_edges(block: Routes) -> list[RouteEdge]:
    """The edges on the route at the threshold at which it is drawn first."""
    return [block.edges[index] for index in on_route(block, block.threshold if block.slides else 0.0)]


@dataclass(frozen=True)
class Map:
    """Where the nodes of a route are."""

    block: Routes
    """The route."""

    @cached_property
    def columns(self) -> dict[int, float]:
        """Horizontal place of every position that a node stands at."""
        positions = sorted({Node.parse(node.id).position or 0 for node in self.block.nodes})
        return {position: LEFT + COLUMN * (i + 0.5) for i, position in enumerate(positions)}

    @property
    def width(self) -> float:
        """Width of the figure."""
        return LEFT + COLUMN * len(self.columns) + 10

    @property
    def ground(self) -> float:
        """Height of the stream in front of block 0."""
        return TOP + ROW * self.block.layers

    @property
    def height(self) -> float:
        """Height of the figure."""
        return self.ground + FOOT

    @property
    def layers(self) -> range:
        """Blocks whose number is written."""
        return range(0, self.block.layers + 1, 1 if self.block.layers <= 12 else 5)

    def at(self, name: str) -> Point:
        """Where a node is: the stream in its column, MLPs to its right, biases to its left."""
        node = Node.parse(name)
        x = self.columns[node.position or 0]
        if node.kind == "resid_pre":
            return Point(x, self.ground - ROW * node.layer)
        if node.kind == "resid_mid":
            return Point(x, self.ground - ROW * (node.layer + 0.5))
        return Point(x + (14 if node.kind == "mlp" else -12), self.ground - ROW * (node.layer + 0.75))

    def square(self, name: str) -> bool:
        """Whether a node is an MLP or its bias, which are drawn as squares."""
        return Node.parse(name).kind in ("mlp", "mlp_bias")


def svg(block: Routes) -> str:
    """Every kept edge and node; what is not on the route at the first threshold is not displayed."""
    places = Map(block)
    shown = set(on_route(block, block.threshold if block.slides else 0.0))
    edges = sorted(enumerate(block.edges), key=lambda item: item[1].importance)  # strong lines lie on top
    return rendered(
        "routes.svg.j2",
        block=block,
        map=places,
        edges=[(index, edge, index in shown, COLOURS.get(edge.kind, "muted"), _said(edge)) for index, edge in edges],
        reached={block.target, *(block.edges[index].source for index in shown)},
        fits=places.width <= FITS,
    )


def _said(edge: RouteEdge) -> str:
    """Its ends, its importance and its strongest heads in words."""
    heads = sorted(((value, head) for head, value in enumerate(edge.heads) if value > 0), reverse=True)
    words = [f"{edge.source} to {edge.target}: {edge.importance:.3f}"]
    words += [f"h{head} {value:.3f}" for value, head in heads[:SAID]]
    return ", ".join([*words, *([f"residual {edge.residual:.3f}"] if edge.residual else [])])


def script_data(block: Routes) -> dict[str, Any]:
    """What the page's view works on."""
    names = ("tokens", "target", "threshold", "lowest", "slides", "parts")
    return {**{name: getattr(block, name) for name in names}, "edges": [asdict(edge) for edge in block.edges]}
