"""Which texts to train on: those whose gradient agrees with a circuit's, and those that repeat themselves.

A small step on a text changes a task's metric by about - rate < dL/dw, dm/dw >: the agreement of the text's gradient
with that of the metric, over the weights of a circuit's parts or all weights. After influence functions without the
Hessian (TracIn, Pruthi et al. 2020, arXiv:2002.08484, one checkpoint).
"""

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.setting import Setting, method
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.models.block import weight_of
from circuitome.models.model import Model
from circuitome.models.slices import Slice, slices
from circuitome.neurons.text_windows import Windows
from circuitome.training.objectives import next_token
from circuitome.training.streams import RepeatedStream, Rows


@method
def agreement(setting: Setting, texts: Windows, *, circuit: Circuit | None = None) -> Float[Tensor, " window"]:
    """By window, how much a step on it raises the task's metric: minus the product of the two gradients.

    In units of the metric a unit of learning rate. `circuit`: over the weights of its heads and MLPs alone. Costs a
    forward-backward pass a window, and one over the prompts.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 4)
    >>> texts = cm.neurons.packed([list(pair.clean) for pair in task.pairs])
    >>> cm.applications.agreement(model, task, texts).shape
    torch.Size([4])

    Raises `InputError` without prompts.
    """
    model, task = setting.model, setting.task
    model.check_open("The gradient of weights")
    parts = list(model.hf.parameters())
    before = [(p, p.requires_grad) for p in parts]
    model.hf.requires_grad_(True)
    try:
        wanted = [torch.zeros_like(p) for p in parts]
        for batch in setting.but(ablation="zero").batches("the task's gradient", gradients=True):
            metric = task.score(model.logits(batch.clean), batch.rows).sum() / len(task)
            _added(wanted, _gradients(metric, parts))
        if circuit is not None:
            wanted = [g * on for g, on in zip(wanted, inside(model, circuit), strict=True)]
        found = []
        for row in range(len(texts)):
            length = int(texts.lengths[row])
            ids = texts.ids[row : row + 1, :length].long().to(model.device)
            gradients = _gradients(next_token(model, Rows(ids)), parts)
            pairs = zip(gradients, wanted, strict=True)
            found.append(-sum(float((g * w).sum()) for g, w in pairs if g is not None))
            setting.progress("gradients of texts", row + 1, len(texts))
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
    return torch.tensor(found)


def _gradients(number: Tensor, parameters: list[Any]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(number, parameters, allow_unused=True)


def _added(sums: list[Tensor], more: tuple[Tensor | None, ...]) -> None:
    for total, part in zip(sums, more, strict=True):
        if part is not None:
            total += part


@torch.no_grad()
def inside(model: Model, circuit: Circuit) -> list[Tensor]:
    """By parameter, 1 at the weights of the circuit's heads (q, k, v and output) and MLPs or neurons, else 0."""
    masks = {id(p): torch.zeros_like(p) for p in model.hf.parameters()}
    nodes = [Node.parse(name) for name in circuit.without_dangling().nodes]
    each = model.heads.q // model.heads.kv
    for layer, block in enumerate(model.blocks):
        heads = sorted({n.index for n in nodes if n.kind == "head" and n.layer == layer})
        whole = any(n.kind == "mlp" and n.layer == layer for n in nodes)
        neurons = sorted({n.index for n in nodes if n.kind == "neuron" and n.layer == layer})
        neurons = list(range(block.n_neurons)) if whole else neurons
        for head in heads:  # one at a time, since several may share a key/value head
            _mark(masks, slices(block, [head], [head // each], [0]), {*block.projections, block.output})
        if neurons:
            _mark(masks, slices(block, [0], [0], neurons), {*block.mlp_readers, block.mlp_writer})
    return [masks[id(p)] for p in model.hf.parameters()]


def _mark(masks: dict[int, Tensor], parts: list[Slice], modules: set[nn.Module]) -> None:
    for part in parts:
        module: Any = part.module
        if module in modules:
            index = part.index.to(module.weight.device)
            as_stored = weight_of(module) is module.weight
            masks[id(module.weight)].index_fill_(0 if part.rows is as_stored else 1, index, 1.0)
            if part.rows and getattr(module, "bias", None) is not None:
                masks[id(module.bias)].index_fill_(0, index, 1.0)


def repetition(texts: Windows) -> Float[Tensor, " window"]:
    """By window, the share of its pairs of neighbouring tokens that stood in it before: what induction would predict.

    >>> cm.applications.repetition(cm.neurons.packed([[1, 2, 3, 1, 2, 3], [1, 2, 3, 4, 5, 6]])).tolist()
    [0.4000000059604645, 0.0]
    """
    shares = []
    for row, length in zip(texts.ids.tolist(), texts.lengths.tolist(), strict=True):
        pairs = list(pairwise(row[:length]))
        shares.append(1 - len(set(pairs)) / max(1, len(pairs)))
    return torch.tensor(shares)


def chosen_windows(values: Float[Tensor, " window"], which: str, share: float, seed: int = 0) -> Tensor:
    """Windows of the largest values (`top`), of the smallest (`bottom`), or at random, as many as the share says.

    >>> cm.applications.chosen_windows(torch.tensor([3.0, 1.0, 2.0]), "top", 2 / 3).tolist()
    [0, 2]
    """
    count = max(1, round(share * len(values)))
    if which == "random":
        return torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:count]
    return values.sort(descending=which == "top", stable=True).indices[:count]


def induction_gain(model: Model, *, rows: int = 32, length: int = 128, seed: int = 0) -> float:
    """How much better a model predicts random tokens when they come again: nats a token, first half minus second.

    >>> round(cm.applications.induction_gain(cm.load("known-induction"), rows=4, length=8), 1) > 0
    True
    """
    vocabulary = torch.arange(1, int(model.hf.config.vocab_size))
    tokens = RepeatedStream(vocabulary).batch(0, rows, length, seed).to(model.device)
    with torch.no_grad(), model.reserved():
        logs = model.hf(input_ids=tokens.ids, use_cache=False).logits.float().log_softmax(-1)
    losses = -logs[:, :-1].gather(-1, tokens.ids[:, 1:, None])[..., 0]
    half = length // 2
    return float(losses[:, : half - 1].mean() - losses[:, half:].mean())
