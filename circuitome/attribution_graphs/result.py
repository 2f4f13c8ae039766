"""The attribution graph of one prompt: its nodes, its edges, and what of the influence it accounts for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.errors import unknown_name
from circuitome.models.described import Encoder
from circuitome.results import Record, Shown


@dataclass(frozen=True)
class GraphNode(Record):
    """One node of an attribution graph."""

    name: str
    """embed@3, m5.n123@7, m5@7 (all other neurons of that MLP at that token), bias, logits.t42@9."""
    kind: str
    """embed, neuron or feature, mlp (the others of an MLP at a token), bias, or logit."""
    layer: int
    """Its block; -1 for embeddings and biases, the number of blocks for logits."""
    position: int
    """Its token; for the biases 0, which they do not belong to."""
    index: int
    """The neuron in its MLP, or the token's id of an embedding and of a logit."""
    value: float | None
    """What it wrote with; for logits what is explained of them; None for sums and embeddings."""
    influence: float
    """Share of the explained logits' influence that passes it; for logits what they weigh."""
    effect: float | None = None
    """What it adds to the explained metric by all paths of the frozen model; None for sums."""
    label: str = ""
    """What a reader calls it: tokens that it promotes, the token of an embedding, the explained logit."""
    group: int | None = None
    """Number of the group of similar nodes that it is in."""


@dataclass(frozen=True, eq=False, repr=False)
class AttributionGraph(Shown):
    """Which sources make up each node of one prompt, in the model with patterns and norm scales held.

    Edges into a node, what its `others` bring and the bias sum to its value. Nodes are ordered by layer; the explained
    logits come last.
    """

    model: str
    """The model's name."""
    layers: int
    """Its number of blocks."""
    ids: tuple[int, ...]
    """The prompt's tokens."""
    tokens: tuple[str, ...]
    """The same as text."""
    explains: str
    """What is explained, in words."""
    contrast: tuple[str, str] | None
    """The two tokens whose logits' difference is explained; None for the likeliest tokens."""
    nodes: tuple[GraphNode, ...]
    """Embeddings, biases, neurons, logits."""
    sources: Int[Tensor, " edge"]
    """By edge, its source's place in `nodes`."""
    targets: Int[Tensor, " edge"]
    """By edge, its target's place in `nodes`."""
    weights: Float[Tensor, " edge"]
    """By edge, what the source brings to the target's value."""
    others: Float[Tensor, "node layer pos"]
    """By node, what all other neurons of each MLP at each token bring, sources without an edge of their own."""
    sizes: Float[Tensor, " node"]
    """By node, the sum of the sizes of the edges from all sources of the model, 0 for nodes with no inputs."""
    replacement: float
    """Share of the influence that reaches tokens or biases through expanded nodes; the rest stops at other neurons."""
    completeness: float
    """Mean share of inputs that come from expanded nodes, tokens or biases, nodes weighted by their influence."""
    expanded: int
    """Neurons whose inputs were computed; the graph holds those with most influence of them."""
    transcoders: Mapping[int, Encoder] = field(default_factory=dict)
    """By block, the transcoder whose features stand in place of its neurons; not kept in files."""
    group_names: tuple[str, ...] = ()
    """What a file calls its groups, by number; without them a group is called by its strongest member."""
    pinned: tuple[str, ...] = ()
    """Nodes that a file has pinned; without them all that are in groups, and the logits."""

    def __repr__(self) -> str:
        count = sum(node.kind in UNITS for node in self.nodes)
        kind = "neurons and features" if any(node.kind == "feature" for node in self.nodes) else "neurons"
        return f"AttributionGraph({count} {kind}, {len(self.weights)} edges, explains {self.explains})"

    @cached_property
    def place(self) -> dict[str, int]:
        """By name, a node's place in `nodes`."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    def __getitem__(self, name: str) -> GraphNode:
        """The node called `name`. Raises `UnknownNameError`."""
        return self.nodes[self._find(name)]

    def _find(self, name: str) -> int:
        if name not in self.place:
            raise unknown_name("node of this graph", name, tuple(self.place))
        return self.place[name]

    def units(self) -> list[GraphNode]:
        """Its neurons, or features, those with most influence first."""
        return sorted((node for node in self.nodes if node.kind in UNITS), key=lambda node: -node.influence)

    def logits(self) -> list[GraphNode]:
        """The explained logits."""
        return [node for node in self.nodes if node.kind == "logit"]

    def incoming(self, name: str) -> list[tuple[GraphNode, float]]:
        """Sources of a node's edges and what they bring, largest first. Raises `UnknownNameError`."""
        return self._ends(self.targets, self.sources, name)

    def outgoing(self, name: str) -> list[tuple[GraphNode, float]]:
        """Targets of a node's edges and what it brings to each, largest first. Raises `UnknownNameError`."""
        return self._ends(self.sources, self.targets, name)

    def _ends(self, here: Tensor, there: Tensor, name: str) -> list[tuple[GraphNode, float]]:
        which = (here == self._find(name)).nonzero()[:, 0]
        which = which[self.weights[which].abs().argsort(descending=True, stable=True)]
        ends, weights = there[which].tolist(), self.weights[which].tolist()
        return [(self.nodes[i], weight) for i, weight in zip(ends, weights, strict=True)]

    def matrix(self) -> Float[Tensor, "target source"]:
        """All edges as a matrix of nodes by nodes."""
        dense = torch.zeros(len(self.nodes), len(self.nodes))
        dense[self.targets, self.sources] = self.weights
        return dense

    def sums(self) -> Float[Tensor, " node"]:
        """By node, the sum of all that comes in; the value of neurons and logits."""
        return self.matrix().double().sum(1).add(self.others.double().sum((1, 2))).float()

    def labelled(self, labels: Sequence[str]) -> "AttributionGraph":
        """The same graph with other labels of its nodes."""
        made = (replace(node, label=label) for node, label in zip(self.nodes, labels, strict=True))
        return replace(self, nodes=tuple(made))

    def scored(self) -> "AttributionGraph":
        """The same graph with influence and scores computed from its own edges alone, sums of others left aside."""
        shares, total = self._flow()
        nodes = (replace(n, influence=b) for n, b in zip(self.nodes, total.tolist(), strict=True))
        errors = torch.tensor([node.kind == "mlp" for node in self.nodes])
        ends = torch.tensor([node.kind in ("embed", "bias") for node in self.nodes])
        reached, lost = float(total[ends].sum()), float(total[errors].sum())
        known = 1 - shares[:, errors].sum(1)
        return replace(
            self,
            nodes=tuple(nodes),
            replacement=reached / max(1e-10, reached + lost),
            completeness=float((known * total).sum() / total.sum().clamp(min=1e-10)),
        )

    def edge_scores(self) -> Float[Tensor, " edge"]:
        """The influence that passes each edge in the graph alone, sums of others left aside."""
        shares, total = self._flow()
        return (shares * total[:, None])[self.targets, self.sources]

    def _flow(self) -> tuple[Float[Tensor, "node node"], Float[Tensor, " node"]]:
        """Each edge as a share of its target's, and B + w of each node."""
        shares = self.matrix().abs()
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-10)
        weights = torch.tensor([node.influence if node.kind == "logit" else 0.0 for node in self.nodes])
        return shares, torch.linalg.solve(torch.eye(len(weights)) - shares.T, weights)

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the JSON that circuit-tracer and Neuronpedia read; `options` are those of `graph_json`."""
        from circuitome.attribution_graphs.exchange import graph_json

        name = options.pop("name", Path(path).stem)
        Path(path).write_text(json.dumps(graph_json(self, name, **options), ensure_ascii=False), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Nodes, edges and scores as plain JSON values, without the sums of other neurons."""
        names = ("model", "layers", "explains", "contrast", "replacement", "completeness", "expanded")
        ends = zip(self.sources.tolist(), self.targets.tolist(), self.weights.tolist(), strict=True)
        return {
            **{name: getattr(self, name) for name in names},
            "tokens": list(self.tokens),
            "nodes": [node.to_dict() for node in self.nodes],
            "edges": [list(edge) for edge in ends],
        }


UNITS = ("neuron", "feature")
"""Kinds of nodes that read and write."""
