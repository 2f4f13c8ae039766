"""Blocks that several studies make: estimates as cells and cards, example prompts, a circuit on its grid."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.setting import Setting
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.present import formats
from circuitome.present.blocks import (
    Block,
    Cell,
    CircuitMap,
    Column,
    Edge,
    Figure,
    HeatMap,
    Lede,
    Note,
    Number,
    Numbers,
    Pair,
    Pairs,
    Series,
    Shape,
    Style,
    Table,
)
from circuitome.results import EffectMap, Estimate
from circuitome.runs.record import PROMPTS
from circuitome.tasks.task import Task


def finite(value: float | None) -> float | None:
    """A number as JSON can hold it: None for NaN and infinity."""
    return value if value is not None and math.isfinite(value) else None


def cell(estimate: Estimate) -> Cell:
    """An estimate as a table's cell."""
    return finite(estimate.value), finite(estimate.low), finite(estimate.high)


def cell_of(estimate: Mapping[str, Any] | None) -> Cell:
    """An estimate as plain JSON values (`Estimate.to_dict`) as a table's cell; None where there is none."""
    return None if estimate is None else tuple(finite(estimate[end]) for end in ("value", "low", "high"))  # type: ignore[return-value]


def series_of(name: str, x: Sequence[float], estimates: Iterable[Mapping[str, Any]], **options: Any) -> Series:
    """Estimates as plain JSON values as a line of a chart with its band, at the places `x`."""
    rows = [[finite(estimate[end]) for end in ("value", "low", "high")] for estimate in estimates]
    y, low, high = (tuple(row[end] for row in rows) for end in range(3))
    return Series(name=name, x=tuple(x), y=y, low=low, high=high, **options)


def head_names(heads: Iterable[tuple[int, int]]) -> list[str]:
    """Names of heads given as (layer, head)."""
    return [str(Node.head(layer, head)) for layer, head in heads]


def head_map(
    title: str, mean: Sequence[Sequence[Number]], *ends: Sequence[Sequence[Number]], extra: str = "", **options: Any
) -> HeatMap:
    """Values of all heads, [layer][head], as a map with layers upwards; `ends` are the lower and the upper ones.

    `extra` names a last column that is no head. Colours are those of signed values where any is negative.
    """
    values = [tuple(tuple(finite(value) for value in row) for row in matrix) for matrix in (mean, *ends)]
    heads, more = range(len(mean[0]) - bool(extra)), [extra] if extra else []
    rows = tuple(str(Node("attention", layer)) for layer in range(len(mean)))
    return HeatMap(
        title=title,
        rows=rows,
        columns=(*(f"h{head}" for head in heads), *more),
        labels=tuple(
            (*head_names((layer, head) for head in heads), *(f"{row} {name}" for name in more))
            for layer, row in enumerate(rows)
        ),
        values=values[0],
        low=values[1] if ends else (),
        high=values[2] if ends else (),
        scale="signed" if any((value or 0.0) < 0 for row in values[0] for value in row) else "positive",
        upwards=True,
        **options,
    )


def figure(name: str, estimate: Estimate, about: str = "", style: Style = "number") -> Figure:
    """An estimate as a headline number, in its own unit."""
    value, low, high = map(finite, (estimate.value, estimate.low, estimate.high))
    unit = "" if style == "percent" or estimate.unit.startswith("share ") else estimate.unit
    return Figure(name=name, value=value, low=low, high=high, unit=unit, style=style, about=about)


def example_pairs(model: Model, task: Task, metrics: Mapping[str, Tensor] | None = None) -> Pairs:
    """The first prompts of a task with the metric of each named run on them."""
    columns = {name: values.tolist() for name, values in (metrics or {}).items()}
    pairs = tuple(
        Pair(
            clean=pair.clean_text,
            corrupted=pair.corrupted_text,
            answers=tuple(model.decode([token]) for token in pair.answers[:10]),
            wrongs=tuple(model.decode([token]) for token in pair.wrongs[:10]),
            metrics=tuple((name, finite(values[row])) for name, values in columns.items()),
        )
        for row, pair in enumerate(task.pairs[:PROMPTS])
    )
    return Pairs(title="Example prompts", pairs=pairs, unit=task.unit, where="page")


def shape_of(graph: Graph) -> Shape:
    """The grid of a graph."""
    return Shape(
        layers=graph.n_layers,
        heads=graph.n_heads,
        kv_heads=graph.n_kv_heads,
        mlps=bool(graph.mlps),
        parallel=graph.parallel,
    )


def circuit_map(scores: EdgeScores, circuit: Circuit, intervals: Tensor | None, **texts: Any) -> CircuitMap:
    """A circuit's edges, strongest |score| first, with the [2, writers, readers] ends of their intervals if given."""
    rows, columns = circuit.mask.nonzero(as_tuple=True)
    ends = torch.full((2, len(rows)), torch.nan) if intervals is None else intervals[:, rows, columns]
    values = scores.values[rows, columns]
    edges = [
        Edge(
            source=scores.graph.writers[row],
            reader=scores.graph.readers[column],
            score=value,
            low=finite(low),
            high=finite(high),
        )
        for row, column, value, (low, high) in zip(
            rows.tolist(), columns.tolist(), values.tolist(), ends.T.tolist(), strict=True
        )
    ]
    edges.sort(key=lambda edge: -abs(edge.score or 0.0))
    return CircuitMap(shape=shape_of(scores.graph), edges=tuple(edges), unit=scores.unit, **texts)


def percent(estimate: Estimate) -> str:
    """A share in words: 43 % [38, 48]."""
    return formats.percent(estimate.value, estimate.low, estimate.high)


def effect_map(effects: EffectMap, **texts: Any) -> HeatMap:
    """Effects with their intervals as a heat map, layers upwards; its note counts the intervals without zero."""
    low, high = effects.interval
    certain, cells = int(((low > 0) | (high < 0)).sum()), int((~effects.mean.isnan()).sum())
    labels = tuple(tuple(effects.label(i, j) for j in range(len(effects.columns))) for i in range(len(effects.rows)))
    return HeatMap(
        title=effects.name[:1].upper() + effects.name[1:],
        note=f"{certain:,} of {cells:,} intervals leave out zero; of parts that do nothing, about one in twenty does.",
        rows=effects.rows,
        columns=effects.columns,
        values=_matrix(effects.mean),
        low=_matrix(low),
        high=_matrix(high),
        unit=effects.unit,
        whole=finite(effects.gap) or None,
        labels=labels,
        upwards=True,
        **texts,
    )


def _matrix(values: Tensor) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(finite(value) for value in row) for row in values.tolist())


def effect_results(maps: Sequence[EffectMap], top: int = 20) -> dict[str, Any]:
    """Maps and their strongest cells as plain JSON values."""
    strongest = [
        {"map": effects.name, "label": label, "mean": e.value, "low": finite(e.low), "high": finite(e.high)}
        for effects in maps
        for label, e in strongest_effects(effects, top)
    ]
    return {"maps": [effects.to_dict() for effects in maps], "top": strongest}


def strongest_effects(effects: EffectMap, top: int) -> list[tuple[str, Estimate]]:
    """The strongest cells that exist: a map of a few senders has fewer than `top`."""
    return [(name, estimate) for name, estimate in effects.top(top) if finite(estimate.value) is not None]


def effect_tensors(maps: Sequence[EffectMap]) -> dict[str, Tensor]:
    """Per-prompt effects and the metrics of the plain runs."""
    samples = {f"samples{i}": effects.samples for i, effects in enumerate(maps)}
    return {**samples, "clean": maps[0].clean, "corrupted": maps[0].corrupted}


def effect_blocks(
    setting: Setting, maps: Sequence[EffectMap], more: Sequence[Figure] = (), on_terminal: int = 2
) -> list[Block]:
    """The strongest effect in a sentence, headline numbers, every map, and the strongest parts of all of them.

    A terminal shows the first maps, a page folds what comes after three.
    """
    first, task = maps[0], setting.task
    cards = (
        figure(
            "Clean", setting.mean(first.clean, task.unit), f"mean metric on clean prompts; interval over {setting.over}"
        ),
        figure(
            "Corrupted",
            setting.mean(first.corrupted, task.unit),
            f"mean metric on corrupted prompts; interval over {setting.over}",
        ),
        Figure(name="Gap", value=first.gap, unit=task.unit, about="clean minus corrupted: 100 %"),
        *more,
    )
    drawn = [
        effect_map(effects, folded=i >= 3, top=0, where="everywhere" if i < on_terminal else "page")
        for i, effects in enumerate(maps)
    ]
    others = len(maps) - on_terminal
    note = [Note(text=f"{others:,} more maps are in the report.", where="terminal")] if others > 0 else []
    return [
        Lede(text=_strongest_effect(first)),
        Numbers(items=cards),
        *drawn,
        *note,
        _strongest_table(maps),
        example_pairs(setting.model, task, {"clean": first.clean, "corrupted": first.corrupted}),
    ]


def _strongest_effect(effects: EffectMap) -> str:
    """The strongest effect of a map in a sentence."""
    strongest = strongest_effects(effects, 1)
    if not strongest:
        return "There is no effect to show."
    name, estimate = strongest[0]
    value = f"{formats.fixed(estimate.value, 3)} {effects.unit} {formats.interval(estimate.low, estimate.high, 3)}"
    share = f", {formats.rounded(100 * estimate.value / effects.gap, 0)} % of the gap" if effects.gap else ""
    return f"{name} has the strongest effect ({effects.name}): {value.strip()}{share}."


def _strongest_table(maps: Sequence[EffectMap]) -> Table:
    """The strongest cells of all maps, largest first."""
    rows = [
        (abs(e.value), (effects.name, label, cell(e), e.value / effects.gap if effects.gap else None))
        for effects in maps
        for label, e in strongest_effects(effects, 20)
    ]
    rows.sort(key=lambda row: -row[0])
    columns = (
        Column(name="map"),
        Column(name="part", style="node"),
        Column(name="effect", style="estimate", unit=maps[0].unit, decimals=3),
        Column(name="of the gap", style="percent"),
    )
    skip = int(len(maps) == 1)
    table = tuple(row[skip:] for _, row in rows)
    return Table(title="Strongest effects", columns=columns[skip:], rows=table, top=12)
