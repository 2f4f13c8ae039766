"""LayerNorm and RMSNorm seen from the residual stream: scale, centring, and gain folded into what follows."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.models.placement import parameter


@dataclass(frozen=True)
class Norm:
    """y = gain * (x - mean) / sigma + bias, with sigma = sqrt(variance + eps); RMSNorm has no mean and no bias.

    An identity in a norm's place has gain 1, no mean and sigma 1. Weights are read from the module at every use, so
    that they are its own after a training step, `load_state_dict` or `.to(...)`.
    """

    module: nn.Module
    """The model's own module; it does the computing, this view only describes it."""
    gain_offset: float
    """Added to the module's weight before use: 1 for Gemma."""

    def __call__(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The module's own output."""
        normed: Tensor = self.module(x)
        return normed

    @property
    def centred(self) -> bool:
        """True for LayerNorm."""
        return isinstance(self.module, nn.LayerNorm)

    @property
    def gain(self) -> Float[Tensor, "*d_model"]:
        """Multiplier of each coordinate, float32, any offset (Gemma's 1 + weight) included; 1 where there is none."""
        weight = parameter(self.module)
        return torch.ones(()) if weight is None else weight.detach().float() + self.gain_offset

    @property
    def bias(self) -> Float[Tensor, " d_model"] | None:
        """Added after the gain, float32; None where the norm has no bias."""
        bias = parameter(self.module, "bias")
        return None if bias is None else bias.detach().float()

    @property
    def eps(self) -> float:
        """Added to the variance."""
        module: Any = self.module
        return float(getattr(module, "variance_epsilon", None) or module.eps)

    def centre(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """The residual x as the norm divides it: minus its mean over coordinates under LayerNorm; float32."""
        x = x.float()
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def sigma(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... 1"]:
        """The divisor at x: root of the mean square of the centred coordinates plus eps, float32.

        1 where an identity stands in the norm's place, as in models whose circuit is known.
        """
        if isinstance(self.module, nn.Identity):
            return torch.ones_like(x[..., :1]).float()
        return (self.centre(x).square().mean(-1, keepdim=True) + self.eps).sqrt()
