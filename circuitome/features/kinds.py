"""How a dictionary is made sparse while it learns: which features stay, and what is added to the squared error.

topk        the k largest of each token (Gao et al. 2024)
batchtopk   the k * tokens largest of a batch; afterwards one threshold (Bussmann et al. 2024)
jumprelu    what exceeds a learned threshold; penalty (L0 / k - 1)^2 (Rajamanoharan et al. 2024)
l1          all above 0; penalty l1 * sum of f |W_dec| (Templeton et al. 2024)

Gradients of thresholds are those of a rectangular kernel of width `BANDWIDTH` (straight-through).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BANDWIDTH = 0.1
"""Width of the kernel, as a share of the threshold at the beginning."""

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sparsity:
    """What decides how sparse a dictionary is."""

    k: int
    """Features active on a token: exactly, on average, or as the target."""
    l1: float
    """Weight of the L1 penalty."""
    width: float = 1.0
    """Width of the kernel of thresholds."""


Kind = Callable[[Tensor, Parameters, Sparsity], tuple[Float[Tensor, "token feature"], Tensor]]
"""Given what features are before activation, the parameters and the sparsity: features, and the penalty a token."""


def topk(before: Tensor, parameters: Parameters, sparsity: Sparsity) -> tuple[Tensor, Tensor]:
    """The k largest of each token."""
    from circuitome.features.dictionary import activated

    return activated(before, sparsity.k, None), before.new_zeros(())


def batchtopk(before: Tensor, parameters: Parameters, sparsity: Sparsity) -> tuple[Tensor, Tensor]:
    """The k * tokens largest of the batch."""
    flat = before.relu().flatten()
    largest = flat.topk(min(sparsity.k * len(before), len(flat)), sorted=False)
    return torch.zeros_like(flat).scatter(0, largest.indices, largest.values).view_as(before), before.new_zeros(())


def jumprelu(before: Tensor, parameters: Parameters, sparsity: Sparsity) -> tuple[Tensor, Tensor]:
    """What exceeds the thresholds, and how far the mean number of features is from k."""
    threshold = parameters["log_threshold"].exp()
    features = _Jump.apply(before, threshold, sparsity.width)
    active = _Step.apply(before, threshold, sparsity.width).sum(-1).mean()
    return features, (active / sparsity.k - 1).square()


def l1(before: Tensor, parameters: Parameters, sparsity: Sparsity) -> tuple[Tensor, Tensor]:
    """All above 0, and the sum of features times the norms of their directions."""
    features = before.relu()
    return features, sparsity.l1 * (features @ parameters["W_dec"].norm(dim=1)).mean()


KINDS: dict[str, Kind] = {"topk": topk, "batchtopk": batchtopk, "jumprelu": jumprelu, "l1": l1}
"""By name."""


class _Jump(torch.autograd.Function):
    """z where z > threshold, else 0; the threshold's gradient is -threshold / width * kernel."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor, width: float) -> Tensor:  # type: ignore[override]  # as torch has it: its own takes anything
        ctx.save_for_backward(before, threshold)
        ctx.width = width
        return before * (before > threshold)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]  # as torch has it: its own takes anything
        before, threshold = ctx.saved_tensors
        kernel = ((before - threshold).abs() < ctx.width / 2) * (threshold / ctx.width)
        return gradient * (before > threshold), -(kernel * gradient).sum(0), None


class _Step(torch.autograd.Function):
    """1 where z > threshold, else 0; the threshold's gradient is -1 / width * kernel."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, threshold: Tensor, width: float) -> Tensor:  # type: ignore[override]  # as torch has it: its own takes anything
        ctx.save_for_backward(before, threshold)
        ctx.width = width
        return (before > threshold).to(before.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]  # as torch has it: its own takes anything
        before, threshold = ctx.saved_tensors
        kernel = ((before - threshold).abs() < ctx.width / 2) / ctx.width
        return None, -(kernel * gradient).sum(0), None
