"""Searches for the part of a place that holds a variable, learned on some pairs; the model stays as it is.

das        Distributed alignment search: k directions R. Geiger et al. 2024, arXiv:2303.02536.
boundless  A rotation R of all of the place, of whose first directions a share b is kept, learned as well.
           Wu et al. 2023, arXiv:2305.08809.
mask       A share of each coordinate (each neuron), or of each head where the place is several: De Cao et al. 2022,
           Csordas et al. 2021, and as a baseline of Mueller et al. 2025, arXiv:2504.13151.
pca        The first k principal components of the place's values; nothing is learned.

Learned is the cross-entropy of what the causal model answers. Only linear maps: with nonlinear ones models of random
weights reach full accuracy (Sutter et al. 2025, arXiv:2507.08802).
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.interchanges import bases_from, logits_at
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import (
    Project,
    Subspace,
    check_size,
    coordinates,
    directions,
    onto,
    orthonormal,
    putting,
)
from circuitome.causal.suffixes import Suffixes
from circuitome.causal.trials import LEAST, Trials, trials
from circuitome.engine.setting import Setting, method
from circuitome.errors import unknown_name

BATCH = 16
"""Pairs of one step."""
EPOCHS = 20
"""Times that every base is seen, each time with another source."""
TRIED = 0.25
"""Share of the epochs after which the better of two starts alone goes on."""
MIXED = 0.1
"""How much of random directions the principal ones are begun with."""
RATE, GENTLE = 0.03, 0.01
"""Learning rates of Adam on the free matrix, whose columns begin with length 1, from random directions and from
principal ones, which a larger one drives away; they fall to 0 on the way."""
BOUNDARY_RATE, MASK_RATE = 0.03, 0.2
"""The same of the share of directions that is kept, and of the logits of masks."""
PRICE = 1.0
"""Weight of the share that is kept, in nats."""
SOFT, HARD = 0.0122, 0.1
"""Temperature of the boundary at the beginning, in shares of the width, and at the end, in directions: 50 of 4,096 and
0.1 in Wu et al. 2023."""
BEGUN = 2.0
"""Where logits of masks begin: nearly all is kept, since half a value is often no better than none of it."""
MASK_SOFT, MASK_HARD = 1.0, 0.1
"""Temperature of a mask's logits."""
SPARSE = 0.3
"""Weight of the share that a mask keeps, in nats."""


@runtime_checkable
class Search(Protocol):
    """What is learned at a place: parameters, the projections that they stand for, and what is found in the end."""

    parameters: list[tuple[Tensor, float]]
    """What is learned, with its rate."""

    def projects(self, done: float) -> list[Project]:
        """By part of the place, the projection when a share of the steps is done, within reach of gradients."""

    def penalty(self, done: float) -> Tensor | float:
        """What is added to the loss."""

    def bases(self) -> tuple[Tensor, ...]:
        """The directions that are found."""


class Directions(Search):
    """k directions of each part."""

    def __init__(self, starts: Sequence[Tensor], rate: float) -> None:
        self.free = [start.clone().requires_grad_() for start in starts]
        self.parameters = [(free, rate) for free in self.free]

    @override
    def projects(self, done: float) -> list[Project]:
        return list(map(through, self.free))

    @override
    def penalty(self, done: float) -> float:
        return 0.0

    @override
    def bases(self) -> tuple[Tensor, ...]:
        return tuple(orthonormal(free.detach()) for free in self.free)


class Bounded(Search):
    """A rotation of each part, and the share of its directions that is kept."""

    def __init__(self, starts: Sequence[Tensor], rate: float) -> None:
        self.free = [start.clone().requires_grad_() for start in starts]
        self.share = [free.new_full((), 0.5).requires_grad_() for free in self.free]
        self.parameters = [
            *((free, rate) for free in self.free),
            *((share, BOUNDARY_RATE) for share in self.share),
        ]

    @override
    def projects(self, done: float) -> list[Project]:
        for share in self.share:
            share.data.clamp_(0, 1)
        return [
            weighted(orthonormal(free), kept_softly(share, len(free), heat(len(free), done)))
            for free, share in zip(self.free, self.share, strict=True)
        ]

    @override
    def penalty(self, done: float) -> Tensor:
        return PRICE * torch.stack(self.share).sum()

    @override
    def bases(self) -> tuple[Tensor, ...]:
        kept = [
            int((kept_softly(s.detach(), len(f), HARD) > 0.5).sum()) for f, s in zip(self.free, self.share, strict=True)
        ]
        return tuple(orthonormal(free.detach())[:, :k] for free, k in zip(self.free, kept, strict=True))


class Masks(Search):
    """A share of each coordinate of the values, or of each part where there are several."""

    def __init__(self, starts: Sequence[Tensor], rate: float) -> None:
        self.widths = [len(start) for start in starts]
        whole = len(self.widths) > 1
        sizes = [1 if whole else width for width in self.widths]
        self.logits = [s.new_full((n,), BEGUN).requires_grad_() for s, n in zip(starts, sizes, strict=True)]
        self.parameters = [(logits, MASK_RATE) for logits in self.logits]

    def _shares(self, done: float) -> list[Tensor]:
        heat = MASK_SOFT * (MASK_HARD / MASK_SOFT) ** done
        return [(logits / heat).sigmoid() for logits in self.logits]

    @override
    def projects(self, done: float) -> list[Project]:
        return list(map(scaled, self._shares(done)))

    @override
    def penalty(self, done: float) -> Tensor:
        return SPARSE * torch.cat(self._shares(done)).mean()

    @override
    def bases(self) -> tuple[Tensor, ...]:
        kept = [
            (logits.detach() > 0).expand(w).nonzero()[:, 0] for logits, w in zip(self.logits, self.widths, strict=True)
        ]
        return tuple(coordinates(rows.tolist(), w).to(rows.device) for rows, w in zip(kept, self.widths, strict=True))


LEARNED: dict[str, Callable[[Sequence[Tensor], float], Search]] = {
    "das": Directions,
    "boundless": Bounded,
    "mask": Masks,
}
SEARCHES = (*LEARNED, "pca")
"""Names of searches."""
SIZED = ("das", "pca")
"""Those that are told the size of the subspace; others learn it."""


@method
def das(
    setting: Setting,
    causal: CausalModel,
    place: str,
    *,
    variable: str = "",
    k: int = 1,
    epochs: int = EPOCHS,
    search: str = "das",
    least: float = LEAST,
) -> Subspace:
    """The directions of a place that hold `variable` best, learned on the prompts of the setting.

    Minimises the cross-entropy of what the causal model answers after the interchange, over all of its answers, when
    values change in these directions alone: `k` of each part of the place (distributed alignment search). Adam begins
    once with random ones and once with those in which sources and bases differ most, and after a quarter of the epochs
    goes on from the better ones; every epoch has another source for each base, so that no pair is learned by heart.
    Other searches (see `search`): `boundless` learns how many directions as well, `mask` which coordinates (neurons of
    m5.n*@end), or which heads of a place with several; both pay for what they keep, and ignore k. `pca` takes the first
    k principal components of the values and learns nothing. Judge the subspace on other prompts:
    `cm.causal.interchange(..., subspace=subspace)`, or, beside controls, by `cm.causal.locate`.
    `variable` is the first of the causal model by default.

    Raises `InputError` for a place that does not exist or stands in front of the variable's inputs, and for more
    directions than it has, `UnknownNameError` for another search; see `align` for the rest.
    Source: Geiger et al. 2024, arXiv:2303.02536; Wu et al. 2023, arXiv:2305.08809; Mueller et al. 2025,
    arXiv:2504.13151.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> cm.causal.das(model, task, cm.causal.ready("known-ioi"), "x2@end", variable="repeated", k=8)
    Subspace(repeated at x2@end, 8 directions)
    """
    variable = variable or causal.first
    return learned(trials(setting, causal, [variable], least=least), place, variable, k, epochs=epochs, search=search)


def learned(
    pairs: Trials,
    place: str,
    variable: str,
    k: int,
    *,
    epochs: int = EPOCHS,
    search: str = "das",
    shuffled: bool = False,
) -> Subspace:
    """The part of a place that holds a variable best over the bases of `pairs`; see `das`.

    `shuffled`, as a control: the causal model takes its values from the sources of other pairs.
    """
    model, where = pairs.model, Place.parse(place, pairs.model)
    if search not in SEARCHES:
        raise unknown_name("search", search, SEARCHES)
    pairs.check_place(where, variable)
    chunks = list(pairs.chunks(BATCH, gradients=True))
    bases = _begun(pairs, where, chunks) if search in LEARNED else []
    if search in SIZED:
        for values in pairs.values_of(where):
            check_size(k, values.shape[-1])
    if search == "pca":
        return Subspace(place, variable, tuple(components(pairs, where, k)), (), search)
    size = k if search == "das" else None
    begun = [(random_starts(pairs, where, size), RATE)]
    if search != "mask":
        begun.append((principal_starts(pairs, where, size), GENTLE))
    runs = [Learning(LEARNED[search](*start), epochs) for start in begun]
    with model.frozen_parameters():
        for epoch in range(epochs):
            if epoch == max(1, round(TRIED * epochs)):
                runs = [min(runs, key=lambda run: run.losses[-1])]
            drawn = pairs if not epoch else pairs.redrawn(pairs.setting.seed + epoch)
            expected = (drawn.shuffled if shuffled else drawn.expected)[pairs.index(variable)].to(model.device)
            for run in runs:
                run.epoch(
                    drawn,
                    where,
                    [(rest, c, expected[c]) for rest, c in zip(bases, chunks, strict=True)],
                    epoch / epochs,
                )
            pairs.setting.progress(f"learning a part of {place}", epoch + 1, epochs)
    best = min(runs, key=lambda run: run.losses[-1])
    return Subspace(place, variable, best.search.bases(), tuple(best.losses), search)


def _begun(pairs: Trials, place: Place, chunks: Sequence[Tensor]) -> list[Suffixes]:
    """The bases of each step from the place on; run once for all searches there, which shows the values there too."""
    if str(place) not in pairs.begun:
        pairs.begun.clear()
        view, begun = place.view(pairs.model), list[Suffixes]()
        for chunk in chunks:
            run = pairs.bases(chunk, view)
            pairs.note(place, view, run)
            begun.append(bases_from(pairs, [place], chunk, run))
        pairs.begun[str(place)] = begun
    return pairs.begun[str(place)]


class Learning:
    """A search on its way: its optimizer, and the mean loss of each epoch so far."""

    def __init__(self, search: Search, epochs: int) -> None:
        self.search, self.epochs, self.losses = search, epochs, list[float]()
        self.optimizer = torch.optim.Adam([{"params": [tensor], "lr": rate} for tensor, rate in search.parameters])
        self.slower = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.0, epochs)

    def epoch(
        self, pairs: Trials, place: Place, batches: Sequence[tuple[Suffixes, Tensor, Tensor]], done: float
    ) -> None:
        """A step for each batch: bases from the place on, which pairs they are, and what is expected of them."""
        total = 0.0
        for number, (rest, chunk, expected) in enumerate(batches):
            share = min(1.0, (done + number / len(batches) / self.epochs) / (1 - 1 / len(batches) / self.epochs))
            logits = logits_at(pairs, rest, place, chunk, [putting(part) for part in self.search.projects(share)])
            loss = cross_entropy(logits, expected) + self.search.penalty(share)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach()) * len(chunk)
        self.slower.step()
        self.losses.append(total / len(pairs.base))


def random_starts(pairs: Trials, place: Place, k: int | None) -> list[Float[Tensor, "width k"]]:
    """By part, `k` random directions, or a whole random basis."""
    widths = (values.shape[-1] for values in pairs.values_of(place))
    drawn = [directions(w, w if k is None else k, pairs.setting.seed + number) for number, w in enumerate(widths)]
    return [free.to(pairs.model.device) for free in drawn]


def principal_starts(pairs: Trials, place: Place, k: int | None) -> list[Float[Tensor, "width k"]]:
    """By part, the `k` directions in which values of sources and bases differ most, or all, these first.

    They are mixed with a little of everything, so that no direction begins with a gradient of exactly zero.
    """
    starts = random_starts(pairs, place, k)
    for start, values in zip(starts, pairs.values_of(place), strict=True):
        changes = (values[pairs.source] - values[pairs.base]).flatten(0, 1)
        _, _, most = torch.linalg.svd(changes, full_matrices=False)
        most = most[: start.shape[1]]
        start[:, : len(most)] = most.T + MIXED * start[:, : len(most)]
    return [orthonormal(start) for start in starts]


def components(pairs: Trials, place: Place, k: int) -> list[Float[Tensor, "width k"]]:
    """By part, the first principal components of its values on the bases' prompts."""
    values = [shown[pairs.base].flatten(0, 1) for shown in pairs.values_of(place)]
    found = [torch.linalg.svd(shown - shown.mean(0), full_matrices=False)[2] for shown in values]
    for most in found:
        check_size(k, len(most))
    return [most[:k].T for most in found]


def through(free: Float[Tensor, "width k"]) -> Project:
    """The projection onto the span of a free matrix's columns, within reach of its gradients."""
    return onto(orthonormal(free))


def scaled(share: Float[Tensor, " width"]) -> Project:
    """A share of each coordinate of a change."""
    return lambda change: change * share


def weighted(basis: Float[Tensor, "width k"], weights: Float[Tensor, " k"]) -> Project:
    """The projection in which each direction counts by its weight."""
    return lambda change: (change @ basis * weights) @ basis.T


def heat(width: int, done: float) -> float:
    """Temperature of the boundary, in directions."""
    return SOFT * width + done * (HARD - SOFT * width)


def kept_softly(share: Float[Tensor, ""], width: int, heat: float) -> Float[Tensor, " width"]:
    """Weights of directions: near 1 for the first `share` of them, near 0 for the others."""
    place = torch.arange(width, device=share.device, dtype=share.dtype) + 0.5
    return ((share * width - place) / heat).sigmoid()


def cross_entropy(logits: Float[Tensor, "some tokens"], right: Bool[Tensor, "some tokens"]) -> Float[Tensor, ""]:
    """Minus the log-probability of all right answers together, among all answers; mean over pairs that have any."""
    some = right.any(1)
    logits, right = logits[some], right[some]
    chosen = logits.masked_fill(~right, -torch.inf)
    return (logits.logsumexp(1) - chosen.logsumexp(1)).sum() / max(1, len(logits))
