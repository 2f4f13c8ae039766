"""Classes of heads and MLPs as boxes, arrows between them, and below the token positions at which they act."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from circuitome.present import formats
from circuitome.present.assets import rendered
from circuitome.present.blocks import RoleClass, Roles
from circuitome.present.drawings.grid import Point

BOX, GAP, NARROW, LEVEL, TOP, FOOT = 168.0, 24.0, 24.0, 64.0, 44.0, 46.0
"""Width of a box, room between boxes, least width of an empty column, room between levels, above, below, in pixels."""
LETTER = 8.0
"""About the width of a letter of a label, which an empty column is as wide as."""
LINE, HEAD = 14.0, 30.0
"""Height of a line of members, and of a box without any."""
DASHES = {"k": "7 4", "v": "2 3"}
"""By input: dashes and gaps of its arrows, as in drawings of circuits."""
NAMED, IN_LINE = 6, 3
"""Members that are named, and how many stand in a line."""


@dataclass(frozen=True)
class Box:
    """A class of heads or MLPs, placed."""

    role: RoleClass
    """The class."""
    x: float
    """Left end."""
    y: float
    """Upper end."""

    @property
    def title(self) -> str:
        """Name of the class, without the position that its column says."""
        return self.role.name.removesuffix(f" at {self.role.position}")

    @property
    def lines(self) -> list[str]:
        """Its members, a few in a line."""
        names = list(self.role.members[:NAMED])
        more = len(self.role.members) - NAMED
        lines = [" ".join(names[i : i + IN_LINE]) for i in range(0, len(names), IN_LINE)]
        return [*lines, f"and {more} more"] if more > 0 else lines

    @property
    def height(self) -> float:
        """Height of the box."""
        return height_of(self.role)

    @property
    def middle(self) -> float:
        """Its horizontal middle."""
        return self.x + BOX / 2


def height_of(role: RoleClass) -> float:
    """Height of the box of a class."""
    named = min(NAMED, len(role.members))
    return HEAD + LINE * (-(-named // IN_LINE) + (len(role.members) > NAMED))


@dataclass(frozen=True)
class Arrow:
    """An arrow, drawn."""

    path: str
    """The curve, as SVG path data."""
    label: str
    """Through which input it goes."""
    place: Point
    """Where the label stands."""
    width: float
    """Width of the stroke."""
    said: str
    """Its ends, input and strength in words."""
    index: int
    """Its place among the block's arrows."""
    dash: str
    """How its line is broken: keys dashed, values dotted, all else solid."""


@dataclass(frozen=True)
class Diagram:
    """Boxes by position and level: a class stands above all that it reads."""

    block: Roles
    """Classes, arrows and positions."""

    @cached_property
    def levels(self) -> dict[str, int]:
        """Level of each class from below: one above the highest class that it has an arrow from."""
        levels: dict[str, int] = {}
        for role in self.block.classes:  # in the order of layers, so that arrows come from classes that are done
            below = [levels[start] for start, end, _, _ in self.block.arrows if end == role.name and start in levels]
            levels[role.name] = 1 + max(below, default=-1)
        return levels

    @cached_property
    def positions(self) -> list[str]:
        """Positions with a class, in the order of tokens, then those that are no named token."""
        used = [role.position for role in self.block.classes]
        order = [*self.block.positions, *dict.fromkeys(used)]
        return [name for name in dict.fromkeys(order) if name in used or name in self.block.positions]

    @cached_property
    def cells(self) -> dict[tuple[str, int], list[RoleClass]]:
        """The classes at each position and level."""
        cells: dict[tuple[str, int], list[RoleClass]] = defaultdict(list)
        for role in self.block.classes:
            cells[role.position, self.levels[role.name]].append(role)
        return cells

    @cached_property
    def shifts(self) -> dict[tuple[str, int], int]:
        """1 where a row of boxes stands half a box to the right, so that its arrows pass between the boxes above it."""
        shifts: dict[tuple[str, int], int] = {}
        for position in self.positions:
            parity = None  # of the places, in half boxes, at which the row above stands
            for level in sorted((level for at, level in self.cells if at == position), reverse=True):
                places = len(self.cells[position, level]) - 1
                shifts[position, level] = int(parity == places % 2 and self._passes(position, level))
                parity = (places + shifts[position, level]) % 2
        return shifts

    def _passes(self, position: str, level: int) -> bool:
        """Whether a class of this row leads beyond the next row of its column, in the column or to the logits."""
        above = min(at for name, at in self.cells if name == position and at > level)
        names = {role.name for role in self.cells[position, level]}
        ends = {end for start, end, _, _ in self.block.arrows if start in names}
        column = {role.name for role in self.block.classes if role.position == position} | {"logits"}
        return any(self.levels.get(end, above + 1) > above for end in ends & column)

    @cached_property
    def spans(self) -> dict[str, tuple[float, float]]:
        """Left and right end of each position's column, which is as wide as its fullest row."""
        spans, x = {}, GAP
        for position in self.positions:
            rows = [len(roles) + self.shifts[cell] for cell, roles in self.cells.items() if cell[0] == position]
            width = max(rows) * (BOX + GAP) - GAP if rows else max(NARROW, LETTER * len(position))
            spans[position] = (x, x + width)
            x += width + GAP
        return spans

    @cached_property
    def tops(self) -> dict[int, float]:
        """Upper end of each level's boxes."""
        tops, y = {}, TOP + (LEVEL if self.to_logits else 0.0)
        for level in sorted(set(self.levels.values()), reverse=True):
            tops[level] = y
            y += max(height_of(role) for role in self.block.classes if self.levels[role.name] == level) + LEVEL
        return tops

    @property
    def to_logits(self) -> bool:
        """Whether arrows lead to the logits, which then stand on top."""
        return any(end == "logits" for _, end, _, _ in self.block.arrows)

    @cached_property
    def boxes(self) -> dict[str, Box]:
        """The boxes by class, each row centred in its column or shifted."""
        boxes = {}
        for (position, level), roles in self.cells.items():
            left, right = self.spans[position]
            shift = self.shifts[position, level] * (BOX + GAP) / 2
            start = (left + right - len(roles) * BOX - (len(roles) - 1) * GAP) / 2 + shift
            for i, role in enumerate(roles):
                boxes[role.name] = Box(role, start + i * (BOX + GAP), self.tops[level])
        return boxes

    @property
    def width(self) -> float:
        """Width of the figure."""
        return max((right for _, right in self.spans.values()), default=0.0) + GAP

    @property
    def ground(self) -> float:
        """Height of the line above the positions."""
        return max((box.y + box.height for box in self.boxes.values()), default=TOP) + 30

    @property
    def height(self) -> float:
        """Height of the figure."""
        return self.ground + (FOOT if any(self.positions) else 0.0)

    @property
    def logits(self) -> Point:
        """The middle of the logits' lower end: above the classes that lead to them."""
        ends = [self.boxes[start].middle for start, end, _, _ in self.block.arrows if end == "logits"]
        return Point(sum(ends) / len(ends), 32.0)

    @cached_property
    def arrows(self) -> list[Arrow]:
        """The arrows between what is drawn, weakest first."""
        known = {*self.boxes, *(["logits"] if self.to_logits else [])}
        rows = [row for row in self.block.arrows if row[0] in self.boxes and row[1] in known]
        top = max((abs(strength or 0.0) for *_, strength in rows), default=0.0) or 1.0
        slots = {row: self._slot(row[1], row) for row in rows}
        return [
            self._arrow(row, slots[row], abs(row[3] or 0.0) / top)
            for row in sorted(rows, key=lambda r: abs(r[3] or 0.0))
        ]

    def _slot(self, target: str, row: tuple[str, str, str, float | None]) -> float:
        """Where along its target's lower end an arrow arrives, 0 to 1: in the order of where arrows come from.

        Arrows with longer labels get more room.
        """
        rows = [other for other in self.block.arrows if other[1] == target and other[0] in self.boxes]
        rows.sort(key=lambda other: (self.boxes[other[0]].middle, other[2]))
        ends = list(accumulate((1 + len(_label(other)) for other in rows), initial=0))
        return (ends[rows.index(row)] + 0.5) / ends[-1] if target != "logits" else (rows.index(row) + 0.5) / len(rows)

    def _arrow(self, row: tuple[str, str, str, float | None], slot: float, share: float) -> Arrow:
        source, target, through, strength = row
        start = Point(self.boxes[source].middle, self.boxes[source].y)
        if target == "logits":
            end = Point(self.logits.x - 32 + 64 * slot, self.logits.y)
        else:
            box = self.boxes[target]
            end = Point(box.x + 12 + (BOX - 24) * slot, box.y + box.height)
        pull = max(24.0, 0.5 * abs(start.y - end.y))
        path = f"M{start.x:.1f} {start.y:.1f}C{start.x:.1f} {start.y - pull:.1f} {end.x:.1f} {end.y + pull:.1f} "
        said = f"{source} \N{RIGHTWARDS ARROW} {target}, through {through}"
        said += "" if strength is None else f": {formats.plain(strength)}"
        return Arrow(
            path=f"{path}{end.x:.1f} {end.y + 5:.1f}",
            label=_label(row),
            place=Point(end.x + 5, end.y + 17),
            width=1 + 3 * share,
            said=said,
            index=self.block.arrows.index(row),
            dash=DASHES.get(through, "none"),
        )


def _label(arrow: tuple[str, str, str, float | None]) -> str:
    """What stands beside an arrow: inputs of heads without commas; nothing where the target has but one input."""
    return "" if arrow[2] in ("in", "logits") else arrow[2].replace(", ", "")


def svg(block: Roles) -> str:
    """The diagram, colours as CSS variables of the page."""
    return rendered("roles.svg.j2", diagram=Diagram(block), box=BOX, line=LINE)


def script_data(block: Roles) -> dict[str, Any]:
    """What the page's view works on."""
    return {"classes": [asdict(role) for role in block.classes], "arrows": block.arrows, "edges": block.edges}
