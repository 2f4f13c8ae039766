"""Where every node of a model sits on the page: layers upwards, heads across, the MLP in a column of its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from circuitome.graph.node import EMBEDDINGS, IN_STREAM, Node
from circuitome.present.blocks import Shape

LEFT, RIGHT, TOP, BOTTOM = 46.0, 100.0, 34.0, 74.0
"""Margins around the heads: layer labels, arcs between MLPs, the logits row, the embedding row."""


class Point(NamedTuple):
    """A place in figure units, y downwards."""

    x: float
    y: float


class Bracket(NamedTuple):
    """The line below the query heads that share one key/value head."""

    left: float
    right: float
    y: float

    def anchor(self, kind: str) -> Point:
        """Where edges into the keys or the values end."""
        share = 1 / 3 if kind == "k" else 2 / 3
        return Point(self.left + share * (self.right - self.left), self.y)


@dataclass(frozen=True)
class Grid:
    """Positions of all nodes of one model shape."""

    shape: Shape
    """Layers, heads, and what a block holds."""
    embeds: tuple[str, ...] = ("embed",)
    """Names of the nodes that write before block 0."""

    @classmethod
    def of(cls, shape: Shape, writers: Iterable[str]) -> "Grid":
        """The grid of a model whose embeddings are those among `writers`."""
        return cls(shape, tuple(sorted(set(writers) & set(EMBEDDINGS))) or ("embed",))

    @property
    def shared(self) -> bool:
        """Whether several query heads read one key/value head."""
        return self.shape.kv_heads < self.shape.heads

    @cached_property
    def cell(self) -> Point:
        """Distance of two heads and of two layers."""
        return Point(
            min(60.0, max(20.0, 640 / self.shape.heads)), min(52.0, max(24.0, 840 / max(1, self.shape.layers)))
        )

    @property
    def reach(self) -> float:
        """The largest radius a node may have."""
        return min(11.0, 0.34 * min(self.cell))

    @property
    def across(self) -> float:
        """Width of the columns of heads, the MLP and its neurons."""
        return (self.shape.heads + 1.25 * self.shape.mlps) * self.cell.x + self.neuron_columns * self.neuron_cell

    @cached_property
    def neuron_columns(self) -> int:
        """The most neurons that are drawn in one layer."""
        return max(map(len, self.shape.neurons), default=0)

    @property
    def neuron_cell(self) -> float:
        """Distance of two neurons."""
        return min(22.0, max(9.0, 420 / max(1, self.neuron_columns)))

    @cached_property
    def origin(self) -> Point:
        """The top-left corner of the heads' cells; small grids are centred."""
        return Point(LEFT + max(0.0, 420 - self.across) / 2, TOP + 0.75 * self.cell.y)

    @cached_property
    def width(self) -> float:
        """Width of the figure."""
        return LEFT + max(420.0, self.across) + (RIGHT if self.shape.mlps else LEFT)

    @cached_property
    def height(self) -> float:
        """Height of the figure."""
        return self.origin.y + self.shape.layers * self.cell.y + BOTTOM

    @property
    def right(self) -> float:
        """Right end of the layers' hairlines."""
        last = self.column(self.shape.heads - (not self.shape.mlps)) + 0.4 * self.cell.x
        return last + self.neuron_columns * self.neuron_cell

    def row(self, layer: int) -> float:
        """Height of the heads of `layer`."""
        return self.origin.y + (self.shape.layers - layer - 0.5) * self.cell.y

    def column(self, head: int) -> float:
        """Horizontal place of `head`; one past the last is the MLP."""
        gap = 0.25 if head >= self.shape.heads else 0.0
        return self.origin.x + (head + 0.5 + gap) * self.cell.x

    def neuron(self, i: int) -> float:
        """Horizontal place of the `i`-th neuron that is drawn in a layer."""
        return self.column(self.shape.heads) + 0.5 * self.cell.x + (i + 0.5) * self.neuron_cell

    @cached_property
    def nodes(self) -> dict[str, Point]:
        """Centre of every node, bottom to top: embeddings, then each layer's heads and MLP, then `logits`."""
        centre = self.origin.x + self.shape.heads * self.cell.x / 2
        middle = (len(self.embeds) - 1) / 2
        places = {name: Point(centre + (i - middle) * 96, self.height - 46) for i, name in enumerate(self.embeds)}
        lift = 0.0 if self.shape.parallel else 0.42 * self.cell.y
        for layer in range(self.shape.layers):
            heads = range(self.shape.heads)
            places |= {str(Node.head(layer, head)): Point(self.column(head), self.row(layer)) for head in heads}
            if self.shape.mlps:
                places[str(Node.mlp(layer))] = Point(self.column(self.shape.heads), self.row(layer) - lift)
            for i, name in enumerate(self.shape.neurons[layer] if self.shape.neurons else ()):
                above = 0.3 * self.cell.y * (Node.parse(name).kind in IN_STREAM)
                places[name] = Point(self.neuron(i), self.row(layer) - lift - above)
        return places | {"logits": Point(centre, 20.0)}

    @cached_property
    def brackets(self) -> dict[str, Bracket]:
        """The bracket of every key/value head that several query heads share, `a9.kv2`; empty when none is shared."""
        if not self.shared:
            return {}
        drop, overhang = self.reach + 2.5, min(7.0, 0.3 * self.cell.x)
        ends = [(self.column(group[0]) - overhang, self.column(group[-1]) + overhang) for group in self.groups]
        return {
            str(Node("kv", layer, kv)): Bracket(left, right, self.row(layer) + drop)
            for layer in range(self.shape.layers)
            for kv, (left, right) in enumerate(ends)
        }

    @cached_property
    def groups(self) -> list[list[int]]:
        """The query heads that read each key/value head."""
        kv_of = [head * self.shape.kv_heads // self.shape.heads for head in range(self.shape.heads)]
        return [[head for head, shared in enumerate(kv_of) if shared == kv] for kv in range(self.shape.kv_heads)]

    def node_of(self, site: str) -> str:
        """The node or bracket that holds a writer or reader: a9.h6 for a9.h6.q, a9.kv2 for a9.kv2.k, m7 for m7.in."""
        node = Node.parse(site).whole
        if node.kind == "kv" and not self.shared:
            return str(Node.head(node.layer, node.index))
        if node.kind in ("neuron", "feature") and str(node) not in self.nodes:
            return str(Node.mlp(node.layer))
        return str(node)

    def layer(self, site: str) -> int:
        """Layer of a writer or reader; embeddings are one below the first block, the logits one above the last."""
        node = Node.parse(site)
        if node.kind in EMBEDDINGS:
            return -1
        return self.shape.layers if node.kind == "logits" else node.layer - (node.kind in IN_STREAM)
