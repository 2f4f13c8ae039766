"""A kernel of a convolution as a figure: the map of effects with rows and columns by their distance from the centre."""

from typing import Any

from circuitome.report.figures import fixed_colours
from circuitome.report.heatmap import heatmap_svg


def kernel_payload(kernel: list[list[float]], title: str) -> dict[str, Any]:
    """A kernel [height][width], uppermost row first, as the map that `heatmap_svg` draws (lowest row first)."""
    height, width = len(kernel), len(kernel[0]) if kernel else 0
    nothing = [[None] * width for _ in range(height)]
    return {
        "title": title,
        "unit": "weight",
        "rows": [f"y{_offset(y, height)}" for y in reversed(range(height))],
        "columns": [f"x{_offset(x, width)}" for x in range(width)],
        "mean": [list(row) for row in reversed(kernel)],
        "low": nothing,
        "high": nothing,
    }


def kernel_svg(kernel: list[list[float]], title: str) -> str:
    """The signed map, centred at 0, as an SVG document that stands alone: orange excites, blue inhibits."""
    return fixed_colours(heatmap_svg(kernel_payload(kernel, title), "kernel"))


def _offset(place: int, size: int) -> str:
    """Distance from the centre, halves where there is no middle pixel."""
    return f"{place - (size - 1) / 2:+g}"
