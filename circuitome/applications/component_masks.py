"""Which entries of a checkpoint's tensors belong to some heads, neurons and MLPs; no weight is read for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.block import as_stored, weight_of
from circuitome.models.model import Model
from circuitome.models.slices import slices

SKIPPED = ("embed", "logits")
"""Nodes of a circuit whose weights belong to no part of a block."""


@dataclass(frozen=True, eq=False)
class ComponentMasks:
    """By tensor's name, 1 at the entries of the parts; broadcasts over the tensor. Others have none."""

    masks: dict[str, Bool[Tensor, "..."]]
    """The masks."""

    def weighted(self, name: str, change: Tensor, outside: float) -> Tensor:
        """A change whose entries outside of the parts are multiplied with `outside`."""
        if name not in self.masks:
            return change * outside
        return torch.where(self.masks[name], change, change * outside)


def shape_of(folder: Path) -> Model:
    """The model of a checkpoint without its weights."""
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return Model(hf, None, folder.name)


def component_masks(model: Model, parts: Sequence[str]) -> ComponentMasks:
    """The entries of some heads (with the keys and values that they read), neurons, and whole MLPs.

    Biases behind a part belong to none; a circuit's embed and logits are passed over. Raises `InputError` for what is
    no part of the model, and for none at all.
    """
    by_layer: dict[int, tuple[set[int], set[int]]] = {}
    for name in parts:
        node = Node.parse(name).whole
        if node.kind in SKIPPED:
            continue
        if node.kind not in ("head", "mlp", "neuron"):
            raise InputError(f"{name} is no head, neuron or MLP, whose weights could be chosen.")
        _check(model, node)
        heads, neurons = by_layer.setdefault(node.layer, (set(), set()))
        if node.kind == "head":
            heads.add(node.index)
        else:
            neurons.update(range(model.blocks[node.layer].n_neurons) if node.kind == "mlp" else [node.index])
    if not by_layer:
        raise InputError("No head, neuron or MLP is chosen, so no change would be merged.")
    names, masks = {module: name for name, module in model.hf.named_modules()}, dict[str, Tensor]()
    for layer, (heads, neurons) in by_layer.items():
        groups = sorted({model.graph.kv_head(head) for head in heads})
        for part in slices(model.blocks[layer], sorted(heads), groups, sorted(neurons)):
            weight = weight_of(part.module)
            on = torch.zeros(weight.shape[0 if part.rows else 1], dtype=torch.bool)
            on[part.index] = True
            masks[f"{names[part.module]}.weight"] = as_stored(part.module, on[:, None] if part.rows else on[None])
            if part.rows and getattr(part.module, "bias", None) is not None:
                masks[f"{names[part.module]}.bias"] = on
    return ComponentMasks(masks)


def _check(model: Model, node: Node) -> None:
    """Raises `InputError` for a part that the model has not."""
    count = {"head": model.heads.q, "neuron": model.blocks[0].n_neurons, "mlp": 1}[node.kind]
    if node.layer >= len(model.blocks) or node.index >= count:
        raise InputError(f"{model.name} has no {node}: it has {len(model.blocks)} blocks of {model.heads.q} heads.")


def random_components(model: Model, parts: Sequence[str], seed: int) -> list[str]:
    """As many heads, neurons and MLPs as `parts` has of each, drawn at random from all blocks."""
    generator, drawn = torch.Generator().manual_seed(seed), list[str]()
    nodes = {Node.parse(name).whole for name in parts}
    for kind, per in (("head", model.heads.q), ("neuron", model.blocks[0].n_neurons), ("mlp", 1)):
        count = sum(node.kind == kind for node in nodes)
        order = torch.randperm(per * len(model.blocks), generator=generator)[:count].tolist()
        drawn += [str(Node(kind, *divmod(i, per))) for i in sorted(order)]
    return drawn
