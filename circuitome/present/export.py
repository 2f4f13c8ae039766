"""Figures and tables of a run as files: png, svg, pdf, csv, json and graphml, without a browser."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from circuitome.errors import InputError, unknown_name
from circuitome.present import blocks, charts, formats
from circuitome.present.assets import on_paper
from circuitome.present.page import drawing
from circuitome.present.rows import article, as_csv, as_graphml

PICTURES, DATA = ("png", "svg", "pdf"), ("csv", "json", "graphml")
"""What a figure can be written as, and what its numbers can: any block csv or json, what draws a graph graphml."""
SCALE = 2.0
"""Pixels of a png for each of the figure."""


def figures(document: blocks.Document) -> dict[str, blocks.AnyBlock]:
    """The document's blocks by name: their titles with hyphens, or their kinds, numbered where a name comes again."""
    named: dict[str, blocks.AnyBlock] = {}
    for block in document.blocks:
        name = formats.slug(block.title or block.block)
        again = sum(other == name or other.rpartition("-")[0] == name for other in named)
        named[f"{name}-{again + 1}" if name in named else name] = block
    return named


def export(document: blocks.Document, figure: str | int, to: str, path: str | Path) -> None:
    """Write one block of a document to `path`: any as csv or json, pictures as png, svg or pdf, graphs as graphml.

    `figure` is a name of `figures`, or its number from 0. Raises `InputError` for an unknown figure or format, for a
    picture of what is none, and where the file cannot be written.
    """
    named = figures(document)
    name = list(named)[int(figure)] if str(figure).isdigit() and int(figure) < len(named) else str(figure)
    if name not in named:
        raise unknown_name("figure", name, list(named))
    if to not in PICTURES + DATA:
        raise unknown_name("format", to, PICTURES + DATA)
    block = named[name]
    if to == "csv":
        _write(Path(path), as_csv(block).encode())
    elif to == "graphml":
        _write(Path(path), as_graphml(block).encode())
    elif to == "json":
        _write(Path(path), (json.dumps(asdict(block), indent=1, ensure_ascii=False) + "\n").encode())
    elif charts.is_chart(block) or isinstance(block, blocks.Drawn):
        write_svg(on_paper(charts.plain_svg(block) if charts.is_chart(block) else drawing(block)), to, Path(path))
    else:
        raise InputError(f"{name} is {article(block)}, not a picture. Write it as csv or json.")


def write_svg(svg: str, to: str, path: Path) -> None:
    """Write an SVG document as svg, png or pdf. Raises `InputError` for another format."""
    import vl_convert

    if to not in PICTURES:
        raise unknown_name("format", to, PICTURES)
    makers: dict[str, Callable[[], bytes]] = {
        "svg": svg.encode,
        "png": lambda: vl_convert.svg_to_png(svg, scale=SCALE),
        "pdf": lambda: vl_convert.svg_to_pdf(svg),
    }
    _write(path, makers[to]())


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
