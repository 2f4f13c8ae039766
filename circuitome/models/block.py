"""One transformer block seen as readers and writers: its modules, and its weights head by head."""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from circuitome.models.families import Family
from circuitome.models.norms import Norm
from circuitome.models.placement import parameter


@dataclass(frozen=True)
class Heads:
    """Head counts and width of every block of a model. The reader axis is: all q heads, all k heads, all v heads."""

    q: int
    """Query heads."""
    kv: int
    """Key/value heads."""
    width: int
    """Width d_head of each."""

    @property
    def readers(self) -> int:
        """Q + 2 kv."""
        return self.q + 2 * self.kv


@dataclass(frozen=True)
class Block:
    """The parts of one block. Weights are read from the modules when asked for; nothing is folded for good."""

    layer: nn.Module
    """The block itself."""
    attention: nn.Module
    """Its attention module."""
    projections: tuple[nn.Module, ...]
    """q, k and v projections, or the one fused projection."""
    output: nn.Module
    """The attention's output projection."""
    mlp: tuple[nn.Module, ...]
    """The modules from the MLP's normed input to its output."""
    attention_norm: Norm | None
    """Norm in front of q, k, v; None where they read the residual itself."""
    mlp_norm: Norm | None
    """Norm in front of the MLP."""
    attention_post: Norm | None
    """Norm on the attention's output."""
    mlp_post: Norm | None
    """Norm on the MLP's output."""
    qk_norms: tuple[Norm, ...]
    """Norms on queries and keys."""
    sum_norms: tuple[Norm, ...]
    """Norms on the stream itself, after the attention and after the MLP are added; none in most architectures."""
    activation: nn.Module
    """The MLP's activation function."""
    gated: bool
    """Whether the MLP's neurons are activation(gate) * up."""
    heads: Heads
    """Head counts."""
    fused: str
    """Layout of a fused projection."""

    @classmethod
    def of(cls, layer: nn.Module, family: Family, heads: Heads) -> "Block":
        """The view of a transformers decoder block."""
        attention = attrgetter(family.attention)(layer)

        def norm(name: str | None) -> Norm | None:
            return Norm(getattr(layer, name), family.gain_offset) if name else None

        return cls(
            layer=layer,
            attention=attention,
            projections=tuple(attrgetter(name)(attention) for name in family.projections),
            output=attrgetter(family.output)(attention),
            mlp=tuple(attrgetter(name)(layer) for name in family.mlp),
            attention_norm=norm(family.attention_norm),
            mlp_norm=norm(family.mlp_norm),
            attention_post=norm(family.attention_post_norm),
            mlp_post=norm(family.mlp_post_norm),
            qk_norms=tuple(Norm(getattr(attention, name), family.gain_offset) for name in family.qk_norms),
            sum_norms=tuple(Norm(attrgetter(name)(layer), 0.0) for name in family.sum_norms or ()),
            activation=attrgetter(family.activation)(layer),
            gated=family.gated,
            heads=heads,
            fused=family.fused,
        )

    def split(
        self, outputs: Sequence[Shaped[Tensor, "batch pos _"]], *, copy: bool = False
    ) -> Shaped[Tensor, "batch pos reader d_head"]:
        """What the projections gave, as one vector per reader; with `copy`, never a view of it."""
        if self.fused == "interleaved":
            parts = outputs[0].unflatten(-1, (self.heads.q, 3, self.heads.width))
            return parts.transpose(-3, -2).flatten(-3, -2)
        whole = torch.cat(list(outputs), -1) if len(outputs) > 1 or copy else outputs[0]
        return whole.unflatten(-1, (self.heads.readers, self.heads.width))

    def merge(self, values: Shaped[Tensor, "batch pos reader d_head"]) -> list[Shaped[Tensor, "batch pos _"]]:
        """The inverse of `split`."""
        if self.fused == "interleaved":
            return [values.unflatten(-2, (3, self.heads.q)).transpose(-3, -2).flatten(-3)]
        if self.fused:
            return [values.flatten(-2)]
        return [part.flatten(-2) for part in values.split((self.heads.q, self.heads.kv, self.heads.kv), -2)]

    def reader_weights(self, readers: Sequence[int] | None = None) -> Float[Tensor, "reader d_head d_model"]:
        """Weight of each q, k and v reader (or of some), in the model's dtype: its value is weight @ norm(x) + bias."""
        weights = [weight_of(module).detach() for module in self.projections]
        if self.fused == "interleaved":
            views = list(weights[0].unflatten(0, (self.heads.q, 3, self.heads.width)).unbind(1))
        else:
            views = [weight.unflatten(0, (-1, self.heads.width)) for weight in weights]
        if readers is None:
            return torch.cat(views)
        starts = [sum(map(len, views[:i])) for i in range(len(views) + 1)]
        which = [bisect(starts, reader) - 1 for reader in readers]
        return torch.stack([views[i][reader - starts[i]] for i, reader in zip(which, readers, strict=True)])

    def reader_biases(self) -> Float[Tensor, "reader d_head"]:
        """Bias of each q, k and v reader; zeros where the projection has none."""
        biases = [_bias_or_zero(module) for module in self.projections]
        if self.fused == "interleaved":
            return biases[0].unflatten(0, (self.heads.q, 3, self.heads.width)).transpose(0, 1).flatten(0, 1)
        return torch.cat(biases).unflatten(0, (self.heads.readers, self.heads.width))

    def head_weights(self, heads: Sequence[int] | None = None) -> Float[Tensor, "head d_head d_model"]:
        """Output weights of each head (or of some), float32, with the gain of a post-norm folded in.

        A head's share of the residual stream is (z / scale) @ weight, with scale the post-norm's sigma (1 without).
        """
        by_head = weight_of(self.output).detach().unflatten(1, (self.heads.q, self.heads.width))
        weight = (by_head if heads is None else by_head[:, heads]).float().permute(1, 2, 0)
        return weight * self.attention_post.gain if self.attention_post else weight

    def output_bias(self) -> Float[Tensor, " d_model"] | None:
        """Bias of the output projection, float32: a part of the stream that is no head's; None without one."""
        return _bias(self.output)

    def join_heads(self, z: Float[Tensor, "batch pos head d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """What the attention adds to the stream when its heads' scaled outputs are `z`; float32."""
        out = torch.einsum("bphe,hed->bpd", z, self.head_weights())
        bias = self.output_bias()
        return out if bias is None else out + bias

    def attend_inputs(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The normed input of q, k and v for a residual x."""
        return self.attention_norm(x) if self.attention_norm else x

    @property
    def norms(self) -> list[nn.Module]:
        """The block's norms that read or write the residual stream."""
        norms = (self.attention_norm, self.mlp_norm, self.attention_post, self.mlp_post, *self.sum_norms)
        return [norm.module for norm in norms if norm is not None]

    @property
    def mlp_writer(self) -> nn.Module:
        """The projection of the MLP that writes to the stream; its input are the neurons' activations."""
        return self._mlp_projections[-1]

    @property
    def mlp_readers(self) -> list[nn.Module]:
        """The MLP's projections that read the residual stream: gate and up, the two as one module, or the only one."""
        return self._mlp_projections[:-1]

    @property
    def _mlp_projections(self) -> list[nn.Module]:
        parts = [part for module in self.mlp for part in module.modules()]
        return [part for part in parts if getattr(getattr(part, "weight", None), "ndim", 0) == 2]

    @property
    def n_neurons(self) -> int:
        """Number of the MLP's neurons."""
        return width_of(self.mlp_writer)

    def split_inputs(self, values: Sequence[Tensor], dim: int = -1) -> list[Tensor]:
        """What `mlp_readers` gave, as gate and up, or the only input, of each neuron; a fused projection holds both."""
        return [part for value in values for part in value.split(self.n_neurons, dim)]

    def neuron_shares(self, values: Tensor, output: Tensor) -> Tensor:
        """What neurons write with over the divisor of a post-norm (1 without), float32.

        Times its row of `neuron_weights` it is what a neuron adds to the stream. `output` is what the MLP's last
        projection made of all neurons.
        """
        return values.float() if self.mlp_post is None else values.float() / self.mlp_post.sigma(output)

    def neuron_weights(self, neurons: Sequence[int] | None = None) -> Float[Tensor, "neuron d_model"]:
        """Output weights of each neuron (or of some), float32, a post-norm's gain folded in; see `head_weights`."""
        weight = weight_of(self.mlp_writer).detach().T
        weight = (weight if neurons is None else weight[list(neurons)]).float()
        return weight * self.mlp_post.gain if self.mlp_post else weight

    def neuron_values(
        self, neurons: Sequence[int], x: Float[Tensor, "neuron rows d_model"]
    ) -> Float[Tensor, "neuron rows"]:
        """What some neurons write with, each for a residual of its own, in the model's dtype."""
        which, normed = list(neurons), self.mlp_norm(x) if self.mlp_norm else x
        weights = self.split_inputs([weight_of(module).detach() for module in self.mlp_readers], 0)
        biases = self.split_inputs([_bias_or_zero(module) for module in self.mlp_readers], 0)
        inputs = [
            (normed @ weight[which][..., None])[..., 0] + bias[which][:, None]
            for weight, bias in zip(weights, biases, strict=True)
        ]
        return self.activation(inputs[0]) * inputs[1] if self.gated else self.activation(inputs[0])

    def mlp_bias(self) -> Float[Tensor, " d_model"] | None:
        """Bias of the MLP's last projection, float32: a part of the stream that is no neuron's; None without one."""
        return _bias(self.mlp_writer)

    @property
    def attention_end(self) -> nn.Module:
        """The module whose output the attention adds to the stream."""
        return self.attention_post.module if self.attention_post else self.output

    @property
    def mlp_ends(self) -> tuple[nn.Module, nn.Module]:
        """First and last module between the residual that the MLP reads and what it adds to the stream."""
        first = self.mlp_norm.module if self.mlp_norm else self.mlp[0]
        return first, self.mlp_post.module if self.mlp_post else self.mlp[-1]

    def run_mlp(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """What the MLP adds to the stream when its input is the residual x, post-norm included."""
        for part in (self.mlp_norm, *self.mlp, self.mlp_post):
            if part is not None:
                x = part(x)
        return x


def weight_of(module: Any) -> Float[Tensor, "out in_"]:
    """A projection's weight as [out, in], or embeddings [token, d_model]; GPT-2's Conv1D stores the transpose.

    Of a model in one piece it is the module's own parameter, within reach of gradients; see `placement.parameter`.
    """
    weight = parameter(module)
    assert weight is not None
    return weight if isinstance(module, nn.Linear | nn.Embedding) else weight.T


def width_of(module: Any) -> int:
    """How many numbers a projection reads; no weight is loaded or dequantised for it."""
    return int(module.in_features if isinstance(module, nn.Linear) else module.weight.shape[0])


def as_stored(module: nn.Module, weight: Shaped[Tensor, "out in_"]) -> Shaped[Tensor, "_ _"]:
    """A weight [out, in] in the layout of a projection's own parameter: the inverse of `weight_of`."""
    return weight if isinstance(module, nn.Linear) else weight.T


def _bias(module: nn.Module) -> Tensor | None:
    """A projection's bias, float32."""
    bias = parameter(module, "bias")
    return None if bias is None else bias.detach().float()


def _bias_or_zero(module: nn.Module) -> Tensor:
    """A projection's bias in its own dtype, zeros where it has none."""
    bias = parameter(module, "bias")
    if bias is not None:
        return bias.detach()
    weight = weight_of(module)
    return weight.new_zeros(len(weight))
