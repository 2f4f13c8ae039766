"""Where every node of a model sits on the page: layers upwards, heads across, the MLP in a column of its own."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

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

    layers: int
    """Number of blocks."""
    heads: int
    """Query heads of a block."""
    kv_heads: int
    """Key/value heads of a block."""
    mlps: bool
    """False for attention-only models."""
    parallel: bool
    """True where attention and MLP read the same residual; then they stand at the same height."""
    embeds: tuple[str, ...]
    """Names of the nodes that write before block 0."""

    @property
    def shared(self) -> bool:
        """Whether several query heads read one key/value head."""
        return self.kv_heads < self.heads

    @cached_property
    def cell(self) -> Point:
        """Distance of two heads and of two layers."""
        return Point(min(60.0, max(20.0, 640 / self.heads)), min(52.0, max(24.0, 840 / self.layers)))

    @property
    def reach(self) -> float:
        """The largest radius a node may have."""
        return min(11.0, 0.34 * min(self.cell))

    @cached_property
    def origin(self) -> Point:
        """The top-left corner of the heads' cells; small grids are centred."""
        across = (self.heads + 1.25 * self.mlps) * self.cell.x
        return Point(LEFT + max(0.0, 420 - across) / 2, TOP + 0.75 * self.cell.y)

    @cached_property
    def width(self) -> float:
        """Width of the figure."""
        across = (self.heads + 1.25 * self.mlps) * self.cell.x
        return LEFT + max(420.0, across) + (RIGHT if self.mlps else LEFT)

    @cached_property
    def height(self) -> float:
        """Height of the figure."""
        return self.origin.y + self.layers * self.cell.y + BOTTOM

    def row(self, layer: int) -> float:
        """Height of the heads of `layer`."""
        return self.origin.y + (self.layers - layer - 0.5) * self.cell.y

    def column(self, head: int) -> float:
        """Horizontal place of `head`; one past the last is the MLP."""
        gap = 0.75 if head == self.heads else 0.5
        return self.origin.x + (head + gap) * self.cell.x

    @cached_property
    def nodes(self) -> dict[str, Point]:
        """Centre of every node, bottom to top: embeddings, then each layer's heads and MLP, then `logits`."""
        centre = self.origin.x + self.heads * self.cell.x / 2
        step = 96.0
        places = {
            name: Point(centre + (i - (len(self.embeds) - 1) / 2) * step, self.height - 46)
            for i, name in enumerate(self.embeds)
        }
        lift = 0.0 if self.parallel else 0.42 * self.cell.y
        for layer in range(self.layers):
            places |= {f"a{layer}.h{head}": Point(self.column(head), self.row(layer)) for head in range(self.heads)}
            if self.mlps:
                places[f"m{layer}"] = Point(self.column(self.heads), self.row(layer) - lift)
        return places | {"logits": Point(centre, 20.0)}

    @cached_property
    def brackets(self) -> dict[str, Bracket]:
        """The bracket of every key/value head that several query heads share, `a9.kv2`; empty when none is shared."""
        if not self.shared:
            return {}
        drop, overhang = self.reach + 2.5, min(7.0, 0.3 * self.cell.x)
        spans = {kv: self.group(kv) for kv in range(self.kv_heads)}
        return {
            f"a{layer}.kv{kv}": Bracket(
                self.column(heads[0]) - overhang, self.column(heads[-1]) + overhang, self.row(layer) + drop
            )
            for layer in range(self.layers)
            for kv, heads in spans.items()
        }

    def group(self, kv: int) -> list[int]:
        """The query heads that read key/value head `kv`."""
        return [head for head in range(self.heads) if head * self.kv_heads // self.heads == kv]

    def reader_node(self, reader: str) -> str:
        """The node or bracket that holds `reader`: `a9.h6.q` -> `a9.h6`, `a9.kv2.k` -> `a9.kv2`, `m7.in` -> `m7`."""
        node = reader.rpartition(".")[0] or reader
        return node if self.shared else node.replace(".kv", ".h")

    def layer(self, site: str) -> int:
        """Layer of a writer or reader; embeddings are one below the first block, the logits one above the last."""
        found = re.match(r"[am](\d+)", site)
        if found:
            return int(found[1])
        return self.layers if site == "logits" else -1


def make_grid(model: Mapping[str, Any], writers: Iterable[str]) -> Grid:
    """The grid of a payload's `model`; `writers` that are no head and no MLP become nodes of the embedding row."""
    heads = int(model["heads"])
    others = dict.fromkeys(name for name in writers if not re.match(r"[am]\d", name))
    return Grid(
        layers=int(model["layers"]),
        heads=heads,
        kv_heads=int(model.get("kv_heads") or heads),
        mlps=bool(model.get("mlps", True)),
        parallel=bool(model.get("parallel", False)),
        embeds=tuple(sorted(others)) or ("embed",),
    )
