"""How far the circuit of one task in one model is from that in a model made from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitome.applications.structure import BlockParts
from circuitome.discovery.attribution.edges import eap_ig
from circuitome.engine.setting import Setting
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.results import Estimate, Record
from circuitome.validation.faithfulness.share import faithfulness


@dataclass(frozen=True)
class CircuitDistance(Record):
    """Circuits of one size in two models, by the same method and prompts."""

    edges: int
    """Edges of each."""
    distance: float
    """1 minus Jaccard: 0 where both hold the same edges, 1 where they share none."""
    own: Estimate
    """Faithfulness of the first model's circuit in the first model."""
    first_in_second: Estimate
    """Faithfulness of the first model's circuit in the second model, without the edges that are gone there."""
    second_in_first: Estimate
    """Faithfulness of the second model's circuit in the first model."""


def circuit_distance(
    first: Setting, second: Setting, *, edges: int, kept: Sequence[BlockParts] | None = None, steps: int = 5
) -> CircuitDistance:
    """The circuits of `edges` edges by EAP-IG in two models, on the prompts of each setting, and each in the other.

    `kept` says which blocks and heads of the first model a smaller second one has; None: all.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> setting = cm.engine.setting.Setting(model, task)
    >>> cm.applications.circuit_distance(setting, setting, edges=8).distance
    0.0
    """
    one, two = (eap_ig(setting, steps=steps).top(edges) for setting in (first, second))
    rows, columns = _places(first.model, second.model, kept)
    mask = torch.zeros_like(one.mask)
    mask[rows[:, None], columns] = two.mask
    back = Circuit(first.model.graph, mask)
    there = Circuit(second.model.graph, one.mask[rows[:, None], columns])
    return CircuitDistance(
        edges,
        1 - len(one & back) / max(1, len(one | back)),
        faithfulness(first, one).share,
        faithfulness(second, there).share,
        faithfulness(first, back).share,
    )


def _places(first: Model, second: Model, kept: Sequence[BlockParts] | None) -> tuple[Tensor, Tensor]:
    """Rows and columns of the first model's graph at which the second one's writers and readers are."""
    if kept is None:
        return torch.arange(len(first.graph.writers)), torch.arange(len(first.graph.readers))
    cut_heads = second.heads.kv == len(kept[0].groups)

    def name(text: str) -> str:
        node = Node.parse(text)
        if node.kind in ("embed", "logits"):
            return text
        parts = kept[node.layer]
        heads = parts.heads(first) if cut_heads else range(first.heads.q)
        groups = parts.groups if cut_heads else range(first.heads.kv)
        index = heads[node.index] if node.kind == "head" else groups[node.index] if node.kind == "kv" else node.index
        return str(Node(node.kind, parts.layer, index, node.input))

    rows = [first.graph.row(name(writer)) for writer in second.graph.writers]
    columns = [first.graph.column(name(reader)) for reader in second.graph.readers]
    return torch.tensor(rows), torch.tensor(columns)
