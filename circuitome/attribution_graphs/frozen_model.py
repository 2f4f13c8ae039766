"""A model on one prompt with all held that is not linear: attention patterns, norm scales, secants of neurons.

What is left is linear in the token embeddings, in the activations of MLP neurons and in the biases, which are its
sources. Per layer, with A a head's attention probabilities, sigma the divisors of norms, all as the prompt made them,

    attention   x -> sum over heads of A (gain * centre(x) / sigma) W_V W_O        (and over a post-norm's divisor)
    neuron      f(x) = s / 2 * (g(x) u + g u(x)),  s = act(g) / g                  (gated; g, u its inputs as they were)
                f(x) = s * z(x)                                                    (plain MLP)

so that f at the prompt's own stream is what the neuron wrote with. Rules N, I, H and P of `engine/backward_rules.py`
are the gradients of this. Everything is float32 whatever the model's dtype.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.attribution_graphs.feature_units import FeatureUnits
from circuitome.attribution_graphs.units import NeuronUnits, Units
from circuitome.engine.readout import check_numbers
from circuitome.models.attention import mix
from circuitome.models.block import Block
from circuitome.models.described import Encoder
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.models.norms import Norm
from circuitome.neurons.factors import watching_neurons


@dataclass(frozen=True, eq=False)
class FrozenAttention:
    """The attention of one block as a linear map between residual streams."""

    block: Block
    """The block."""
    pattern: Float[Tensor, "head query key"]
    """Attention probabilities."""
    scale: Float[Tensor, "pos 1"]
    """One over the divisor of the norm in front."""
    post_scale: Float[Tensor, "pos 1"]
    """One over the divisor of the norm behind; 1 without one."""

    def values(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos kv d_head"]:
        """What key/value heads make of parts x of the stream, without any constant."""
        normed = scaled(self.block.attention_norm, x, self.scale)
        return (normed @ self._value_weights.flatten(0, 1).T).unflatten(-1, self._value_weights.shape[:2])

    def constant_values(self) -> Float[Tensor, "kv d_head"]:
        """What value vectors hold whatever the stream is: the bias of the norm in front and their own."""
        constant = self.block.reader_biases()[self._first :].float()
        norm = self.block.attention_norm
        if norm is None or norm.bias is None:
            return constant
        return constant + self._value_weights @ norm.bias

    def mixed(self, values: Float[Tensor, "batch pos kv d_head"]) -> Float[Tensor, "batch pos d_model"]:
        """What heads add to the stream for given value vectors, the output's bias left out."""
        z = mix(self.pattern.expand(len(values), -1, -1, -1), values.transpose(1, 2)).transpose(1, 2)
        return z.flatten(-2) @ self.block.head_weights().flatten(0, 1) * self.post_scale

    def back(self, gradient: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The gradient at the stream in front that goes through the heads, for one at the stream behind."""
        weights = self._value_weights
        values = self.values_back(gradient).unflatten(2, (len(weights), -1)).sum(3)
        return pulled(self.block.attention_norm, values.flatten(-2) @ weights.flatten(0, 1), self.scale)

    def values_back(self, gradient: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch key head d_head"]:
        """The gradient at the value vectors that each query head reads, for one at the stream behind."""
        z = self.outputs_back(gradient)
        return (self.pattern.transpose(-1, -2) @ z.transpose(1, 2)).transpose(1, 2)

    def outputs_back(self, gradient: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch query head d_head"]:
        """The gradient at what each head mixes."""
        weights = self.block.head_weights()
        return ((gradient * self.post_scale) @ weights.flatten(0, 1).T).unflatten(-1, weights.shape[:2])

    @property
    def _first(self) -> int:
        return self.block.heads.q + self.block.heads.kv

    @property
    def _value_weights(self) -> Float[Tensor, "kv d_head d_model"]:
        return self.block.reader_weights(range(self._first, self.block.heads.readers)).float()


def scaled(norm: Norm | None, x: Float[Tensor, "batch pos d_model"], scale: Float[Tensor, "pos 1"]) -> Tensor:
    """Parts of a stream behind a norm whose divisor is held."""
    return x if norm is None else norm.centre(x) * norm.gain * scale


def pulled(norm: Norm | None, gradient: Float[Tensor, "batch pos d_model"], scale: Float[Tensor, "pos 1"]) -> Tensor:
    """The gradient in front of a norm whose divisor is held, for one behind it."""
    return gradient if norm is None else norm.centre(gradient * norm.gain) * scale


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A model on one prompt as a linear map from its sources; see the module."""

    model: Model
    """The model."""
    ids: tuple[int, ...]
    """The prompt's tokens."""
    embeddings: Float[Tensor, "pos d_model"]
    """What tokens put into the stream."""
    streams: list[Float[Tensor, "pos d_model"]]
    """The residual stream in front of each block, and in front of the final norm."""
    attention: list[FrozenAttention]
    """By block."""
    units: list[Units]
    """By block, the nodes of its MLP."""
    final_scale: Float[Tensor, "pos 1"]
    """One over the final norm's divisor."""
    logits: Float[Tensor, " vocab"]
    """The model's own logits behind the last token."""
    biases: list[Float[Tensor, "pos d_model"]]
    """What biases alone make of the stream that each block's MLP reads, and of what the final norm reads."""

    @classmethod
    def of(
        cls, model: Model, ids: Sequence[int], transcoders: Mapping[int, Encoder] = MappingProxyType({})
    ) -> "FrozenModel":
        """One pass of the model over a prompt, by block with features of `transcoders` in place of neurons.

        Raises `NumericsError` where its logits are not finite.
        """
        inputs = Inputs.whole(torch.tensor([list(ids)], device=model.device))
        patterns = list[Tensor]()
        with torch.no_grad(), watching_neurons(model.blocks) as cache:
            with model.watching_attention(lambda layer, pattern: patterns.append(pattern[0].float())):
                seen = model.record(inputs)
            assert seen.final is not None and seen.logits is not None
            check_numbers(seen.logits, "logits")
            shown = cache.apart(1)
            attention, units = list[FrozenAttention](), list[Units]()
            for layer, block in enumerate(model.blocks):
                post = seen.attention_out[layer][0] if block.attention_post else seen.resid_pre[layer][0]
                scales = _scale(block.attention_norm, seen.resid_pre[layer][0]), _scale(block.attention_post, post)
                attention.append(FrozenAttention(block, patterns[layer], *scales))
                mlp_scale = _scale(block.mlp_norm, seen.resid_mid[layer][0])
                if layer in transcoders:
                    x, out = seen.resid_mid[layer][0], seen.mlp_out[layer][0]
                    units.append(FeatureUnits.of(block, transcoders[layer], mlp_scale, x, out))
                    continue
                values = (shown.inputs[layer], shown.activations[layer], shown.outputs[layer])
                units.append(NeuronUnits.of(block, mlp_scale, *_first_of(values)))
            streams = [x[0].float() for x in (*seen.resid_pre, seen.final)]
            scale = _scale(model.final_norm, seen.final[0])
            biases = _biases(model, attention, units)
        frozen = (streams[0], streams, attention, units, scale, seen.logits[0].float(), biases)
        return cls(model, tuple(ids), *frozen)

    @property
    def tokens(self) -> int:
        """Number of the prompt's tokens."""
        return len(self.ids)


def _first_of(values: tuple[list[Tensor], Tensor, Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """The only prompt of a batch, float32."""
    inputs, activations, outputs = values
    return [x[0].float() for x in inputs], activations[0].float(), outputs[0].float()


def _scale(norm: Norm | None, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos 1"]:
    return torch.ones_like(x[:, :1]).float() if norm is None else 1 / norm.sigma(x)


def _biases(model: Model, attention: Sequence[FrozenAttention], units: Sequence[Units]) -> list[Tensor]:
    """What biases alone make of the stream, where MLPs and the final norm read it."""
    stream, seen = torch.zeros(1, len(attention[0].scale), model.d_model, device=model.device), list[Tensor]()
    for layer, frozen in enumerate(attention):
        middle = stream + frozen.mixed(frozen.values(stream) + frozen.constant_values())
        bias = frozen.block.output_bias()
        middle = middle if bias is None else middle + bias
        seen.append((stream if model.graph.parallel else middle)[0])
        stream = middle + units[layer].constant
    return [*seen, stream[0]]


def inputs_of(frozen: FrozenModel) -> Inputs:
    """The prompt as a batch of one."""
    return Inputs.whole(torch.tensor([list(frozen.ids)], device=frozen.model.device))
