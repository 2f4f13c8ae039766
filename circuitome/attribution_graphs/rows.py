"""Edges into some nodes: what every source brings to each, by one sweep down the layers of the frozen model.

The gradient of a target at the stream goes down through the attention of each block and the residual connection, never
through an MLP, whose nodes are sources: a source's edge is its share times what its output weights have in common with
that gradient. So one sweep gives all edges into a batch of targets.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.attribution_graphs.frozen_model import FrozenModel
from circuitome.attribution_graphs.units import Reads


@dataclass(frozen=True)
class Target:
    """A node whose incoming edges are wanted."""

    layer: int
    """Its block; the number of blocks for logits."""
    position: int
    """Its token."""
    unit: int
    """Number of the neuron in its block, or of the logit among those explained."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Edges into a batch of targets; with the bias they sum to each target's value."""

    tokens: Float[Tensor, "target pos"]
    """From the embedding of each token."""
    units: list[Float[Tensor, "target pos _"] | None]
    """By block, from the nodes of its MLP; None for blocks that are behind all targets."""
    bias: Float[Tensor, " target"]
    """From all biases together."""


def gradients(
    frozen: FrozenModel, targets: Sequence[Target], logits: Reads
) -> Iterator[tuple[int, Float[Tensor, "target pos d_model"], Float[Tensor, "target pos d_model"]]]:
    """Block by block, from that of the latest target down: gradients at the stream behind it, and behind its attention.

    Last comes -1 with the gradient at the embeddings. Targets of one batch may lie in several blocks.
    """
    parallel, blocks = frozen.model.graph.parallel, len(frozen.attention)
    latest = max(target.layer for target in targets)
    gradient = torch.zeros(len(targets), frozen.tokens, frozen.model.d_model, device=frozen.model.device)
    gradient = _with_own(frozen, gradient, targets, blocks, logits)
    for layer in range(min(latest, blocks - 1), -1, -1):
        middle = gradient if parallel else _with_own(frozen, gradient, targets, layer, logits)
        yield layer, gradient, middle
        gradient = middle + frozen.attention[layer].back(middle)
        if parallel:
            gradient = _with_own(frozen, gradient, targets, layer, logits)
    yield -1, gradient, gradient


def _with_own(
    frozen: FrozenModel, gradient: Tensor, targets: Sequence[Target], layer: int, logits: Reads
) -> Float[Tensor, "target pos d_model"]:
    """The gradient with what the targets of one block read at their tokens."""
    here = [i for i, target in enumerate(targets) if target.layer == layer]
    if not here:
        return gradient
    gradient = gradient.clone()
    gradient[here, [targets[i].position for i in here]] += _reads(
        frozen, layer, [targets[i] for i in here], logits
    ).vectors
    return gradient


def incoming(frozen: FrozenModel, targets: Sequence[Target], logits: Reads) -> Rows:
    """All edges into some targets; `logits` says how the explained logits read."""
    units: list[Tensor | None] = [None] * len(frozen.units)
    tokens = torch.zeros(len(targets), frozen.tokens)
    for layer, behind, _ in gradients(frozen, targets, logits):
        if layer < 0:
            tokens = (behind * frozen.embeddings).sum(-1)
        else:
            units[layer] = (behind @ frozen.units[layer].writes().T) * frozen.units[layer].shares
    return Rows(tokens, units, _bias(frozen, targets, logits))


def _bias(frozen: FrozenModel, targets: Sequence[Target], logits: Reads) -> Float[Tensor, " target"]:
    """What biases bring to each target: its own constants, and what all biases before it make of its stream."""
    bias = torch.zeros(len(targets))
    for layer in {target.layer for target in targets}:
        here = [i for i, target in enumerate(targets) if target.layer == layer]
        at = [targets[i].position for i in here]
        reads = _reads(frozen, layer, [targets[i] for i in here], logits)
        bias[here] = ((reads.vectors * frozen.biases[layer][at]).sum(-1) + reads.constants).cpu()
    return bias


def _reads(frozen: FrozenModel, layer: int, targets: Sequence[Target], logits: Reads) -> Reads:
    """How some targets of one block read the stream; those behind the last block are logits."""
    units = [target.unit for target in targets]
    if layer == len(frozen.units):
        return Reads(logits.vectors[units], logits.constants[units])
    return frozen.units[layer].reads([target.position for target in targets], units)
