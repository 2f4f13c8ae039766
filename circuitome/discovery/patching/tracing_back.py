"""Tracing back: from the logits to the senders that matter, from these to who writes into their inputs, and so on.

Source: the way that Wang et al. 2022, arXiv:2211.00593, went through GPT-2 by path patching, made a rule.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from circuitome.discovery.patching.path import path_patch
from circuitome.discovery.patching.screen import path_estimates
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph
from circuitome.progress import silent
from circuitome.results import EffectMap

WIDER, LOWER = 4, 4
"""Patched are the strongest by their estimate, so many times the width, and all within so many times the threshold."""


@dataclass(frozen=True)
class Screened:
    """The senders of one receiver that were not patched, since their estimated effects are small."""

    patched: int
    """Senders that were patched."""
    left: int
    """Senders that were not."""
    bound: float
    """The largest size of an estimated effect among them, in the metric's unit."""


@dataclass(frozen=True, eq=False)
class Trace:
    """A trace back from the logits."""

    circuit: Circuit
    """The edges from each sender that matters to its receiver."""
    levels: tuple[tuple[EffectMap, ...], ...]
    """By depth, the effects on each receiver that was tested."""
    receivers: tuple[tuple[str, ...], ...]
    """By depth, the receivers."""
    screened: tuple[tuple[Screened, ...], ...] = ()
    """By depth, what was not patched of each receiver's senders; empty where all were."""
    certain: bool = True
    """Whether intervals over prompts had a say; with one prompt there are none, and only sizes decided."""


@method
def trace_back(
    setting: Setting,
    *,
    depth: int = 3,
    width: int = 5,
    threshold: float = 0.02,
    freeze_mlps: bool = True,
    exact: bool = False,
) -> Trace:
    """Start at the logits, keep the senders that matter, ask who writes into their inputs, and so on to `depth`.

    A sender is kept for a receiver if its effect (`path_patch`) is at least `threshold` of the gap between clean and
    corrupted metric, its 95 % interval over prompts does not hold 0, and it is among the `width` strongest. Receivers
    count at all positions, since heads found on the way may act before the end. With `freeze_mlps` effects are those
    of single edges, so the circuit can be run; else MLPs in between are part of an edge. With a single prompt there is
    no interval: then the size alone decides, and `certain` is False.

    Unless `exact`, first-order estimates of all effects (see `discovery.patching.screen`) decide which senders are
    patched: those among the 4 `width` largest for a receiver, and those of at least a quarter of the threshold. What
    was not patched, and the largest estimate among it, stands in `screened`; a metric without gradient needs `exact`.

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
    screened: list[tuple[Screened, ...]] = []
    receivers: list[tuple[str, ...]] = [("logits",)]
    asked = 0
    while len(levels) < depth and receivers[-1]:
        maps, left, kept = list[EffectMap](), list[Screened](), list[int]()
        least = None if exact or not levels else threshold * abs(levels[0][0].gap)
        for receiver, senders in _senders(quiet, receivers[-1], width, least, left, freeze_mlps=freeze_mlps):
            where = None if receiver == "logits" else "all"
            maps.append(path_patch(quiet, receiver, senders=senders, receiver_positions=where, freeze_mlps=freeze_mlps))
            column = graph.column(receiver)
            rows = [row for row in _kept(graph, maps[-1], width, threshold) if graph.mask[row, column]]
            mask[rows, column] = True
            kept += rows
            asked += 1
            setting.progress("tracing receivers back", asked, sum(map(len, receivers)))
        levels.append(tuple(maps))
        screened.append(tuple(left))
        inputs = dict.fromkeys(graph.readers[column] for row in kept for column in graph.inputs_of[row])
        receivers.append(tuple(name for name in inputs if not any(name in level for level in receivers)))
    certain = len(setting.task) > 1
    return Trace(Circuit(graph, mask), tuple(levels), tuple(receivers[: len(levels)]), tuple(screened), certain)


def _senders(
    setting: Setting,
    receivers: tuple[str, ...],
    width: int,
    least: float | None,
    left: list[Screened],
    *,
    freeze_mlps: bool,
) -> Iterator[tuple[str, list[str] | None]]:
    """Each receiver with the senders to patch, None for all; without `least`, the smallest effect kept, all are.

    What is not to be patched is added to `left`.
    """
    if least is None:
        yield from ((receiver, None) for receiver in receivers)
        return
    graph = setting.model.graph
    for receiver, estimates in zip(
        receivers, path_estimates(setting, receivers, freeze_mlps=freeze_mlps).abs(), strict=True
    ):
        upstream = graph.mask[:, graph.column(receiver)]
        estimates = estimates.masked_fill(~upstream, -1.0)
        chosen = (estimates >= least / LOWER) & upstream
        chosen[estimates.topk(min(WIDER * width, int(upstream.sum()))).indices] = True
        rest = upstream & ~chosen
        bound = float(estimates[rest].max()) if rest.any() else 0.0
        left.append(Screened(int(chosen.sum()), int(rest.sum()), bound))
        yield receiver, [graph.writers[row] for row in chosen.nonzero().flatten().tolist()]


def _kept(graph: Graph, effects: EffectMap, width: int, threshold: float) -> list[int]:
    """Rows of the senders that matter."""
    rows = []
    for name, estimate in effects.top(width):
        may_be_nothing = estimate.n > 1 and estimate.low <= 0 <= estimate.high
        if not may_be_nothing and abs(estimate.value) >= threshold * abs(effects.gap):
            rows.append(graph.row(name))
    return rows
