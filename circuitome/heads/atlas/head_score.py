"""A score of every head with its uncertainty, and what it would be by chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from circuitome.results import Estimate, Samples


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class HeadScore(Samples):
    """One number a head, measured on several sequences: `samples` is [n, layer, head], float32.

    score = cm.heads.head_atlas(model)["induction"]
    score.mean, score.top(5), score["a5.h1"]
    """

    name: str
    """Short name, e.g. "induction"."""
    what: str
    """What it says, in a phrase."""
    chance: float | None = None
    """What a head with even attention over all it may see gets; None where that says nothing."""
    random: Float[Tensor, "seed layer head"] | None = None
    """What the heads get when the model's weights are noise of the same size; None where nobody asked."""

    @classmethod
    def of(
        cls, name: str, what: str, unit: str, samples: Tensor, chance: float | None = None, random: Tensor | None = None
    ) -> "HeadScore":
        """The score with these samples [n, layer, head] of every head of a model."""
        layers, heads = (tuple(f"{kind}{i}" for i in range(n)) for kind, n in zip("ah", samples.shape[1:], strict=True))
        return cls(samples=samples, axes=(layers, heads), unit=unit, name=name, what=what, chance=chance, random=random)

    @property
    def ceiling(self) -> float | None:
        """The largest score of any head with random weights; None where none was measured."""
        return None if self.random is None else float(self.random.max())

    def top(self, n: int, *, signed: bool = True) -> list[tuple[str, Estimate]]:
        """The `n` heads with the largest scores (unless `signed`: with the largest in size), largest first."""
        return super().top(n, signed=signed)

    def to_dict(self) -> dict[str, Any]:
        """Means, intervals and chance levels, as plain JSON values."""
        levels = {"chance": self.chance, "random_ceiling": self.ceiling}
        return {"name": self.name, "what": self.what, **super().to_dict(), **levels}


def named(scores: Sequence[HeadScore]) -> dict[str, HeadScore]:
    """Scores by their names."""
    return {score.name: score for score in scores}
