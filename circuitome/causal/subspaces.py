"""Distributed alignment search (DAS): the directions of a place that hold a variable, learned on some pairs.

    x_new = x_base + (x_source - x_base) R R^T,   R [d_model, k] with orthonormal columns.

R is trained by the cross-entropy of the causal model's answer; the model stays as it is. Columns are orthonormal by
construction: R is the Q of the QR decomposition of a free matrix. Only linear maps: with nonlinear ones models of
random weights reach full accuracy (Sutter et al. 2025, arXiv:2507.08802). Source: Geiger et al. 2024, arXiv:2303.02536.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.causal.alignment import Project, bases_from, logits_at
from circuitome.causal.causal_model import CausalModel
from circuitome.causal.sites import Place, added
from circuitome.causal.trials import Trials, trials
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError

BATCH = 16
"""Pairs of one step."""
EPOCHS = 20
"""Times that every base is seen, each time with another source."""
MIXED = 0.1
"""How much of random directions the first ones hold."""
RATE = 0.01
"""Learning rate of Adam on the free matrix, whose columns begin with length 1; it falls to 0 on the way."""


@dataclass(frozen=True, eq=False, repr=False)
class Subspace:
    """Directions of a place in which a variable is interchanged."""

    place: str
    """Where in the model and in the prompt: x14@end."""
    variable: str
    """The variable that it was trained for."""
    basis: Float[Tensor, "d_model k"]
    """Orthonormal directions of the stream, float32."""
    losses: tuple[float, ...]
    """Mean cross-entropy of each epoch, in nats; none of a subspace that was not trained."""

    def __repr__(self) -> str:
        return f"Subspace({self.variable} at {self.place}, {self.basis.shape[1]} directions)"

    def project(self, change: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        """The part of a change that lies in the subspace."""
        return change @ self.basis @ self.basis.T


@method
def das(
    setting: Setting, causal: CausalModel, place: str, *, variable: str = "", k: int = 1, epochs: int = EPOCHS
) -> Subspace:
    """The `k` directions of a place that hold `variable` best, learned on the prompts of the setting.

    Minimises the cross-entropy of what the causal model answers after the interchange, over all of its answers, when
    the stream changes in these directions alone. Adam begins with those in which sources and bases differ most; every
    epoch has another source for each base, so that no pair is learned by heart. Judge the subspace on other prompts:
    `cm.causal.interchange(..., project=subspace.project)`, or, beside controls, by `cm.causal.locate`.
    `variable` is the first of the causal model by default.

    Raises `InputError` for a place that does not exist and for more directions than the stream has; see `align` for the
    rest.
    Source: Geiger et al. 2024, arXiv:2303.02536.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> cm.causal.das(model, task, cm.causal.ready("known-ioi"), "x2@end", variable="repeated", k=8)
    Subspace(repeated at x2@end, 8 directions)
    """
    variable = variable or (causal.variables or (causal.output,))[0]
    return learned(trials(setting, causal, [variable]), place, variable, k, epochs=epochs)


def learned(
    pairs: Trials, place: str, variable: str, k: int, *, epochs: int = EPOCHS, shuffled: bool = False
) -> Subspace:
    """The directions that hold a variable best over the bases of `pairs`; see `das`.

    `shuffled`, as a control: the causal model takes its values from the sources of other pairs.
    """
    model, where = pairs.model, Place.parse(place, pairs.model.graph)
    check_size(k, model.d_model)
    free = principal(pairs, where, k).to(model.device).requires_grad_()
    optimizer, losses = torch.optim.Adam([free], RATE), list[float]()
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, epochs)
    chunks = list(pairs.chunks(BATCH, gradients=True))
    with model.frozen_parameters():
        bases = [bases_from(pairs, where, chunk) for chunk in chunks]
        for epoch in range(epochs):
            drawn, total = pairs if not epoch else pairs.redrawn(pairs.setting.seed + epoch), 0.0
            expected = (drawn.shuffled if shuffled else drawn.expected)[pairs.index(variable)].to(model.device)
            for chunk, rest in zip(chunks, bases, strict=True):
                loss = cross_entropy(logits_at(drawn, rest, where, chunk, through(free)), expected[chunk])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(chunk)
            slower.step()
            losses.append(total / len(pairs.base))
            pairs.setting.progress(f"learning {k} directions at {place}", epoch + 1, epochs)
    return Subspace(place, variable, orthonormal(free.detach()), tuple(losses))


def principal(pairs: Trials, place: Place, k: int) -> Float[Tensor, "d_model k"]:
    """Where the search begins: the `k` directions in which values of sources and bases differ most.

    They are mixed with a little of everything, so that no direction begins with a gradient of exactly zero.
    """
    site, every = place.site, torch.arange(len(pairs.base))
    changes = pairs.differences(site.kind, site.layer, pairs.column(place.role), every)
    changes = added(pairs.model, site.kind, site.layer, changes)[:, site.head].cpu()
    _, _, most = torch.linalg.svd(changes, full_matrices=False)
    start = directions(pairs.model.d_model, k, pairs.setting.seed)
    start[:, : len(most)] = most[:k].T + MIXED * start[:, : len(most)]
    return orthonormal(start)


def check_size(k: int, d_model: int) -> None:
    """Raises `InputError` for a number of directions that the stream has not."""
    if not 1 <= k <= d_model:
        raise InputError(f"A subspace of the stream has 1 to {d_model} directions, got k = {k}.")


def directions(d_model: int, k: int, seed: int) -> Float[Tensor, "d_model k"]:
    """Random orthonormal directions."""
    return orthonormal(torch.randn(d_model, k, generator=torch.Generator().manual_seed(seed)))


def orthonormal(free: Float[Tensor, "d_model k"]) -> Float[Tensor, "d_model k"]:
    """Orthonormal columns that span what the columns of a free matrix span; differentiable."""
    q, _ = torch.linalg.qr(free)
    return q


def through(free: Float[Tensor, "d_model k"]) -> Project:
    """The projection onto the span of a free matrix's columns, within reach of its gradients."""

    def project(change: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch d_model"]:
        basis = orthonormal(free)
        return change @ basis @ basis.T

    return project


def cross_entropy(logits: Float[Tensor, "some tokens"], right: Bool[Tensor, "some tokens"]) -> Float[Tensor, ""]:
    """Minus the log-probability of all right answers together, among all answers; mean over pairs."""
    chosen = logits.masked_fill(~right, -torch.inf)
    return (logits.logsumexp(1) - chosen.logsumexp(1)).mean()


def random_subspaces(place: str, variable: str, d_model: int, k: int, *, count: int, seed: int) -> Sequence[Subspace]:
    """Subspaces of random directions, as controls."""
    return [Subspace(place, variable, directions(d_model, k, seed + 1 + number), ()) for number in range(count)]
