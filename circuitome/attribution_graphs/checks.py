"""Checks of an attribution graph against the model itself: sums, finite differences, and nodes switched off.

None of them uses the linear maps that the graph was computed with: the model's own modules run, with attention
patterns, norm divisors and neurons held for the first two, and with nothing held for the ablations.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.attribution_graphs.differences import EDGES, edges_between, worst_difference
from circuitome.attribution_graphs.effects import total_effects
from circuitome.attribution_graphs.explained import Explained
from circuitome.attribution_graphs.frozen_model import FrozenModel, inputs_of
from circuitome.attribution_graphs.result import AttributionGraph
from circuitome.engine.frozen_attention import frozen_patterns
from circuitome.engine.setting import Setting, method
from circuitome.graph.node import Node
from circuitome.models.hooks import hooked
from circuitome.results import Estimate, Record, bootstrap

STRONGEST = 20
"""Nodes that are switched off."""


@dataclass(frozen=True)
class SwitchedOff(Record):
    """One node switched off in the model itself."""

    name: str
    """The node."""
    predicted: float
    """Change of the explained metric by the graph's linear model: minus the node's effect by all paths."""
    held: float
    """Change with attention patterns held."""
    measured: float
    """Change in the model itself."""


@dataclass(frozen=True)
class GraphChecks(Record):
    """How far a graph is what it says, and how far the model does as it says."""

    sums: float
    """Largest distance of a node's value from the sum of its inputs, as a share of the value's size."""
    differences: float
    """Largest distance of an edge from a finite difference in the held model, as a share of the edge; of some edges."""
    edges: int
    """Edges that were compared with finite differences."""
    off: tuple[SwitchedOff, ...]
    """The strongest nodes, each switched off at its token."""
    random: tuple[SwitchedOff, ...]
    """As many other neurons of the same blocks and tokens."""
    correlation: Estimate
    """Of predicted and measured changes over the strongest nodes, Pearson's; interval over nodes."""
    correlation_held: Estimate
    """The same with attention patterns held in the measured runs."""


@method
def check_graph(setting: Setting, graph: AttributionGraph, *, nodes: int = STRONGEST) -> GraphChecks:
    """The checks of a graph of `model`; about four passes a node.

    The `nodes` neurons with the largest influence are switched off at their tokens one by one, then as many others of
    the same blocks and tokens, drawn at random.

    >>> model = cm.load("known-ioi")
    >>> graph = cm.attribution_graph(model, "Ann and Bob met then Bob gave to", first_token=True)
    >>> checks = cm.attribution_graphs.check_graph(model, graph)
    >>> checks.sums < 1e-4, checks.differences < 1e-3
    (True, True)
    """
    with torch.no_grad():
        frozen = FrozenModel.of(setting.model, graph.ids, graph.transcoders)
        explained = Explained.of(frozen, graph.contrast)
        effects = total_effects(frozen, explained.mean(explained.reads(frozen).vectors.T))
        strongest = [(n.layer, n.position, n.index) for n in graph.units()[:nodes]]
        drawn = _drawn(frozen, strongest, setting.seed)
        tell, total = setting.tell("switching nodes off"), len(strongest) + len(drawn)
        off = list[SwitchedOff]()
        for layer, position, index in [*strongest, *drawn]:
            change = _switched(frozen, explained, layer, position, index)
            predicted = -float(effects.neurons[layer][position, index])
            name = str(Node(frozen.units[layer].kind, layer, index, position=position))
            off.append(SwitchedOff(name, predicted, *change))
            tell(len(off), total)
        first, rest = tuple(off[: len(strongest)]), tuple(off[len(strongest) :])
        return GraphChecks(
            sums=worst_sum(graph),
            differences=worst_difference(frozen, explained, graph, setting.seed),
            edges=min(EDGES, len(edges_between(graph))),
            off=first,
            random=rest,
            correlation=_correlation(first, "measured", setting.seed),
            correlation_held=_correlation(first, "held", setting.seed),
        )


def worst_sum(graph: AttributionGraph) -> float:
    """The largest distance of a value from the sum of what comes in, as a share of the value."""
    valued = [(float(total), node.value) for total, node in zip(graph.sums(), graph.nodes, strict=True) if node.value]
    return max((abs(total - value) / abs(value) for total, value in valued), default=0.0)


def _drawn(frozen: FrozenModel, strongest: Sequence[tuple[int, int, int]], seed: int) -> list[tuple[int, int, int]]:
    """For each neuron another of its block and token."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for layer, position, index in strongest:
        units = frozen.units[layer]
        others = list(range(units.expandable))
        if units.kind == "feature":  # most features are off, and switching them off is nothing
            others = units.values[position, : units.expandable].nonzero()[:, 0].tolist()
        step = int(torch.randint(1, max(2, len(others)), (1,), generator=generator))
        found.append((layer, position, others[(others.index(index) + step) % len(others)]))
    return found


def _switched(frozen: FrozenModel, explained: Explained, layer: int, position: int, index: int) -> tuple[float, float]:
    """Change of the metric when a neuron writes nothing at a token: with patterns held, and in the model itself."""
    model, inputs = frozen.model, inputs_of(frozen)

    units, block = frozen.units[layer], model.blocks[layer]

    def without(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = args[0].clone()
        values.view(frozen.tokens, -1)[position, index] = 0.0
        return (values, *args[1:])

    def less(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output.clone()
        written = units.shares[position, index] * units.writes()[index]
        output.view(frozen.tokens, -1)[position] -= written.to(output.dtype)
        return output

    base = float(explained.mean(explained.values(frozen.logits[None])))
    changes = list[float]()
    for held in (True, False):
        with ExitStack() as stack:
            if held:
                stack.enter_context(frozen_patterns(model, [a.pattern[None] for a in frozen.attention]))
            if units.kind == "feature":
                stack.enter_context(hooked(block.mlp_ends[1].register_forward_hook, less))
            else:
                stack.enter_context(hooked(block.mlp_writer.register_forward_pre_hook, without))
            changes.append(float(explained.mean(explained.values(model.logits(inputs)))) - base)
    return changes[0], changes[1]


def _correlation(off: Sequence[SwitchedOff], name: str, seed: int) -> Estimate:
    """Pearson's correlation of predicted and measured changes, with a bootstrap interval over nodes."""
    pairs = torch.tensor([(node.predicted, getattr(node, name)) for node in off], dtype=torch.float64).view(-1, 2)
    if len(pairs) < 2:
        return Estimate(torch.nan, torch.nan, torch.nan, "correlation", len(pairs))
    x, y = (pairs / pairs.abs().amax(0).clamp(min=1e-12)).T

    def pearson(means: Float[Tensor, "resamples columns"]) -> Float[Tensor, " resamples"]:
        a, b, aa, bb, ab = means.T
        return (ab - a * b) / ((aa - a**2) * (bb - b**2)).clamp(min=1e-24).sqrt()

    found = bootstrap(torch.stack([x, y, x**2, y**2, x * y], 1), pearson, "correlation", seed=seed)
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))
