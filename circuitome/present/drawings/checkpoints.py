"""Trainings at their last step as blocks of other kinds: what stands on a page without its script."""

import re
from collections.abc import Sequence
from typing import Any

from circuitome.present.blocks import Attention, Block, Checkpoints, CircuitMap, Edge, HeatMap, Shape
from circuitome.present.watched import Watched


def at_end(block: Checkpoints) -> list[Block]:
    """Scores of heads, attention in the example, and circuits of each training at its last step."""
    return [part for run in block.runs for part in _last(run, f"{run.name}: " if len(block.runs) > 1 else "")]


def _last(run: Watched, front: str) -> list[Block]:
    step = f"at step {run.steps[-1]:,}"
    parts: list[Block] = [
        HeatMap(
            title=f"{front}{score.name}, {step}",
            rows=tuple(f"a{layer}" for layer in range(run.layers)),
            columns=tuple(f"h{head}" for head in range(run.heads)),
            values=score.values[-1],
            scale="signed" if any((value or 0.0) < 0 for row in score.values[-1] for value in row) else "positive",
            upwards=True,
            top=0,
        )
        for score in run.scores
        if score.values[-1]
    ]
    heads = tuple((part.head, _square(part.values[-1])) for part in run.attention if part.values[-1])
    if heads:
        parts.append(Attention(title=f"{front}attention {step}", tokens=run.tokens, heads=heads))
    for found in run.circuits:
        if last := found.values[-1]:
            edges = tuple(Edge(source=a, reader=b, score=score) for a, b, score in map(_ends, last["edges"]))
            shape = Shape(layers=run.layers, heads=run.heads, kv_heads=_kv_heads(run.heads, edges))
            parts.append(CircuitMap(title=f"{front}circuit of {found.task} {step}", shape=shape, edges=edges, unit=""))
    return parts


def _ends(edge: Sequence[Any]) -> tuple[str, str, float]:
    source, reader = edge[0].split("->")
    return source, reader, edge[1]


def _kv_heads(heads: int, edges: tuple[Edge, ...]) -> int:
    """As few key/value heads as the edges name, of which each query head has one; as many where they name none."""
    numbers = [int(number) for edge in edges for number in re.findall(r"\.kv(\d+)", edge.reader)]
    least = max(numbers) + 1 if numbers else heads
    return next(count for count in range(least, heads + 1) if heads % count == 0)


def _square(pattern: tuple[tuple[float | None, ...], ...]) -> tuple[tuple[float | None, ...], ...]:
    """The pattern with as many keys as queries."""
    return tuple((*row, *(None,) * (len(pattern) - len(row))) for row in pattern)
