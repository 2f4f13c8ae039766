"""What every source adds to the explained metric by all paths of the frozen model: one backward sweep.

An edge is one step; an effect is the sum over all paths of products of shares, a node's share in its target's value
being its edge over that value. It is the source's value times the gradient of the metric under the rules N, I, H and P
of `engine/backward_rules.py`. In a model without biases the effects of the tokens sum to the metric. Switching a source
off in the frozen model would change the metric by minus its effect.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.attribution_graphs.frozen_model import FrozenModel


@dataclass(frozen=True, eq=False)
class Effects:
    """What sources add to the metric by all paths."""

    tokens: Float[Tensor, " pos"]
    """Embeddings."""
    neurons: list[Float[Tensor, "pos _"]]
    """By block, neurons."""


def total_effects(frozen: FrozenModel, direction: Float[Tensor, " d_model"]) -> Effects:
    """The effects on `direction` . the stream that the final norm reads at the last token."""
    gradient = torch.zeros_like(frozen.embeddings)
    gradient[-1] = direction
    neurons = list[Tensor]()
    for attention, units in zip(reversed(frozen.attention), reversed(frozen.units), strict=True):
        shares = gradient @ units.writes().T
        neurons.append(shares * units.shares)
        through = units.back(shares)
        middle = gradient if frozen.model.graph.parallel else gradient + through
        gradient = middle + attention.back(middle[None])[0]
        gradient = gradient + through if frozen.model.graph.parallel else gradient
    return Effects((gradient * frozen.embeddings).sum(-1), neurons[::-1])
