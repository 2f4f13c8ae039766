"""Blocks that several studies make: estimates as cells and cards, example prompts, a circuit on its grid."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.models.model import Model
from circuitome.present.blocks import Cell, CircuitMap, Edge, Figure, Pair, Pairs, Shape, Style
from circuitome.results import Estimate
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
    from circuitome.report.formats import percent as written

    return written(estimate.to_dict())
