"""Neurons and features as nodes in a study: which ones, how the run says so, and the table of those in a circuit."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Table, table
from circuitome.studies.pieces import cell

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting
    from circuitome.present.blocks import Edge

NODES = ("mlps", "neurons")
"""What an MLP can be in a graph; or the folder of a dictionary, whose features are nodes then."""
METHODS = ("smallest", "mattr", "eap", "eap-ig", "subnetwork-probing", "random")
"""Methods that search graphs with neurons."""
ABLATIONS = ("corrupted", "zero")
"""Ablations that neurons are chosen under."""


def check_nodes(
    nodes: str, neurons: int | None, layers: Sequence[int], method: str, ablation: str, stable: float | None
) -> None:
    """Raises `InputError` for settings of nodes that do not go together."""
    if nodes not in NODES and not all(Path(path).exists() for path in nodes.split(",")):
        raise unknown_name("kind of nodes, or dictionary", nodes, NODES)
    if nodes == "mlps":
        if neurons is not None or layers:
            raise InputError("--neurons and --layers say which neurons are nodes; add --nodes neurons.")
        return
    if nodes not in NODES and layers:
        raise InputError("A dictionary says itself which layer it describes; leave out --layers.")
    if method not in METHODS:
        raise InputError(f"{method} knows MLPs as one node each. With --nodes {nodes} use {', '.join(METHODS)}.")
    if ablation not in ABLATIONS:
        raise InputError(f"Neurons are chosen under {' or '.join(ABLATIONS)} ablation, not {ablation}.")
    if stable is not None and method in ("eap", "eap-ig"):
        raise InputError(f"With neurons as nodes {method} keeps no scores of single prompts; use --stable with mattr.")
    if neurons is not None and neurons < 1:
        raise InputError(f"--neurons is how many neurons or features can be nodes, at least 1; got {neurons}.")


def with_nodes(setting: "Setting", nodes: str, neurons: int | None, layers: Sequence[int]) -> "Setting":
    """The setting with neurons or features as nodes of its model, chosen on its own prompts; itself with whole MLPs.

    `nodes` may be the folders of dictionaries, with commas between; each is proved on the model.
    """
    if nodes == "mlps":
        return setting
    if nodes not in NODES:
        from circuitome.features.feature_nodes import NODES as FEATURES

        count = FEATURES if neurons is None else neurons
        for path in nodes.split(","):
            dictionary = cm.features.load(path, model=setting.model.with_neurons([]))
            setting = setting.but(model=cm.features.as_nodes(setting, dictionary, features=count))
        return setting
    from circuitome.neurons.nodes import NODES as DEFAULT

    count = DEFAULT if neurons is None else neurons
    return setting.but(model=cm.neurons.take_apart(setting, neurons=count, layers=layers or None))


def neuron_work(nodes: str, neurons: int | None) -> float:
    """Forward passes that choosing neurons, and searching and running a graph with that many more nodes, costs."""
    if nodes not in NODES:
        return 10.0 + 2.0 * (neurons or 50) * len(nodes.split(","))
    return 0.0 if nodes == "mlps" else 10.0 + 0.2 * (neurons or 300)


def neuron_record(graph: "cm.Graph", nodes: str = "") -> dict[str, Any]:
    """The nodes of a graph with neurons or features, as entries of a manifest; none for one without.

    `nodes` are the folders of its dictionaries, in order.
    """
    names = [str(node) for node in graph.writer_nodes if node.kind == "neuron"]
    record = {"neuron_nodes": {"neurons": names, "apart": list(graph.apart)}} if names or graph.apart else {}
    if not graph.dictionaries:
        return record
    described = [
        {
            "dictionary": str(Path(path).resolve()),
            "node": node,
            "fingerprint": fingerprint,
            "features": list(features_of(graph, node)),
        }
        for path, (node, fingerprint) in zip(nodes.split(","), graph.dictionaries, strict=True)
    ]
    return {**record, "feature_nodes": described}


def features_of(graph: "cm.Graph", name: str) -> tuple[int, ...]:
    """The features that are nodes beside the node `name` of their dictionary."""
    node = cm.Node.parse(name)
    return graph.neurons_of(node.layer) if node.kind == "mlp" else graph.features_behind(node.layer - 1)


def error_results(judged: "Setting", circuit: "cm.Circuit") -> list[dict[str, Any]] | None:
    """Faithfulness with and without what dictionaries leave, as plain JSON values; None where features are no nodes."""
    if not circuit.graph.dictionaries:
        return None
    every = cm.Circuit.full(circuit.graph)
    asked = {
        "the circuit": circuit,
        "the circuit, errors in full": cm.features.with_errors(circuit),
        "the circuit, no errors": cm.features.without_errors(circuit),
        "everything but the errors": cm.features.without_errors(every),
    }
    return [
        {"edges": name, "count": len(some), "share": cm.faithfulness(judged, some).share.to_dict()}
        for name, some in asked.items()
    ]


def error_table(results: Sequence[dict[str, Any]] | None) -> list[Table]:
    """Faithfulness with and without errors."""
    if results is None:
        return []
    rows = [(row["edges"], row["count"], cell(row["share"])) for row in results]
    note = (
        "Errors are what the features that are nodes leave of what their dictionary describes: its error, its biases "
        "and its other features. In full: with every edge between them and the circuit's nodes."
    )
    columns = ("what runs", ("edges", "count"), ("faithfulness", "estimate", 3))
    return [table("With and without errors", columns, rows, note=note)]


def neuron_table(neurons: "Sequence[cm.neurons.DescribedNeuron]", edges: "Iterable[Edge]", unit: str) -> list[Table]:
    """The circuit's neurons, those with most score on their edges first."""
    if not neurons:
        return []
    strength = {neuron.name: 0.0 for neuron in neurons}
    for edge in edges:
        for end in (edge.source, str(cm.Node.parse(edge.reader).whole)):
            if end in strength:
                strength[end] += abs(edge.score or 0.0)
    columns = (
        ("neuron", "node"),
        ("sum of |score|", "number", 3, unit),
        ("changes most at", "text"),
        ("writes there", "number", 3),
        ("ablated", "number", 3),
        ("raises", "text"),
        ("lowers", "text"),
    )
    rows = [
        (
            neuron.name,
            strength[neuron.name],
            neuron.place,
            neuron.clean,
            neuron.ablated,
            ", ".join(map(formats.quoted, neuron.raises)),
            ", ".join(map(formats.quoted, neuron.lowers)),
        )
        for neuron in sorted(neurons, key=lambda neuron: -strength[neuron.name])
    ]
    note = (
        "The sum is over the neuron's edges in the circuit. What it writes with is its activation (gate times up where "
        "MLPs are gated), where ablation changes it most, mean over prompts. Tokens are those whose "
        "logits its output weights raise and lower by themselves when it acts as it does there."
    )
    kinds = {cm.Node.parse(neuron.name).kind for neuron in neurons}
    if kinds == {"neuron"}:
        return [table("Neurons of the circuit", columns, rows, note=note, top=12)]
    note = note.replace("neuron's edges", "node's edges").replace("output weights", "output weights or decoder row")
    return [table("Features of the circuit", (("feature", "node"), *columns[1:]), rows, note=note, top=12)]
