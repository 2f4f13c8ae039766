"""Tracing back: from the logits to the senders that matter, from these to who writes into their inputs, and so on.

Source: the way that Wang et al. 2022, arXiv:2211.00593, went through GPT-2 by path patching, made a rule.
"""

from dataclasses import dataclass

import torch

from circuitome.discovery.patching.path import path_patch
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph
from circuitome.progress import silent
from circuitome.results import EffectMap


@dataclass(frozen=True, eq=False)
class Trace:
    """A trace back from the logits."""

    circuit: Circuit
    """The edges from each sender that matters to its receiver."""
    levels: tuple[tuple[EffectMap, ...], ...]
    """By depth, the effects on each receiver that was tested."""
    receivers: tuple[tuple[str, ...], ...]
    """By depth, the receivers."""
    certain: bool = True
    """Whether intervals over prompts had a say; with one prompt there are none, and only sizes decided."""


@method
def trace_back(
    setting: Setting, *, depth: int = 3, width: int = 5, threshold: float = 0.02, freeze_mlps: bool = True
) -> Trace:
    """Start at the logits, keep the senders that matter, ask who writes into their inputs, and so on to `depth`.

    A sender is kept for a receiver if its effect (`path_patch`) is at least `threshold` of the gap between clean and
    corrupted metric, its 95 % interval over prompts does not hold 0, and it is among the `width` strongest. Receivers
    count at all positions, since heads found on the way may act before the end. With `freeze_mlps` effects are those
    of single edges, so the circuit can be run; else MLPs in between are part of an edge. With a single prompt there is
    no interval: then the size alone decides, and `certain` is False.

    Raises `InputError` for depth or width below 1, and what `path_patch` raises.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> trace = cm.trace_back(model, task, depth=2)
    >>> "a1.h0->a2.h0.q" in trace.circuit, len(trace.circuit)
    (True, 8)
    """
    if depth < 1 or width < 1:
        raise InputError(f"depth and width must be at least 1, got {depth} and {width}.")
    graph, quiet = setting.model.graph, setting.but(progress=silent)
    mask = torch.zeros_like(graph.mask)
    levels: list[tuple[EffectMap, ...]] = []
    receivers: list[tuple[str, ...]] = [("logits",)]
    asked = 0
    while len(levels) < depth and receivers[-1]:
        maps, kept = [], list[int]()
        for receiver in receivers[-1]:
            where = None if receiver == "logits" else "all"
            maps.append(path_patch(quiet, receiver, receiver_positions=where, freeze_mlps=freeze_mlps))
            column = graph.column(receiver)
            rows = [row for row in _kept(graph, maps[-1], width, threshold) if graph.mask[row, column]]
            mask[rows, column] = True
            kept += rows
            asked += 1
            setting.progress("tracing receivers back", asked, sum(map(len, receivers)))
        levels.append(tuple(maps))
        inputs = dict.fromkeys(graph.readers[column] for row in kept for column in graph.inputs_of[row])
        receivers.append(tuple(name for name in inputs if not any(name in level for level in receivers)))
    return Trace(Circuit(graph, mask), tuple(levels), tuple(receivers[: len(levels)]), len(setting.task) > 1)


def _kept(graph: Graph, effects: EffectMap, width: int, threshold: float) -> list[int]:
    """Rows of the senders that matter."""
    rows = []
    for name, estimate in effects.top(width):
        may_be_nothing = estimate.n > 1 and estimate.low <= 0 <= estimate.high
        if not may_be_nothing and abs(estimate.value) >= threshold * abs(effects.gap):
            rows.append(graph.row(name))
    return rows
