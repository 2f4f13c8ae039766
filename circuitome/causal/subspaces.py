"""Subspaces of a place in which a variable is interchanged: orthonormal directions of each of its parts' values.

    x_new = x_base + (x_source - x_base) R R^T,   R [width, k] with orthonormal columns.

Width is that of the values of the site: d_model of the stream and of MLPs, d_head of heads and of their q, k and v, the
number of neurons of some neurons.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError

Project = Callable[[Float[Tensor, "*any width"]], Float[Tensor, "*any width"]]
"""What of a change of a site's value is made: its part in a subspace."""
Put = Callable[[Float[Tensor, "*any width"], Float[Tensor, "*any width"]], Float[Tensor, "*any width"]]
"""Given the value that a site is to take over and its present one, what is added to the present one."""


@runtime_checkable
class Interchanged(Protocol):
    """What of the values of a place is interchanged: some directions (`Subspace`), or features of a dictionary."""

    @property
    def place(self) -> str:
        """Where in the model and in the prompt: x14@end."""

    @property
    def puts(self) -> list[Put]:
        """By part of the place, what is added to its value."""


@dataclass(frozen=True, eq=False, repr=False)
class Subspace:
    """Directions of a place in which a variable is interchanged."""

    place: str
    """Where in the model and in the prompt: x14@end."""
    variable: str
    """The variable that it was made for."""
    bases: tuple[Float[Tensor, "width _"], ...]
    """By part of the place, orthonormal directions of the site's values, float32."""
    losses: tuple[float, ...] = ()
    """Mean loss of each epoch, in nats; none of a subspace that was not learned."""
    search: str = "das"
    """How it was found."""

    def __repr__(self) -> str:
        return f"Subspace({self.variable} at {self.place}, {self.k} directions)"

    @property
    def basis(self) -> Float[Tensor, "width _"]:
        """The directions of a place that is one site. Raises `InputError` for one of several."""
        if len(self.bases) > 1:
            raise InputError(f"{self.place} has {len(self.bases)} sites, each with directions of its own: see bases.")
        return self.bases[0]

    @property
    def k(self) -> int:
        """Number of directions, of all parts together."""
        return sum(basis.shape[1] for basis in self.bases)

    @property
    def puts(self) -> list[Put]:
        """By part of the place, the projection of the change onto the subspace."""
        return [putting(onto(basis)) for basis in self.bases]


def onto(basis: Float[Tensor, "width k"]) -> Project:
    """The projection onto the span of orthonormal directions."""
    return lambda change: change @ basis @ basis.T


def putting(project: Project) -> Put:
    """What is added to a site's value where a projection says which part of the change is made."""
    return lambda value, current: project(value - current)


def check_size(k: int, width: int) -> None:
    """Raises `InputError` for a number of directions that a site has not."""
    if not 1 <= k <= width:
        raise InputError(f"A subspace has 1 to {width} directions at this place, got k = {k}.")


def directions(width: int, k: int, seed: int) -> Float[Tensor, "width k"]:
    """Random orthonormal directions."""
    return orthonormal(torch.randn(width, k, generator=torch.Generator().manual_seed(seed)))


def orthonormal(free: Float[Tensor, "width k"]) -> Float[Tensor, "width k"]:
    """Orthonormal columns that span what the columns of a free matrix span; differentiable."""
    q, _ = torch.linalg.qr(free)
    return q


def coordinates(kept: Sequence[int], width: int) -> Float[Tensor, "width k"]:
    """Some coordinates of a site's values, as directions."""
    return torch.eye(width)[:, list(kept)]


def at_random(like: Subspace, seed: int) -> Subspace:
    """A subspace of the same sizes of random directions; of coordinates or whole parts where `like` is a mask."""
    sizes = [basis.shape for basis in like.bases]
    if like.search == "mask" and len(sizes) > 1:
        order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
        return replace(like, bases=tuple(like.bases[i] for i in order), losses=())
    bases = []
    for number, (width, k) in enumerate(sizes):
        drawn = directions(width, k, seed + 1000 * number) if k else like.bases[number]
        if like.search == "mask":
            order = torch.randperm(width, generator=torch.Generator().manual_seed(seed)).tolist()
            drawn = coordinates(order[:k], width)
        bases.append(drawn.to(like.bases[number].device))
    return replace(like, bases=tuple(bases), losses=())
