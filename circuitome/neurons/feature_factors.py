"""What the edges of features are made of; see `factors`. A feature is one row of a dictionary's decoder.

A feature that reads the stream, or an MLP's normed input, is one column of the encoder. One that reads an MLP's output
reads the stream through all of that MLP, which is no column: there the gradient at the feature's own copy of the
stream, a vector a token, is taken through the MLP and kept as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.backward_rules import Rules, backward_rules
from circuitome.models.block import Block
from circuitome.models.described import Described
from circuitome.models.model import Model
from circuitome.neurons.factors import Gradients, Pass, Read, Readers, Writers, folded, read_at, readers_of, tokens


@dataclass(frozen=True)
class FeatureFactors:
    """The features of a dictionary that are nodes, and what they leave, as writers and readers."""

    rest: Writers
    """What they leave of the MLP or of the stream."""
    features: Writers
    """The features."""
    reads: Readers
    """What these read."""
    whole: Readers | None
    """What all nodes of the stream read together; None for an MLP, of which that is known already."""


def described_reads(model: Model, point: Gradients, steps: int, rules: Rules) -> Iterator[Read]:
    """At one point, by dictionary what its features read, and for one of the stream also what its nodes all read."""
    for (layer, stream), described in sorted(model.described.items()):
        block, gradient = model.blocks[layer], point.stream[layer].detach()
        shown = point.activations
        x = (shown.resid_post(layer) if stream else shown.resid_mid[layer]).detach()
        active = described.values(block, x, shown.mlp_out[layer].detach()) > 0
        weight = active * (gradient @ described.weights.T) / steps
        if described.site == "mlp":
            yield Read(_through_mlp(model, layer, x, weight, rules), ())
        elif described.site == "transcoder" and (norm := block.mlp_norm) is not None:
            normed = norm(x).detach().float() - (0.0 if norm.bias is None else norm.bias)
            yield read_at(norm, x, (normed @ _columns(described).T)[..., None], weight[..., None], point.frozen)
        else:
            yield read_at(None, x, weight, weight[..., None])
        if stream:
            yield read_at(None, x, gradient, gradient[:, :, None] / steps)


def _columns(described: Described) -> Float[Tensor, "feature d_in"]:
    return described.dictionary.W_enc.T[list(described.which)].float()


def _through_mlp(
    model: Model,
    layer: int,
    x: Float[Tensor, "batch pos d_model"],
    weight: Float[Tensor, "batch pos feature"],
    rules: Rules,
) -> Float[Tensor, "tokens feature d_model"]:
    """Gradient at each feature's own copy of what the MLP reads, given the one at what it gives the activation."""
    columns = _columns(model.described[layer, False])
    found = x.new_zeros(x.shape[0] * x.shape[1], len(columns), x.shape[-1], dtype=torch.float32)
    with torch.enable_grad(), model.frozen_parameters(), backward_rules(model, rules, whole=False):
        leaf = x.detach().requires_grad_(True)
        out = model.blocks[layer].run_mlp(leaf)
        for i, column in enumerate(columns):
            if bool(weight[..., i].any()):
                cotangent = (weight[..., i, None] * column).to(out.dtype).view_as(out)
                (gradient,) = torch.autograd.grad(out, leaf, cotangent, retain_graph=True)
                found[:, i] = gradient.float().flatten(0, 1)
    return found


def described_factors(
    model: Model, changes: Sequence[Pass], reads: Sequence[Read]
) -> dict[tuple[int, bool], FeatureFactors]:
    """By block and whether of its stream: the features' factors, from what all batches left behind."""
    left, identity = iter(reads), torch.eye(model.d_model, device=model.device)
    found = dict[tuple[int, bool], FeatureFactors]()
    for (layer, stream), described in sorted(model.described.items()):
        stage = model.graph.stages[layer][stream]
        own, nodes = model.graph.writers[stage.rows], model.graph.readers[stage.columns]
        rest, values = zip(*(_change(model, change, layer, stream) for change in changes), strict=True)
        read = next(left)
        found[layer, stream] = FeatureFactors(
            rest=Writers(own[:1], model.d_model, identity, tokens(rest)),
            features=Writers(own[1:], 1, described.weights, tokens(values)),
            reads=_readers(nodes[1:], described, model.blocks[layer], read),
            whole=readers_of(nodes[:1], identity, next(left)) if stream else None,
        )
    return found


def _change(model: Model, change: Pass, layer: int, stream: bool) -> tuple[Tensor, Tensor]:
    writers = change.writers
    return writers.stream(model, layer) if stream else (writers.mlps[layer], writers.neurons[layer])


def _readers(names: Sequence[str], described: Described, block: Block, read: Read) -> Readers:
    if described.site == "mlp":
        width = read.gradient.shape[-1]
        return Readers(tuple(names), width, read.gradient.new_empty(0, width), read.gradient.flatten(1), ())
    norm = block.mlp_norm if described.site == "transcoder" else None
    return readers_of(names, folded(_columns(described), norm), read)
