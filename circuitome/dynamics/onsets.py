"""Onsets: at which training step a curve changes suddenly, whether it does at all, and which of two comes first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.results import LEVEL, Record, Shown, resample_means

DEGREE = 3
"""Degree of the smooth alternative, a polynomial in the logarithm of the step."""
WIDTH = 0.2
"""Share of the curve's logarithmic range that a sudden change may take."""
SHARE = 0.5
"""Share of the curve's own range that a sudden change must make up."""
CHANCE = 0.01
"""How often a smooth curve with noise may pass for a sudden change."""
SIGMOIDS, BUMPS, POWERS = (0.35, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3), (0.5, 1.0, 2.0)
"""Shapes that are not sudden: widths of sigmoids (from .1 to .9) and of bumps, as shares of the range; exponents."""
NOTHING = 1e-3
"""A shape of which no larger share is left beside a polynomial is one."""
CENTRES = 21
"""Places of each of them, evenly over the range."""
SHORTEST = 8
"""Steps that a curve needs."""
DRAWS = 500
"""Resamples behind an interval, and curves of noise behind a test."""
CORRELATIONS = tuple(i / 20 for i in range(20))
"""Correlations of neighbours in noise, of which is known what residuals show of them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Onset(Record, Shown):
    """The fastest change of a curve over training."""

    step: int
    """The step at which the change begins, where the fitted curve bends most; the change is over by `end`."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    end: int
    """The step at which the change is over."""
    size: float
    """How far the curve changes from `step` to `end` beyond what it does smoothly, in its own unit, with its sign."""
    share: float
    """That as a share of the range of the fitted curve, 0 to about 1."""
    p: float
    """How often noise around a smooth curve looks at least as sudden."""
    sudden: bool
    """Whether p is below 0.01, the change is at least half of the range, and no broad shape fits as well."""
    steps: tuple[int, ...]
    """The steps of the curve that were used."""
    draws: Float[Tensor, " draws"] = field(repr=False)
    """The step in every resample, behind the interval."""

    def __str__(self) -> str:
        kind = "sudden" if self.sudden else "not sudden"
        return f"step {self.step:,} [{self.low:,.0f}, {self.high:,.0f}] ({kind}, p = {self.p:.3f})"

    def near(self, other: "Onset") -> bool:
        """Whether the two onsets are at most one checkpoint of this curve apart."""
        places = [min(range(len(self.steps)), key=lambda i: abs(self.steps[i] - s)) for s in (self.step, other.step)]
        return abs(places[0] - places[1]) <= 1


def onset(steps: Sequence[int], values: Sequence[float] | Float[Tensor, "... steps"], *, seed: int = 0) -> Onset:
    """When a curve changes suddenly: `values` are one curve, or a row for each sentence, seed or other repetition.

    The mean curve y(x), x = log step, is fitted by least squares with a cubic polynomial in x plus one ramp,

        y(x) = cubic(x) + size * clamp((x - x_i) / (x_j - x_i), 0, 1),

    over all pairs of checkpoints i < j that are at most a fifth of the logarithmic range apart. Step i is the onset:
    there the fitted curve has its largest curvature. The interval is over resampled rows, or over resampled residuals
    where there is one row. The test of suddenness compares how much the ramp lowers the squared error with what it does
    for curves of noise alone, whose neighbours correlate as the residuals do; whatever the cubic, the ratio is the
    same. A change that is not half of the curve's range is no sudden change either, however certain, nor is one that a
    broad shape in place of the ramp fits as well: a sigmoid that takes a third of the range, a bump, an exponential or
    a power of the step. Step 0 has no logarithm and is left out. float64. The definition by curvature follows Chen et
    al. 2024, arXiv:2309.07311, section 3; the fit in place of smoothed differences, and the test, are ours.

    >>> steps = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    >>> found = cm.dynamics.onset(steps, [0, 0.01, 0, 0, 0.01, 0.8, 0.81, 0.8, 0.8, 0.81])
    >>> found.step, found.end, found.sudden
    (16, 32, True)

    Raises `InputError` for steps that do not rise, for fewer than 8 of them, and for values that are not finite.
    """
    used, rows = _checked(steps, values)
    broken = BrokenCurves.of(tuple(used))
    generator = torch.Generator().manual_seed(seed)
    mean = rows.mean(0, keepdim=True)
    best, gain, size, fitted = (part[0] for part in broken.fit(mean))
    noise = (mean[0] - fitted) * (len(used) / max(1, len(used) - DEGREE - 4)) ** 0.5
    if len(rows) > 1:
        curves = resample_means(rows, seed=seed, resamples=DRAWS)
    else:
        curves = fitted + noise[torch.randint(len(noise), (DRAWS, len(noise)), generator=generator)]
    drawn = torch.tensor(used)[broken.pairs[broken.fit(curves)[0], 0]].double()
    low, high = drawn.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).double()).tolist()
    chance = broken.fit(_noise(broken.correlation(noise), (4 * DRAWS, len(noise)), generator))[1]
    p = (1 + int((chance >= gain).sum())) / (1 + len(chance))
    share = float(size.abs() / (fitted.max() - fitted.min()).clamp(min=1e-30))
    sharp = float((mean[0] - fitted).square().sum()) < float(broken.broad_error(mean))
    begin, end = (used[int(i)] for i in broken.pairs[best])
    return Onset(
        step=begin,
        low=low,
        high=high,
        end=end,
        size=float(size),
        share=share,
        p=p,
        sudden=p < CHANCE and share >= SHARE and sharp,
        steps=tuple(used),
        draws=drawn.float(),
    )


def _checked(
    steps: Sequence[int], values: Sequence[float] | Float[Tensor, "... steps"]
) -> tuple[list[int], Float[Tensor, "row used"]]:
    """Steps above 0 and the rows of values there. Raises `InputError`."""
    rows = torch.as_tensor(values).double().cpu()
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] != len(steps) or not len(rows):
        raise InputError(
            f"values must be a row of {len(steps)} numbers, one a step, or rows of such; got {rows.shape}."
        )
    if any(later <= earlier for earlier, later in pairwise(steps)) or (steps and steps[0] < 0):
        raise InputError("The steps of a curve must rise from 0 or more, each later than the one before.")
    kept = [i for i, step in enumerate(steps) if step > 0]
    if len(kept) < SHORTEST:
        raise InputError(f"An onset needs at least {SHORTEST} steps above 0, got {len(kept)}. Watch more steps.")
    if not bool(rows[:, kept].isfinite().all()):
        raise InputError("The curve has values that are not finite. Leave their steps out.")
    return [steps[i] for i in kept], rows[:, kept]


def _noise(correlation: float, shape: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "draws steps"]:
    """Curves of noise whose neighbours correlate (an autoregression of order 1), unit variance."""
    curves = torch.randn(shape, generator=generator, dtype=torch.double)
    for i in range(1, shape[1]):
        curves[:, i] = correlation * curves[:, i - 1] + (1 - correlation**2) ** 0.5 * curves[:, i]
    return curves


def _correlation(residuals: Float[Tensor, "row steps"]) -> Float[Tensor, " row"]:
    """How neighbours correlate in each row."""
    centred = residuals - residuals.mean(1, keepdim=True)
    return (centred[:, 1:] * centred[:, :-1]).sum(1) / centred.square().sum(1).clamp(min=1e-30)


@dataclass(frozen=True, eq=False)
class BrokenCurves:
    """All curves that are a cubic polynomial of the logarithmic step plus one short ramp, ready to be fitted."""

    smooth: Float[Tensor, "steps degree"]
    """An orthonormal basis of the polynomials."""
    pairs: Int[Tensor, "pair 2"]
    """Where each ramp begins and ends, as places among the steps."""
    ramps: Float[Tensor, "steps pair"]
    """What of each ramp no polynomial is."""
    broad: Float[Tensor, "steps shape"]
    """The same of broad shapes, of norm 1."""

    @classmethod
    @cache
    def of(cls, steps: tuple[int, ...]) -> "BrokenCurves":
        """The curves over these steps; the first and the last step are before and after every ramp."""
        x = torch.tensor(steps, dtype=torch.double).log()
        span, last = float(x[-1] - x[0]), len(steps) - 1
        powers = (2 * (x - x[0]) / span - 1)[:, None] ** torch.arange(DEGREE + 1)
        smooth = torch.linalg.qr(powers)[0]
        pairs = [
            (i, j)
            for i in range(1, last - 1)
            for j in range(i + 1, last)
            if j == i + 1 or float(x[j] - x[i]) <= WIDTH * span
        ]
        begin, end = x[torch.tensor(pairs).T]
        ramps = ((x[:, None] - begin) / (end - begin)).clamp(0, 1)
        broad = _broad(torch.tensor(steps).double())
        rest = broad - smooth @ (smooth.T @ broad)
        kept = rest.norm(dim=0) > NOTHING * broad.norm(dim=0)
        broad = rest[:, kept] / rest[:, kept].norm(dim=0)
        return cls(smooth, torch.tensor(pairs), ramps - smooth @ (smooth.T @ ramps), broad)

    def broad_error(self, curves: Float[Tensor, "row steps"]) -> Float[Tensor, " row"]:
        """The squared error of a cubic plus the best broad shape."""
        left = curves - (curves @ self.smooth) @ self.smooth.T
        return left.square().sum(1) - (left @ self.broad).square().amax(1)

    def correlation(self, residuals: Float[Tensor, " steps"]) -> float:
        """How neighbours correlate in the noise that left these residuals, 0 to 0.9.

        A fit takes up slow noise, so that residuals correlate less. Half of what that is on average is given back:
        all of it would hide steps of little more than the noise.
        """
        seen = float(_correlation(residuals[None]))
        likely = CORRELATIONS[min(int(torch.searchsorted(self.seen, seen)), len(CORRELATIONS) - 1)]
        return min(0.9, (max(0.0, seen) + max(seen, likely)) / 2)

    @cached_property
    def seen(self) -> Float[Tensor, " correlation"]:
        """What correlation residuals show on average, for each of `CORRELATIONS`."""
        generator, shape = torch.Generator().manual_seed(0), (DRAWS, len(self.smooth))
        shown = list[Tensor]()
        for correlation in CORRELATIONS:
            curves = _noise(correlation, shape, generator)
            shown.append(_correlation(curves - self.fit(curves)[3]).mean())
        return torch.stack(shown).cummax(0).values

    @cached_property
    def sizes(self) -> Float[Tensor, " pair"]:
        """Norm of each column of `ramps`."""
        return self.ramps.norm(dim=0).clamp(min=1e-12)

    def fit(
        self, curves: Float[Tensor, "row steps"]
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, "row steps"]]:
        """For each curve: the best pair, the squared error it saves over what is left, the ramp's size, the fit."""
        smooth = (curves @ self.smooth) @ self.smooth.T
        left = curves - smooth
        along = left @ (self.ramps / self.sizes)
        strength, best = along.square().max(1)
        error = (left.square().sum(1) - strength).clamp(min=1e-12 * curves.square().sum(1) + 1e-30)
        size = along.gather(1, best[:, None])[:, 0] / self.sizes[best]
        return best, strength / error, size, smooth + size[:, None] * self.ramps[:, best].T


def _broad(steps: Float[Tensor, " steps"]) -> Float[Tensor, "steps shape"]:
    """Curves over these steps that change slowly, or come back."""
    x = steps.log()
    away = ((x - x[0]) / (x[-1] - x[0]))[:, None] - torch.linspace(0, 1, CENTRES)
    slope = 2 * math.log(9)  # a sigmoid goes from .1 to .9 within its width
    shapes = [torch.sigmoid(slope * away / width) for width in SIGMOIDS]
    shapes += [torch.exp(-((away / width) ** 2)) for width in BUMPS]
    shapes += [torch.exp(-steps[:, None] / steps), steps[:, None] ** -torch.tensor(POWERS)]
    return torch.cat(shapes, 1).double()


def precedes(first: Onset, second: Onset) -> float:
    """How sure it is that `first` comes before `second`: the share of pairs of their resamples, ties as halves.

    0.5 says nothing; 1 that every resample of the one is before every resample of the other. Rows of the two curves
    are resampled independently.

    >>> steps = [2**i for i in range(12)]
    >>> early, late = ([float(i > k) for i in range(12)] for k in (3, 7))
    >>> cm.dynamics.precedes(cm.dynamics.onset(steps, early), cm.dynamics.onset(steps, late))
    1.0
    """
    gap = second.draws[:, None] - first.draws
    return float((gap > 0).float().mean() + 0.5 * (gap == 0).float().mean())
