"""Blocks in notebooks: HTML in the page's look, and charts and drawings that can be changed and saved."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitome.present import charts
from circuitome.present.assets import asset, on_paper
from circuitome.present.blocks import Block, Drawn
from circuitome.present.page import drawing, fragment


def html(*blocks: Any) -> str:
    """Blocks as HTML whose styles reach nothing else on the notebook's page. Folded ones can be opened."""
    style = asset("page.css").replace(":root", "&").replace("main ", "").replace("html:not(.ready) ", "")
    return f'<div class="circuitome"><style>.circuitome {{ {style} }}</style>{fragment(blocks)}</div>'


def plot(block: Block) -> Any:
    """The Altair chart of a heat map, lines, bars or a scatter; a `Drawing` of what we draw; else the block itself."""
    if isinstance(block, Drawn):
        return Drawing(on_paper(drawing(block)))
    return charts.chart(block) if charts.is_chart(block) else block


@dataclass(frozen=True)
class Drawing:
    """A drawing that a notebook shows."""

    svg: str
    """It as an SVG document that stands alone."""

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Drawing({len(self.svg):,} characters of SVG; .save(path) writes png, svg or pdf)"

    def save(self, path: str | Path) -> None:
        """Write it as what the path ends with: png, svg or pdf."""
        from circuitome.present.export import write_svg

        write_svg(self.svg, Path(path).suffix.removeprefix("."), Path(path))
