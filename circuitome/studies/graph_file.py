"""The attribution graph in a file of circuit-tracer or Neuronpedia, shown as `graph` shows its own; no model is run."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import circuitome as cm
from circuitome.errors import DataFileError
from circuitome.present import formats
from circuitome.present.blocks import Block, Figure, Lede, Numbers
from circuitome.studies.study import Findings

if TYPE_CHECKING:
    from circuitome.attribution_graphs import AttributionGraph

ENDING = ".json"
"""How a prompt ends that is taken for a file."""


def is_file(prompt: str) -> bool:
    """Whether a file of a graph stands in the place of a prompt. Raises `DataFileError` where there is no such file."""
    if not prompt.endswith(ENDING):
        return False
    if not Path(prompt).is_file():
        raise DataFileError(f"{prompt}: there is no such file. A prompt that ends in {ENDING} is taken for a file.")
    return True


def opened(path: Path) -> Findings:
    """The graph in the file with its scores and groups; the file lies beside the page. Raises `DataFileError`."""
    graph = cm.attribution_graphs.read_graph(path)
    text, prompt = path.read_text(encoding="utf-8"), "".join(graph.tokens)
    scores = {"replacement": graph.replacement, "completeness": graph.completeness}
    return Findings(
        title=f"Attribution graph of {formats.quoted(prompt)}",
        sign=(
            "An edge is what its source brings to its target's value. Influence, replacement and completeness are "
            "those of the file's links, errors included."
        ),
        results={**scores, "nodes": len(graph.nodes), "edges": len(graph.weights)},
        blocks=blocks(graph, path.name),
        tensors={name: getattr(graph, name) for name in ("sources", "targets", "weights", "sizes")},
        files={"graph.json": text},
        more={
            "prompt": prompt,
            "data_hash": hashlib.sha256(text.encode()).hexdigest(),
            "model": {"name": graph.model or "not said by the file"},
        },
    )


def blocks(graph: "AttributionGraph", name: str) -> list[Block]:
    """What the file holds, its scores, the graph, its groups."""
    from circuitome.studies.graph import called, drawn, groups

    units = graph.units()
    text = f"{name} explains {graph.explains}."
    if units:
        strongest = (f"{node.name} ({node.label})" if node.label else node.name for node in units[:3])
        text += f" The {called(graph)} with most influence are {', '.join(strongest)}."
    shares = (
        ("Replacement", graph.replacement, "of influence reaches the tokens past errors"),
        ("Completeness", graph.completeness, "of inputs come from nodes that are no errors"),
    )
    cards = [
        Figure(name=called(graph).capitalize(), value=len(units), style="count"),
        Figure(name="Edges", value=len(graph.weights), style="count"),
        *(Figure(name=score, value=value, style="percent", about=about) for score, value, about in shares),
    ]
    grouped = any(node.group is not None for node in graph.nodes)
    return [Lede(text=text), Numbers(items=tuple(cards)), drawn(graph), *([groups(graph)] if grouped else [])]
