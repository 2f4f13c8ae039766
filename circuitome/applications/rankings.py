"""By what parts of a model are ranked: a number for every key/value head with its heads, neuron, and block.

The smaller it is, the sooner the part goes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.applications.gates import Gates, Parts, swapped, task_gates
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.models.block import weight_of
from circuitome.models.hooks import replaced
from circuitome.models.model import Model
from circuitome.neurons.text_loss import token_losses
from circuitome.neurons.text_windows import Windows
from circuitome.tasks.task import Task

RANKINGS = {
    "importance": "the divergence on texts, in nats a token, when the part is held at its mean (or zero)",
    "circuit": "that divergence and what the part does to a task, in equal parts",
    "magnitude": "the size of the weights that the part reads and writes with",
    "random": "a random number",
}
"""By name: what a part's number is."""


@dataclass(frozen=True)
class Measured:
    """What rankings of one model are made from."""

    setting: Setting
    """The model, with a task where a ranking needs one."""
    texts: Windows
    """Texts on which importance is measured."""
    gates: Gates
    """What parts do to the texts."""
    constants: Parts | None
    """What removed parts write instead: their means, or nothing."""
    circuit: Circuit | None = None
    """What of the task counts; None: all that the model does."""


def check_ranking(by: str, prompts: Task | None) -> None:
    """Raises `UnknownNameError` for no ranking, `InputError` for one that lacks its task."""
    if by not in RANKINGS:
        raise unknown_name("ranking of parts", by, RANKINGS)
    if by == "circuit" and prompts is None:
        raise InputError("A ranking by circuit needs a task: give its prompts, for example cm.tasks.ioi(model).")


def ranked_parts(measured: Measured, by: str, seed: int) -> Parts:
    """Numbers of key/value heads [layer, group] and of neurons [layer, neuron]."""
    model = measured.setting.model
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        like = (measured.gates.written.heads[0, :, : model.heads.kv], measured.gates.written.neurons[0])
        return Parts(*(torch.rand(values.shape, generator=generator) for values in like))
    if by == "magnitude":
        return _magnitudes(model)
    cost = prices(measured.gates, measured.texts, measured.constants, model.heads.kv)
    if by == "importance":
        return cost
    effect = _effects(measured)
    return Parts(_share(cost.heads) + _share(effect.heads), _share(cost.neurons) + _share(effect.neurons))


def prices(gates: Gates, texts: Windows, constants: Parts | None, groups: int | None = None) -> Parts:
    """Nats a token that the model's predictions diverge when a part is held: E[s^2] / 2 over tokens; see `gates`.

    Of every head, or of the heads of each of `groups` key/value heads together, and of every neuron.
    """
    changes = gates.changes(constants)
    tokens = float(texts.lengths.float().mean()) - 1
    if groups is not None:
        changes = Parts(_by_group(changes.heads, groups), changes.neurons)
    return changes.map(lambda values: values.square().mean(0) / (2 * tokens))


def _by_group(heads: Tensor, groups: int) -> Tensor:
    return heads.unflatten(-1, (groups, -1)).sum(-1)


def _share(values: Float[Tensor, "layer part"]) -> Float[Tensor, "layer part"]:
    """Shares of each layer's sum."""
    return values / values.sum(1, keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def _effects(measured: Measured) -> Parts:
    """Size of what parts do to the task's gap, in the circuit alone where one is given."""
    model = measured.setting.model
    changes = task_gates(measured.setting).changes(measured.constants)
    inside = members(measured.circuit, changes) if measured.circuit is not None else changes.map(torch.ones_like)
    heads, neurons = (
        (v * on).mean(0).abs() for v, on in ((changes.heads, inside.heads), (changes.neurons, inside.neurons))
    )
    return Parts(_by_group(heads, model.heads.kv), neurons)


def members(circuit: Circuit, like: Parts) -> Parts:
    """1 for heads and neurons of the circuit, those of its MLPs among them, else 0."""
    heads, neurons = torch.zeros_like(like.heads[0]), torch.zeros_like(like.neurons[0])
    for name in circuit.without_dangling().nodes:
        node = Node.parse(name)
        if node.kind == "head":
            heads[node.layer, node.index] = 1
        elif node.kind == "mlp":
            neurons[node.layer] = 1
        elif node.kind == "neuron":
            neurons[node.layer, node.index] = 1
    return Parts(heads, neurons)


def _magnitudes(model: Model) -> Parts:
    """Heads: norm of the output weights times that of the values' weights; neurons: of what they write and read."""
    groups, neurons = [], []
    for block in model.blocks:
        q, kv = model.heads.q, model.heads.kv
        values = block.reader_weights(range(q + kv, q + 2 * kv)).float().flatten(1).norm(dim=1)
        writes = weight_of(block.output).detach().float().unflatten(1, (kv, -1)).permute(1, 0, 2).flatten(1).norm(dim=1)
        groups.append((values * writes).cpu())
        reads = block.split_inputs([weight_of(module).detach().float() for module in block.mlp_readers], 0)
        size = torch.stack([part.square().sum(1) for part in reads]).sum(0).sqrt()
        neurons.append((size * weight_of(block.mlp_writer).detach().float().norm(dim=0)).cpu())
    return Parts(torch.stack(groups), torch.stack(neurons))


def ranked_blocks(measured: Measured, by: str, seed: int) -> Float[Tensor, " layer"]:
    """A number for every block: importance is the measured rise of the loss when it is skipped."""
    model = measured.setting.model
    if by == "random":
        return torch.rand(len(model.blocks), generator=torch.Generator().manual_seed(seed))
    if by == "magnitude":
        parts = _magnitudes(model)
        return parts.heads.square().sum(1) + parts.neurons.square().sum(1)
    losses = skipped(measured.setting, measured.texts)
    if by == "importance":
        return losses
    gaps = torch.stack([metric_gap(measured.setting, layer) for layer in range(len(model.blocks))])
    lost = (metric_gap(measured.setting, None) - gaps).abs()
    return losses.clamp(min=0) / losses.clamp(min=0).sum() + lost / lost.sum()


def skipped(setting: Setting, texts: Windows) -> Float[Tensor, " layer"]:
    """Rise of the loss on texts when each block is skipped, nats a token."""
    plain, found = token_losses(setting, texts).nanmean(), list[Tensor]()
    for layer, block in enumerate(setting.model.blocks):
        with setting.model.reserved(), replaced(block.layer, _through):
            found.append(token_losses(setting, texts, f"loss without block {layer}").nanmean() - plain)
    return torch.stack(found)


def _through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def metric_gap(setting: Setting, skip: int | None = None) -> Tensor:
    """Mean metric on clean prompts minus that on corrupted ones, with one block skipped."""
    means = [values.mean() for values in metrics(setting, skip)]
    return means[0] - means[1]


def metrics(setting: Setting, skip: int | None = None) -> list[Float[Tensor, " prompt"]]:
    """The metric on every clean prompt, and with the same answers on its corrupted twin."""
    found = []
    for task in (setting.task, swapped(setting.task)):
        values = torch.zeros(len(task))
        for batch in setting.but(prompts=task).clean_batches():
            with torch.no_grad(), setting.model.reserved():
                if skip is None:
                    logits = setting.model.logits(batch.clean)
                else:
                    with replaced(setting.model.blocks[skip].layer, _through):
                        logits = setting.model.logits(batch.clean)
            values[list(batch.rows)] = task.score(logits, batch.rows).cpu()
        found.append(values)
    return found
