"""Attribution graphs of circuit-tracer, Neuronpedia and our own, read from their JSON."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitome.attribution_graphs.exchange import EMBEDDING, ERROR, FEATURE, LOGIT, REST
from circuitome.attribution_graphs.result import UNITS, AttributionGraph, GraphNode
from circuitome.errors import DataFileError
from circuitome.graph.node import Node

KINDS = {FEATURE: "feature", ERROR: "mlp", EMBEDDING: "embed", LOGIT: "logit"}
"""By type of a node in the file: its kind here."""
REQUIRED = ("node_id", "layer", "ctx_idx", "feature_type")
"""Entries that every node of a file needs."""


def read_graph(path: str | Path) -> AttributionGraph:
    """The attribution graph in a JSON file of circuit-tracer, of Neuronpedia, or of `AttributionGraph.save`.

    Errors of the replaced MLPs are nodes m5@3 of kind mlp. Supernodes are groups, and pinned nodes are kept. Scores are
    computed anew from the links, as Neuronpedia does, so that a pruned file's are those of its pruned graph. Where a
    feature of block 0 and an error have one id, as in files of circuit-tracer, the order of a target's links decides,
    features first; so does the block, as an error has no link to earlier ones.

    >>> import tempfile
    >>> graph = cm.attribution_graph(cm.load("known-ioi"), "Ann and Bob met then Bob gave to", first_token=True)
    >>> path = f"{tempfile.mkdtemp()}/graph.json"
    >>> graph.save(path)
    >>> len(cm.attribution_graphs.read_graph(path).units()) == len(graph.units())
    True

    Raises `DataFileError` for a file that cannot be read, is no attribution graph, or has nodes of another type.
    """
    data = _loaded(Path(path))
    own = str(data["metadata"].get("info", {}).get("generator", {}).get("name", "")) == "circuitome"
    nodes = [_node(path, entry, "neuron" if own else "feature") for entry in data["nodes"]]
    layers = max((node.layer for node in nodes if node.kind == "logit"), default=-1)
    order = sorted(range(len(nodes)), key=lambda i: (nodes[i].kind == "logit", nodes[i].layer, nodes[i].position))
    place = {old: new for new, old in enumerate(order)}
    names = [str(entry["node_id"]) for entry in data["nodes"]]
    sources, targets, weights = _links(path, data["links"], nodes, names)
    put = torch.tensor([place[i] for i in range(len(nodes))])
    chosen = data.get("qParams") or {}
    supernodes = [list(map(str, some)) for some in chosen.get("supernodes") or [] if len(some) > 1]
    group_of = {name: number for number, (_, *members) in enumerate(supernodes) for name in members}
    ordered = tuple(replace(nodes[i], group=group_of.get(names[i])) for i in order)
    called = {name: node.name for name, node in zip(names, nodes, strict=True)}
    sizes = torch.zeros(len(nodes)).index_add_(0, put[targets], weights.abs())
    tokens = tuple(map(str, data["metadata"]["prompt_tokens"]))
    graph = AttributionGraph(
        model=str(data["metadata"].get("scan", "")),
        layers=layers,
        ids=tuple(node.index for node in ordered if node.kind == "embed") if own else (),
        tokens=tokens,
        explains=", ".join(node.label for node in ordered if node.kind == "logit"),
        contrast=None,
        nodes=ordered,
        sources=put[sources],
        targets=put[targets],
        weights=weights,
        others=torch.zeros(len(nodes), max(1, layers), len(tokens)),
        sizes=sizes,
        replacement=0.0,
        completeness=0.0,
        expanded=sum(node.kind in UNITS for node in nodes),
        group_names=tuple(name for name, *_ in supernodes),
        pinned=tuple(called[name] for name in map(str, chosen.get("pinnedIds") or ()) if name in called),
    )
    return graph.scored()


def _loaded(path: Path) -> Any:
    """A file's JSON with the entries that every graph has."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataFileError(f"{path} is not valid JSON: {error}.") from None
    missing = [name for name in ("metadata", "nodes", "links") if not isinstance(data, dict) or name not in data]
    if missing or "prompt_tokens" not in data["metadata"]:
        what = ", ".join(missing) or "metadata.prompt_tokens"
        raise DataFileError(f"{path} is no attribution graph: it has no {what}.")
    return data


def _node(path: str | Path, entry: Mapping[str, Any], unit: str) -> GraphNode:
    """One node of the file; `unit` is the kind of nodes that read and write."""
    missing = [name for name in REQUIRED if name not in entry]
    kind = KINDS.get(str(entry.get("feature_type")), "")
    if missing or not kind:
        what = f"no {missing[0]}" if missing else f"the type {entry['feature_type']!r}"
        raise DataFileError(f"{path}: node {entry.get('node_id')!r} has {what}. Known types: {', '.join(KINDS)}.")
    if kind == "feature" and unit == "neuron" and re.match(r"m\d+\.f\d", str(entry.get("clerp"))):
        unit = "feature"  # of a graph of ours, in which both can be
    kind = unit if kind == "feature" else "bias" if entry["node_id"] == "bias" else kind
    if entry["node_id"] == REST:
        return GraphNode(REST, kind, -1, 0, 0, None, 0.0, None, str(entry.get("clerp") or ""))
    layer = -1 if str(entry["layer"]) == "E" else int(entry["layer"]) - (kind == "logit")
    numbers = [int(number) for number in re.findall(r"-?\d+", str(entry["node_id"]))]
    index = numbers[-2] if kind in ("embed", "logit", *UNITS) and len(numbers) > 1 else 0
    position = int(entry["ctx_idx"])
    at = layer if kind in ("mlp", *UNITS) else 0
    number = index if kind in ("logit", *UNITS) else 0
    name = str(Node(kind, at, number, position=None if kind == "bias" else position))
    weight = float(entry.get("token_prob") or 0.0) if kind == "logit" else 0.0
    value, effect = entry.get("activation"), entry.get("effect")
    label = str(entry.get("clerp") or "")
    label = (
        label.removeprefix("Output ") if kind == "logit" else label.removeprefix(str(Node.parse(name).whole)).strip()
    )
    return GraphNode(name, kind, layer, position, index, value, weight, effect, label)


def _links(
    path: str | Path, links: list[Mapping[str, Any]], nodes: list[GraphNode], names: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Sources and targets of links as places among the nodes, and their weights."""
    called: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        called.setdefault(name, []).append(i)
    ends = list[tuple[int, int, float]]()
    for number, link in enumerate(links):
        if unknown := [link[end] for end in ("source", "target") if link[end] not in called]:
            raise DataFileError(f"{path}: link {number} has an end {unknown[0]!r} that is no node.")
        target = next((i for i in called[link["target"]] if nodes[i].kind != "mlp"), called[link["target"]][0])
        ends.append(
            (-1 if len(called[link["source"]]) > 1 else called[link["source"]][0], target, float(link["weight"]))
        )
    for number, (source, target, weight) in enumerate(ends):
        if source < 0:
            ends[number] = (_of_two(number, called[links[number]["source"]], nodes, ends), target, weight)
    sources, targets, weights = zip(*ends, strict=True) if ends else ((), (), ())
    return torch.tensor(sources, dtype=torch.long), torch.tensor(targets, dtype=torch.long), torch.tensor(weights)


def _of_two(number: int, called: list[int], nodes: list[GraphNode], ends: list[tuple[int, int, float]]) -> int:
    """Which of a feature and an error of one id a link comes from."""
    error = next((i for i in called if nodes[i].kind == "mlp"), called[-1])
    feature = next((i for i in called if i != error), called[0])
    target = ends[number][1]
    if nodes[target].layer <= nodes[error].layer:
        return feature
    others = [(i, nodes[source].kind) for i, (source, end, _) in enumerate(ends) if end == target and source >= 0]
    if any(i > number and kind in UNITS for i, kind in others):
        return feature
    earlier = any(i < number and (kind == "mlp" or ends[i][0] == feature) for i, kind in others)
    return error if earlier else feature
