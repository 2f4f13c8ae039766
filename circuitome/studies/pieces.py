"""Blocks that several studies make: estimates in tables and figures, maps of heads and effects, circuits, prompts.

An estimate is an `Estimate`, or what its `to_dict` gives, from which a run's results are made.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.graph.node import IN_STREAM, Node
from circuitome.present import blocks, formats

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.engine.setting import Setting

Estimated = Any
"""An `Estimate`, or a mapping with its value (or mean), its low and its high end."""


def ends(estimate: Estimated) -> tuple[blocks.Number, blocks.Number, blocks.Number]:
    """Value, low and high end of an estimate."""
    values = estimate if isinstance(estimate, Mapping) else vars(estimate)
    return values["value"] if "value" in values else values["mean"], values["low"], values["high"]


def cell(estimate: Estimated | None) -> blocks.Cell:
    """An estimate as a table's cell; None where there is none."""
    return None if estimate is None else ends(estimate)


def written(estimate: Estimated, decimals: int = 3) -> str:
    """An estimate with its interval where it has one: 2.200 [1.900, 2.500]."""
    return formats.estimate(*ends(estimate), decimals)


def rounded(estimate: Estimated) -> str:
    """The same with three digits at most: what is nearly nothing is 0.000."""
    value, low, high = ends(estimate)
    if formats.finite(value) is None:
        return formats.MISSING
    return f"{formats.rounded(value or 0.0, 3)} {formats.interval(low, high)}".strip()


def percent(estimate: Estimated) -> str:
    """A share in words: 43 % [38, 48]."""
    return formats.percent(*ends(estimate))


def strongest(named: Iterable[tuple[str, "cm.Estimate"]]) -> list[dict[str, Any]]:
    """Parts with their estimates as plain JSON values."""
    return [{"label": name, "mean": e.value, "low": e.low, "high": e.high} for name, e in named]


def figure(name: str, estimate: Estimated, about: str = "", style: blocks.Style = "number") -> blocks.Figure:
    """An estimate as a headline number, in its own unit."""
    value, low, high = ends(estimate)
    unit = estimate["unit"] if isinstance(estimate, Mapping) else estimate.unit
    unit = "" if style == "percent" or unit.startswith("share ") else unit
    return blocks.Figure(name=name, value=value, low=low, high=high, unit=unit, style=style, about=about)


def series_of(name: str, x: Iterable[float], estimates: Iterable[Estimated], **options: Any) -> blocks.Series:
    """Estimates as a line of a chart with its band, at the places `x`."""
    y, low, high = zip(*map(ends, estimates), strict=True)
    return blocks.Series(name=name, x=tuple(x), y=y, low=low, high=high, **options)


def size_lines(series: Iterable[blocks.Series], **options: Any) -> blocks.Lines:
    """Faithfulness of circuits by their size, between that of the ablated and that of the whole model."""
    texts = {"title": "Faithfulness by size", "x": "edges", "y": "faithfulness", **options}
    return blocks.Lines(series=tuple(series), log_x=True, levels=(("whole model", 1.0), ("all ablated", 0.0)), **texts)


def head_names(heads: Iterable[tuple[int, int]]) -> list[str]:
    """Names of heads given as (layer, head)."""
    return [str(Node.head(layer, head)) for layer, head in heads]


def head_map(
    title: str,
    mean: Sequence[Sequence[blocks.Number]],
    *ends: Sequence[Sequence[blocks.Number]],
    extra: str = "",
    **options: Any,
) -> blocks.HeatMap:
    """Values of all heads, [layer][head], as a map with layers upwards; `ends` are the lower and the upper ones.

    `extra` names a last column that is no head. Colours are those of signed values where any is negative.
    """
    values, low, high = (tuple(map(tuple, matrix)) for matrix in (mean, *(ends or ((), ()))))
    heads, more = range(len(mean[0]) - bool(extra)), [extra] if extra else []
    rows = tuple(str(Node("attention", layer)) for layer in range(len(mean)))
    return blocks.HeatMap(
        title=title,
        rows=rows,
        columns=(*(f"h{head}" for head in heads), *more),
        labels=tuple(
            (*head_names((layer, head) for head in heads), *(f"{row} {name}" for name in more))
            for layer, row in enumerate(rows)
        ),
        values=values,
        low=low,
        high=high,
        scale="signed" if any((value or 0.0) < 0 for row in values for value in row) else "positive",
        upwards=True,
        **options,
    )


def example_pairs(model: "cm.Model", task: "cm.Task", metrics: Mapping[str, "Tensor"]) -> blocks.Pairs:
    """The first prompts of a task with the metric of each named run on them."""
    from circuitome.runs.record import described_pairs

    pairs = tuple(
        blocks.Pair(**words, metrics=tuple((name, float(values[row])) for name, values in metrics.items()))
        for row, words in enumerate(described_pairs(model, task))
    )
    return blocks.Pairs(title="Example prompts", pairs=pairs, unit=task.unit, where="page")


DRAWN = ("neuron", "feature", *IN_STREAM)
"""Kinds of nodes that are drawn beside an MLP."""


def block_of(node: Node) -> int:
    """The block beside which a neuron or feature is drawn: that in front of a stream."""
    return node.layer - (node.kind in IN_STREAM)


def shape_of(graph: "cm.Graph", edges: Iterable[blocks.Edge] = ()) -> blocks.Shape:
    """The grid of a graph, with the neurons and features at the ends of `edges`."""
    sizes = {"layers": graph.n_layers, "heads": graph.n_heads, "kv_heads": graph.n_kv_heads}
    ends = {Node.parse(end).whole for edge in edges for end in (edge.source, edge.reader)} if graph.has_parts else set()
    drawn = [
        [str(node) for node in graph.writer_nodes if node in ends and node.kind in DRAWN and block_of(node) == layer]
        for layer in range(graph.n_layers)
    ]
    neurons = tuple(map(tuple, drawn)) if any(drawn) else ()
    return blocks.Shape(**sizes, mlps=bool(graph.mlps), parallel=graph.parallel, neurons=neurons)


def circuit_map(graph: "cm.Graph", edges: Iterable[blocks.Edge], **options: Any) -> blocks.CircuitMap:
    """A circuit on its model's grid, strongest |score| first; other sets of edges are sorted alike."""
    others = [replace(some, edges=by_strength(some.edges)) for some in options.pop("others", ())]
    ranked = by_strength(edges)
    shape = shape_of(graph, chain(ranked, *(some.edges for some in others)))
    return blocks.CircuitMap(shape=shape, edges=ranked, others=tuple(others), **options)


def by_strength(edges: Iterable[blocks.Edge]) -> tuple[blocks.Edge, ...]:
    """Edges sorted by |score|, the largest first."""
    return tuple(sorted(edges, key=lambda edge: -abs(edge.score or 0.0)))


def scored_edges(scores: "cm.EdgeScores", circuit: "cm.Circuit", intervals: "Tensor | None") -> list[blocks.Edge]:
    """A circuit's edges with the [2, writers, readers] ends of their intervals if given."""
    places = circuit.mask.nonzero()
    rows, columns = places.T
    values = scores.values[rows, columns].tolist()
    bounds = [(None, None)] * len(values) if intervals is None else intervals[:, rows, columns].T.tolist()
    return [
        blocks.Edge(
            source=scores.graph.writers[row], reader=scores.graph.readers[column], score=value, low=low, high=high
        )
        for (row, column), value, (low, high) in zip(places.tolist(), values, bounds, strict=True)
    ]


def effect_map(effects: "cm.EffectMap", **options: Any) -> blocks.HeatMap:
    """Effects with their intervals as a heat map, layers upwards; its note counts the intervals without zero."""
    low, high = effects.interval
    certain, cells = int(((low > 0) | (high < 0)).sum()), int((~effects.mean.isnan()).sum())
    return blocks.HeatMap(
        title=effects.name[:1].upper() + effects.name[1:],
        note=f"{certain:,} of {cells:,} intervals leave out zero; of parts that do nothing, about one in twenty does.",
        rows=effects.rows,
        columns=effects.columns,
        values=_matrix(effects.mean),
        low=_matrix(low),
        high=_matrix(high),
        unit=effects.unit,
        whole=formats.finite(effects.gap) or None,
        labels=tuple(tuple(effects.label(i, j) for j in range(len(effects.columns))) for i in range(len(effects.rows))),
        upwards=True,
        **options,
    )


def _matrix(values: "Tensor") -> tuple[tuple[blocks.Number, ...], ...]:
    return tuple(map(tuple, values.tolist()))


def effect_results(maps: Sequence["cm.EffectMap"]) -> dict[str, Any]:
    """Maps and their strongest cells as plain JSON values."""
    top = [{"map": effects.name, **part} for effects in maps for part in strongest(effects.top(20))]
    return {"maps": [effects.to_dict() for effects in maps], "top": top}


def effect_tensors(maps: Sequence["cm.EffectMap"]) -> dict[str, "Tensor"]:
    """Per-prompt effects and the metrics of the plain runs."""
    samples = {f"samples{i}": effects.samples for i, effects in enumerate(maps)}
    return {**samples, "clean": maps[0].clean, "corrupted": maps[0].corrupted}


def effect_blocks(
    setting: "Setting", maps: Sequence["cm.EffectMap"], more: Sequence[blocks.Figure] = (), on_terminal: int = 2
) -> list[blocks.Block]:
    """The strongest effect in a sentence, headline numbers, every map, and the strongest parts of all of them.

    A terminal shows the first maps, a page folds what comes after three.
    """
    first, task = maps[0], setting.task
    metrics = {"clean": first.clean, "corrupted": first.corrupted}
    cards = (
        figure(
            name.capitalize(),
            setting.mean(values, task.unit),
            f"mean metric on {name} prompts; interval over {setting.over}",
        )
        for name, values in metrics.items()
    )
    gap = blocks.Figure(name="Gap", value=first.gap, unit=task.unit, about="clean minus corrupted: 100 %")
    drawn = [
        effect_map(effects, folded=i >= 3, top=0, where="everywhere" if i < on_terminal else "page")
        for i, effects in enumerate(maps)
    ]
    others = len(maps) - on_terminal
    note = [blocks.Note(text=f"{others:,} more maps are in the report.", where="terminal")] if others > 0 else []
    return [
        blocks.Lede(text=_strongest_effect(first)),
        blocks.Numbers(items=(*cards, gap, *more)),
        *drawn,
        *note,
        _strongest_table(maps),
        example_pairs(setting.model, task, metrics),
    ]


def _strongest_effect(effects: "cm.EffectMap") -> str:
    """The strongest effect of a map in a sentence."""
    if not (top := effects.top(1)):
        return "There is no effect to show."
    name, estimate = top[0]
    value = f"{formats.fixed(estimate.value, 3)} {effects.unit} {formats.interval(estimate.low, estimate.high)}"
    share = f", {formats.rounded(100 * estimate.value / effects.gap, 0)} % of the gap" if effects.gap else ""
    return f"{name} has the strongest effect ({effects.name}): {value.strip()}{share}."


def _strongest_table(maps: Sequence["cm.EffectMap"]) -> blocks.Table:
    """The strongest cells of all maps, largest first."""
    rows = [
        (abs(e.value), (effects.name, label, cell(e), e.value / effects.gap if effects.gap else None))
        for effects in maps
        for label, e in effects.top(20)
    ]
    rows.sort(key=lambda row: -row[0])
    columns = ("map", ("part", "node"), ("effect", "estimate", 3, maps[0].unit), ("of the gap", "percent"))
    skip = int(len(maps) == 1)
    return blocks.table("Strongest effects", columns[skip:], (row[skip:] for _, row in rows), top=12)
