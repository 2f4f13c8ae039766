"""A route graph: which parts made a token's prediction, from the final residual stream back to the embeddings.

Nodes are `x5@3` (the residual stream in front of block 5 at position 3; the last one is what the final norm reads),
`mid5@3` (between attention and MLP of a sequential block), `m5@3` (its MLP) and `a5.bias@3`, `m5.bias@3`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node


@dataclass(frozen=True, eq=False)
class Incoming:
    """Importances of the parts that add up to one node of the residual stream; they sum to 1."""

    residual: float
    """Of the stream in front."""
    attention: Float[Tensor, "head key"]
    """Of every head and key; no keys at a node that adds up an MLP only."""
    mlp: float
    """Of the MLP; 0 at a node in front of it."""
    attention_bias: float
    """Of the output projection's bias."""
    mlp_bias: float
    """Of the MLP's bias."""

    def total(self) -> float:
        """Their sum: 1, or 0 where no part brings the node nearer to what it is."""
        return self.residual + float(self.attention.sum()) + self.mlp + self.attention_bias + self.mlp_bias


@dataclass(frozen=True)
class RouteEdge:
    """One edge of a route."""

    source: str
    """Node that it comes from."""
    target: str
    """Node that it goes to."""
    kind: str
    """attention (from another token), stay (same token: the residual and what heads read there, merged), mlp (from the
    MLP), reads (into the MLP, as important as what the MLP adds) or bias."""
    importance: float
    """Share of the target that it makes up; all edges into a target, kept or not, sum to 1 (without `reads`)."""
    residual: float = 0.0
    """Of a stay edge: the part of `importance` that is the residual stream's own."""
    heads: tuple[float, ...] = ()
    """Of an attention or stay edge: the part of each head."""

    def strongest(self, n: int = 3) -> list[tuple[int, float]]:
        """The heads that carry most of it, with their parts; none that carries nothing."""
        ranked = sorted(enumerate(self.heads), key=lambda item: -item[1])
        return [(head, value) for head, value in ranked[:n] if value > 0]


@dataclass(frozen=True, eq=False)
class RouteGraph:
    """The route into the prediction after one token: every node that is reached over edges of at least `threshold`."""

    tokens: tuple[str, ...]
    """The prompt, up to `position` where no token sees a later one."""
    position: int
    """Position of the token after which the prediction is made."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Query heads of a block."""
    parallel: bool
    """Whether attention and MLP of a block add to the stream together."""
    threshold: float
    """Least importance of an edge."""
    norm: str
    """How far apart vectors are: l1 or l2."""
    renormalize: bool
    """Whether parts below the threshold were set to 0 and the rest brought to a sum of 1; all that is left is kept."""
    incoming: dict[str, Incoming]
    """By node of the residual stream: what it is made of, every part, kept or not."""
    predictions: tuple[tuple[str, float], ...] = ()
    """Likeliest next tokens with their probabilities."""
    contrast: tuple[str, str] | None = None
    """The two tokens whose logit difference parts of the last token's stream are measured by; None: proximity."""
    logit_diff: float | None = None
    """First minus second token's logit under `contrast`, before any soft cap."""
    generated: str | None = None
    """The token that was generated here, where one was."""

    def __repr__(self) -> str:
        return f"RouteGraph({self.target}, {len(self.nodes)} nodes, {len(self.edges)} edges at {self.threshold:g})"

    @property
    def target(self) -> str:
        """The node in front of the final norm at the last token."""
        return str(Node("resid_pre", self.n_layers).at(self.position))

    @cached_property
    def edges(self) -> tuple[RouteEdge, ...]:
        """Edges of the route, from the top down."""
        edges: list[RouteEdge] = []
        reached: dict[Node, set[int]] = {Node("resid_pre", self.n_layers): {self.position}}
        for layer in reversed(range(self.n_layers)):
            for stage in (Node("resid_pre", layer + 1), Node.mlp(layer), Node("resid_mid", layer)):
                for position in sorted(reached.get(stage, ())):
                    into = list(self.edges_into(str(stage.at(position))))
                    edges += into
                    for node, place in (split_node(edge.source) for edge in into):
                        reached.setdefault(node, set()).add(place)
        return tuple(edges)

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Nodes of the route, from the top down."""
        return tuple(dict.fromkeys((self.target, *(edge.source for edge in self.edges))))

    def edges_into(self, node: str) -> Iterator[RouteEdge]:
        """The edges into a node that the threshold keeps."""
        target, position = split_node(node)
        layer = target.layer - (target.kind == "resid_pre")

        def here(kind: str, layer: int = layer) -> str:
            return str(Node(kind, layer, position=position))

        if target.kind == "mlp":
            total = self._incoming(here("resid_pre", layer + 1)).mlp
            yield RouteEdge(here("resid_pre" if self.parallel else "resid_mid"), node, "reads", total)
            return
        parts = self._incoming(node)
        if self._keeps(parts.mlp):
            yield RouteEdge(here("mlp"), node, "mlp", parts.mlp)
        if target.kind == "resid_pre" and not self.parallel:
            if self._keeps(parts.residual):
                yield RouteEdge(here("resid_mid"), node, "stay", parts.residual, parts.residual)
        else:
            yield from self._from_tokens(node, layer, position, parts)
        for bias, share in (("attention_bias", parts.attention_bias), ("mlp_bias", parts.mlp_bias)):
            if self._keeps(share):
                yield RouteEdge(here(bias), node, "bias", share)

    def _from_tokens(self, node: str, layer: int, position: int, parts: Incoming) -> Iterator[RouteEdge]:
        by_key = parts.attention.sum(0)
        by_key[position] += parts.residual
        kept = by_key > 0 if self.renormalize else by_key >= self.threshold
        for key in kept.nonzero().flatten().tolist():
            heads = tuple(parts.attention[:, key].tolist())
            own = parts.residual if key == position else 0.0
            kind = "stay" if key == position else "attention"
            source = str(Node("resid_pre", layer, position=key))
            yield RouteEdge(source, node, kind, float(by_key[key]), own, heads)

    def _keeps(self, importance: float) -> bool:
        return importance > 0 if self.renormalize else importance >= self.threshold

    def _incoming(self, node: str) -> Incoming:
        if node not in self.incoming:
            raise unknown_name("node on this route", node, self.incoming)
        return self.incoming[node]

    @cached_property
    def flow(self) -> dict[str, float]:
        """By node: the share of the target that arrives over kept edges, along all routes. 1 at the target."""
        flow = dict.fromkeys(self.nodes, 0.0)
        flow[self.target] = 1.0
        for edge in self.edges:
            flow[edge.source] += flow[edge.target] * (1.0 if edge.kind == "reads" else edge.importance)
        return flow

    def heads(self) -> list[tuple[str, float]]:
        """Heads on the route, strongest first: importance on kept edges, weighted by the flow through their targets."""
        sums: dict[str, float] = {}
        for edge in self.edges:
            layer = split_node(edge.source)[0].layer
            for head, value in enumerate(edge.heads):
                if value > 0:
                    name = str(Node.head(layer, head))
                    sums[name] = sums.get(name, 0.0) + value * self.flow[edge.target]
        return sorted(sums.items(), key=lambda item: -item[1])

    def mlps(self) -> list[tuple[str, float]]:
        """MLP nodes on the route, strongest flow first."""
        flows = [(node, flow) for node, flow in self.flow.items() if split_node(node)[0].kind == "mlp"]
        return sorted(flows, key=lambda item: -item[1])

    def at(self, threshold: float) -> "RouteGraph":
        """The same route at a higher threshold, without running the model.

        Raises `InputError` for a lower one, whose nodes were never looked at, and for a renormalised route.
        """
        if self.renormalize or threshold < self.threshold:
            reason = "it is renormalised" if self.renormalize else f"it was made at {self.threshold:g}"
            raise InputError(f"This route cannot be seen at threshold {threshold:g}: {reason}. Trace it again.")
        check_threshold(threshold)
        return replace(self, threshold=threshold)

    def to_networkx(self) -> nx.DiGraph:
        """Nodes have kind, layer, position, token and flow; edges importance, kind, residual and heads."""
        network = nx.DiGraph()
        for name in self.nodes:
            node, position = split_node(name)
            network.add_node(
                name,
                kind=str(node),
                position=position,
                token=self.tokens[position],
                flow=self.flow[name],
                layer=node.layer,
            )
        for edge in self.edges:
            heads = " ".join(f"h{head}:{value:.4f}" for head, value in edge.strongest(self.n_heads))
            rest = {"kind": edge.kind, "residual": edge.residual, "heads": heads}
            network.add_edge(edge.source, edge.target, importance=edge.importance, **rest)
        return network

    def to_graphml(self, path: str | Path) -> None:
        """Write GraphML of `to_networkx`."""
        nx.write_graphml(self.to_networkx(), path)

    def to_dict(self) -> dict[str, Any]:
        """Everything but parts below the threshold, as plain JSON values."""
        return {
            "tokens": list(self.tokens),
            "position": self.position,
            "target": self.target,
            "layers": self.n_layers,
            "heads": self.n_heads,
            "parallel": self.parallel,
            "threshold": self.threshold,
            "norm": self.norm,
            "renormalize": self.renormalize,
            "predictions": [[token, share] for token, share in self.predictions],
            "contrast": None if self.contrast is None else list(self.contrast),
            "logit_diff": self.logit_diff,
            "generated": self.generated,
            "nodes": [{"id": node, "flow": self.flow[node]} for node in self.nodes],
            "edges": [{**vars(edge), "heads": list(edge.heads)} for edge in self.edges],
        }

    def to_json(self, path: str | Path) -> None:
        """Write `to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")


def split_node(text: str) -> tuple[Node, int]:
    """The node that `text` names and its position. Raises `InputError` for text that is no node at one position."""
    node = Node.parse(text)
    if node.position is None:
        raise InputError(f"{text!r} is not a node of a route; nodes look like x5@3, mid5@3 or m5@3.")
    return node.whole, node.position


def check_threshold(threshold: float) -> None:
    """Raises `InputError` unless 0 < threshold < 1."""
    if not 0 < threshold < 1:
        raise InputError(f"The threshold is a share of a node and must lie between 0 and 1, got {threshold:g}.")
