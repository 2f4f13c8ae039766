"""A causal model, inputs below and the answer on top, beside the network's blocks and positions."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from circuitome.present import formats
from circuitome.present.assets import rendered
from circuitome.present.blocks import CausalMap, CausalVariable
from circuitome.present.drawings.grid import Point

BOX, GAP, TALL, BETWEEN = 104.0, 16.0, 40.0, 46.0
"""Width of a box, room between boxes of a row, height of a box, room between rows, in pixels."""
APART, COLUMN, LABELS, TOP, FOOT = 70.0, 84.0, 30.0, 30.0, 40.0
"""Room between graph and network, width of a position, of the numbers of blocks, room above and below."""
LEAST, MOST = 260.0, 420.0
"""Height of the network at least and, unless it has more blocks than fit, at most."""
COLOURS = 6
"""Colours of variables; then they come again."""
LETTERS, SHORT = 15, 9
"""Letters of a name, and of a place, that a box has room for."""


@dataclass(frozen=True)
class Box:
    """An input or a variable, placed."""

    variable: CausalVariable
    """What it is."""
    x: float
    """Left end."""
    y: float
    """Upper end."""
    colour: str
    """The colour of what was looked for; nothing of the others."""

    @property
    def name(self) -> str:
        """Its name, as far as there is room."""
        name = self.variable.name
        return name if len(name) <= LETTERS else name[: LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"

    @property
    def about(self) -> str:
        """Its accuracy in a few letters, or what else it is."""
        if self.variable.accuracy is None:
            return "" if self.variable.parents else "input"
        place = self.variable.place if len(self.variable.place) <= SHORT else ""
        return f"{place} IIA {formats.fixed(self.variable.accuracy[0], 2)}".strip()

    @property
    def said(self) -> str:
        """All about it in words."""
        variable = self.variable
        origin = f"computed from {', '.join(variable.parents)}" if variable.parents else "an input"
        if variable.accuracy is None:
            return f"{variable.name}: {origin}"
        verdict = "stands out from all controls" if variable.holds else "does not stand out from all controls"
        share = formats.percent(*variable.accuracy)
        return f"{variable.name}: {origin}; at {variable.place} IIA {share}, which {verdict}"


@dataclass(frozen=True)
class Diagram:
    """Boxes by level, a variable above all that it is computed from, and dots in the network."""

    block: CausalMap
    """The causal model, its places, and the network's size."""

    @cached_property
    def rows(self) -> list[list[CausalVariable]]:
        """Inputs and variables by level, from below."""
        levels: dict[str, int] = {}
        rows = defaultdict(list)
        for variable in self.block.variables:
            levels[variable.name] = 1 + max((levels[name] for name in variable.parents), default=-1)
            rows[levels[variable.name]].append(variable)
        return [rows[level] for level in sorted(rows)]

    @property
    def graph_width(self) -> float:
        """Width of the causal model."""
        return max(len(row) for row in self.rows) * (BOX + GAP) - GAP

    @property
    def tall(self) -> float:
        """Height of the network and of the causal model beside it."""
        least = max(LEAST, len(self.rows) * (TALL + BETWEEN) - BETWEEN)
        return max(least, min(MOST, 14.0 * self.block.layers))

    @cached_property
    def boxes(self) -> dict[str, Box]:
        """The boxes by name, rows spread over the height."""
        boxes, looked_for = {}, [v.name for v in self.block.variables if v.accuracy is not None]
        step = (self.tall - TALL) / max(1, len(self.rows) - 1)
        for level, row in enumerate(self.rows):
            start = GAP + (self.graph_width - len(row) * (BOX + GAP) + GAP) / 2
            for i, variable in enumerate(row):
                here = variable.name in looked_for
                colour = f"var(--m{1 + looked_for.index(variable.name) % COLOURS})" if here else ""
                boxes[variable.name] = Box(
                    variable, start + i * (BOX + GAP), TOP + self.tall - TALL - level * step, colour
                )
        return boxes

    @property
    def arrows(self) -> list[str]:
        """From what a variable is computed from, to it; around the boxes of rows between them."""
        paths = []
        for box in self.boxes.values():
            for name in box.variable.parents:
                origin = self.boxes[name]
                start, end = Point(origin.x + BOX / 2, origin.y), Point(box.x + BOX / 2, box.y + TALL + 2)
                crossed = [other for other in self.boxes.values() if box.y + TALL < other.y < origin.y - TALL]
                side = 1 if start.x > end.x else -1
                aside = 1.3 * BOX * side if crossed and abs(start.x - end.x) < 0.6 * BOX else 0.0
                bend = Point((start.x if crossed else (start.x + end.x) / 2) + aside, (start.y + end.y) / 2)
                paths.append(f"M{start.x:.1f} {start.y:.1f}Q{bend.x:.1f} {bend.y:.1f} {end.x:.1f} {end.y:.1f}")
        return paths

    @property
    def left(self) -> float:
        """Left end of the network."""
        return GAP + self.graph_width + APART + LABELS

    @property
    def right(self) -> float:
        """Right end of the network."""
        return self.left + COLUMN * len(self.block.positions)

    @property
    def columns(self) -> list[tuple[str, float]]:
        """Positions with the middle of their columns."""
        return [(name, self.left + COLUMN * (i + 0.5)) for i, name in enumerate(self.block.positions)]

    def height_of(self, layer: float) -> float:
        """How far down a layer is drawn."""
        return TOP + self.tall * (1 - layer / self.block.layers)

    @property
    def lines(self) -> list[tuple[int, float, bool]]:
        """Ends of blocks, how far down they are, and whether they are numbered."""
        every = -(-self.block.layers // 10)
        return [(layer, self.height_of(layer), layer % every == 0) for layer in range(self.block.layers + 1)]

    @cached_property
    def dots(self) -> list[tuple[Point, Box]]:
        """Sites of places; those of one spot stand beside one another."""
        spots: dict[tuple[float, int], list[Box]] = defaultdict(list)
        for box in self.boxes.values():
            for site in dict.fromkeys(box.variable.sites):
                spots[site].append(box)
        return [
            (Point(self.columns[column][1] + 15 * (i - (len(boxes) - 1) / 2), self.height_of(layer)), box)
            for (layer, column), boxes in spots.items()
            for i, box in enumerate(boxes)
        ]

    @property
    def links(self) -> list[tuple[str, Box]]:
        """Curves from boxes to their sites."""
        curves = []
        for point, box in self.dots:
            start = Point(box.x + BOX, box.y + TALL / 2)
            reach = max(30.0, (point.x - start.x) / 2)
            path = f"M{start.x:.1f} {start.y:.1f}C{start.x + reach:.1f} {start.y:.1f} "
            curves.append((f"{path}{point.x - reach:.1f} {point.y:.1f} {point.x - 6:.1f} {point.y:.1f}", box))
        return curves

    @property
    def width(self) -> float:
        """Width of the figure."""
        return self.right + GAP

    @property
    def height(self) -> float:
        """Height of the figure."""
        return TOP + self.tall + FOOT


def svg(block: CausalMap) -> str:
    """The diagram, colours as CSS variables of the page."""
    return rendered("causal_map.svg.j2", d=Diagram(block), box=BOX, tall=TALL)
