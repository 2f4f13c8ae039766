"""Attribution graphs as the JSON that circuit-tracer writes and Neuronpedia shows, and back.

What that form asks for, and where it misleads, as of August 2026:

- A neuron is a "cross layer transcoder" node, as any other kind of node is ignored where scores are computed; its
  `clerp` says which neuron it is. All other neurons of an MLP at a token are its "mlp reconstruction error".
- Ids of error nodes in circuit-tracer, 0_5_3 for block 5 at token 3, are also those of feature 5 of block 0 there. We
  write err_5_3 and read both; a link from an id that is both comes from the feature where the error could not be.
- `influence` is the share of influence of all nodes with at least as much, which a page prunes by.
- `schema_version` 1 says how `feature` is made: (a + b) (a + b + 1) / 2 + b of block a and number b.
- A logit's `clerp`, Output "..." (p=0.5), is parsed by the page, and logits sort last.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from circuitome.attribution_graphs.qk import QKAttribution
from circuitome.attribution_graphs.result import AttributionGraph, GraphNode
from circuitome.graph.node import Node

FEATURE, ERROR, EMBEDDING, LOGIT = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
"""Types of nodes."""
REST = "others"
"""Id of the error that a page writes for all sources that it does not draw."""
SIX = 6
"""Significant digits of a link's weight."""


def feature_number(layer: int, index: int) -> int:
    """The number of a feature among those of all blocks: Cantor's pairing.

    >>> cm.attribution_graphs.feature_number(2, 7)
    52
    """
    return (layer + index) * (layer + index + 1) // 2 + index


def graph_json(
    graph: AttributionGraph,
    name: str,
    *,
    attention: Sequence[QKAttribution] = (),
    details: str | None = None,
) -> dict[str, Any]:
    """A graph as plain JSON values that Neuronpedia reads, called `name`.

    `details` is the address of a folder with a file for each neuron, see `feature_details`. Attention logits stand in
    the entry `attention`, which other programs leave aside, in the form of the schema's `qk_tracing_results`.

    >>> graph = cm.attribution_graph(cm.load("known-ioi"), "Ann and Bob met then Bob gave to", first_token=True)
    >>> cm.attribution_graphs.graph_json(graph, "ioi")["nodes"][-1]["feature_type"]
    'logit'
    """
    ids = {node.name: node_id(graph, node) for node in graph.nodes}
    order = sorted(range(len(graph.nodes)), key=lambda i: -graph.nodes[i].influence)
    ranks, passed = dict[int, float](), 0.0
    whole = sum(node.influence for node in graph.nodes if node.kind != "logit") or 1.0
    for i in order:
        passed += graph.nodes[i].influence if graph.nodes[i].kind != "logit" else 0.0
        ranks[i] = passed / whole
    nodes = [_node(graph, node, ranks[i]) for i, node in enumerate(graph.nodes) if node.kind != "logit"]
    nodes += [_error(layer, position) for layer, position in _error_places(graph)]
    nodes += [_node(graph, node, 0.0) for node in graph.logits()]
    groups = sorted({node.group for node in graph.nodes if node.group is not None})
    members = [[ids[node.name] for node in graph.nodes if node.group == group] for group in groups]
    written = {
        "metadata": _metadata(graph, name, details),
        "qParams": {
            "pinnedIds": [ids[name] for name in graph.pinned]
            or [*(i for some in members for i in some), *(ids[node.name] for node in graph.logits())],
            "supernodes": [[group_name(graph, group), *some] for group, some in zip(groups, members, strict=True)],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": nodes,
        "links": _links(graph, ids),
    }
    return {**written, "attention": [_attention(found, ids) for found in attention]} if attention else written


def node_id(graph: AttributionGraph, node: GraphNode) -> str:
    """What a node is called in the JSON.

    >>> graph = cm.attribution_graph(cm.load("known-ioi"), "Ann and Bob met then Bob gave to", first_token=True)
    >>> cm.attribution_graphs.node_id(graph, graph.nodes[0]).split("_")[0]
    'E'
    """
    if node.kind == "embed":
        return f"E_{node.index}_{node.position}"
    if node.kind == "logit":
        return f"{graph.layers + 1}_{node.index}_{node.position}"
    if node.kind == "mlp" and node.name != REST:
        return f"err_{node.layer}_{node.position}"
    return node.name if node.kind in ("bias", "mlp") else f"{node.layer}_{node.index}_{node.position}"


def group_name(graph: AttributionGraph, group: int) -> str:
    """The name that a file gave a group, or else one made of its strongest node.

    >>> graph = cm.attribution_graph(cm.load("known-ioi"), "Ann and Bob met then Bob gave to", first_token=True)
    >>> import dataclasses
    >>> together = [dataclasses.replace(node, group=0 if node.kind == "embed" else None) for node in graph.nodes]
    >>> graph = dataclasses.replace(graph, nodes=tuple(together))
    >>> cm.attribution_graphs.group_name(graph, 0).startswith("embed")
    True
    """
    if group < len(graph.group_names):
        return graph.group_names[group]
    members = sorted((n for n in graph.nodes if n.group == group), key=lambda node: -node.influence)
    label = f" {members[0].label}" if members[0].label else ""
    return f"{Node.parse(members[0].name).whole}{label} and {len(members) - 1} more"


def _metadata(graph: AttributionGraph, name: str, details: str | None) -> dict[str, Any]:
    made = {"name": "circuitome", "version": version("circuitome")}
    found = {
        "slug": name,
        "scan": graph.model,
        "prompt_tokens": list(graph.tokens),
        "prompt": "".join(graph.tokens),
        "schema_version": 1,
        "node_threshold": 1.0,
        "info": {
            "generator": made,
            "description": f"MLP neurons that make {graph.explains}. Attention patterns and norm scales are held. "
            f"Replacement {graph.replacement:.4f}, completeness {graph.completeness:.4f} over all neurons.",
        },
        "generation_settings": {"max_feature_nodes": graph.expanded},
    }
    return found if details is None else {**found, "feature_details": {"feature_json_base_url": details}}


def _node(graph: AttributionGraph, node: GraphNode, rank: float) -> dict[str, Any]:
    """A token, a neuron, the biases, or a logit."""
    common = {"node_id": node_id(graph, node), "ctx_idx": node.position, "run_idx": 0, "reverse_ctx_idx": 0}
    if node.kind == "embed":
        own: dict[str, Any] = {"feature": node.position, "layer": "E", "feature_type": EMBEDDING}
        return {**common, **own, "jsNodeId": f"E_{node.index}-{node.position}", "clerp": node.label, "influence": rank}
    if node.kind == "logit":
        text = node.label if "(p=" in node.label else f"{node.label} (p={node.influence:.3f})"
        own = {"feature": node.index, "layer": str(graph.layers + 1), "feature_type": LOGIT, "clerp": f"Output {text}"}
        first = node.name == graph.logits()[0].name
        shown: dict[str, Any] = {"token_prob": node.influence, "is_target_logit": first, "activation": node.value}
        return {**common, **own, "jsNodeId": f"L_{node.index}-{node.position}", **shown}
    if node.kind in ("bias", "mlp"):
        layer = "E" if node.layer < 0 else str(node.layer)
        own = {"feature": -1, "layer": layer, "feature_type": ERROR, "clerp": node.label or node.name}
        return {**common, **own, "jsNodeId": f"{common['node_id']}-0", "influence": rank}
    clerp = " ".join(part for part in (str(Node.parse(node.name).whole), node.label) if part)
    own = {"feature": feature_number(node.layer, node.index), "layer": str(node.layer), "feature_type": FEATURE}
    shown = {"clerp": clerp, "influence": rank, "activation": node.value, "effect": node.effect}
    return {**common, **own, "jsNodeId": f"{node.layer}_{node.index}-0", **shown}


def _error(layer: int, position: int) -> dict[str, Any]:
    """All other neurons of an MLP at a token."""
    name = str(Node("mlp", layer, position=position))
    return {
        "node_id": f"err_{layer}_{position}",
        "feature": -1,
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": ERROR,
        "jsNodeId": f"err_{layer}_{position}-0",
        "clerp": f"the rest of {name.split('@')[0]}",
    }


def _error_places(graph: AttributionGraph) -> list[tuple[int, int]]:
    return [(int(layer), int(position)) for layer, position in (graph.others != 0).any(0).nonzero()]


def _links(graph: AttributionGraph, ids: Mapping[str, str]) -> list[dict[str, Any]]:
    """Edges between nodes, and from the other neurons of every MLP and token."""
    names = [ids[node.name] for node in graph.nodes]
    ends = zip(graph.sources.tolist(), graph.targets.tolist(), graph.weights.tolist(), strict=True)
    links = [{"source": names[i], "target": names[j], "weight": _short(weight)} for i, j, weight in ends]
    for target, layer, position in graph.others.nonzero().tolist():
        weight = _short(float(graph.others[target, layer, position]))
        links.append({"source": f"err_{layer}_{position}", "target": names[target], "weight": weight})
    return links


def _short(value: float) -> float:
    return float(f"{value:.{SIX}g}")


def _attention(found: QKAttribution, ids: Mapping[str, str]) -> dict[str, Any]:
    """One attention logit, parts by their ids."""

    def named(part: str) -> str:
        return ids.get(part, part)

    return {
        "head": found.head,
        "query": found.query,
        "key": found.key,
        "attention": found.attention,
        "logit": found.logit,
        "pair_wise_contributors": [[named(a), named(b), value] for a, b, value in found.top(20)],
        "top_q_marginal_contributors": [[named(part), value] for part, value in found.by_query(10)],
        "top_k_marginal_contributors": [[named(part), value] for part, value in found.by_key(10)],
    }


def feature_details(
    number: int, promoted: Sequence[str], suppressed: Sequence[str], examples: Any = ()
) -> dict[str, Any]:
    """One neuron for the folder of details, file NUMBER.json: tokens it promotes, and texts on which it fires.

    `examples` are pairs of tokens and activations. Tokens are in the sense of a positive activation.

    >>> cm.attribution_graphs.feature_details(52, [" Paris"], [" the"])["top_logits"]
    [' Paris']
    """
    shown = [{"tokens": list(tokens), "tokens_acts_list": list(values)} for tokens, values in examples]
    groups = [{"quantile_name": "Top activations", "examples": shown}] if shown else []
    return {
        "index": number,
        "examples_quantiles": groups,
        "top_logits": list(promoted),
        "bottom_logits": list(suppressed),
    }
