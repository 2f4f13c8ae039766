"""Edges of an attribution graph as finite differences: the model's own modules run, all held that the graph holds."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from circuitome.attribution_graphs.explained import Explained
from circuitome.attribution_graphs.feature_units import FeatureUnits
from circuitome.attribution_graphs.frozen_model import FrozenModel, inputs_of
from circuitome.attribution_graphs.result import UNITS, AttributionGraph, GraphNode
from circuitome.attribution_graphs.units import NeuronUnits
from circuitome.engine.backward_rules import described_norms
from circuitome.engine.frozen_attention import frozen_patterns
from circuitome.models.hooks import hooked, replaced
from circuitome.models.norms import Norm
from circuitome.neurons.factors import watching_neurons

EDGES = 24
"""Edges that are compared."""


def edges_between(graph: AttributionGraph) -> list[int]:
    """Edges whose source is a neuron or feature."""
    return [i for i, source in enumerate(graph.sources.tolist()) if graph.nodes[source].kind in UNITS]


def worst_difference(frozen: FrozenModel, explained: Explained, graph: AttributionGraph, seed: int) -> float:
    """The largest distance of some edges from what the held model's target loses without the source, as a share."""
    edges = edges_between(graph)
    order = torch.randperm(len(edges), generator=torch.Generator().manual_seed(seed))[:EDGES]
    worst = 0.0
    with held_model(frozen):
        whole = _read(frozen, explained, None)
        for i in (edges[j] for j in order.tolist()):
            source, target = graph.nodes[int(graph.sources[i])], graph.nodes[int(graph.targets[i])]
            lost = whole(target) - _read(frozen, explained, source)(target)
            weight = float(graph.weights[i])
            worst = max(worst, abs(lost - weight) / abs(weight))
    return worst


@contextmanager
def held_model(frozen: FrozenModel) -> Iterator[None]:
    """Inside, the model runs with patterns and norm divisors as the prompt made them, whatever comes in."""
    model = frozen.model
    norms, seen = [norm for *_, norm in described_norms(model)], dict[nn.Module, Tensor]()

    def note(norm: Norm) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[module] = norm.sigma(args[0])

        return keep

    def held(norm: Norm) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            out = norm.centre(x) * norm.gain / seen[norm.module]
            return (out if norm.bias is None else out + norm.bias).to(x.dtype)

        return run

    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(hooked(norm.module.register_forward_pre_hook, note(norm)))
        model.logits(inputs_of(frozen))
    with ExitStack() as stack:
        stack.enter_context(frozen_patterns(model, [a.pattern[None] for a in frozen.attention]))
        for norm in norms:
            if norm.module in seen:
                stack.enter_context(replaced(norm.module, held(norm)))
        yield


def _read(frozen: FrozenModel, explained: Explained, without: GraphNode | None) -> Callable[[GraphNode], float]:
    """What every node reads in a pass of the held model whose neurons write as they did, but for one that writes 0."""
    model = frozen.model

    def writing(layer: int) -> Callable[..., Any]:
        def put(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            values = frozen.units[layer].values.clone()
            if without is not None and without.layer == layer:
                values[without.position, without.index] = 0.0
            return (values.view_as(args[0]).to(args[0].dtype), *args[1:])

        return put

    def adding(layer: int, units: FeatureUnits) -> Callable[..., Tensor]:
        def put(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            values = units.values.clone()
            if without is not None and without.layer == layer:
                values[without.position, without.index] = 0.0
            return units.written(values).view_as(output).to(output.dtype)

        return put

    streams = dict[int, Tensor]()

    def seeing(layer: int) -> Callable[..., None]:
        return lambda module, args: streams.update({layer: args[0].view(frozen.tokens, -1)})

    with ExitStack() as stack:
        for layer, (block, units) in enumerate(zip(model.blocks, frozen.units, strict=True)):
            if isinstance(units, FeatureUnits):
                first, last = block.mlp_ends
                stack.enter_context(hooked(first.register_forward_pre_hook, seeing(layer)))
                stack.enter_context(hooked(last.register_forward_hook, adding(layer, units)))
            else:
                stack.enter_context(hooked(block.mlp_writer.register_forward_pre_hook, writing(layer)))
        cache = stack.enter_context(watching_neurons(model.blocks))
        final = list[Tensor]()
        keep = model.final_norm.module.register_forward_pre_hook
        stack.enter_context(hooked(keep, lambda module, args: final.append(args[0])))
        model.logits(inputs_of(frozen))
    shown = cache.apart(1)

    def read(node: GraphNode) -> float:
        if node.kind == "logit":
            return float(
                explained.reads(frozen).values(final[0][0, -1:].float())[0, explained.tokens.index(node.index)]
            )
        block, units = model.blocks[node.layer], frozen.units[node.layer]
        if isinstance(units, FeatureUnits):
            return units.read_from(streams[node.layer], node.position, node.index)
        assert isinstance(units, NeuronUnits)
        parts = block.split_inputs([x[0].float() for x in shown.inputs[node.layer]])
        here = [float(part[node.position, node.index]) for part in parts]
        return float(sum(slope[node.position, node.index] * x for slope, x in zip(units.slopes, here, strict=True)))

    return read
