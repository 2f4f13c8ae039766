"""How a training goes: steps, batches, the learning rate at each step. Nothing here imports torch."""

import math
from dataclasses import dataclass

from circuitome.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), and what each of them reads.

    The learning rate rises in a line over the first `warm_up` of the steps and falls as a cosine to `floor` of itself.

    >>> schedule = cm.training.Schedule(steps=100, learning_rate=1e-3, warm_up=0.1)
    >>> [round(schedule.rate(step), 5) for step in (0, 9, 99)]
    [0.0001, 0.001, 0.0001]

    Raises `InputError` for numbers that cannot be.
    """

    steps: int
    """Steps of the optimiser."""
    batch: int = 32
    """Rows of tokens that a step reads."""
    length: int = 256
    """Tokens of a row."""
    learning_rate: float = 1e-3
    """The largest learning rate."""
    warm_up: float = 0.02
    """Share of the steps over which the learning rate rises."""
    floor: float = 0.1
    """What the learning rate falls to, as a share of its largest; 1 leaves it where it is."""
    weight_decay: float = 0.1
    """Decay of weights with two or more axes; gains and biases do not decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decays of AdamW's running means of gradients and of their squares."""
    clip: float = 1.0
    """The gradient's norm is cut to this."""
    seed: int = 0
    """Seed of the order of the data, of what is drawn in a step, and of dropout."""
    autocast: bool | None = None
    """Whether passes run in bfloat16 while weights stay float32; None: where the model's device computes in it."""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} of a training must be at least {least}, got {getattr(self, name)}.")
        for name in ("warm_up", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is a share from 0 to 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}.")

    @property
    def tokens(self) -> int:
        """Tokens that the whole training reads."""
        return self.steps * self.batch * self.length

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = self.warm_up * self.steps
        if step + 1 < rising:
            return self.learning_rate * (step + 1) / rising
        gone = (step + 1 - rising) / max(1.0, self.steps - rising)
        return self.learning_rate * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * min(1.0, gone))) / 2)


def log_steps(steps: int, a_doubling: int = 2) -> tuple[int, ...]:
    """Steps at equal distances on a logarithmic axis, from 0 to `steps`: dense at the beginning.

    `a_doubling` is how many there are from a step to its double.

    >>> cm.training.log_steps(100)
    (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 100)
    """
    count = max(0, math.floor(a_doubling * math.log2(steps))) if steps else 0
    return tuple(sorted({0, steps, *(round(2 ** (i / a_doubling)) for i in range(count + 1))}))
