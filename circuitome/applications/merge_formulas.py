"""The formulas of merging, on the changes [model, ...] that fine-tunings made to one tensor; float32."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

PARALLEL = 0.9995
"""The cosine from which SLERP is linear, as the sine of the angle would divide by nearly 0."""


def added(changes: Float[Tensor, "model ..."]) -> Float[Tensor, "..."]:
    """Task arithmetic: the sum of the changes."""
    return changes.sum(0)


def dropped(changes: Float[Tensor, "model ..."], drop: float, generator: torch.Generator) -> Float[Tensor, "model ..."]:
    """DARE: each entry is 0 with probability `drop`, the others are divided by 1 - drop, so that the mean stays."""
    if not drop:
        return changes
    kept = torch.rand(changes.shape, generator=generator) >= drop
    return changes * kept / (1 - drop)


def disjoint_mean(
    changes: Float[Tensor, "model ..."], thresholds: Float[Tensor, " model"], majority: float
) -> Float[Tensor, "..."]:
    """TIES: entries below a model's threshold are 0; the mean of the others that have the sign of their sum.

    Where the sum is 0 the sign is `majority`, that of most entries.
    """
    trimmed = changes * (changes.abs() >= thresholds.view(-1, *[1] * (changes.ndim - 1)))
    sign = trimmed.sum(0).sign()
    sign = torch.where(sign == 0, torch.full_like(sign, majority), sign)
    agreeing = trimmed * (trimmed.sign() == sign)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def slerp(first: Tensor, second: Tensor, t: float) -> Tensor:
    """On the great circle between two tensors as they are, not normalised: t = 0 is the first, t = 1 the second."""
    a, b = (tensor.double().flatten() for tensor in (first, second))
    size = float(a.norm() * b.norm())
    cosine = float(a @ b) / size if size else 1.0
    if abs(cosine) > PARALLEL:
        return torch.lerp(first.double(), second.double(), t).to(first.dtype)
    angle = math.acos(cosine)
    mixed = (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)
    return mixed.view_as(first).to(first.dtype)


class Largest:
    """The size of the k-th largest entry of tensors that are seen one by one, exactly, in two passes over them.

    A float's bits grow with its size, so the first pass counts their upper half and the second the lower half within
    the bin that holds the k-th one.
    """

    HALF = 15

    def __init__(self) -> None:
        self.counts = torch.zeros(1 << 16, dtype=torch.long)
        self.bin: int | None = None
        self.above = 0

    def see(self, values: Tensor) -> None:
        """Count a tensor's entries: once in each pass."""
        bits = values.float().abs().flatten().contiguous().view(torch.int32)
        upper = bits >> self.HALF
        if self.bin is None:
            self.counts += torch.bincount(upper, minlength=len(self.counts))
        else:
            lower = bits[upper == self.bin] & ((1 << self.HALF) - 1)
            self.counts += torch.bincount(lower, minlength=len(self.counts))

    def narrow(self, k: int) -> None:
        """Ends the first pass: the k-th largest entry is asked for."""
        self.bin, self.above = self._bin(k, 0)
        self.counts = torch.zeros_like(self.counts)

    def size(self, k: int) -> float:
        """Ends the second pass: the size of the k-th largest entry."""
        assert self.bin is not None, "the first pass is not ended"
        lower, _ = self._bin(k, self.above)
        return float(torch.tensor((self.bin << self.HALF) | lower, dtype=torch.int32).view(torch.float32))

    def _bin(self, k: int, above: int) -> tuple[int, int]:
        """The bin with the k-th largest, and how many lie above it."""
        total = above + self.counts.flip(0).cumsum(0)
        place = int((total >= k).nonzero()[0])
        found = len(self.counts) - 1 - place
        return found, int(total[place] - self.counts[found])
