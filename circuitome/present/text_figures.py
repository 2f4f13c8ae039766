"""Maps, circuits and routes in the terminal: signs for sizes, each with its legend, and the strongest as a table."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from circuitome.graph.node import IN_STREAM, Node
from circuitome.present import formats
from circuitome.present.blocks import CircuitMap, Column, HeatMap, PromptGraph, Routes, table
from circuitome.present.drawings.grid import Grid
from circuitome.present.drawings.routes import shown_edges
from circuitome.present.heat_maps import cells, certain, certainty, ends_of, name_of
from circuitome.present.text_tables import print_table

SHADES = " .:-=+*#%@"
"""Signs from nothing to the largest."""
LOUD = (
    (0.6, "bold white on rgb(176,70,5)", "bold white on rgb(27,108,176)"),
    (0.3, "black on rgb(238,176,130)", "black on rgb(150,192,230)"),
    (0.0, "dark_orange3", "dodger_blue2"),
)
"""Share of the largest value from which on a cell above zero, and one below, looks so."""
LABEL = 28
"""Letters of a row's label."""
MOST_ROWS = 60
"""Rows of a map at most; of longer ones those with the largest values."""
BETWEEN = 15
"""Edges between tokens that are listed."""
CELL = 4
"""Letters of a token's column."""


def say(console: Console, words: str) -> None:
    """A legend or remark."""
    tell(console, words, "dim")


def tell(console: Console, words: str, style: str = "", **options: Any) -> None:
    """Words of any origin, which cannot steer the terminal."""
    console.print(Text(formats.CONTROL.sub("\ufffd", formats.together(words)), style=style), **options)


def heat_map(block: HeatMap, console: Console) -> None:
    """Digits are tenths of the largest value; rows and columns without any are left out; then the strongest cells."""
    values = {(i, j): value for i, j, value in cells(block)}
    largest = max((abs(value) for value in values.values()), default=0.0)
    if not largest:
        say(console, "All values are 0." if values else "There are no values.")
        return
    label = min(LABEL, max(map(len, block.rows)))
    width = max(3, *map(len, block.columns))
    rows = _strong(values, 0, MOST_ROWS, largest)
    columns = _strong(values, 1, max(1, (console.width - label) // (width + 1)), largest)
    _line(console, " " * label, [(f"{block.columns[j]:<{width}}", "bold") for j in columns])
    for i in reversed(rows) if block.upwards else rows:
        _line(
            console,
            f"{_short(block.rows[i], label):>{label}}",
            [_cell(block, values.get((i, j)), largest, i, j, width) for j in columns],
        )
    say(console, _map_legend(block, values, largest, rows, columns))
    _strongest_cells(block, values, console)


def _short(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _line(console: Console, label: str, parts: Sequence[tuple[str, str]]) -> None:
    text = Text(formats.printable(label))
    for words, style in parts:
        text.append(" ")
        text.append(formats.printable(words.rstrip()), style=style)
        text.append(" " * (len(words) - len(words.rstrip())))
    text.rstrip()
    console.print(text, no_wrap=True, crop=False)


def _strong(values: dict[tuple[int, int], float], axis: int, most: int, largest: float) -> list[int]:
    """Rows (axis 0) or columns (axis 1) with a value of a tenth of the largest, in order; of too many the strongest."""
    sizes: dict[int, float] = {}
    for place, value in values.items():
        sizes[place[axis]] = max(sizes.get(place[axis], 0.0), abs(value))
    strong = [index for index, size in sizes.items() if size >= largest / 10]
    return sorted(sorted(strong, key=lambda index: -sizes[index])[:most])


def _cell(block: HeatMap, value: float | None, largest: float, row: int, column: int, width: int) -> tuple[str, str]:
    share = abs(value or 0.0) / largest
    tenths = min(9, int(10 * share))
    if value is None or not tenths:
        return " " * width, ""
    sign = "" if block.scale == "positive" else "+" if value > 0 else "-"
    style = next(above if value > 0 and sign else below for least, above, below in LOUD if share >= least)
    return f"{sign}{tenths}{'*' if certain(block, row, column) else ''}".ljust(width), style


def _map_legend(
    block: HeatMap, values: dict[tuple[int, int], float], largest: float, rows: Sequence[int], columns: Sequence[int]
) -> str:
    words = [f"Digits 1 to 9 are tenths of {formats.plain(largest)} {block.unit}".rstrip()]
    if block.whole:
        words[0] += f", {formats.percent(largest / block.whole)} of the gap"
    words += [f"*: {certainty(block)}"] if block.low else []
    for axis, (name, kept) in enumerate((("rows", rows), ("columns", columns))):
        count = len({place[axis] for place in values})
        words += [f"{len(kept)} of {count} {name} are shown"] if len(kept) < count else []
    return f"{'; '.join(words)}."


def _strongest_cells(block: HeatMap, values: dict[tuple[int, int], float], console: Console) -> None:
    order = sorted(values, key=lambda place: -abs(values[place]))[: block.top]
    if not order:
        return
    style = "estimate" if block.low else "number"
    columns: list[Any] = [("strongest", "node"), ("value", style, 3, block.unit)]
    rows: list[Any] = [(name_of(block, i, j), (values[i, j], *ends_of(block, i, j))) for i, j in order]
    if block.whole:
        columns.append(("of the gap", "percent"))
        rows = [(*row, row[1][0] / block.whole) for row in rows]
    print_table(table("", columns, rows), console)


def circuit(block: CircuitMap, console: Console) -> None:
    """Heads across, layers upwards; a darker sign for a node that more of the circuit's score touches; then edges."""
    sizes = _strengths(block)
    parts = ("head", "mlp", "neuron", "feature", *IN_STREAM)
    top = max((size for node, size in sizes.items() if Node.parse(node).kind in parts), default=0.0) or 1.0
    heads = _heads(block, sizes, console.width - 10)
    wide = max(1, len(str(heads[-1] if heads else 0)))
    neurons = block.shape.neurons
    header = [f"{head:<{wide}}" for head in heads] + ["mlp"] * block.shape.mlps + [_called(neurons)] * bool(neurons)
    _line(console, f"{'layer':>5}", [(words, "bold") for words in header])
    for layer in reversed(range(block.shape.layers)):
        names = [str(Node.head(layer, head)) for head in heads] + [str(Node.mlp(layer))] * block.shape.mlps
        names += neurons[layer] if neurons else ()
        signs = [_shade(sizes.get(name, 0.0) / top) for name in names]
        if any(sign != " " for sign in signs):
            _line(console, f"{layer:>5}", [(f"{sign:<{wide}}", "") for sign in signs])
    left = "" if len(heads) == block.shape.heads else f" {len(heads)} of {block.shape.heads} heads are shown."
    say(
        console,
        f"Heads across, layers up; layers without a node are left out.{left} Signs from the least to the largest sum "
        f"of |score| over a node's edges: {' '.join(SHADES[1:])}",
    )
    if block.top and block.edges:
        rows = ((edge.source, edge.reader, (edge.score, edge.low, edge.high)) for edge in block.edges[: block.top])
        score = ("score with its interval", "estimate", 4, block.unit)
        print_table(table("", (("strongest edges from", "node"), ("to", "node"), score), rows), console)


def _called(names: Iterable[Iterable[str]]) -> str:
    """What the nodes beside MLPs are called together."""
    kinds = {Node.parse(name).kind for some in names for name in some}
    return "neurons" if kinds == {"neuron"} else "features" if "neuron" not in kinds else "neurons, features"


def _strengths(block: CircuitMap) -> dict[str, float]:
    """Sum of |score| over the edges that touch each node; what enters a shared key or value counts for its heads."""
    grid = Grid.of(block.shape, (edge.source for edge in block.edges))
    sizes: dict[str, float] = {}
    for edge in block.edges:
        node = Node.parse(grid.node_of(edge.reader))
        readers = [str(node)]
        if node.kind == "kv":
            readers = [str(Node.head(node.layer, head)) for head in grid.groups[node.index]]
        for name in dict.fromkeys((grid.node_of(edge.source), *readers)):
            sizes[name] = sizes.get(name, 0.0) + abs(formats.finite(edge.score) or 0.0)
    return sizes


def _heads(block: CircuitMap, sizes: dict[str, float], room: int) -> list[int]:
    """The heads that are shown: all, or of too many the columns in which most of the score is."""
    heads = list(range(block.shape.heads))
    most = room // (len(str(block.shape.heads - 1)) + 1)
    total = [sum(sizes.get(str(Node.head(layer, head)), 0.0) for layer in range(block.shape.layers)) for head in heads]
    return sorted(sorted(heads, key=lambda head: -total[head])[:most])


def _shade(share: float) -> str:
    return SHADES[0 if share <= 0 else max(1, round(min(1.0, share) ** 0.5 * (len(SHADES) - 1)))]


def routes(block: Routes, console: Console) -> None:
    """Flow through each token's stream by block, and the strongest edges between tokens."""
    shown = shown_edges(block)
    kinds = [edge.kind for edge in shown]
    tell(
        console,
        f"{block.label}: {len(kinds)} edges at threshold {block.threshold:g}: {kinds.count('attention')} between "
        f"tokens, {kinds.count('mlp')} from MLPs.",
    )
    flow = {node.id: node.flow for node in block.nodes}
    nodes = {block.target, *(edge.source for edge in shown)}
    every = sorted({Node.parse(node).position or 0 for node in nodes})
    places = every[-max(1, (console.width - 5) // (CELL + 1)) :]
    for layer in reversed(range(block.layers + 1)):
        signs = [_flow(Node("resid_pre", layer), place, nodes, flow) for place in places]
        if any(sign.strip() for sign in signs):
            _line(console, f"x{layer:<3}", [(f"{sign:<{CELL}}", "") for sign in signs])
    _line(console, " " * 4, [(f"{place:<{CELL}}", "bold") for place in places])
    _line(console, " " * 4, [(f"{formats.visible(block.tokens[place])[:CELL]:<{CELL}}", "") for place in places])
    left = f" {len(every) - len(places)} earlier tokens are left out." if len(places) < len(every) else ""
    legend = "Tokens across, blocks up; m: through the block's MLP. Signs from hardly any flow to all: "
    say(console, f"{legend}{' '.join(SHADES[1:])}.{left}")
    _between(block, shown, flow, console)


def _flow(stream: Node, place: int, nodes: set[str], flow: dict[str, float]) -> str:
    """The sign of a place of the stream, and m where the MLP below it is on the route."""
    name, mlp = str(stream.at(place)), str(Node.mlp(max(0, stream.layer - 1)).at(place))
    sign = _shade(max(1e-9, flow.get(name, 0.0))) if name in nodes else " "
    return sign + ("m" if stream.layer and mlp in nodes else "")


def _between(block: Routes, shown: Sequence[Any], flow: dict[str, float], console: Console) -> None:
    between = [edge for edge in shown if edge.kind == "attention"]
    between.sort(key=lambda edge: -edge.importance * flow.get(edge.target, 0.0))
    rows = []
    for edge in between[:BETWEEN]:
        heads = sorted(((value, head) for head, value in enumerate(edge.heads)), reverse=True)[:3]
        words = " ".join(f"h{head}\N{NO-BREAK SPACE}{value:.3f}" for value, head in heads if value >= 0.0005)
        ends = [end for node in (edge.source, edge.target) for end in (node, _token(block, node))]
        rows.append((*ends, edge.importance, words))
    columns = (("from", "node"), "token", ("to", "node"), "token", ("importance", "number", 3), "heads")
    if rows:
        tell(console, f"\nStrongest of {len(between)} edges between tokens", "italic")
        print_table(table("", columns, rows), console)


def _token(block: Routes, node: str) -> str:
    return formats.quoted(block.tokens[Node.parse(node).position or 0]).replace(" ", "\N{NO-BREAK SPACE}")


def prompt_graph(block: PromptGraph, console: Console) -> None:
    """The nodes with most influence, each with its strongest edge in and out."""
    into, out = dict[int, tuple[int, float]](), dict[int, tuple[int, float]]()
    for source, target, weight, _ in block.edges:
        for ends, here, there in ((into, target, source), (out, source, target)):
            if abs(weight) > abs(ends.get(here, (0, 0.0))[1]):
                ends[here] = there, weight
    units = (i for i, dot in enumerate(block.nodes) if dot.kind in ("neuron", "feature"))
    ranked = sorted(units, key=lambda i: -block.nodes[i].influence)
    rows = [
        (
            dot.id,
            formats.quoted(block.tokens[dot.position]),
            dot.label,
            dot.effect,
            *(_edge(block, e.get(i)) for e in (into, out)),
        )
        for i, dot in ((i, block.nodes[i]) for i in ranked[: block.top])
    ]
    narrow = (Column("most from", "node", narrow=False), Column("most to", "node", narrow=False))
    columns = (("node", "node"), "at", "stands for", ("effect", "signed", 2), *narrow)
    print_table(table("", columns, rows), console)
    say(console, f"{len(block.nodes):,} nodes, {len(block.edges):,} edges; units with most influence first.")


def _edge(block: PromptGraph, edge: tuple[int, float] | None) -> str:
    return "" if edge is None else f"{block.nodes[edge[0]].id} {edge[1]:+.2f}".replace("-", formats.MINUS)
