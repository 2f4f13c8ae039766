"""LayerNorm and RMSNorm seen from the residual stream: scale, centring, and gain folded into what follows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Norm:
    """y = gain * (x - mean) / sigma + bias, with sigma = sqrt(variance + eps); RMSNorm has no mean and no bias.

    An identity in a norm's place has gain 1, no mean and sigma 1.
    """

    module: nn.Module
    """The model's own module; it does the computing, this view only describes it."""
    centred: bool
    """True for LayerNorm."""
    gain: Float[Tensor, " #d_model"]
    """Multiplier of each coordinate, float32, any offset (Gemma's 1 + weight) included; one 1 where there is none."""
    bias: Float[Tensor, " d_model"] | None
    """Added after the gain, float32."""
    eps: float
    """Added to the variance."""

    @classmethod
    def of(cls, module: nn.Module, gain_offset: float) -> "Norm":
        """The view of a transformers norm module."""
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        centred = isinstance(module, nn.LayerNorm)
        eps = float(getattr(module, "variance_epsilon", None) or module.eps)  # type: ignore[arg-type]
        gain = torch.ones(1) if weight is None else weight.detach().float() + gain_offset
        return cls(module, centred, gain, None if bias is None else bias.detach().float(), eps)

    def centre(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """X minus its mean over coordinates where the norm does so, in float32."""
        x = x.float()
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def sigma(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... 1"]:
        """The divisor at x: root of the mean square of the centred coordinates plus eps, float32.

        1 where an identity stands in the norm's place, as in models whose circuit is known.
        """
        if isinstance(self.module, nn.Identity):
            return torch.ones_like(x[..., :1]).float()
        return (self.centre(x).square().mean(-1, keepdim=True) + self.eps).sqrt()
