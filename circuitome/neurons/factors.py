"""What the edges of neurons are made of: for every writer and reader a thin factor over tokens, and weights.

A writer is a group of rows of a matrix D [rows, d_model] with one number a row and token, whose change under ablation
is delta: a neuron is one row, a head as many as it is wide, `embed` the identity. A reader is a group of columns W
[columns, d_model] with one gradient a column and token: a neuron of a gated MLP has two (gate and up), of a plain one
one; q, k or v as many as heads are wide; the logits the identity. With a norm in front of the reader, whose gain and
centring are folded into W, divisor s, centred input c, and p what the columns give without their constant,

    score(u -> v) = sum over u's rows i and v's columns j of (D W^T)_ij (delta^T G)_ij - sum over tokens of y_u r_v,
    G = g / s,   y_u = sum over rows of delta_i (D_i . c),   r_v = sum over columns of p_j g_j / (d_model s^2),

which is the product of delta and the gradient at v's own copy of the residual stream, with no such copy and no vector
of d_model a neuron and token. On an integration path g, s, c and p are those of its points, and G sums over them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.discovery.attribution.contraction import gradients_at
from circuitome.engine.ablation import WriterValues
from circuitome.engine.backward_rules import PLAIN, Rules, backward_rules
from circuitome.engine.batches import Batch
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting
from circuitome.models.activations import ActivationCache
from circuitome.models.block import Block
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.models.norms import Norm

FLOAT = 4
"""Bytes of a number of 32 bits."""


@dataclass(frozen=True)
class Writers:
    """Some writers: as many nodes as rows divided by `width`, node after node."""

    names: tuple[str, ...]
    """Their nodes."""
    width: int
    """Rows of each."""
    weights: Float[Tensor, "rows d_model"]
    """D."""
    delta: Float[Tensor, "tokens rows"]
    """Change of each row's number when ablated."""


@dataclass(frozen=True)
class Readers:
    """Some readers: as many nodes as columns divided by `width`, node after node."""

    names: tuple[str, ...]
    """What reads: a9.h6.q, m5.n12.in, logits."""
    width: int
    """Columns of each."""
    weights: Float[Tensor, "rows d_model"]
    """W, with the norm's gain and centring folded in; without rows where `gradient` is at the stream itself."""
    gradient: Float[Tensor, "tokens columns"]
    """G."""
    slopes: tuple[tuple[Float[Tensor, "tokens d_model"], Float[Tensor, "tokens nodes"]], ...]
    """By point of the path, c and r; empty where no norm stands in front."""


@dataclass
class NeuronCache:
    """What a pass shows of the neurons, layer by layer."""

    inputs: list[list[Tensor]]
    """Outputs of the MLP's input projections: gate and up, or the one. Batch and position may be one axis (OPT)."""
    activations: list[Tensor]
    """What the neurons write with: the input of the MLP's last projection."""
    outputs: list[Tensor]
    """The output of the last projection, in front of a post-norm."""

    def apart(self, batch: int) -> "NeuronCache":
        """The same with batch and position as two axes, out of reach of gradients."""
        inputs = [[apart(t.detach(), batch) for t in layer] for layer in self.inputs]
        return NeuronCache(inputs, *([apart(t.detach(), batch) for t in ts] for ts in (self.activations, self.outputs)))


def apart(x: Tensor, batch: int) -> Float[Tensor, "batch pos width"]:
    """Batch and position as two axes."""
    return x.reshape(batch, -1, x.shape[-1])


@contextmanager
def watching_neurons(blocks: Sequence[Block]) -> Iterator[NeuronCache]:
    """Inside, a pass writes down what the neurons of some blocks read and write with."""
    cache = NeuronCache([], [], [])
    with ExitStack() as stack:
        for block in blocks:
            projections = block.mlp_readers

            def read(
                module: nn.Module, args: tuple[Tensor, ...], output: Tensor, first: nn.Module = projections[0]
            ) -> None:
                if module is first:
                    cache.inputs.append([])
                cache.inputs[-1].append(output)

            def write(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                cache.activations.append(args[0])
                cache.outputs.append(output)

            for projection in projections:
                stack.enter_context(hooked(projection.register_forward_hook, read))
            stack.enter_context(hooked(block.mlp_writer.register_forward_hook, write))
        yield cache


@dataclass(frozen=True)
class Pass:
    """One pass over a batch: what every writer wrote, in and out of reach of gradients."""

    writers: WriterValues
    """Heads, MLPs and embedding."""
    neurons: list[Float[Tensor, "batch pos neurons"]]
    """By layer, what each neuron writes with over the post-norm's divisor, float32."""

    @classmethod
    def of(cls, model: Model, inputs: Inputs) -> "Pass":
        """The pass, without gradients."""
        with torch.no_grad(), watching_neurons(model.blocks) as cache:
            activations = model.record(inputs, logits=False)
        shown = cache.apart(len(activations.resid_pre[0]))
        neurons = [_scaled(block, shown, layer) for layer, block in enumerate(model.blocks)]
        return cls(WriterValues.of(model, activations), neurons)


def _scaled(block: Block, cache: NeuronCache, layer: int) -> Tensor:
    """A layer's activations over the divisor of its MLP's post-norm: a neuron's share of the stream is linear in it."""
    return block.neuron_shares(cache.activations[layer].detach(), cache.outputs[layer].detach())


@dataclass(frozen=True)
class Gradients:
    """Gradients of the metric, summed over a batch's prompts, at one point of the path, and the pass they belong to."""

    model: Model
    activations: ActivationCache
    cache: NeuronCache
    projected: list[list[Tensor]]
    """At the q, k and v projections' outputs."""
    inputs: list[list[Tensor]]
    """At the outputs of MLPs' input projections."""
    stream: list[Tensor]
    """At the residual stream behind each block."""
    final: Tensor
    """At what the logits read."""
    frozen: bool
    """Whether divisors of norms pass no gradient."""

    @classmethod
    def at(
        cls,
        model: Model,
        inputs: Inputs,
        start: Float[Tensor, "batch pos d_model"],
        metric: Callable[[Tensor], Tensor],
        rules: Rules = PLAIN,
    ) -> "Gradients":
        """The gradients with embeddings `start`. Raises `NumericsError` where the metric is not finite."""
        leaf = start.to(model.dtype).detach().requires_grad_(True)
        with (
            backward_rules(model, rules),
            torch.enable_grad(),
            model.frozen_parameters(),
            model.starting_from(leaf),
            watching_neurons(model.blocks) as cache,
        ):
            activations = model.record(inputs)
            assert activations.logits is not None and activations.final is not None
            values = metric(activations.logits)
            check_numbers(values, "metric")
        flat = [t for layer in (*activations.projected, *cache.inputs) for t in layer]
        stream = [*activations.resid_pre[1:], activations.final]
        grads = iter([grad.float() for grad in gradients_at(values.sum(), [*flat, *stream])])
        projected, read = (
            [[apart(next(grads), len(start)) for _ in layer] for layer in layers]
            for layers in (activations.projected, cache.inputs)
        )
        behind = list(grads)
        return cls(model, activations, cache.apart(len(start)), projected, read, behind, behind[-1], rules.norm)


def bytes_per_token(model: Model) -> int:
    """About what a token takes in `path_points` beside the weights, one point at a time; at least what EAP takes.

    In each block of width d, with r numbers of q, k and v, z of the heads' outputs, f neurons of k inputs, numbers of s
    bytes, and c = s or, in float32, where they need no copies, 0:

        f (8 + (k + 1) s + k (4 + c)) + 2 s (3 d + r + z) + (r + d) (4 + c) + (d + z) (4 + 4 [c > 0])

    bytes: neurons of the clean and of the ablated pass in float32, what the differentiated pass gives and reads of them
    and their gradients; the two passes that are recorded; gradients; and what writers write in the two passes. Within a
    tenth of the tensors that are made (tests/engine/test_meta.py).
    """
    heads, first, s = model.heads, model.blocks[0], model.dtype.itemsize
    d, r, z, f = model.d_model, heads.readers * heads.width, heads.q * heads.width, first.n_neurons
    k, copied = 1 + first.gated, s if s < FLOAT else 0
    neurons = f * (2 * FLOAT + (k + 1) * s + k * (FLOAT + copied))
    passes = 2 * s * (3 * d + r + z) + (r + d) * (FLOAT + copied) + (d + z) * FLOAT * (1 + (copied > 0))
    return max(len(model.blocks) * (neurons + passes), model.bytes_per_token(gradients=True))


def batches_of(setting: Setting) -> Iterator[Batch]:
    """Batches for `path_points` that fit the budget. Raises `MemoryBudgetError` where not even one prompt does."""
    more = bytes_per_token(setting.model) - setting.model.bytes_per_token(gradients=True)
    return setting.batches("scoring neurons", gradients=True, beside=more)


def path_points(
    setting: Setting, batch: Batch, steps: int, rules: Rules = PLAIN
) -> tuple[Pass, Pass, Iterator[Gradients]]:
    """Clean and ablated pass of a batch, and gradients at `steps` midpoints between their embeddings (1: clean)."""
    model, rows = setting.model, list(batch.rows)
    clean = Pass.of(model, batch.clean)
    ablated = _ablated(setting, batch, clean)

    def points() -> Iterator[Gradients]:
        for step in range(steps):
            share = (step + 0.5) / steps if steps > 1 else 1.0
            start = ablated.writers.embed + share * (clean.writers.embed - ablated.writers.embed)
            yield Gradients.at(model, batch.clean, start, lambda logits: setting.task.score(logits, rows), rules)

    return clean, ablated, points()


def _ablated(setting: Setting, batch: Batch, clean: Pass) -> Pass:
    """What writers and neurons write when ablated."""
    writers = setting.ablated_values(batch, clean.writers)
    if setting.ablation == "corrupted":
        return Pass(writers, corrupted_neurons(setting, batch))
    return Pass(writers, [torch.zeros_like(values) for values in clean.neurons])


def corrupted_neurons(setting: Setting, batch: Batch) -> list[Tensor]:
    """What neurons write with on the corrupted prompts: each MLP on what it reads there."""
    model, activations = setting.model, batch.corrupted
    assert activations is not None, "the batch was made without corrupted prompts"
    values = list[Tensor]()
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            with watching_neurons([block]) as cache:
                block.run_mlp(activations.resid_mid[layer])
            values.append(_scaled(block, cache.apart(len(batch.rows)), 0))
    return values


def folded(weights: Float[Tensor, "columns d_model"], norm: Norm | None) -> Float[Tensor, "columns d_model"]:
    """Columns with the norm's gain and centring folded in, float32."""
    weights = weights.detach().float()
    return weights if norm is None else norm.centre(weights * norm.gain)


def tokens(values: Sequence[Tensor]) -> Float[Tensor, "tokens width"]:
    """The tokens of all batches, one behind the other."""
    return torch.cat([value.flatten(0, 1).float() for value in values])


@dataclass(frozen=True)
class Read:
    """The gradient of some readers on one batch, summed over points of the path."""

    gradient: Float[Tensor, "tokens reader column"]
    """G."""
    slopes: tuple[tuple[Tensor, Tensor], ...]
    """By point, c and r."""


def read_at(norm: Norm | None, resid: Tensor, given: Tensor, gradient: Tensor, frozen: bool = False) -> Read:
    """What readers leave behind at one point: residual, what their columns give, and the gradient at that.

    `frozen`: the norm's divisor passes no gradient, so it has no slope.
    """
    g = gradient.flatten(0, 1)
    if norm is None:
        return Read(g, ())
    x = resid.detach().flatten(0, 1)
    sigma = norm.sigma(x)[..., None]
    if frozen:
        return Read(g / sigma, ())
    slope = (given.flatten(0, 1) * g).sum(-1) / (x.shape[-1] * sigma[..., 0].square())
    return Read(g / sigma, ((norm.centre(x), slope),))


def readers_of(names: Sequence[str], weights: Float[Tensor, "columns d_model"], read: Read) -> Readers:
    """Readers with their weights and gradients."""
    return Readers(tuple(names), len(weights) // len(names), weights, read.gradient.flatten(1), read.slopes)
