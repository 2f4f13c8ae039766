"""Directions of the residual stream in which two sets of prompts differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.editing.edit import Edit
from circuitome.engine.interventions.positions import At
from circuitome.engine.interventions.recorded import activations
from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.tasks.task import Task

TOKENS = ("end", "all")
"""Positions over which a prompt's stream can be averaged."""


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction of the stream, scaled so that strength 1 is as long as the stream itself is there.

    >>> model = cm.load("known-ioi")
    >>> print(cm.Direction("m1.resid_post", torch.ones(model.d_model), 0.0).edit(model, 0.5))
    a vector of norm 4 added at m1.resid_post
    """

    site: str
    """Where, such as m15.resid_post."""
    vector: Float[Tensor, " d_model"]
    """Its norm is the median norm of the stream at the positions it was made from."""
    separation: float
    """Norm of the difference of means, as a share of that norm."""
    unchanged: ClassVar[float] = 0.0
    """Strength of the model itself."""

    def __str__(self) -> str:
        return f"direction at {self.site}"

    def edit(self, model: Model, strength: float, *, at: At = "all") -> Edit:
        """`strength` times the vector added at its site."""
        return Edit.add(model, self.site, strength * self.vector, at=at)

    def random(self, model: Model, seed: int) -> "Direction":
        """A random direction of the same norm at the same site."""
        drawn = torch.randn(len(self.vector), generator=torch.Generator().manual_seed(seed)).to(self.vector)
        return Direction(self.site, drawn * (self.vector.norm() / drawn.norm()), 0.0)


def direction(
    model: Model,
    toward: Any,
    away: Any = None,
    *,
    layer: int | None = None,
    tokens: str = "end",
    max_memory: int | None = None,
) -> Direction:
    """The direction from the mean stream of the prompts `away` to that of `toward`, behind block `layer`.

    Each prompt counts once: its last token ("end"), or the mean of its tokens ("all"). A task gives both sets: its
    clean prompts, and its corrupted ones to go away from. The middle block by default.
    Source: Turner et al. 2023, arXiv:2308.10248 (pairs); Marks and Tegmark 2023, arXiv:2310.06824, section 5 (means).

    >>> model = cm.load("known-ioi")
    >>> found = cm.direction(model, ["Ann and Bob met then Bob gave to"], ["Bob and Ann met then Ann gave to"], layer=1)
    >>> found.site, tuple(found.vector.shape)
    ('m1.resid_post', (64,))

    Raises `InputError` for no prompts, sets whose means are the same, and a layer that does not exist.
    """
    if isinstance(toward, Task):
        task = toward
        toward, away = [pair.clean for pair in task.pairs], [pair.corrupted for pair in task.pairs]
    if away is None:
        raise InputError("Give prompts to go away from as well, or a task.")
    layer = len(model.blocks) // 2 if layer is None else layer
    if not 0 <= layer < len(model.blocks):
        raise InputError(f"There is no block {layer}; {model.name} has 0 to {len(model.blocks) - 1}.")
    if tokens not in TOKENS:
        raise InputError(f"tokens is end or all, got {tokens!r}.")
    site = f"m{layer}.resid_post" if model.graph.mlps else f"a{layer}.resid_post"
    means, norms = zip(*(_means(model, prompts, site, tokens, max_memory) for prompts in (toward, away)), strict=True)
    change, norm = means[0].mean(0) - means[1].mean(0), float(torch.cat(norms).median())
    if not float(change.norm()):
        raise InputError(f"The stream at {site} is the same on both sets of prompts, so there is no direction.")
    return Direction(site, change * (norm / change.norm()), float(change.norm()) / norm)


def _means(
    model: Model, prompts: Sequence[Any], site: str, tokens: str, max_memory: int | None
) -> tuple[Float[Tensor, "prompt d_model"], Float[Tensor, " token"]]:
    """The stream of each prompt, and its norm at all positions that count; float32."""
    values = activations(model, prompts, site, max_memory=max_memory)[site].float()
    real = ~values.isnan().any(-1)
    if tokens == "end":
        values, real = values[torch.arange(len(values)), real.sum(1) - 1][:, None], real[:, :1]
    sums = torch.where(real[..., None], values, 0.0).sum(1)
    return sums / real.sum(1)[:, None], values[real].norm(dim=-1)
