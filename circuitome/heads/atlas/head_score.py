"""A score of every head with its uncertainty, and what it would be by chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.graph.node import Node
from circuitome.results import LEVEL, Estimate, resample_means


@dataclass(frozen=True, eq=False)
class HeadScore:
    """One number a head, measured on several sequences."""

    name: str
    """Short name, e.g. "induction"."""
    what: str
    """What it says, in a phrase."""
    unit: str
    """What one of it is."""
    samples: Float[Tensor, "n layer head"]
    """The score on each sequence, float32."""
    chance: float | None = None
    """What a head with even attention over all it may see gets; None where that says nothing."""
    random: Float[Tensor, "seed layer head"] | None = None
    """What the heads get when the model's weights are noise of the same size; None where nobody asked."""

    @cached_property
    def mean(self) -> Float[Tensor, "layer head"]:
        """Mean over sequences."""
        return self.samples.mean(0)

    @cached_property
    def interval(self) -> tuple[Float[Tensor, "layer head"], Float[Tensor, "layer head"]]:
        """Lower and upper ends of the 95 % bootstrap intervals over sequences; NaN with one sequence."""
        flat = self.samples.flatten(1).double()
        if len(flat) == 1:
            nothing = torch.full_like(self.mean, torch.nan)
            return nothing, nothing
        tail = (1 - LEVEL) / 2
        ends = torch.quantile(resample_means(flat, seed=0), flat.new_tensor([tail, 1 - tail]), dim=0)
        low, high = ends.float().view(2, *self.mean.shape)
        return low, high

    @cached_property
    def ceiling(self) -> float | None:
        """The largest score of any head with random weights; None where none was measured."""
        return None if self.random is None else float(self.random.max())

    def estimate(self, layer: int, head: int) -> Estimate:
        """One head's score with its interval."""
        low, high = (float(end[layer, head]) for end in self.interval)
        return Estimate(float(self.mean[layer, head]), low, high, self.unit, len(self.samples))

    def top(self, n: int) -> list[tuple[str, Estimate]]:
        """The `n` heads with the largest scores, largest first: name and score with its interval."""
        order = self.mean.nan_to_num(-torch.inf).flatten().argsort(descending=True, stable=True)[:n].tolist()
        places = [divmod(index, self.mean.shape[1]) for index in order]
        return [(str(Node.head(*place)), self.estimate(*place)) for place in places]

    def to_dict(self) -> dict[str, Any]:
        """Means, intervals and chance levels, as plain JSON values."""
        low, high = self.interval
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "mean": _numbers(self.mean),
            "low": _numbers(low),
            "high": _numbers(high),
            "chance": self.chance,
            "random_ceiling": self.ceiling,
        }


def _numbers(values: Tensor) -> list[list[float | None]]:
    """Nested lists with None for NaN, which JSON has not."""
    return [[None if x != x else x for x in row] for row in values.tolist()]


def named(scores: Sequence[HeadScore]) -> dict[str, HeadScore]:
    """Scores by their names."""
    return {score.name: score for score in scores}
