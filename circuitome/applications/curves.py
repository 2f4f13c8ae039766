"""Trainings that differ in one thing, side by side: their losses by step, over seeds, and how soon each gets where."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError, unknown_name
from circuitome.results import Estimate, listed, mean
from circuitome.training.loop import Training

UNIT = "nats a token"


@dataclass(frozen=True, eq=False)
class Curves:
    """A number by step of several conditions, each trained with several seeds."""

    steps: tuple[int, ...]
    """Steps after which it was measured."""
    values: Mapping[str, Float[Tensor, "seed step"]]
    """By condition."""
    seeds: tuple[int, ...]
    """The seeds."""
    name: str
    """What was measured."""

    def __repr__(self) -> str:
        return f"Curves({self.name} of {', '.join(self.values)}; {len(self.seeds)} seeds, {self.steps[-1]:,} steps)"

    def __getitem__(self, condition: str) -> Float[Tensor, "seed step"]:
        """The curves of a condition. Raises `UnknownNameError`."""
        if condition not in self.values:
            raise unknown_name("condition", condition, tuple(self.values))
        return self.values[condition]

    def final(self, condition: str) -> Estimate:
        """The last value of a condition, mean over seeds."""
        return mean(self[condition][:, -1], UNIT)

    def difference(self, condition: str, other: str) -> Estimate:
        """The last value of a condition minus that of another, seed by seed."""
        return mean(self[condition][:, -1] - self[other][:, -1], UNIT)

    def steps_to(self, condition: str, reference: str) -> Float[Tensor, " seed"]:
        """By seed, the step at which a condition first is where the reference ends; NaN where it never is.

        Between two measured steps the curve is a line.
        """
        goals = self[reference][:, -1].tolist()
        return torch.tensor([_first(self.steps, row, goal) for row, goal in zip(self[condition], goals, strict=True)])

    def share_of_steps(self, condition: str, reference: str) -> Estimate:
        """`steps_to` over all steps, mean over the seeds that get there."""
        shares = self.steps_to(condition, reference) / self.steps[-1]
        return mean(shares[~shares.isnan()], "share of the steps") if bool((~shares.isnan()).any()) else _never()

    def to_dict(self) -> dict[str, Any]:
        """All values as plain JSON."""
        return {
            "name": self.name,
            "steps": list(self.steps),
            "seeds": list(self.seeds),
            "values": {name: listed(values) for name, values in self.values.items()},
        }


def _first(steps: Sequence[int], values: Tensor, goal: float) -> float:
    """Where a curve first falls to the goal."""
    below = (values <= goal).nonzero()
    if not len(below):
        return float("nan")
    i = int(below[0])
    if i == 0:
        return float(steps[0])
    high, low = float(values[i - 1]), float(values[i])
    return steps[i - 1] + (steps[i] - steps[i - 1]) * (high - goal) / (high - low)


def _never() -> Estimate:
    return Estimate(float("nan"), float("nan"), float("nan"), "share of the steps", 0)


def compare_trainings(
    conditions: Mapping[str, Callable[[int], Training]], seeds: Sequence[int], name: str = "held_out"
) -> Curves:
    """Train every condition with every seed, and give one number of their metrics by step.

    A condition is a function of the seed that trains (`cm.training.train`) and measures `name` at the same steps.
    Conditions are alike in everything that the seed decides, so that differences are taken seed by seed.

    >>> model = cm.load("known-ioi")
    >>> stream = cm.training.text_stream(model, "Ann and Bob met then Bob gave to")
    >>> def trained(seed, rate):
    ...     schedule = cm.training.Schedule(steps=5, batch=2, length=8, seed=seed, learning_rate=rate)
    ...     watch = [lambda m: {"held_out": cm.training.mean_loss(m, stream, batches=1, rows=1, length=8)}]
    ...     return cm.training.train(cm.training.untrained(model, seed=seed), stream, schedule, watch=watch)
    >>> conditions = {"slow": lambda seed: trained(seed, 1e-4), "fast": lambda seed: trained(seed, 1e-2)}
    >>> cm.applications.compare_trainings(conditions, [0, 1])
    Curves(held_out of slow, fast; 2 seeds, 5 steps)

    Raises `InputError` where conditions were measured at other steps.
    """
    return compare_curves(conditions, seeds, (name,))[name]


def compare_curves(
    conditions: Mapping[str, Callable[[int], Training]], seeds: Sequence[int], names: Sequence[str]
) -> dict[str, Curves]:
    """As `compare_trainings`, for several numbers by name: each training is made once, its model let go after it.

    >>> stream = cm.training.text_stream(cm.load("known-ioi"), "Ann and Bob met then Bob gave to")
    >>> schedule = cm.training.Schedule(steps=5, batch=2, length=8)
    >>> trained = lambda seed: cm.training.train(cm.training.untrained(cm.load("known-ioi")), stream, schedule)
    >>> cm.applications.compare_curves({"as it is": trained}, [0], ["loss", "norm"])["norm"]
    Curves(norm of as it is; 1 seeds, 5 steps)
    """
    values = {name: {condition: list[list[float]]() for condition in conditions} for name in names}
    at, first = list[int](), next(iter(conditions))
    for condition, trained in conditions.items():
        for seed in seeds:
            training = trained(seed)
            for name in names:
                steps, numbers = training.curve(name)
                if (at := at or steps) != steps:
                    raise InputError(f"{condition} was measured at other steps than {first}. Measure at the same.")
                values[name][condition].append(numbers)
            del training  # not beside the next one
    return {
        name: Curves(tuple(at), {key: torch.tensor(rows) for key, rows in found.items()}, tuple(seeds), name)
        for name, found in values.items()
    }
