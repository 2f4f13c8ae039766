"""Whether a place holds a variable: accuracy on prompts that nothing was chosen on, beside controls.

A subspace large enough can make a mechanism that the model has not. So everything is done again where there is nothing
to be found: on a model of random weights, and with values from other sources than those that the causal model is told
of; subspaces of random directions, no interchange, and one answer for all say what the pairs give away by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.causal.alignment import AS_GOOD, random_weights
from circuitome.causal.causal_model import CausalModel
from circuitome.causal.interchanges import answers_at, right_at, shares, unchanged_right
from circuitome.causal.searches import EPOCHS, SIZED, learned
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import Subspace, at_random
from circuitome.causal.trials import LEAST, Trials, answer_text, trials
from circuitome.engine.setting import Setting, method
from circuitome.results import Estimate, plain_fields
from circuitome.tasks.task import Task

SIZES = (1, 4, 16)
"""Sizes of subspaces that are tried."""
RANDOM = 5
"""Random subspaces whose accuracies are averaged."""

DEALS = 10
"""Times that sources are dealt out anew where values of other pairs are a control."""


@dataclass(frozen=True)
class WrongPair:
    """A pair that does not come out as the causal model says."""

    base: str
    """The prompt that ran."""
    source: str
    """The prompt that the place's value came from."""
    expected: tuple[str, ...]
    """What the causal model allows."""
    said: str
    """What the model answered."""


@dataclass(frozen=True, eq=False, repr=False)
class Located:
    """What a place holds of a variable, on held-out prompts."""

    variable: str
    """The variable."""
    place: str
    """The place: x14@end."""
    whole: Estimate
    """Interchange accuracy when the whole value of the place is interchanged."""
    k: int
    """Size of the subspace; 0 where the whole value is as good as no smaller one, or none was looked for."""
    accuracy: Estimate
    """Interchange accuracy in the subspace, or, without one, of the whole value: what controls are compared with."""
    sizes: dict[int, Estimate]
    """By size tried, and for 0, the whole value: accuracy on the prompts on which the size was chosen."""
    controls: dict[str, Estimate]
    """By name: accuracy where there is nothing to be found."""
    above: dict[str, Estimate]
    """By control: `accuracy` minus that of the control, pair by pair."""
    base_accuracy: Estimate
    """Share of held-out prompts on which model and causal model agree without any interchange."""
    subspace: Subspace | None
    """The directions that were learned."""
    search: str
    """How they were looked for."""
    wrong: tuple[WrongPair, ...]
    """The held-out pairs that did not come out right."""

    @property
    def holds(self) -> bool:
        """Whether the place holds the variable: it is more accurate than every control, by more than the intervals."""
        return all(difference.low > 0 for difference in self.above.values())

    def __repr__(self) -> str:
        where = self.place + (f", {self.k} of its directions" if self.k else "")
        return f"{self.variable}: {'has a place' if self.holds else 'has no place'} at {where}, IIA {self.accuracy}"

    def to_dict(self) -> dict[str, Any]:
        """All fields but the directions, and the verdict, as plain JSON values."""
        names = (
            "variable",
            "place",
            "whole",
            "k",
            "accuracy",
            "controls",
            "above",
            "base_accuracy",
            "holds",
            "search",
            "wrong",
        )
        return {**plain_fields(self, *names), "sizes": {str(k): e.to_dict() for k, e in self.sizes.items()}}


@method
def locate(
    setting: Setting,
    causal: CausalModel,
    place: str,
    held_out: Task,
    *,
    variable: str = "",
    sizing: Task | None = None,
    sizes: Sequence[int] = SIZES,
    epochs: int = EPOCHS,
    search: str = "das",
    least: float = LEAST,
) -> Located:
    """Whether a place holds a variable, by its accuracy on `held_out` prompts beside those of controls.

    Subspaces of the `sizes` are learned on the setting's prompts, or one by a `search` that learns its size (see
    `das`; without sizes, none). The smallest that is as accurate on `sizing`
    prompts (without them: the setting's) as the best of them and of the whole value, but for `AS_GOOD`, is judged on
    the held-out ones; else the whole value. Controls have the same size, and as many steps: random directions (`RANDOM`
    draws), values from the sources of other pairs, a model of random weights; also no interchange, and the one answer
    that is right most often. The variable has a place where the accuracy lies above every control, by an interval of
    the difference on the same pairs.

    Raises as `das` does.

    >>> model = cm.load("known-ioi")
    >>> task, other = (cm.ground_truth.task("known-ioi", 32, seed=seed) for seed in (0, 1))
    >>> cm.causal.locate(model, task, cm.causal.ready("known-ioi"), "x1@S2", other, variable="repeated", sizes=())
    repeated: has a place at x1@S2, IIA 0.750 [0.750, 0.750]
    """
    variable = variable or causal.first
    pairs = partial(trials, causal=causal, variables=[variable], least=least)
    searched, judged = pairs(setting), pairs(setting.but(prompts=held_out))
    chosen = searched if sizing is None else pairs(setting.but(prompts=sizing))
    tried = sizes if search in SIZED else sizes[:1]
    made = [learned(searched, place, variable, k, epochs=epochs, search=search) for k in tried]
    subspaces = {subspace.k: subspace for subspace in made if subspace.k}
    by_size = {k: shares(chosen, _right(chosen, variable, place, found)) for k, found in subspaces.items()}
    if by_size:
        by_size[0] = shares(chosen, _right(chosen, variable, place))
    k = _smallest(by_size)
    of_whole, subspace = _said(judged, place, None), subspaces.get(k)
    said = of_whole if subspace is None else _said(judged, place, subspace)
    right = right_at(judged, variable, said)
    controls = controlled(searched, judged, place, subspace, epochs)
    return Located(
        variable=variable,
        place=place,
        whole=shares(judged, right_at(judged, variable, of_whole)),
        k=k,
        accuracy=shares(judged, right),
        sizes=by_size,
        controls={name: shares(judged, values) for name, values in controls.items()},
        above={name: shares(judged, right - values) for name, values in controls.items()},
        base_accuracy=judged.base_accuracy,
        subspace=subspace,
        search=search,
        wrong=_wrong(judged, variable, said, right),
    )


def _wrong(pairs: Trials, variable: str, said: Tensor, right: Tensor) -> tuple[WrongPair, ...]:
    """The pairs that did not come out right, by the text of their prompts."""
    texts = [answer_text(pairs.model, token) for token in pairs.tokens]
    expected, prompts = pairs.expected[pairs.index(variable)], pairs.task.pairs
    return tuple(
        WrongPair(
            base=prompts[int(pairs.base[row])].clean_text,
            source=prompts[int(pairs.source[row])].clean_text,
            expected=tuple(texts[i] for i in expected[row].nonzero()[:, 0].tolist()),
            said=texts[int(said[row])],
        )
        for row in (right == 0).nonzero()[:, 0].tolist()
    )


def _smallest(by_size: dict[int, Estimate]) -> int:
    """The smallest of the sizes that are as accurate as the best; 0, the whole place, is the largest."""
    enough = max((estimate.value for estimate in by_size.values()), default=0.0) - AS_GOOD
    return next((k for k in sorted(by_size) if k and by_size[k].value >= enough), 0)


def _said(pairs: Trials, place: str, subspace: Subspace | None) -> Tensor:
    """What the model answers when a place, or a subspace of it, is interchanged."""
    where = Place.parse(place, pairs.model)
    pairs.check_place(where, pairs.variables[0])
    return answers_at(pairs, where, subspace)


def _right(pairs: Trials, variable: str, place: str, subspace: Subspace | None = None) -> Tensor:
    """1.0 for pairs that come out right when a place, or a subspace of it, is interchanged."""
    return right_at(pairs, variable, _said(pairs, place, subspace))


def controlled(
    searched: Trials, judged: Trials, place: str, subspace: Subspace | None, epochs: int
) -> dict[str, Float[Tensor, " pairs"]]:
    """By name: how the held-out pairs come out where there is nothing to be found, in a subspace of the same size.

    Both sets of pairs are of one variable.
    """
    (variable,), other = judged.variables, random_weights(judged.model, judged.setting.seed)
    shuffled = at_random_weights = None
    if subspace is not None:
        # What learns its own size would learn here that nothing is worth its price: controls have the judged size.
        search = subspace.search if subspace.search in SIZED else "das"
        k = max(1, round(subspace.k / len(subspace.bases)))
        again = partial(learned, place=place, variable=variable, k=k, epochs=epochs, search=search)
        shuffled, at_random_weights = again(searched, shuffled=True), again(searched.on(other))
    controls = {
        "no interchange": unchanged_right(judged, variable),
        "one answer for all": torch.full((len(judged.base),), judged.majority(variable)),
        "values of other pairs": judged.shuffled_right(variable, _said(judged, place, shuffled), DEALS),
        "random weights": _right(judged.on(other), variable, place, at_random_weights),
    }
    if subspace is not None:
        seeds = (judged.setting.seed + 1 + number for number in range(RANDOM))
        some = [_right(judged, variable, place, at_random(subspace, seed)) for seed in seeds]
        controls["random directions"] = torch.stack(some).mean(0)
    return controls
