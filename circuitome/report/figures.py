"""The two figures of a report as SVG files that stand alone: fixed light colours, no style sheet."""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from circuitome.report import circuit, curve


def circuit_svg(payload: Mapping[str, Any]) -> str:
    """The strongest 150 edges of the circuit on the model's grid, as an SVG document."""
    return fixed_colours(circuit.svg(circuit.draw(payload)))


def curve_svg(payload: Mapping[str, Any]) -> str:
    """Normalised faithfulness over the number of edges beside random circuits, as an SVG document."""
    return fixed_colours(curve.svg(payload))


def fixed_colours(drawing: str) -> str:
    """`drawing` with each `var(--name)` replaced by the page's light colour of that name."""
    colours = palette()
    return re.sub(r"var\(--(\w+)\)", lambda match: colours[match[1]], drawing)


@cache
def palette() -> dict[str, str]:
    """The light colours: the first rule of `page.css`."""
    style = resources.files("circuitome.report").joinpath("page.css").read_text("utf-8")
    return dict(re.findall(r"--(\w+):\s*(#[0-9a-f]{6})", style[: style.index("}")]))
