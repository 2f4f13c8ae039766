"""Which heads carry an edge, and at which tokens: the edge taken apart at each block between its ends.

With u what the source has made of the stream in front of a block, and g the gradient of the target behind its
attention, an edge is at each block between source and target

    sum over heads of <A_h (gain * centre(u) / sigma) W_V W_O, g>  +  <u, g>,

what goes through the heads and what passes them by. Source: circuit-tracer, discussion of attention in graphs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.attribution_graphs.contributions import Parts, streams_by_part
from circuitome.attribution_graphs.explained import Explained
from circuitome.attribution_graphs.frozen_model import FrozenAttention, FrozenModel
from circuitome.attribution_graphs.result import AttributionGraph
from circuitome.attribution_graphs.rows import Target, gradients
from circuitome.engine.setting import Setting, method
from circuitome.graph.node import Node

STEP = 256
"""Edges that are taken apart by pairs of tokens at a time."""
NUMBERS = 60_000_000
"""Numbers of gradients, by target, block, token and coordinate, that are held at a time."""


@dataclass(frozen=True, eq=False)
class AttentionPlace:
    """A head from one token to another, and how much of a graph's influence goes through it."""

    head: str
    """The head."""
    query: int
    """The token that attends."""
    key: int
    """The token attended to."""
    influence: float
    """Sum over edges of the size of what they send through it, each as a share of its target's inputs times B + w."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadLoadings:
    """What each head carries of each edge; NaN at blocks that are not between an edge's ends."""

    edges: Int[Tensor, " edge"]
    """Places of the edges among the graph's; those from biases are left out."""
    heads: Float[Tensor, "edge layer head"]
    """What goes through each head of each block."""
    bypass: Float[Tensor, "edge layer"]
    """What passes each block's attention by; with the heads of that block it is the edge."""
    influence: Float[Tensor, "layer head"]
    """Sum over edges of the size of what each sends through a head, as a share of its target's inputs times B + w."""

    def __repr__(self) -> str:
        return f"HeadLoadings({len(self.edges)} edges)"

    def into(self, graph: AttributionGraph, name: str, n: int = 3) -> list[tuple[str, float]]:
        """The heads that carry most of a node's edges in: their share of the sizes of all these edges."""
        here = graph.targets[self.edges] == graph.place[name]
        whole = float(graph.weights[self.edges][here].abs().sum())
        if not whole:
            return []
        carried = self.heads[here].nan_to_num().abs().sum(0) / whole
        order = carried.flatten().argsort(descending=True, stable=True)[:n].tolist()
        places = [divmod(i, carried.shape[1]) for i in order]
        return [(str(Node.head(*place)), float(carried[place])) for place in places if float(carried[place]) > 0]

    def strongest(self, edge: int, n: int = 5) -> list[tuple[str, float]]:
        """The heads that carry most of an edge, given by its place among the graph's, and what they carry."""
        row = self.heads[int((self.edges == edge).nonzero()[0, 0])]
        order = row.nan_to_num().abs().flatten().argsort(descending=True, stable=True)[:n].tolist()
        places = [divmod(i, row.shape[1]) for i in order]
        return [(str(Node.head(*place)), float(row[place])) for place in places if float(row[place].nan_to_num())]


@method
def head_loadings(setting: Setting, graph: AttributionGraph) -> HeadLoadings:
    """Every edge of a graph from a token or a neuron by the heads that carry it.

    >>> model = cm.load("known-ioi")
    >>> graph = cm.attribution_graph(model, "Ann and Bob met then Bob gave to", first_token=True)
    >>> loadings = cm.attribution_graphs.head_loadings(model, graph)
    >>> whole = loadings.heads.sum(-1) + loadings.bypass
    >>> bool((whole - graph.weights[loadings.edges, None]).abs().nan_to_num().max() < 1e-4)
    True
    """
    with torch.no_grad():
        sweep = Sweep.of(setting, graph)
        layers, heads = len(sweep.frozen.attention), sweep.frozen.model.heads.q
        found = HeadLoadings(
            sweep.edges,
            torch.full((len(sweep.edges), layers, heads), torch.nan),
            torch.full((len(sweep.edges), layers), torch.nan),
            torch.zeros(layers, heads),
        )
        for layer, edges, stream, middle in sweep.layers(setting.tell("taking edges apart by heads")):
            through = _through_heads(sweep.frozen.attention[layer], stream, middle)
            by_pair = torch.einsum("spd,tpd->ts", stream, middle)
            ends, sources = sweep.ends(edges)
            found.heads[edges, layer] = through[:, ends, sources].T.cpu()
            found.bypass[edges, layer] = by_pair[ends, sources].cpu()
            found.influence[layer] += found.heads[edges, layer].abs().T @ sweep.shares[edges]
    return found


@method
def attention_places(
    setting: Setting,
    graph: AttributionGraph,
    loadings: HeadLoadings,
    *,
    n: int = 8,
) -> tuple[AttentionPlace, ...]:
    """The `n` pairs of tokens, at most one a head, across which heads carry most of a graph's influence.

    Looked for among the heads that carry most of it over all tokens, four times as many.

    >>> model = cm.load("known-ioi")
    >>> graph = cm.attribution_graph(model, "Ann and Bob met then Bob gave to", first_token=True)
    >>> loadings = cm.attribution_graphs.head_loadings(model, graph)
    >>> len(cm.attribution_graphs.attention_places(model, graph, loadings, n=2))
    2
    """
    chosen = loadings.influence.flatten().argsort(descending=True, stable=True)[: 4 * n].tolist()
    heads = [divmod(i, loadings.influence.shape[1]) for i in chosen]
    with torch.no_grad():
        sweep, crossing = Sweep.of(setting, graph), dict[tuple[int, int], Tensor]()
        for layer, edges, stream, middle in sweep.layers():
            for head in (head for own, head in heads if own == layer):
                attention, kv = sweep.frozen.attention[layer], sweep.frozen.model.graph.kv_head(head)
                values, outputs = attention.values(stream)[:, :, kv], attention.outputs_back(middle)[:, :, head]
                ends, sources = sweep.ends(edges)
                sent = torch.zeros_like(attention.pattern[head])
                for part in torch.arange(len(edges)).split(STEP):
                    each = outputs[ends[part]] @ values[sources[part]].transpose(1, 2) * attention.pattern[head]
                    sent += torch.einsum("eqk,e->qk", each.abs(), sweep.shares[edges[part]].to(each.device))
                crossing[layer, head] = crossing.get((layer, head), 0.0) + sent
    found = []
    for place in (place for place in heads if place in crossing):
        query, key = divmod(int(crossing[place].argmax()), len(graph.ids))
        found.append(AttentionPlace(str(Node.head(*place)), query, key, float(crossing[place][query, key])))
    return tuple(sorted(found, key=lambda place: -place.influence)[:n])


def _through_heads(attention: FrozenAttention, stream: Tensor, middle: Tensor) -> Float[Tensor, "head target source"]:
    """What heads bring from each source's stream to each target."""
    values, back = attention.values(stream), attention.values_back(middle)
    kv = attention.block.heads.q // attention.block.heads.kv
    by_head = [back[:, :, h].flatten(1) @ values[:, :, h // kv].flatten(1).T for h in range(back.shape[2])]
    return torch.stack(by_head)


@dataclass(frozen=True, eq=False)
class Sweep:
    """The edges of a graph met block by block, with their sources' streams and their targets' gradients."""

    frozen: FrozenModel
    """The model on the prompt."""
    explained: Explained
    """What the graph explains."""
    parts: Parts
    """Its tokens and neurons."""
    edges: Int[Tensor, " edge"]
    """Places of edges among the graph's, but for those from biases."""
    sources: Int[Tensor, " edge"]
    """By edge, its source among the parts."""
    targets: Int[Tensor, " edge"]
    """By edge, its target among `nodes`."""
    nodes: list[Target]
    """Every node that has inputs."""
    shares: Float[Tensor, " edge"]
    """By edge, B + w of its target over the sum of the sizes of all its inputs."""

    @classmethod
    def of(cls, setting: Setting, graph: AttributionGraph) -> "Sweep":
        """The edges of a graph from tokens and neurons."""
        frozen = FrozenModel.of(setting.model, graph.ids, graph.transcoders)
        explained, parts = Explained.of(frozen, graph.contrast), Parts.of(graph)
        place = {node.name: i for i, node in enumerate(parts.nodes)}
        named = torch.tensor([place.get(node.name, -1) for node in graph.nodes])
        edges = (named[graph.sources] >= 0).nonzero()[:, 0]
        into, targets = graph.targets[edges].unique(return_inverse=True)
        nodes = [_target(graph, explained, i) for i in into.tolist()]
        influence = torch.tensor([node.influence for node in graph.nodes])
        shares = (influence / graph.sizes.clamp(min=1e-10))[graph.targets[edges]]
        return cls(frozen, explained, parts, edges, named[graph.sources[edges]], targets, nodes, shares)

    def ends(self, edges: Int[Tensor, " some"]) -> tuple[Tensor, Tensor]:
        """Targets, among those of the present batch, and sources of some edges."""
        return self.targets[edges] - int(self.targets[edges].min() // self._batch) * self._batch, self.sources[edges]

    @property
    def _batch(self) -> int:
        """Nodes whose gradients are held at a time."""
        return max(1, NUMBERS // (len(self.frozen.attention) * self.frozen.embeddings.numel()))

    def layers(
        self, tell: Callable[[int, int], None] = lambda done, total: None
    ) -> Iterator[tuple[int, Int[Tensor, " some"], Tensor, Tensor]]:
        """By batch of targets and block: edges that pass it, the parts' streams in front, gradients behind heads."""
        own = torch.tensor([node.layer for node in self.parts.nodes])[self.sources]
        last = torch.tensor([node.layer - self.frozen.model.graph.parallel for node in self.nodes])[self.targets]
        for start in range(0, len(self.nodes), self._batch):
            some = self.nodes[start : start + self._batch]
            here = (self.targets >= start) & (self.targets < start + len(some))
            sweep = gradients(self.frozen, some, self.explained.reads(self.frozen))
            middles = {layer: middle for layer, _, middle in sweep if layer >= 0}
            for layer, stream in streams_by_part(self.frozen, self.parts):
                passing = (here & (own < layer) & (layer <= last)).nonzero()[:, 0]
                if len(passing) and layer in middles:
                    yield layer, passing, stream, middles[layer]
                tell(start + len(some) * (layer + 1) // (len(self.frozen.attention) + 1), len(self.nodes))


def _target(graph: AttributionGraph, explained: Explained, i: int) -> Target:
    node = graph.nodes[i]
    unit = explained.tokens.index(node.index) if node.kind == "logit" else node.index
    return Target(node.layer, node.position, unit)
