"""EAP and EAP-IG on a graph in which some neurons or features are nodes: the score of every edge, as a matrix.

The score is that of `eap_ig` with midpoints: what an edge's writer changes by when ablated, times the mean gradient at
its reader's own copy of the residual stream. A neuron writes and reads by its own weights; what is left of an MLP is
one node, whose writing is the sum of its other neurons' and whose gradient is the sum of theirs. Features of a
dictionary and what they leave of the MLP or of the stream take part likewise (`cm.features.as_nodes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.backward_rules import Rules, rules_of, with_rules
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.node import Node
from circuitome.neurons.factors import Readers, Writers
from circuitome.neurons.neuron_edges import Factors
from circuitome.neurons.neuron_scores import check_neurons

TOKENS = 128
"""Tokens whose vectors are held at a time."""


@method
@on_neurons
def graph_scores(setting: Setting, *, steps: int = 5, rules: str | Rules = "plain") -> EdgeScores:
    """The score of every edge of the model's graph, whose neurons may be nodes (`Model.with_neurons`), or features.

    As `eap_ig(steps=...)` (`steps=1`: `eap`), to which it is equal on a graph without neurons; the scores of an MLP's
    nodes sum to its own there. Costs what these do.

    >>> model, task = cm.load("tracr-reverse"), cm.ground_truth.task("tracr-reverse", 16)
    >>> split = model.with_neurons([f"m0.n{i}" for i in range(8)])
    >>> scores = cm.neurons.graph_scores(split, task, ablation="zero")
    >>> scores.graph == split.graph
    True

    Raises as `cm.neurons.edges`. Sources: Hanna et al. 2024, arXiv:2403.17806; `rules` as in `eap`.
    """
    check_neurons(setting, steps)
    rules, graph = rules_of(rules), setting.model.graph
    factors = Factors.of(setting, steps, rules)
    writers, readers = [factors.embed], list[Readers | Rest]()
    for layer in range(graph.n_layers):
        writers.append(factors.head_writers(layer))
        readers.append(factors.attention_readers(layer))
        nodes = () if layer in graph.described else graph.neurons_of(layer)
        whole = readers_of_nodes(factors.mlp_readers(layer), layer, nodes)
        if layer not in graph.described:
            writers += writers_of_nodes(factors.neuron_writers(layer), layer, nodes)
            readers += whole
        for stream in (False, True):
            if (features := factors.described.get((layer, stream))) is not None:
                writers += [features.rest, features.features]
                readers += [Rest(features.whole or whole[0], features.reads), features.reads]
    readers.append(factors.logits)
    values = torch.zeros(graph.mask.shape, device=setting.model.device)
    tokens = len(factors.embed.delta)
    for start in range(0, tokens, TOKENS):
        span = slice(start, start + TOKENS)
        written = torch.cat([vectors_written(group, span) for group in writers]).flatten(1)
        for group in readers:
            columns = [graph.column(name) for name in group.names]
            upto = (
                max(graph.mask[:, columns].any(1).nonzero().flatten().tolist(), default=-1) + 1
            )  # later ones write after
            values[:upto, columns] += written[:upto] @ vectors_read(group, span).flatten(1).T
        setting.progress("scoring edges", min(start + TOKENS, tokens), tokens)
    values = values.cpu() * graph.mask / len(setting.task)
    name = with_rules("eap" if steps == 1 else f"eap-ig, {steps} steps", rules)
    return EdgeScores(graph, values, setting.task.unit, name)


def vectors_written(writers: Writers, span: slice) -> Float[Tensor, "writer tokens d_model"]:
    """By how much what each writer writes changes when ablated, at some tokens."""
    weights = writers.weights.unflatten(0, (len(writers.names), writers.width))
    return writers.delta[span].unflatten(1, weights.shape[:2]).transpose(0, 1) @ weights


@dataclass(frozen=True)
class Rest:
    """What features of a dictionary leave, as a reader: what all nodes of their stage read, without the features."""

    whole: Readers
    """All of them together."""
    features: Readers
    """The features."""

    @property
    def names(self) -> tuple[str, ...]:
        """The one reader."""
        return self.whole.names


def vectors_read(readers: Readers | Rest, span: slice) -> Float[Tensor, "reader tokens d_model"]:
    """The mean gradient at each reader's own copy of the residual stream, at some tokens."""
    if isinstance(readers, Rest):
        return vectors_read(readers.whole, span) - vectors_read(readers.features, span).sum(0)
    if not len(readers.weights):
        return readers.gradient[span].unflatten(1, (len(readers.names), -1)).transpose(0, 1)
    weights = readers.weights.unflatten(0, (len(readers.names), readers.width))
    vectors = readers.gradient[span].unflatten(1, weights.shape[:2]).transpose(0, 1) @ weights
    for centred, slope in readers.slopes:
        vectors = vectors - slope[span].T[..., None] * centred[span]
    return vectors


def writers_of_nodes(writers: Writers, layer: int, nodes: Sequence[int]) -> tuple[Writers, ...]:
    """Of all neurons of an MLP: the nodes one by one, and the others as one writer of the whole stream."""
    others = torch.ones(len(writers.names), dtype=torch.bool, device=writers.weights.device)
    others[list(nodes)] = False
    written = writers.delta[:, others] @ writers.weights[others]
    identity = torch.eye(written.shape[-1], device=written.device)
    rest = Writers((str(Node.mlp(layer)),), len(identity), identity, written)
    which = list(nodes)
    own = Writers(tuple(writers.names[i] for i in which), 1, writers.weights[which], writers.delta[:, which])
    return (rest, own) if which else (rest,)


def readers_of_nodes(readers: Readers, layer: int, nodes: Sequence[int]) -> tuple[Readers, ...]:
    """The same of what they read."""
    count, width = len(readers.names), readers.width
    others = torch.ones(count, dtype=torch.bool, device=readers.weights.device)
    others[list(nodes)] = False
    wide = others.repeat_interleave(width)
    identity = torch.eye(readers.weights.shape[-1], device=wide.device)
    rest = Readers(
        (f"{Node.mlp(layer)}.in",),
        len(identity),
        identity,
        readers.gradient[:, wide] @ readers.weights[wide],
        tuple((centred, slope[:, others].sum(-1, keepdim=True)) for centred, slope in readers.slopes),
    )
    which = list(nodes)
    columns = (torch.tensor(which, dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()
    own = replace(
        readers,
        names=tuple(readers.names[i] for i in which),
        weights=readers.weights[columns],
        gradient=readers.gradient[:, columns],
        slopes=tuple((centred, slope[:, which]) for centred, slope in readers.slopes),
    )
    return (rest, own) if which else (rest,)
