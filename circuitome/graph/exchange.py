"""Circuits in the formats of other tools (networkx, GraphML, CSV, attribution-graph JSON) and in our own."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import networkx as nx
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import EMBEDDINGS, Node


def save_on_graph(path: str | Path, graph: Graph, kind: str, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write tensors to a safetensors file whose header holds the graph's shape, a kind and notes."""
    header = {"kind": kind, "graph": json.dumps(asdict(graph)), **notes}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(path), metadata=header)


def load_on_graph(path: str | Path, kind: str) -> tuple[Graph, dict[str, Tensor], dict[str, str]]:
    """What `save_on_graph` wrote. Raises `InputError` for a missing or damaged file, or one of another kind."""
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("kind") != kind:
                raise InputError(
                    f"{path} holds {header.get('kind', 'no circuitome data')}; a file of {kind} was expected."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    shape = json.loads(header["graph"])
    tuples = {name: tuple(shape.get(name, ())) for name in ("embeds", "apart")}
    tuples |= {name: tuple(map(tuple, shape.get(name, ()))) for name in ("neurons", "streams", "dictionaries")}
    return Graph(**{**shape, **tuples}), tensors, header


def node_edges(graph: Graph, mask: Tensor) -> Iterator[tuple[str, str, int, int]]:
    """Every edge as (writer, reading node, row, column); a key/value edge once for each query head that shares it."""
    for row, column in mask.nonzero().tolist():
        for target in [graph.writers[node] for node in graph.rows_of[column]] or [graph.readers[column]]:
            yield graph.writers[row], target, row, column


def to_networkx(graph: Graph, mask: Tensor, scores: Tensor | None) -> nx.MultiDiGraph:
    """Nodes are heads, MLPs, embed and logits; edges carry `input` (q, k, v, in, logits) and, if given, `score`."""
    network = nx.MultiDiGraph()
    for writer, target, row, column in node_edges(graph, mask):
        node, reader = graph.reader_nodes[column], graph.readers[column]
        weight = {} if scores is None else {"score": float(scores[row, column])}
        network.add_edge(writer, target, key=reader, input=node.input or reader, reader=reader, **weight)
    return network


def write_csv(path: str | Path, graph: Graph, mask: Tensor, scores: Tensor | None) -> None:
    """One line an edge: from, to, score (empty where not given)."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["from", "to", "score"])
        for row, column in mask.nonzero().tolist():
            score = "" if scores is None else repr(float(scores[row, column]))
            out.writerow([graph.writers[row], graph.readers[column], score])


def attribution_graph(
    graph: Graph, mask: Tensor, scores: Tensor | None, name: str, tokens: Sequence[str] = ()
) -> dict[str, Any]:
    """The circuit in the attribution-graph schema that Neuronpedia reads. Nodes are keyed by their names.

    A link's `weight` is the score (1 where none is given); several inputs of one head give several links. With the
    `tokens` of a prompt, embeddings stand at the first of them and all other nodes at the last.
    """
    links = [
        {
            "source": writer,
            "target": target,
            "weight": 1.0 if scores is None else float(scores[row, column]),
            "input": graph.readers[column],
        }
        for writer, target, row, column in node_edges(graph, mask)
    ]
    ends = {link[end] for link in links for end in ("source", "target")}
    names = [name for name in (*graph.writers, graph.readers[-1]) if name in ends]
    return {
        "metadata": {
            "slug": name,
            "scan": name,
            "prompt_tokens": list(tokens),
            "prompt": "".join(tokens),
            "info": {"generator": {"name": "circuitome"}},
            "generation_settings": asdict(graph),
        },
        "qParams": {},
        "nodes": [_node(graph, node, index, max(0, len(tokens) - 1)) for index, node in enumerate(names)],
        "links": links,
    }


FEATURE_TYPES = {"logits": "logit", "head": "head", "mlp": "mlp", "neuron": "neuron"}
FEATURE_TYPES |= {"feature": "feature", "stream_feature": "feature", "resid_pre": "error"}
"""By kind of node: what Neuronpedia calls it; embeddings besides."""


def _node(graph: Graph, name: str, index: int, last: int) -> dict[str, Any]:
    node = Node.parse(name)
    layer = "E" if node.kind in EMBEDDINGS else str(graph.n_layers if node.kind == "logits" else node.layer)
    return {
        "node_id": name,
        "jsNodeId": name,
        "feature": node.index,
        "layer": layer,
        "ctx_idx": 0 if node.kind in EMBEDDINGS else last,
        "feature_type": FEATURE_TYPES.get(node.kind, "embedding"),
        "clerp": name,
        "index": index,
    }
