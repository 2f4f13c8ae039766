"""Hold the outputs of some heads and MLPs at given values in every forward pass: a knock-out that stays in force.

Inside `ablate` the model is another model, whose knocked-out parts say the same whatever they see; everything else
reacts. Any method that runs the model's own parts runs on that one, unchanged.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.ablation import EVERYWHERE, AblationValues, WriterValues, scaled_heads, with_changed
from circuitome.errors import InputError, unknown_name
from circuitome.models.block import weight_of
from circuitome.models.hooks import hooked
from circuitome.models.model import Model
from circuitome.models.norms import Norm
from circuitome.models.placement import parameter
from circuitome.tasks.task import Task

CONSTANT = ("mean", "zero")
"""Ablations whose values are the same for every prompt, so that they can be held in passes over any prompts."""


@dataclass(frozen=True)
class AblatedOutputs:
    """What some writers write, in place of what they would."""

    heads: dict[int, tuple[list[int], Float[Tensor, "#batch #pos head d_head"]]]
    """By block: which heads, and their scaled outputs (see `WriterValues`)."""
    mlps: dict[int, Float[Tensor, "#batch #pos d_model"]]
    """By block: what its MLP adds to the stream."""

    @classmethod
    def of(cls, model: Model, values: WriterValues, rows: Sequence[int]) -> "AblatedOutputs":
        """The writers `rows`, heads and MLPs, at what they write in `values`."""
        graph, heads, mlps = model.graph, dict[int, tuple[list[int], Tensor]](), dict[int, Tensor]()
        for layer in sorted({graph.layer_of[row] for row in rows}):
            first = graph.head_rows(layer).start
            which = sorted(row - first for row in rows if graph.layer_of[row] == layer and row != graph.mlp_row(layer))
            if which:
                heads[layer] = which, values.heads[layer][:, :, which]
            if graph.mlp_row(layer) in rows:
                mlps[layer] = values.mlps[layer]
        return cls(heads, mlps)


def ablated_rows(model: Model, writers: Sequence[str]) -> list[int]:
    """Rows of the heads and MLPs called `writers`, in order, each once.

    Raises `UnknownNameError` for a name that is none, `InputError` for `embed`, without which nothing comes in, and for
    no name at all.
    """
    rows = sorted({model.graph.row(name) for name in writers})
    if not rows:
        raise InputError("There is nothing to knock out; name at least one head or MLP, such as a5.h1 or m7.")
    if rows[0] < len(model.graph.embeds):
        raise InputError(
            f"{model.graph.writers[rows[0]]} cannot be knocked out: it is all that the model sees. Name heads or MLPs, "
            "such as a5.h1 or m7."
        )
    return rows


@contextmanager
def ablate(
    model: Model, task: Task, writers: Sequence[str], *, ablation: str = "mean", max_memory: int | None = None
) -> Iterator[None]:
    """Inside, every forward pass of `model` has the heads and MLPs `writers` knocked out, at every position.

    `ablation` says what they write instead: "mean", their mean output over the corrupted prompts of `task` and all
    positions, or "zero". A head under a post-norm is replaced behind it: the divisor stays the one it had a part in.
    Equal to `KnockOut` of the same writers. Costs one pass over the corrupted prompts for "mean", in batches
    that take at most `max_memory` bytes.
    Source: Wang et al. 2022, arXiv:2211.00593, section 2.1.
    Raises `InputError` for "corrupted" and "mean-position", whose values belong to single prompts while a pass may run
    any, and as `ablated_rows`; `UnknownNameError` for another ablation.
    """
    model = model.with_neurons([])
    rows = ablated_rows(model, writers)
    if ablation in ("corrupted", "mean-position", "by-role"):
        raise InputError(
            f"A knock-out by {ablation} values cannot be held: they belong to the prompts of one batch, and what runs "
            "inside may run any prompts. Use mean or zero."
        )
    if ablation not in CONSTANT:
        raise unknown_name("ablation that can be held", ablation, CONSTANT)
    with replace_outputs(model, AblatedOutputs.of(model, _constants(model, task, ablation, max_memory), rows)):
        yield


@contextmanager
def replace_outputs(model: Model, held: AblatedOutputs) -> Iterator[None]:
    """Inside, every forward pass of `model` has the writers of `held` at their held values.

    Values of one batch can only be held in passes over just that batch; those with axes of length 1 in any pass.
    """
    with model.reserved(), ExitStack() as stack:
        for layer, (which, value) in held.heads.items():
            if model.blocks[layer].attention_post is None:
                hook = _in_front(model, which, value)
                stack.enter_context(hooked(model.blocks[layer].output.register_forward_pre_hook, hook))
            else:
                stack.enter_context(change_shares(model, layer, which, _constant(value)))
        for layer, value in held.mlps.items():
            last = model.blocks[layer].mlp_ends[1]
            stack.enter_context(hooked(last.register_forward_hook, _instead(value)))
        yield


def _in_front(model: Model, which: list[int], value: Tensor) -> Any:
    """A hook that swaps heads' z where the output projection reads it."""

    def swap(module: nn.Module, args: tuple[Any, ...]) -> Any:
        z = args[0].unflatten(-1, (model.heads.q, model.heads.width)).clone()
        z[..., which, :] = value.to(z.dtype)
        return (z.flatten(-2), *args[1:])

    return swap


@contextmanager
def change_shares(model: Model, layer: int, which: list[int], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, heads in front of a post-norm write what `change` makes of their scaled outputs, see `scaled_heads`.

    `change` maps [batch, pos, head of `which`, d_head], float32, to the same shape. What the output projection gave
    stays as it is, since the divisor comes from it; the post-norm's output moves by how far the shares do. Changes of
    the same heads act one after another.
    """
    block, seen = model.blocks[layer], list[tuple[Tensor, Tensor]]()
    post, held = block.attention_post, (which, change)
    assert post is not None, "the block has no post-norm"

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen[:] = [(args[0], output)]

    def move(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if not seen or not _same(seen[0][1], args[0]):  # no attention runs, see `Model.attention_calls`
            return output
        shares = (
            seen.pop()[0].float().unflatten(-1, (model.heads.q, model.heads.width)) / post.sigma(args[0])[..., None]
        )
        for earlier in takewhile(lambda entry: entry is not held, model.held[layer]):
            shares = with_changed(shares, *earlier)
        before = shares[..., which, :]
        added = torch.einsum("bphe,dhe->bpd", change(before) - before, _live_weights(model, layer, which))
        return output + (added * _live_gain(post)).to(output.dtype)

    with hooked(block.output.register_forward_hook, note), hooked(post.module.register_forward_hook, move):
        model.held.setdefault(layer, []).append(held)
        try:
            yield
        finally:
            model.held[layer].remove(held)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether this is one tensor, or a copy that came from another device."""
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def share_vectors(
    model: Model,
    layer: int,
    head: int,
    z: Float[Tensor, "batch pos heads_d_head"],
    out: Float[Tensor, "batch pos d_model"],
) -> Float[Tensor, "batch pos d_model"]:
    """What a head adds to the stream in a pass whose output projection read `z` and gave `out`; float32."""
    block = model.blocks[layer]
    share = scaled_heads(model, layer, z, out if block.attention_post else None)[:, :, head]
    vectors = share @ _live_weights(model, layer, [head])[:, 0].T
    return vectors * _live_gain(block.attention_post) if block.attention_post else vectors


def _live_weights(model: Model, layer: int, which: list[int]) -> Float[Tensor, "d_model head d_head"]:
    """Output weights of some heads, float32, within reach of gradients."""
    weight = weight_of(model.blocks[layer].output)
    return weight.unflatten(1, (model.heads.q, model.heads.width))[:, which].float()


def _live_gain(post: Norm) -> Tensor:
    """A norm's multiplier, float32, within reach of gradients."""
    weight = parameter(post.module)
    return torch.ones(()) if weight is None else weight.float() + post.gain_offset


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scaled: value.to(scaled).expand_as(scaled)


def _instead(value: Tensor) -> Any:
    def swap(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        whole = value.flatten() if value.shape[:2] == (1, 1) else value.reshape(-1, value.shape[-1])
        return (whole if whole.ndim == 1 else whole.view_as(output)).to(output.dtype).expand_as(output)

    return swap


def _constants(model: Model, task: Task, ablation: str, max_memory: int | None) -> WriterValues:
    """Mean or zero outputs of all writers, with batch and position axes of length 1."""
    if ablation == "mean":
        return AblationValues.of(model, task, "mean", max_memory).means[EVERYWHERE]
    heads = torch.zeros(1, 1, model.heads.q, model.heads.width, device=model.device)
    out = torch.zeros(1, 1, model.d_model, device=model.device)
    return WriterValues(out, [heads] * len(model.blocks), [out] * len(model.blocks))
