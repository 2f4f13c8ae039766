"""What writers write, and what replaces it when an edge is ablated: corrupted, zero, means, or by role."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.engine.batches import Batch, batches, make_batch
from circuitome.errors import InputError, unknown_name
from circuitome.models.activations import ActivationCache
from circuitome.models.model import Model
from circuitome.models.parked import Parked, Tensors, like
from circuitome.tasks.task import Pair, Task

Ablation = Literal["corrupted", "zero", "mean", "mean-position", "by-role"]
"""What an edge outside the circuit carries: the corrupted prompt's value, 0, the mean value over the task's corrupted
prompts and positions, that mean position by position over prompts of one template and length, or, for prompts of
unequal length, the corrupted prompt's value at the token with the same role (see `role_alignment`)."""

ABLATIONS: tuple[str, ...] = get_args(Ablation)
UNALIGNED = ("zero", "mean", "by-role")
"""Ablations for prompts of unequal length."""


EVERYWHERE = ("", 0)
"""Key of the mean over all prompts and positions."""


def check_ablation(name: str) -> None:
    """Raises `UnknownNameError` unless `name` is an ablation."""
    if name not in ABLATIONS:
        raise unknown_name("ablation", name, ABLATIONS)


@dataclass(frozen=True)
class WriterValues:
    """Outputs of all writers, float32; a head as its z: its vector is z @ `Block.head_weights()[head]`."""

    embed: Float[Tensor, "batch pos d_model"]
    """What `embed` writes."""
    heads: Tensors
    """[batch, pos, head, d_head] per layer, z over the post-norm's divisor (1 without a post-norm)."""
    mlps: Tensors
    """[batch, pos, d_model] per layer, what the MLP adds to the stream, without the neurons that are nodes."""
    neurons: Tensors = field(default_factory=list)
    """Where neurons or features are nodes: per layer, what those write with (over the post-norm's divisor)."""
    streams: Tensors = field(default_factory=list)
    """Where features of the stream are nodes: per such layer, first the rest [d_model], then the features' values."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, activations: ActivationCache) -> "WriterValues":
        """The writers' outputs in a recorded pass, out of reach of its gradients."""
        heads = like(activations.z, (recorded_heads(model, activations, i) for i in range(len(activations.z))))
        mlps = like(activations.mlp_out, (m.detach().float() for m in activations.mlp_out))
        neurons = like(activations.neurons, (n.detach() for n in activations.neurons))
        streams = like(activations.mlp_out)
        for (layer, stream), described in sorted(model.described.items()):
            x = activations.resid_post(layer) if stream else activations.resid_mid[layer]
            values = described.values(model.blocks[layer], x.detach(), activations.mlp_out[layer].detach())
            if stream:
                streams.extend([x.detach().float() - values @ described.weights, values])
            else:
                neurons[layer] = values
        for layer, values in enumerate(neurons):
            mlps[layer] = mlps[layer] - join_neurons(model, layer, values)
        return cls(activations.resid_pre[0].detach().float(), heads, mlps, neurons, streams)

    def stream(self, model: Model, layer: int) -> tuple[Tensor, Tensor]:
        """What is left of the stream behind a block whose features are nodes, and their values."""
        first = 2 * sum(bool(features) for features in model.graph.streams[:layer])
        return self.streams[first], self.streams[first + 1]

    def mlp(self, model: Model, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the stream, the neurons that are nodes among it."""
        return self.mlps[layer] + (join_neurons(model, layer, self.neurons[layer]) if self.neurons else 0.0)

    def _lists(self) -> tuple[Tensors, Tensors, Tensors, Tensors]:
        return self.heads, self.mlps, self.neurons, self.streams

    def tensors(self) -> Iterator[Tensor]:
        """All tensors in one order."""
        return chain([self.embed], *self._lists())

    def _like(self, tensors: Iterable[Tensor]) -> "WriterValues":
        each = iter(tensors)
        return WriterValues(next(each), *(like(own, islice(each, len(own))) for own in self._lists()))

    def minus(self, other: "WriterValues") -> "WriterValues":
        """Tensor by tensor, this minus `other`."""
        return self._like(a - b for a, b in zip(self.tensors(), other.tensors(), strict=True))

    def zeros(self) -> "WriterValues":
        """Zeros of the same shapes."""
        return self._like(map(torch.zeros_like, self.tensors()))

    def rows(self, where: slice, places: slice = slice(None)) -> "WriterValues":
        """Some prompts of the batch, or some of their positions."""

        def cut(own: Tensors) -> Tensors:
            return own.cut(where, places) if isinstance(own, Parked) else [t[where, places] for t in own]

        return WriterValues(self.embed[where, places], *map(cut, self._lists()))

    def at(self, rows: Int[Tensor, " batch"], positions: Int[Tensor, " batch"]) -> "WriterValues":
        """One position a prompt; the axis stays, of length 1."""
        return self._like(t[rows, positions][:, None] for t in self.tensors())


def join_neurons(
    model: Model, layer: int, values: Float[Tensor, "batch pos neuron"]
) -> Float[Tensor, "batch pos d_model"]:
    """What a block's neuron or feature nodes add to the stream when their scaled outputs are `values`; float32."""
    return values @ model.part_weights(layer)


def scaled_heads(
    model: Model,
    layer: int,
    z: Float[Tensor, "batch pos heads_d_head"],
    attention_out: Float[Tensor, "batch pos d_model"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Z of every head over the post-norm's divisor, so that a head's share of the stream is linear in it; float32."""
    heads = z.float().unflatten(-1, (model.heads.q, model.heads.width))
    post = model.blocks[layer].attention_post
    if post is None or attention_out is None:
        return heads
    scaled = heads / post.sigma(attention_out)[..., None]
    for which, change in model.held.get(layer, ()):
        scaled = with_changed(scaled, which, change)
    return scaled


def with_changed(
    heads: Float[Tensor, "batch pos head d_head"], which: list[int], change: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch pos head d_head"]:
    """A copy of the heads' outputs in which those of `which` are what `change` makes of them."""
    changed = heads.clone()
    changed[..., which, :] = change(heads[..., which, :])
    return changed


def recorded_heads(model: Model, activations: ActivationCache, layer: int) -> Float[Tensor, "batch pos head d_head"]:
    """Scaled outputs of a block's heads in a recorded pass, out of reach of its gradients; see `scaled_heads`."""
    out = activations.attention_out[layer].detach() if activations.attention_out else None
    return scaled_heads(model, layer, activations.z[layer].detach(), out)


def writer_vectors(
    model: Model, values: WriterValues, upto: int | None = None
) -> Float[Tensor, "writers batch pos d_model"]:
    """The vector of every writer, or of those before block `upto`, in the order of `graph.writers`."""
    graph, blocks = model.graph, model.blocks[:upto]
    batch, pos, d_model = values.embed.shape
    count = graph.upstream_of_attention(len(blocks))
    vectors = values.embed.new_empty(count, batch, pos, d_model)
    vectors[0] = values.embed
    for layer, block in enumerate(blocks):
        z = values.heads[layer].flatten(0, 1).transpose(0, 1)  # head, batch * pos, d_head
        torch.bmm(z, block.head_weights(), out=vectors[graph.head_rows(layer)].view(len(z), -1, d_model))
        vectors[graph.mlp_row(layer)] = values.mlps[layer]
    return vectors


@dataclass
class AblationValues:
    """Replacement values of one task under one ablation; made once, asked for batch by batch."""

    kind: str
    """The ablation."""
    model: Model | None = None
    """Of by-role: the model that runs the corrupted prompts."""
    means: dict[tuple[str, int], WriterValues] = field(default_factory=dict)
    """By template and prompt length (`EVERYWHERE`: over all prompts and positions): means, with a batch axis of 1."""

    @classmethod
    def of(cls, model: Model, task: Task, kind: str, max_memory: int | None = None) -> "AblationValues":
        """Runs the corrupted prompts once where means are needed, in batches that take at most `max_memory` bytes.

        Raises `InputError` for mean-position when a prompt is the only one of its template and length: its mean would
        be that prompt.
        """
        check_ablation(kind)
        if kind == "mean":
            return cls(kind, means={EVERYWHERE: _mean_over_positions(model, task, max_memory)})
        if kind == "mean-position":
            return cls(kind, means=_mean_by_position(model, task, max_memory))
        return cls(kind, model)

    @property
    def from_prompts(self) -> bool:
        """Whether values are those of the corrupted prompts: then none differs before the first different token."""
        return self.kind == "corrupted"

    def at(self, batch: Batch, clean: WriterValues, task: Task) -> WriterValues:
        """The replacement values for a batch whose clean values are `clean` (not for "corrupted": run the prompts)."""
        if self.kind == "zero":
            return _zeros(self.model, clean)
        if self.kind == "by-role":
            assert self.model is not None
            return _by_role(self.model, batch, clean, task)
        if self.kind == "mean":
            pairs = zip(self.means[EVERYWHERE].tensors(), clean.tensors(), strict=True)
            return clean._like(mean.expand_as(value) for mean, value in pairs)
        groups = [_group(task.pairs[row]) for row in batch.rows]

        def filled(value: Tensor, *means: Tensor) -> Tensor:
            target = torch.zeros_like(value)
            for row, (_, length), mean in zip(target, groups, means, strict=True):
                row[:length] = mean[0]
            return target

        return clean._like(map(filled, clean.tensors(), *(self.means[group].tensors() for group in groups)))


def _zeros(model: Model | None, clean: WriterValues) -> WriterValues:
    """Nothing written; biases, which no node writes, are what is left of a stream whose features are nodes."""
    zeros = clean.zeros()
    cuts = [] if model is None else [layer for layer, features in enumerate(model.graph.streams) if features]
    for place, layer in enumerate(cuts):
        assert model is not None
        biases = [bias for block in model.blocks[: layer + 1] if (bias := block.output_bias()) is not None]
        if biases:
            zeros.streams[2 * place] = zeros.streams[2 * place] + torch.stack(biases).sum(0)
    return zeros


def _mean_over_positions(model: Model, task: Task, max_memory: int | None) -> WriterValues:
    total: list[Tensor] | None = None
    count = 0.0
    corrupted = replace(
        task, pairs=tuple(replace(pair, clean=pair.corrupted, roles={}, answer_position=-1) for pair in task.pairs)
    )
    for batch in batches(model, corrupted, shared_prefix=False, corrupted=False, max_memory=max_memory):
        with torch.no_grad():
            values = WriterValues.of(model, model.record(batch.clean, logits=False))
        real = batch.clean.real()
        sums = [torch.einsum("bp,bp...->...", real, tensor)[None, None] for tensor in values.tensors()]
        total = sums if total is None else [a + b for a, b in zip(total, sums, strict=True)]
        count += float(real.sum())
    assert total is not None
    return values._like(tensor / count for tensor in total)


def role_alignment(pair: Pair) -> list[int]:
    """For each token of the clean prompt, the token of the corrupted one whose value stands for it.

    Prompts of one length match token by token. Else roles that both prompts name match, and the last tokens do; what
    lies between two matches is counted back from the later one, and where the corrupted prompt has fewer tokens there
    its first one stands for the rest. The tokens that both share at the beginning match.
    Raises `InputError` where the prompts differ in length and name no role in common, or name them in another order.
    """
    if len(pair.clean) == len(pair.corrupted):
        return list(range(len(pair.clean)))
    common = sorted((pair.roles[name], place) for name, place in pair.corrupted_roles.items() if name in pair.roles)
    if not common:
        raise InputError(
            f"by-role needs roles that both prompts name, and {pair.clean_text!r} has none in common with "
            f"{pair.corrupted_text!r}. Give the columns roles and corrupted_roles, or use zero or mean ablation."
        )
    anchors = [(-1, -1), *common, (len(pair.clean) - 1, len(pair.corrupted) - 1)]
    anchors = [anchor for i, anchor in enumerate(anchors) if not i or anchor != anchors[i - 1]]
    if any(a >= c or b >= d for (a, b), (c, d) in pairwise(anchors)):
        raise InputError(f"The roles of {pair.clean_text!r} stand in another order in {pair.corrupted_text!r}.")
    shared = next(i for i, (a, b) in enumerate(zip((*pair.clean, -1), (*pair.corrupted, -2), strict=False)) if a != b)
    aligned = [-1] * len(pair.clean)
    for (a, b), (c, d) in pairwise(anchors):
        for place in range(a + 1, c + 1):
            aligned[place] = max(d - (c - place), min(b + 1, d))
    aligned[:shared] = range(shared)
    return aligned


def _by_role(model: Model, batch: Batch, clean: WriterValues, task: Task) -> WriterValues:
    """What writers write on the corrupted prompts, each value at the token of the clean prompt that it stands for."""
    pairs = [task.pairs[row] for row in batch.rows]
    other = replace(
        task,
        pairs=tuple(replace(p, clean=p.corrupted, roles={}, corrupted_roles={}, answer_position=-1) for p in pairs),
    )
    rows = range(len(pairs))
    corrupted = make_batch(model, other, rows, shared_prefix=False, corrupted=False).clean
    with torch.no_grad():
        values = WriterValues.of(model, model.record(corrupted, logits=False))
    places = [torch.tensor(role_alignment(pair), device=clean.embed.device) for pair in pairs]

    def filled(like: Tensor, found: Tensor) -> Tensor:
        target = torch.zeros_like(like)
        for own, row, where in zip(target, found, places, strict=True):
            own[: len(where)] = row[where]
        return target

    return clean._like(map(filled, clean.tensors(), values.tensors()))


def _group(pair: Pair) -> tuple[str, int]:
    """Prompts whose positions mean the same."""
    return pair.template, len(pair.clean)


def _mean_by_position(model: Model, task: Task, max_memory: int | None) -> dict[tuple[str, int], WriterValues]:
    groups = [_group(pair) for pair in task.pairs]
    for row, group in enumerate(groups):
        if groups.count(group) == 1:
            template = f" of template {group[0]}" if group[0] else ""
            raise InputError(
                f"mean-position needs at least two prompts of each template and length; only prompt {row}{template} "
                f"has {group[1]} tokens. Use --ablation mean, more prompts (--n), or prompts of equal length."
            )
    sums: dict[tuple[str, int], WriterValues] = {}
    for batch in batches(model, task, shared_prefix=False, max_memory=max_memory):
        values = corrupted_values(model, batch)
        for i, row in enumerate(batch.rows):
            group = groups[row]
            one = values._like(t[i : i + 1, : group[1]] / groups.count(group) for t in values.tensors())
            before = sums.get(group)
            sums[group] = one if before is None else one.minus(before.zeros().minus(before))
    return sums


def corrupted_values(model: Model, batch: Batch) -> WriterValues:
    """The writers' outputs on the corrupted prompts of a batch."""
    assert batch.corrupted is not None, "the batch was made without corrupted prompts"
    return WriterValues.of(model, batch.corrupted)


def ablated_values(
    model: Model, task: Task, batch: Batch, replacement: AblationValues, clean: WriterValues
) -> WriterValues:
    """What ablated writers write on a batch whose clean values are `clean`."""
    return corrupted_values(model, batch) if batch.corrupted is not None else replacement.at(batch, clean, task)
