"""Whether a place holds a variable: accuracy on prompts that nothing was chosen on, beside controls.

A subspace large enough can make a mechanism that the model has not. So everything is done again where there is nothing
to be found: on a model of random weights, and with values from other sources than those that the causal model is told
of; subspaces of random directions, no interchange, and one answer for all say what the pairs give away by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.causal.alignment import AS_GOOD, Project, answers_at, random_weights, right_at, shares, unchanged_right
from circuitome.causal.causal_model import CausalModel
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import EPOCHS, Subspace, check_size, learned, random_subspaces
from circuitome.causal.trials import Trials, trials
from circuitome.engine.setting import Setting, method
from circuitome.results import Estimate, plain_fields
from circuitome.tasks.task import Task

SIZES = (1, 4, 16)
"""Sizes of subspaces that are tried."""
RANDOM = 5
"""Random subspaces whose accuracies are averaged."""

DEALS = 10
"""Times that sources are dealt out anew where values of other pairs are a control."""


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

    @property
    def holds(self) -> bool:
        """Whether the place holds the variable: it is more accurate than every control, by more than the intervals."""
        return all(difference.low > 0 for difference in self.above.values())

    def __repr__(self) -> str:
        where = self.place + (f", {self.k} of its directions" if self.k else "")
        return f"{self.variable}: {'has a place' if self.holds else 'has no place'} at {where}, IIA {self.accuracy}"

    def to_dict(self) -> dict[str, Any]:
        """All fields but the directions, and the verdict, as plain JSON values."""
        names = ("variable", "place", "whole", "k", "accuracy", "controls", "above", "base_accuracy", "holds")
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
) -> Located:
    """Whether a place holds a variable, by its accuracy on `held_out` prompts beside those of controls.

    Subspaces of the `sizes` are learned on the setting's prompts (`das`). The smallest that is as accurate on `sizing`
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
    for k in sizes:
        check_size(k, setting.model.d_model)
    variable = variable or (causal.variables or (causal.output,))[0]
    searched, judged = (trials(part, causal, [variable]) for part in (setting, setting.but(prompts=held_out)))
    chosen = searched if sizing is None else trials(setting.but(prompts=sizing), causal, [variable])
    subspaces = {k: learned(searched, place, variable, k, epochs=epochs) for k in sizes}
    by_size = {k: shares(chosen, _right(chosen, variable, place, found)) for k, found in subspaces.items()}
    if sizes:
        by_size[0] = shares(chosen, _right(chosen, variable, place))
    k = _smallest(by_size)
    whole, subspace = _right(judged, variable, place), subspaces.get(k)
    right = whole if subspace is None else _right(judged, variable, place, subspace)
    controls = _controls(searched, judged, place, k, epochs)
    return Located(
        variable=variable,
        place=place,
        whole=shares(judged, whole),
        k=k,
        accuracy=shares(judged, right),
        sizes=by_size,
        controls={name: shares(judged, values) for name, values in controls.items()},
        above={name: shares(judged, right - values) for name, values in controls.items()},
        base_accuracy=judged.base_accuracy,
        subspace=subspace,
    )


def _smallest(by_size: dict[int, Estimate]) -> int:
    """The smallest of the sizes that are as accurate as the best; 0, the whole place, is the largest."""
    enough = max((estimate.value for estimate in by_size.values()), default=0.0) - AS_GOOD
    return next((k for k in sorted(by_size) if k and by_size[k].value >= enough), 0)


def _said(pairs: Trials, place: str, subspace: Subspace | None) -> Tensor:
    """What the model answers when a place, or a subspace of it, is interchanged."""
    project: Project | None = None if subspace is None else subspace.project
    return answers_at(pairs, Place.parse(place, pairs.model.graph), project)


def _right(pairs: Trials, variable: str, place: str, subspace: Subspace | None = None) -> Tensor:
    """1.0 for pairs that come out right when a place, or a subspace of it, is interchanged."""
    return right_at(pairs, variable, _said(pairs, place, subspace))


def _controls(searched: Trials, judged: Trials, place: str, k: int, epochs: int) -> dict[str, Float[Tensor, " pairs"]]:
    """By name: how the held-out pairs come out where there is nothing to be found."""
    (variable,), model = judged.variables, judged.model
    other = random_weights(model, judged.setting.seed)
    searched_other, judged_other = searched.on(other), judged.on(other)
    shuffled = learned(searched, place, variable, k, shuffled=True, epochs=epochs) if k else None
    at_random = learned(searched_other, place, variable, k, epochs=epochs) if k else None
    controls = {
        "no interchange": unchanged_right(judged, variable),
        "one answer for all": torch.full((len(judged.base),), judged.majority(variable)),
        "values of other pairs": judged.shuffled_right(variable, _said(judged, place, shuffled), DEALS),
        "random weights": _right(judged_other, variable, place, at_random),
    }
    if k:
        some = random_subspaces(place, variable, model.d_model, k, count=RANDOM, seed=judged.setting.seed)
        controls["random directions"] = torch.stack([_right(judged, variable, place, one) for one in some]).mean(0)
    return controls
