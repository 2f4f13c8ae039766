"""What of an expansion is kept: the fewest nodes and edges with most of the influence; all else is summed."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.attribution_graphs.effects import Effects
from circuitome.attribution_graphs.expansion import LEAST, Expansion
from circuitome.attribution_graphs.explained import Explained
from circuitome.attribution_graphs.result import AttributionGraph, GraphNode
from circuitome.graph.node import Node
from circuitome.weights.pairs import token_name


def fewest(values: Float[Tensor, " n"], share: float) -> Bool[Tensor, " n"]:
    """Which of some sizes are the fewest that make up a share of their sum; none of nothing."""
    ranked = values.double().sort(descending=True, stable=True)
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ranked.values.cumsum(0)])
    kept = torch.zeros(len(values), dtype=torch.bool)
    kept[ranked.indices] = (sums[:-1] < share * sums[-1]) & (ranked.values > 0)
    return kept


def scores(expansion: Expansion, influence: Float[Tensor, " node"]) -> tuple[float, float]:
    """Replacement and completeness of an expansion, with all neurons that were not expanded as its errors.

    Replacement is the share of influence that ends at tokens or biases; completeness the mean share of a node's inputs
    that are no errors, nodes weighted by B + w.
    """
    known = torch.zeros(int(expansion.starts[-1]), dtype=torch.bool)
    known[[expansion.number(target) for target in expansion.targets[len(expansion.weights) :]]] = True
    sizes = torch.tensor(expansion.sizes)
    ends = torch.stack([x.abs().sum() for x in expansion.tokens]) + torch.tensor(expansion.bias).abs()
    rows = zip(expansion.columns, expansion.edges, strict=True)
    inner = torch.stack([edges[known[columns.long()]].abs().sum() for columns, edges in rows])
    replaced = float((influence * ends / sizes).sum() / expansion.weights.sum())
    return replaced, float((influence * (ends + inner) / sizes).sum() / influence.sum())


def pruned(
    expansion: Expansion, explained: Explained, effects: Effects, node_share: float, edge_share: float
) -> AttributionGraph:
    """The graph of the fewest expanded neurons with a share of their influence, and of the fewest edges between these.

    Edges from tokens and biases are all kept. Neurons left without an edge out or in are dropped.
    """
    _, influence = expansion.influence()
    logits = len(expansion.weights)
    chosen = [i + logits for i in fewest(influence[logits:], node_share).nonzero()[:, 0].tolist()]
    biased = any(expansion.bias)
    rows = _ordered(expansion, chosen)
    dense = _between(expansion, rows, biased)
    kept = _kept(dense, edge_scores(dense, expansion.weights), len(rows) - logits, edge_share)
    first = dense.shape[1] - len(rows) + logits
    alive = [*range(first), *(first + i for i in range(len(rows)) if i >= len(rows) - logits or kept[i].any())]
    lives = [i - first for i in alive[first:]]
    rows, kept, dense = [rows[i] for i in lives], kept[lives], dense[lives]
    columns = [i for i in alive if i < dense.shape[1]]
    return _graph(expansion, explained, effects, rows, dense[:, columns] * kept[:, columns], biased)


def _ordered(expansion: Expansion, chosen: list[int]) -> list[int]:
    """Places of some neurons by layer, token and number, and those of the explained logits behind them."""
    targets = expansion.targets
    by_place = sorted(chosen, key=lambda i: (targets[i].layer, targets[i].position, targets[i].unit))
    return [*by_place, *range(len(expansion.weights))]


def _between(expansion: Expansion, rows: list[int], biased: bool) -> Float[Tensor, "target source"]:
    """Edges into some nodes from each token, from the biases where there are any, and from the neurons among them."""
    units = rows[: len(rows) - len(expansion.weights)]
    place = torch.full((int(expansion.starts[-1]),), -1, dtype=torch.long)
    place[[expansion.number(expansion.targets[i]) for i in units]] = torch.arange(len(units))
    between = torch.zeros(len(rows), len(units))
    for row, i in enumerate(rows):
        column = place[expansion.columns[i].long()]
        between[row, column[column >= 0]] = expansion.edges[i][column >= 0]
    ends = [torch.stack([expansion.tokens[i] for i in rows])]
    ends += [torch.tensor([[expansion.bias[i]] for i in rows])] * biased
    return torch.cat([*ends, between], 1)


def edge_scores(
    dense: Float[Tensor, "target source"], weights: Float[Tensor, " logit"]
) -> Float[Tensor, "target source"]:
    """The influence of each edge in the graph that its nodes make alone: A'[t, s] (B[t] + w[t]), A' of kept sources."""
    units = len(dense) - len(weights)
    shares = dense.abs() / dense.abs().sum(1, keepdim=True).clamp(min=LEAST)
    passed = torch.cat([torch.zeros(units), weights])
    between = torch.cat([shares[:, dense.shape[1] - units :], torch.zeros(len(dense), len(weights))], 1)
    total = torch.linalg.solve(torch.eye(len(dense)) - between.T, passed)
    return shares * total[:, None]


def _kept(
    dense: Float[Tensor, "target source"], scores: Float[Tensor, "target source"], units: int, share: float
) -> Bool[Tensor, "target source"]:
    """Edges that are kept: all from tokens and biases, of others the fewest with a share of the scores.

    A neuron has to be the source of a kept edge: else its own edges go, which may take that from others in turn.
    """
    first = dense.shape[1] - units
    kept = fewest(scores.flatten(), share).view_as(dense)
    kept[:, :first] = dense[:, :first] != 0
    while True:
        dead = ~kept[:, first:].any(0)
        if not kept[:units][dead].any():
            return kept
        kept[:units][dead] = False


def _graph(
    expansion: Expansion,
    explained: Explained,
    effects: Effects,
    rows: list[int],
    edges: Float[Tensor, "target source"],
    biased: bool,
) -> AttributionGraph:
    """The graph with some nodes and edges; what other sources bring is summed by MLP and token."""
    frozen, logits = expansion.frozen, len(expansion.weights)
    targets = [expansion.targets[i] for i in rows]
    count = edges.shape[1] - len(rows) + logits
    others = torch.stack([expansion.sums[i] for i in rows])
    for column, target in enumerate(targets[: len(rows) - logits]):
        others[:, target.layer, target.position] -= edges[:, count + column]
    into, out = edges.nonzero().T
    _, influence = expansion.influence()
    inputs = _inputs(expansion, effects, influence, biased)
    values = explained.reads(frozen).values(frozen.streams[-1][-1:])
    nodes = [*inputs, *(_node(expansion, effects, explained, values, i, float(influence[i])) for i in rows)]
    blank, sizes = torch.zeros(count, *others.shape[1:]), torch.tensor([expansion.sizes[i] for i in rows])
    replacement, completeness = scores(expansion, influence)
    return AttributionGraph(
        model=frozen.model.name,
        layers=len(frozen.units),
        ids=frozen.ids,
        tokens=tuple(token_name(frozen.model, token) for token in frozen.ids),
        explains=explained.words,
        contrast=explained.contrast,
        nodes=tuple(nodes),
        sources=out,
        targets=into + count,
        weights=edges[into, out],
        others=torch.cat([blank, others]),
        sizes=torch.cat([torch.zeros(count), sizes]),
        replacement=replacement,
        completeness=completeness,
        expanded=len(expansion.targets) - logits,
    )


def _inputs(expansion: Expansion, effects: Effects, influence: Tensor, biased: bool) -> list[GraphNode]:
    """Nodes of the tokens, and of all biases together where there are any."""
    frozen, shares = expansion.frozen, influence / torch.tensor(expansion.sizes)
    names = [token_name(frozen.model, token) for token in frozen.ids]
    reach = (torch.stack(expansion.tokens).abs() * shares[:, None]).sum(0).tolist()
    nodes = [
        GraphNode(str(Node("embed", position=i)), "embed", -1, i, token, None, reach[i], float(effects.tokens[i]), name)
        for i, (token, name) in enumerate(zip(frozen.ids, names, strict=True))
    ]
    passed = float((torch.tensor(expansion.bias).abs() * shares).sum())
    return nodes + [GraphNode("bias", "bias", -1, 0, 0, None, passed, None, "biases")] * biased


def _node(
    expansion: Expansion, effects: Effects, explained: Explained, values: Tensor, i: int, influence: float
) -> GraphNode:
    """One neuron, or one explained logit."""
    target, frozen = expansion.targets[i], expansion.frozen
    if target.layer == len(frozen.units):
        token = explained.tokens[target.unit]
        name = str(Node("logit", index=token, position=target.position))
        place = (target.layer, target.position, token)
        return GraphNode(
            name, "logit", *place, float(values[0, target.unit]), influence, None, explained.labels[target.unit]
        )
    units = frozen.units[target.layer]
    name = str(Node(units.kind, target.layer, target.unit, position=target.position))
    value = float(units.values[target.position, target.unit])
    effect = float(effects.neurons[target.layer][target.position, target.unit])
    return GraphNode(name, units.kind, target.layer, target.position, target.unit, value, influence, effect)
