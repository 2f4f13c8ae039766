"""Figures and tables of a run as files: png, svg, pdf, csv and json, without a browser."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuitome.errors import InputError, unknown_name
from circuitome.present import blocks, charts, formats
from circuitome.present.assets import on_paper
from circuitome.present.heat_maps import ends_of, name_of
from circuitome.present.page import drawing
from circuitome.runs.parquet import as_parquet

PICTURES, DATA = ("png", "svg", "pdf"), ("csv", "json", "parquet")
"""What a figure, and what any block, can be written as."""
SCALE = 2.0
"""Pixels of a png for each of the figure."""
Rows = list[Sequence[Any]]


def figures(document: blocks.Document) -> dict[str, blocks.AnyBlock]:
    """The document's blocks by name: their titles with hyphens, or their kinds, numbered where a name comes again."""
    named: dict[str, blocks.AnyBlock] = {}
    for block in document.blocks:
        name = formats.slug(block.title or block.block)
        again = sum(other == name or other.rpartition("-")[0] == name for other in named)
        named[f"{name}-{again + 1}" if name in named else name] = block
    return named


def export(document: blocks.Document, figure: str | int, to: str, path: str | Path) -> None:
    """Write one block of a document to `path`: pictures as png, svg or pdf, and any block as csv, json or parquet.

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
    elif to == "parquet":
        names, *rows = rows_of(block)
        keys = [name or f"column {i}" for i, name in enumerate(names)]
        _write(Path(path), as_parquet(dict(zip(keys, row, strict=True)) for row in rows))
    elif to == "json":
        _write(Path(path), (json.dumps(asdict(block), indent=1, ensure_ascii=False) + "\n").encode())
    elif charts.is_chart(block) or isinstance(block, blocks.Drawn):
        write_svg(on_paper(charts.plain_svg(block) if charts.is_chart(block) else drawing(block)), to, Path(path))
    else:
        raise InputError(f"{name} is {_a(block)}, not a picture. Write it as csv, json or parquet.")


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


def as_csv(block: blocks.Block) -> str:
    """What a block holds as comma-separated values, its columns named in the first row."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows_of(block))
    return out.getvalue()


def rows_of(block: blocks.Block) -> Rows:
    """What a block holds as rows, the names of columns first. Raises `InputError` for a block that is no table."""
    for kind, rows in _ROWS.items():
        if isinstance(block, kind):
            return rows(block)
    raise InputError(f"{_a(block).capitalize()} holds no table. Write it as json.")


def _a(block: Any) -> str:
    article = "an" if block.block[0] in "aeiou" else "a"
    return f"{article} {block.block} block"


def _table(block: blocks.Table) -> Rows:
    wide = [any(isinstance(row[i], tuple) for row in block.rows) for i in range(len(block.columns))]
    names = [
        name
        for column, several in zip(block.columns, wide, strict=True)
        for name in ([column.name, f"{column.name} low", f"{column.name} high"] if several else [column.name])
    ]
    rows = [
        [value for cell, several in zip(row, wide, strict=True) for value in (_ends(cell) if several else [cell])]
        for row in block.rows
    ]
    return [names, *rows]


def _ends(cell: blocks.Cell) -> list[Any]:
    return list(cell) if isinstance(cell, tuple) else [cell, None, None]


def _numbers(block: blocks.Numbers) -> Rows:
    return [("name", "value", "low", "high", "unit"), *((i.name, i.value, i.low, i.high, i.unit) for i in block.items)]


def _heat_map(block: blocks.HeatMap) -> Rows:
    cells = [
        (row, column, name_of(block, i, j), block.values[i][j], *ends_of(block, i, j))
        for i, row in enumerate(block.rows)
        for j, column in enumerate(block.columns)
    ]
    return [("row", "column", "name", "value", "low", "high"), *cells]


def _lines(block: blocks.Lines) -> Rows:
    rows = [(line.name, *point) for line in block.series for point in line.points]
    return [("line", block.x, block.y, "low", "high"), *rows]


def _bars(block: blocks.Bars) -> Rows:
    return [("name", "value", "low", "high", "group"), *block.bars]


def _scatter(block: blocks.Scatter) -> Rows:
    groups = block.groups or (None,) * len(block.points)
    rows = [(name, x, y, group) for (x, y, name), group in zip(block.points, groups, strict=True)]
    return [("name", block.x, block.y, "group"), *rows]


def _circuit(block: blocks.CircuitMap) -> Rows:
    rows = [(edge.source, edge.reader, edge.score, edge.low, edge.high) for edge in block.edges]
    return [("from", "to", "score", "low", "high"), *rows]


def _routes(block: blocks.Routes) -> Rows:
    rows = [(e.source, e.target, e.kind, e.importance, e.residual, " ".join(map(str, e.heads))) for e in block.edges]
    return [("from", "to", "kind", "importance", "residual", "heads"), *rows]


def _prompt_graph(block: blocks.PromptGraph) -> Rows:
    names = [dot.id for dot in block.nodes]
    rows = [(names[source], names[target], weight, score) for source, target, weight, score in block.edges]
    return [("from", "to", "weight", "influence"), *rows]


def _roles(block: blocks.Roles) -> Rows:
    return [("class", "members", "position"), *((c.name, " ".join(c.members), c.position) for c in block.classes)]


def _causal_map(block: blocks.CausalMap) -> Rows:
    rows = [(v.name, " ".join(v.parents), v.place, *(v.accuracy or (None, None, None))) for v in block.variables]
    return [("variable", "computed from", "place", "accuracy", "low", "high"), *rows]


def _attention(block: blocks.Attention) -> Rows:
    rows = [
        (name, i, block.tokens[i], j, block.tokens[j], value)
        for name, pattern in block.heads
        for i, row in enumerate(pattern)
        for j, value in enumerate(row)
        if value is not None
    ]
    return [("head", "query", "query token", "key", "key token", "attention"), *rows]


def _tokens(block: blocks.Tokens) -> Rows:
    labels = block.labels or ("",) * len(block.lines)
    rows = [
        (label, i, token, value)
        for label, line in zip(labels, block.lines, strict=True)
        for i, (token, value) in enumerate(line)
    ]
    return [("line", "position", "token", "value"), *rows]


def _neurons(block: blocks.NeuronIndex) -> Rows:
    names = [f"m{layer}.n{i}" for layer in block.layers for i in range(block.width)]
    lists = [
        [block.tokens[int(token)] if token != "-1" else None for token in part.values.split()[place :: block.listed]]
        for part in block.lists
        for place in range(block.listed)
    ]
    heads = [f"{part.name} {place + 1}" for part in block.lists for place in range(block.listed)]
    columns = [names, *(part.values.split() for part in block.numbers), *lists]
    return [("neuron", *(part.name for part in block.numbers), *heads), *zip(*columns, strict=True)]


def _pairs(block: blocks.Pairs) -> Rows:
    names = list(dict.fromkeys(name for pair in block.pairs for name, _ in pair.metrics))
    rows = [
        (p.clean, p.corrupted, "|".join(p.answers), "|".join(p.wrongs), *(dict(p.metrics).get(name) for name in names))
        for p in block.pairs
    ]
    return [("clean", "corrupted", "right", "wrong", *names), *rows]


_ROWS: dict[type[blocks.Block], Callable[[Any], Rows]] = {
    blocks.Table: _table,
    blocks.Numbers: _numbers,
    blocks.HeatMap: _heat_map,
    blocks.Lines: _lines,
    blocks.Bars: _bars,
    blocks.Scatter: _scatter,
    blocks.CircuitMap: _circuit,
    blocks.Routes: _routes,
    blocks.PromptGraph: _prompt_graph,
    blocks.Roles: _roles,
    blocks.CausalMap: _causal_map,
    blocks.Attention: _attention,
    blocks.Tokens: _tokens,
    blocks.NeuronIndex: _neurons,
    blocks.Pairs: _pairs,
}
"""By kind of block: what it holds as rows, the names of columns first."""
