"""What blocks hold as rows of a table, and some as graphs: for files, from commands and from the page."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from circuitome.errors import InputError
from circuitome.present import blocks
from circuitome.present.heat_maps import ends_of, name_of
from circuitome.runs.store import plain

Rows = list[Sequence[Any]]


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
    raise InputError(f"{article(block).capitalize()} holds no table. Write it as json.")


def article(block: Any) -> str:
    """The kind of a block behind its article."""
    return f"{'an' if block.block[0] in 'aeiou' else 'a'} {block.block} block"


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


Named = Iterable[tuple[str, Mapping[str, Any]]]
Linked = Iterable[tuple[str, str, Mapping[str, Any]]]


def as_graph(block: blocks.Block) -> Any:
    """A directed networkx graph of what a block draws as one; what is not known is left out.

    Raises `InputError` for a block that draws no graph.
    """
    import networkx as nx

    if type(block) not in _GRAPHS:
        raise InputError(f"{article(block).capitalize()} draws no graph.")
    nodes, edges = _GRAPHS[type(block)](block)
    graph = nx.DiGraph(title=block.title)
    graph.add_nodes_from((name, _known(facts)) for name, facts in nodes)
    graph.add_edges_from((source, target, _known(facts)) for source, target, facts in edges)
    return graph


def as_graphml(block: blocks.Block) -> str:
    """`as_graph` in GraphML."""
    import networkx as nx

    return "\n".join(nx.generate_graphml(as_graph(block))) + "\n"


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as GraphML can hold them: no None, no NaN."""
    return {name: value for name, value in plain(facts).items() if value is not None}


def _links(block: blocks.Block) -> Linked:
    """A row for each edge: source, target, and what is told of it."""
    (_, _, *names), *rows = rows_of(block)
    return [(source, target, dict(zip(names, facts, strict=True))) for source, target, *facts in rows]


_GRAPHS: dict[type[blocks.Block], Callable[[Any], tuple[Named, Linked]]] = {
    blocks.CircuitMap: lambda block: ((), _links(block)),
    blocks.Routes: lambda block: (((node.id, {"flow": node.flow}) for node in block.nodes), _links(block)),
    blocks.PromptGraph: lambda block: (((dot.id, asdict(dot)) for dot in block.nodes), _links(block)),
    blocks.Roles: lambda block: (
        ((c.name, {"members": " ".join(c.members), "about": c.about, "position": c.position}) for c in block.classes),
        ((source, target, {"through": through, "strength": value}) for source, target, through, value in block.arrows),
    ),
    blocks.CausalMap: lambda block: (
        ((v.name, {"place": v.place, "accuracy": v.accuracy[0] if v.accuracy else None}) for v in block.variables),
        ((parent, v.name, {}) for v in block.variables for parent in v.parents),
    ),
}
"""By kind of block that draws a graph: its nodes and its edges, with what is told of them."""
