"""Edge attribution from one ordinary forward and backward pass: no copy of the residual stream per head.

The gradient at head h's own copy of its residual input x is J(x)^T W_h^T g_h, with g_h the ordinary gradient at the
projection's output, W_h the head's rows of it, and J the Jacobian of the norm. For a norm with divisor s,
centred input c, gain G folded into W and projection output p (bias excluded), that is

    J^T W^T g = centre(W^T g) / s - c (p . g) / (d s^2),

so a point on the integration path leaves behind only g / s (as wide as the heads), one number (p . g) / (d s^2) a
reader, and c. What is d_model wide per reader exists only for a few prompts at a time. Where a rule of the backward
pass freezes s, J is centring over s alone and the second term is 0.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.allocator import trim
from circuitome.engine.ablation import WriterValues, writer_vectors
from circuitome.engine.backward_rules import PLAIN, Rules, backward_rules
from circuitome.engine.batches import memory_budget
from circuitome.engine.readout import check_numbers
from circuitome.models.activations import ActivationCache
from circuitome.models.block import Block
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.models.norms import Norm
from circuitome.models.parked import Parked, Tensors, like, part_of

CONTRACTION_NUMBERS = 24_000_000
"""Numbers held at once while writers and readers are contracted on the CPU: about 100 MB."""
LAYERS_AT_ONCE = 6
"""Blocks whose readers go into one matrix product at most: wide enough to be fast, narrow enough to waste little."""
Cut = tuple[slice, slice]
"""Some prompts, and some of their positions."""
Enter = Callable[[Float[Tensor, "point_batch pos d_model"]], AbstractContextManager[None]]
"""Puts values into the runs inside a `with` block, in place of what some writers write."""


@dataclass(frozen=True)
class ReaderGradients:
    """Gradient of the metric at every reader's input, averaged over points, in compact form; float32.

    Lists are indexed by block; see the module's formula for g, s, p, d and c. Points lie on the integration path.
    """

    g: Tensors
    """At q, k and v [batch, pos, reader, d_head]: weighted sum over points of g / s."""
    slopes: Tensors
    """At q, k and v [point, batch, pos, reader]: weighted (p . g) / (d s^2) at every point."""
    centred: Tensors
    """What q, k and v read [point, batch, pos, d_model]: c at every point."""
    mlps: Tensors
    """At the residual that the MLP reads [batch, pos, d_model]."""
    final: Float[Tensor, "batch pos d_model"]
    """At the residual that the logits read."""

    def times(self, weight: float) -> "ReaderGradients":
        """This gradient, scaled."""
        g, slopes, mlps = (like(own, (t * weight for t in own)) for own in (self.g, self.slopes, self.mlps))
        return ReaderGradients(g, slopes, self.centred, mlps, self.final * weight)

    def add(self, other: "ReaderGradients") -> None:
        """Add a gradient taken at other points; `other` is of no use afterwards."""
        for mine, its in ((self.g, other.g), (self.mlps, other.mlps)):
            for layer in range(len(mine)):
                mine[layer] = mine[layer].add_(its[layer])
        for mine, its in ((self.slopes, other.slopes), (self.centred, other.centred)):
            for layer in range(len(mine)):
                mine[layer] = torch.cat([mine[layer], its[layer]])
        self.final.add_(other.final)

    @staticmethod
    def sum(parts: "Iterable[ReaderGradients]") -> "ReaderGradients":
        """The sum of gradients taken at different points, of which two are there at a time."""
        total: ReaderGradients | None = None
        for part in parts:
            if total is None:
                total = part
            else:
                total.add(part)
        assert total is not None, "no gradients"
        return total


def reader_gradients(
    model: Model,
    inputs: Inputs,
    points: Float[Tensor, "point batch pos d_model"],
    metric: Callable[[Tensor], Tensor],
    enter: Enter | None = None,
    rules: Rules = PLAIN,
) -> tuple[ReaderGradients, WriterValues]:
    """Mean gradient over `points`, and the writers' values in these passes (all points, one behind the other).

    `enter(leaf)` puts the points [point * batch, pos, d_model] into the run, by default in place of the embeddings;
    readers in front of where they enter get gradient 0. `metric` maps logits [point * batch, vocab] to
    [point * batch]. Gradients follow `rules`. Raises `NumericsError` on NaN, and as `backward_rules` does.
    """
    count, batch = points.shape[:2]
    leaf = points.to(model.dtype).flatten(0, 1).detach().requires_grad_(True)
    entering = (enter or model.starting_from)(leaf)
    with backward_rules(model, rules), torch.enable_grad(), model.frozen_parameters(), entering, model.parked_saves():
        activations = model.record(inputs.joined(*[inputs] * (count - 1)), whole=False, park=True)
        assert activations.logits is not None and activations.final is not None
        values = metric(activations.logits)
        check_numbers(values, "metric")
        at_projections, at_mlps, at_final = _recorded_gradients(values.sum(), leaf, activations)
        trim()  # of what autograd kept

    def mean(gradient: Tensor) -> Tensor:
        return gradient.float().unflatten(0, (count, batch)).mean(0)

    g, slopes, centred = (like(at_mlps) for _ in range(3))
    for layer, gradients in enumerate(at_projections):
        own = _layer_gradients(model, activations, layer, list(gradients), count, frozen=rules.norm)
        for tensors, tensor in zip((g, slopes, centred), own, strict=True):
            tensors.append(tensor)
    found = ReaderGradients(g, slopes, centred, like(at_mlps, map(mean, at_mlps)), mean(at_final))
    return found, WriterValues.of(model, activations)


def _recorded_gradients(
    value: Float[Tensor, ""], leaf: Tensor, activations: ActivationCache
) -> tuple[Sequence[Tensors], Tensors, Tensor]:
    """Gradients of `value` at the outputs of each block's projections, at what MLPs read, and at the final stream."""
    final, mids = activations.final, activations.resid_mid
    assert final is not None
    if isinstance(mids, Parked):  # gradients are parked on the way
        *_, at_final = gradients_at(value, [leaf, final])
        return (
            [layer.gradients() for layer in activations.projected if isinstance(layer, Parked)],
            mids.gradients(),
            at_final,
        )
    projections = [p for layer in activations.projected for p in layer]
    grads = gradients_at(value, [*projections, *mids, final])
    n = len(projections) // len(activations.projected)
    own = [grads[start : start + n] for start in range(0, len(projections), n)]
    return own, grads[len(projections) : -1], grads[-1]


def gradients_at(value: Float[Tensor, ""], tensors: Sequence[Tensor], *, keep_graph: bool = False) -> list[Tensor]:
    """Gradients of `value` at `tensors`; zeros where it does not depend on one of them."""
    connected = [tensor for tensor in tensors if tensor.requires_grad]
    grads = iter(torch.autograd.grad(value, connected, allow_unused=True, retain_graph=keep_graph))
    by_tensor = [next(grads) if tensor.requires_grad else None for tensor in tensors]
    return [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, by_tensor, strict=True)]


def _layer_gradients(
    model: Model, activations: ActivationCache, layer: int, grads: Sequence[Tensor], points: int, *, frozen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """What `ReaderGradients` has of one block: g, slope and centred stream.

    `frozen` says that the norm's divisor passes no gradient.
    """
    block = model.blocks[layer]
    g = block.split(grads).float() / points
    x = activations.resid_pre[layer].detach()
    norm = block.attention_norm

    def by_point(t: Tensor) -> Tensor:
        return t.unflatten(0, (points, -1))

    sigma = g.new_ones(()) if norm is None else norm.sigma(x)
    if norm is None or frozen:
        none = g.new_zeros(0, *by_point(g).shape[1:])
        g = by_point(g / sigma[..., None]).sum(0)
        return g, none[..., 0], none.new_zeros(0, *by_point(x).shape[1:])
    p = block.split([t.detach() for t in activations.projected[layer]]).float() - _constant(block, norm)
    slope = (p * g).sum(-1) / (x.shape[-1] * sigma.square())
    return by_point(g / sigma[..., None]).sum(0), by_point(slope), by_point(norm.centre(x))


def _constant(block: Block, norm: Norm) -> Tensor:
    """Value of each reader's projection where the normed input is zero before its bias."""
    constant = block.reader_biases().float()
    if norm.bias is not None:
        constant = constant + block.reader_weights().float() @ norm.bias
    return constant


def contract(
    model: Model, delta: WriterValues, gradients: ReaderGradients, max_memory: int | None = None
) -> Float[Tensor, "batch writers readers"]:
    """score[b, u, v] = sum over positions of <delta of writer u, gradient at reader v>; 0 where no edge exists.

    What is d_model wide for each writer and reader exists for some prompts, or some positions of one, at a time:
    of a budget that is given, a third.
    """
    graph, (batch, pos, d_model) = model.graph, delta.embed.shape
    scores = delta.embed.new_zeros(batch, len(graph.writers), len(graph.readers))
    layers = layers_at_once(model, max_memory)
    vectors = len(graph.writers) + layers * (graph.attention_readers + 1)
    tokens = max(1, contraction_numbers(model, max_memory) // (vectors * d_model))
    for rows in _slices(batch, max(1, tokens // pos)):
        for places in _slices(pos, tokens):
            _contract_some(model, delta, gradients, (rows, places), layers, scores[rows])
    return scores.mul_(graph.mask.to(scores.device))


def contraction_numbers(model: Model, max_memory: int | None = None) -> int:
    """Numbers held at once while writers and readers are contracted; more where small products are slow."""
    most = CONTRACTION_NUMBERS * (16 if model.device.type == "cuda" else 1)
    return most if max_memory is None else min(most, memory_budget(model, max_memory) // 12)


def layers_at_once(model: Model, max_memory: int | None = None) -> int:
    """Blocks whose readers go into one matrix product: their folded weights are held at once, in float32."""
    numbers = model.heads.readers * model.heads.width * model.d_model
    return max(1, min(LAYERS_AT_ONCE, contraction_numbers(model, max_memory) // numbers))


def _slices(count: int, step: int) -> list[slice]:
    return [slice(start, start + step) for start in range(0, count, step)]


def _contract_some(
    model: Model, delta: WriterValues, gradients: ReaderGradients, cut: Cut, at_once: int, scores: Tensor
) -> None:
    """Add what some positions of some prompts have to their scores."""
    graph = model.graph
    writers = writer_vectors(model, delta.rows(*cut)).flatten(2)  # writer, batch, pos * d_model
    for first in range(0, graph.n_layers, at_once):
        last = min(first + at_once, graph.n_layers)
        weights = [_folded_weights(block) for block in model.blocks[first:last]]
        vectors = _reader_vectors(gradients, range(first, last), weights, cut)
        columns = slice(graph.attention_columns(first).start, graph.mlp_column(last - 1) + 1)
        _product(writers[: graph.upstream_of_mlp(last - 1)], vectors, scores[..., columns])
    _product(writers, gradients.final[cut].flatten(1)[None], scores[..., -1:])


def _folded_weights(block: Block) -> Float[Tensor, "reader d_head d_model"]:
    """Reader weights with the norm's gain and centring folded in, float32."""
    weights = block.reader_weights().float()
    norm = block.attention_norm
    return weights if norm is None else norm.centre(weights * norm.gain)


def _reader_vectors(
    gradients: ReaderGradients, layers: Sequence[int], weights: Sequence[Tensor], cut: Cut
) -> Float[Tensor, "reader batch pos_d_model"]:
    """Gradients at the readers of some blocks as vectors of the residual stream: per block q, k, v, then the MLP."""
    final, along = gradients.final[cut], (slice(None), *cut)
    n = len(weights[0])
    vectors = final.new_empty(len(layers), n + 1, final.shape[0] * final.shape[1], final.shape[2])
    for layer, weight, out in zip(layers, weights, vectors, strict=True):
        torch.bmm(part_of(gradients.g, layer, cut).flatten(0, 1).transpose(0, 1), weight, out=out[:n])
        slopes, streams = part_of(gradients.slopes, layer, along), part_of(gradients.centred, layer, along)
        for slope, centred in zip(slopes, streams, strict=True):
            out[:n].addcmul_(slope.flatten(0, 1).T[..., None], centred.flatten(0, 1)[None], value=-1)
        out[n] = part_of(gradients.mlps, layer, cut).flatten(0, 1)
    return vectors.view(len(layers) * (n + 1), len(final), -1)


def reader_vectors(model: Model, gradients: ReaderGradients, column: int) -> Float[Tensor, "batch pos d_model"]:
    """Gradient at the input of one reader."""
    graph, (batch, pos, d_model) = model.graph, gradients.final.shape
    layer = graph.reader_layer[column]
    if layer == graph.n_layers:
        return gradients.final
    if column == graph.mlp_column(layer):
        return gradients.mlps[layer]
    vectors = _reader_vectors(gradients, [layer], [_folded_weights(model.blocks[layer])], (slice(None), slice(None)))
    return vectors[column - graph.attention_columns(layer).start].view(batch, pos, d_model)


def _product(writers: Tensor, readers: Tensor, out: Tensor) -> None:
    """out[b, u, v] += <writers[u, b], readers[v, b]> for the writers given; the rest of `out` stays."""
    out[:, : len(writers)] += torch.bmm(writers.transpose(0, 1), readers.permute(1, 2, 0))
