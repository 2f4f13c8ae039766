"""Blocks that several studies make: estimates as cells and cards, example prompts, a circuit on its grid."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.setting import Setting
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.models.model import Model
from circuitome.present.blocks import (
    Block,
    Cell,
    CircuitMap,
    Column,
    Edge,
    Figure,
    HeatMap,
    Lede,
    Numbers,
    Pair,
    Pairs,
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
    from circuitome.present.formats import percent as written

    return written(estimate.to_dict())


def effect_map(effects: EffectMap, **texts: Any) -> HeatMap:
    """Effects with their intervals as a heat map, layers upwards."""
    low, high = effects.interval
    labels = tuple(tuple(effects.label(i, j) for j in range(len(effects.columns))) for i in range(len(effects.rows)))
    return HeatMap(
        title=effects.name,
        rows=effects.rows,
        columns=effects.columns,
        values=_matrix(effects.mean),
        low=_matrix(low),
        high=_matrix(high),
        unit=effects.unit,
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
        for label, e in effects.top(top)
    ]
    return {"maps": [effects.to_dict() for effects in maps], "top": strongest}


def effect_tensors(maps: Sequence[EffectMap]) -> dict[str, Tensor]:
    """Per-prompt effects and the metrics of the plain runs."""
    samples = {f"samples{i}": effects.samples for i, effects in enumerate(maps)}
    return {**samples, "clean": maps[0].clean, "corrupted": maps[0].corrupted}


def effect_blocks(setting: Setting, maps: Sequence[EffectMap], more: Sequence[Figure] = ()) -> list[Block]:
    """The strongest effect in a sentence, headline numbers, every map, and the strongest parts of all of them."""
    first, task = maps[0], setting.task
    (name, strongest), *_ = first.top(1)
    where = f" ({first.name})" if len(maps) > 1 else ""
    share = "" if not first.gap else f", {100 * strongest.value / first.gap:.0f} % of the gap"
    text = f"{name} has the strongest effect{where}: {strongest} {task.unit}{share}."
    cards = (
        figure("Clean", setting.mean(first.clean, task.unit), "mean metric on clean prompts"),
        figure("Corrupted", setting.mean(first.corrupted, task.unit), "mean metric on corrupted prompts"),
        Figure(name="Gap", value=first.gap, unit=task.unit, about="clean minus corrupted: 100 %"),
        *more,
    )
    rows = sorted(
        ((effects.name, label, cell(e), e.value / effects.gap) for effects in maps for label, e in effects.top(20)),
        key=lambda row: -abs(row[3]),
    )
    columns = (
        Column(name="map"),
        Column(name="part", style="node"),
        Column(name="effect", style="estimate", unit=task.unit, decimals=3),
        Column(name="of the gap", style="percent"),
    )
    skip = int(len(maps) == 1)
    note = (
        "The 95 % interval of a starred or listed part may leave out zero by chance: of parts that do nothing, about "
        "one in twenty does."
    )
    return [
        Lede(text=text),
        Numbers(items=cards),
        *(effect_map(effects, folded=i >= 2, top=0, note=note if not i else "") for i, effects in enumerate(maps)),
        Table(title="Strongest effects", columns=columns[skip:], rows=tuple(row[skip:] for row in rows[:40]), top=12),
        example_pairs(setting.model, task, {"clean": first.clean, "corrupted": first.corrupted}),
    ]
