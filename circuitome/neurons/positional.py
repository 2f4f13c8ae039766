"""Neurons that know where a token stands: information between activity and position, and the shape of their curve.

    I = sum over p of w_p [ fr(p) ln(fr(p) / fr) + (1 - fr(p)) ln((1 - fr(p)) / (1 - fr)) ],

fr(p) the share of windows in which the neuron is active at position p, w_p the share of counted tokens there, and
fr = sum of w_p fr(p); in nats, at most ln 2. Estimated from few windows I is too large by about (positions - 1) /
(2 tokens), which is taken off. Source: Voita et al. 2023, arXiv:2309.04827, section 5, who name the types by eye; the
rules below are ours.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

INFORMED = 0.05
"""Nats from which a neuron is called positional (section 5)."""
KINDS = ("not positional", "oscillating", "threshold", "one extreme", "other")
"""Types: up and down again and again, both 0 and 1 reached, only one of them, neither."""
SMOOTHED, SWING, TURNS = 32, 0.1, 3
"""Positions of the moving mean; how far it must leave the mean on either side; changes of side of an oscillation."""
NEAR, PART, EXACT = 0.02, 0.05, 0.9
"""How near to 0 or 1 is extreme; share of positions that must be; share of these that must be exact to be strong."""
BINS = 64
"""Points of a curve that are kept."""
WINDOWS = 20
"""Full windows below which positions are not judged."""


def information(active: Int[Tensor, "pos neuron"], counted: Int[Tensor, " pos"]) -> Float[Tensor, " neuron"]:
    """I of every neuron, in nats, its bias taken off; 0 for one that is never or always active.

    Computed as the entropy of all activity less the mean of the entropies at each position, which is the same.
    """
    seen = counted > 0
    active, counted = active[seen], counted[seen].double()
    total = counted.sum()
    mean = active.sum(0, dtype=torch.double) / total
    at_positions = (counted / total).float() @ _entropy(active / counted[:, None].float())
    bias = (len(counted) - 1) / (2 * total)
    return torch.where((mean > 0) & (mean < 1), _entropy(mean) - at_positions - bias, 0.0).float()


def _entropy(rate: Tensor) -> Tensor:
    """-x ln x - (1 - x) ln(1 - x), with 0 ln 0 = 0."""
    return torch.special.entr(rate) + torch.special.entr(1 - rate)


def smoothed(rate: Float[Tensor, "pos neuron"]) -> Float[Tensor, "pos neuron"]:
    """The moving mean over `SMOOTHED` positions, or an eighth of fewer than 256; shorter at the ends."""
    width = max(1, min(SMOOTHED, len(rate) // 8))
    sums = torch.cat([torch.zeros_like(rate[:1]), rate.cumsum(0)])
    low = (torch.arange(len(rate)) - (width - 1) // 2).clamp(min=0)
    high = (torch.arange(len(rate)) + width // 2 + 1).clamp(max=len(rate))
    return (sums[high] - sums[low]) / (high - low)[:, None]


def turns(curve: Float[Tensor, "pos neuron"]) -> Int[Tensor, " neuron"]:
    """How often a curve goes from `SWING` above its mean to as far below it, or back."""
    away = curve - curve.mean(0)
    side, count = torch.zeros(curve.shape[1]), torch.zeros(curve.shape[1], dtype=torch.long)
    for row in away:
        now = torch.where(row > SWING, 1.0, torch.where(row < -SWING, -1.0, side))
        count += (now != side) & (side != 0)
        side = now
    return count


def kinds(
    rate: Float[Tensor, "pos neuron"], positional: Bool[Tensor, " neuron"]
) -> tuple[Int[Tensor, " neuron"], Bool[Tensor, " neuron"]]:
    """Type of every neuron by number in `KINDS`, and whether it is strong: its extremes are exactly 0 and 1."""
    kind = torch.zeros(rate.shape[1], dtype=torch.long)
    strong = torch.zeros(rate.shape[1], dtype=torch.bool)
    columns = positional.nonzero()[:, 0]
    if not len(columns):
        return kind, strong
    some = rate[:, columns]
    curve = smoothed(some)
    low, high = (curve < NEAR).float().mean(0) >= PART, (curve > 1 - NEAR).float().mean(0) >= PART
    kind[columns] = torch.where(turns(curve) >= TURNS, 1, torch.where(low & high, 2, torch.where(low | high, 3, 4)))
    extreme = (curve < NEAR) | (curve > 1 - NEAR)
    exact = extreme & ((some == 0) | (some == 1))
    strong[columns] = extreme.any(0) & (exact.sum(0) >= EXACT * extreme.sum(0))
    return kind, strong


def binned(rate: Float[Tensor, "pos neuron"]) -> Float[Tensor, "bin neuron"]:
    """The curve at `BINS` points or fewer, each the mean of the positions around it."""
    return torch.stack([part.mean(0) for part in rate.tensor_split(min(BINS, len(rate)))])
