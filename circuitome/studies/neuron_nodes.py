"""Neurons as nodes in a study: which ones, how the run says so, and the table of those in a circuit."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import formats
from circuitome.present.blocks import Table, table

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting
    from circuitome.present.blocks import Edge

NODES = ("mlps", "neurons")
"""What an MLP can be in a graph."""
METHODS = ("smallest", "mattr", "eap", "eap-ig", "subnetwork-probing", "random")
"""Methods that search graphs with neurons."""
ABLATIONS = ("corrupted", "zero")
"""Ablations that neurons are chosen under."""


def check_nodes(
    nodes: str, neurons: int | None, layers: Sequence[int], method: str, ablation: str, stable: float | None
) -> None:
    """Raises `InputError` for settings of nodes that do not go together."""
    if nodes not in NODES:
        raise unknown_name("kind of nodes", nodes, NODES)
    if nodes == "mlps":
        if neurons is not None or layers:
            raise InputError("--neurons and --layers say which neurons are nodes; add --nodes neurons.")
        return
    if method not in METHODS:
        raise InputError(f"{method} knows MLPs as one node each. With --nodes neurons use {', '.join(METHODS)}.")
    if ablation not in ABLATIONS:
        raise InputError(f"Neurons are chosen under {' or '.join(ABLATIONS)} ablation, not {ablation}.")
    if stable is not None and method in ("eap", "eap-ig"):
        raise InputError(f"With neurons as nodes {method} keeps no scores of single prompts; use --stable with mattr.")
    if neurons is not None and neurons < 1:
        raise InputError(f"--neurons is how many neurons can be nodes and must be at least 1, got {neurons}.")


def with_nodes(setting: "Setting", nodes: str, neurons: int | None, layers: Sequence[int]) -> "Setting":
    """The setting with neurons as nodes of its model, chosen on its own prompts; itself where MLPs are nodes."""
    if nodes == "mlps":
        return setting
    from circuitome.neurons.nodes import NODES as DEFAULT

    count = DEFAULT if neurons is None else neurons
    return setting.but(model=cm.neurons.take_apart(setting, neurons=count, layers=layers or None))


def neuron_work(nodes: str, neurons: int | None) -> float:
    """Forward passes that choosing neurons, and searching and running a graph with that many more nodes, costs."""
    return 0.0 if nodes == "mlps" else 10.0 + 0.2 * (neurons or 300)


def neuron_record(graph: "cm.Graph") -> dict[str, Any]:
    """The nodes of a graph with neurons, as entries of a manifest; none for one without."""
    if not graph.apart and not graph.neurons:
        return {}
    names = [str(node) for node in graph.writer_nodes if node.kind == "neuron"]
    return {"neuron_nodes": {"neurons": names, "apart": list(graph.apart)}}


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
    return [table("Neurons of the circuit", columns, rows, note=note, top=12)]
