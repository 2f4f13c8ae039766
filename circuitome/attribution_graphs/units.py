"""What the nodes of one MLP write and how they read: neurons here; a dictionary's features by the same protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.models.block import Block, weight_of
from circuitome.models.placement import parameter

SMALL = 1e-6
"""Below this size of its input an activation function's slope stands for its secant, as in the rules of gradients."""


@dataclass(frozen=True, eq=False)
class Reads:
    """How some nodes read the stream in the frozen model: each is vector . x + constant."""

    vectors: Float[Tensor, "node d_model"]
    """Gradients with respect to the stream at the node's own token."""
    constants: Float[Tensor, " node"]
    """What biases of norms and of the node itself add."""

    def values(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows node"]:
        """What they read of some streams."""
        return x @ self.vectors.T + self.constants


@runtime_checkable
class Units(Protocol):
    """The nodes of one MLP on one prompt. Whoever gives these puts other nodes than neurons into a graph."""

    @property
    def kind(self) -> str:
        """Kind of their names, see `graph/node.py`: neuron or feature."""

    @property
    def values(self) -> Float[Tensor, "pos unit"]:
        """What each wrote with."""

    @property
    def shares(self) -> Float[Tensor, "pos unit"]:
        """The same over the divisor of a post-norm: times its row of `writes` it is what a node added to the stream."""

    @property
    def expandable(self) -> int:
        """How many of the units, the first ones, have inputs."""

    @property
    def constant(self) -> Float[Tensor, "#pos d_model"]:
        """What the MLP adds to the stream whatever it reads: its bias."""

    def writes(self) -> Float[Tensor, "unit d_model"]:
        """What one unit of each node's share adds to the stream."""

    def reads(self, positions: Sequence[int], units: Sequence[int]) -> Reads:
        """How some nodes at some tokens read the stream that the MLP reads; at the prompt itself it gives `values`."""

    def back(self, gradient: Float[Tensor, "pos unit"]) -> Float[Tensor, "pos d_model"]:
        """The gradient at the stream that the MLP reads, for one at the `shares`."""


@dataclass(frozen=True, eq=False)
class NeuronUnits:
    """The neurons of one MLP by the secants of their activation functions; see `frozen_model.py`."""

    block: Block
    """The block."""
    scale: Float[Tensor, "pos 1"]
    """One over the divisor of the norm in front."""
    values: Float[Tensor, "pos neuron"]
    """What each neuron wrote with."""
    shares: Float[Tensor, "pos neuron"]
    """The same over the divisor of a post-norm."""
    constant: Float[Tensor, "#pos d_model"]
    """The MLP's bias, over the divisor of a post-norm."""
    post_scale: Float[Tensor, "pos 1"]
    """One over the divisor of a post-norm."""
    slopes: tuple[Float[Tensor, "pos neuron"], ...]
    """By input of a neuron (gate and up, or the only one): what one unit of it adds to the activation."""
    kind: str = "neuron"
    """What its nodes are."""

    @classmethod
    def of(
        cls,
        block: Block,
        scale: Float[Tensor, "pos 1"],
        inputs: Sequence[Float[Tensor, "pos _"]],
        values: Float[Tensor, "pos neuron"],
        output: Float[Tensor, "pos d_model"],
    ) -> "NeuronUnits":
        """From what a pass showed: outputs of the input projections, activations, output of the last projection."""
        parts = block.split_inputs(inputs)
        secant = _secant(block, parts[0])
        slopes = (secant * parts[1] / 2, secant * parts[0] / 2) if block.gated else (secant,)
        bias = block.mlp_bias()
        constant = torch.zeros_like(output[:1]) if bias is None else bias[None]
        post, post_scale = block.mlp_post, torch.ones_like(scale)
        if post is not None:
            post_scale = 1 / post.sigma(output)
            constant = constant * post.gain * post_scale
        return cls(block, scale, values, values * post_scale, constant, post_scale, slopes)

    @property
    def expandable(self) -> int:
        """All of them."""
        return self.values.shape[1]

    def writes(self) -> Float[Tensor, "neuron d_model"]:
        """Output weights, a post-norm's gain folded in."""
        return self.block.neuron_weights()

    def reads(self, positions: Sequence[int], units: Sequence[int]) -> Reads:
        """Input weights times secant slopes, through the norm in front."""
        at, which, norm, weights = list(positions), list(units), self.block.mlp_norm, self._weights
        biases: list[Any] = [parameter(module, "bias") for module in self.block.mlp_readers]
        vectors = torch.stack([self.slopes[i][at, which, None] * w[which].float() for i, w in enumerate(weights)]).sum(
            0
        )
        constants = torch.zeros(len(at), device=vectors.device)
        if biases[0] is not None:
            parts = self.block.split_inputs([bias.detach().float() for bias in biases])
            constants = torch.stack([self.slopes[i][at, which] * b[which] for i, b in enumerate(parts)]).sum(0)
        if norm is None:
            return Reads(vectors, constants)
        if norm.bias is not None:
            constants = constants + vectors @ norm.bias
        return Reads(norm.centre(vectors * norm.gain) * self.scale[at], constants)

    def back(self, gradient: Float[Tensor, "pos neuron"]) -> Float[Tensor, "pos d_model"]:
        """Through each neuron's secant and the norm in front."""
        each = gradient * self.post_scale
        parts = [each * slope @ w.float() for slope, w in zip(self.slopes, self._weights, strict=True)]
        read = torch.stack(parts).sum(0)
        norm = self.block.mlp_norm
        return read if norm is None else norm.centre(read * norm.gain) * self.scale

    @property
    def _weights(self) -> list[Float[Tensor, "neuron d_model"]]:
        """Weights of each input of the neurons."""
        return self.block.split_inputs([weight_of(module).detach() for module in self.block.mlp_readers], 0)


def _secant(block: Block, inputs: Float[Tensor, "pos neuron"]) -> Float[Tensor, "pos neuron"]:
    """act(z) / z, and act'(z) where z is nearly 0."""
    with torch.enable_grad():
        leaf = inputs.clone().requires_grad_(True)
        written = block.activation(leaf)
        slope = torch.autograd.grad(written.sum(), leaf)[0]
    return torch.where(inputs.abs() < SMALL, slope, written.detach() / inputs)
