"""Numbers with their uncertainty: an estimate over prompts and the bootstrap that gives its interval.

What is resampled are templates, where prompts come from several: prompts of one template resemble one another, and as
if they were independent, an interval over 64 prompts of 4 templates holds the truth in 45 % of cases instead of 95 %.
Percentile intervals are too narrow where few units are resampled. Both ends are therefore moved away from the value by
t / z * sqrt(G / (G - 1)), with t and z the quantiles of Student's t with G - 1 degrees of freedom and of the normal
distribution, G the number of units: what makes the interval of a mean exact for normal data (Hesterberg 2015,
arXiv:1411.5279, section 4). Simulated coverage of 95 % intervals stands in tests/test_results.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.stats import norm as normal
from scipy.stats import t as student
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts, or a function of such means, with a percentile-bootstrap interval."""

    value: float
    """The estimate on all prompts, in `unit`."""
    low: float
    """Lower end of the interval at `level`."""
    high: float
    """Upper end of the interval at `level`."""
    unit: str
    """What one of it is, e.g. "logits" or "share of the clean-corrupted gap"."""
    n: int
    """Number of prompts."""
    level: float = LEVEL
    """Coverage of the interval."""
    templates: int = 0
    """Number of templates that were resampled; 0 where prompts were, one by one."""

    @property
    def over(self) -> str:
        """What the interval is over, in words: 64 prompts of 4 templates."""
        return f"{self.n} prompts" + (f" of {self.templates} templates" if self.templates else "")

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)


def bootstrap(
    columns: Float[Tensor, "n columns"],
    statistic: Callable[[Float[Tensor, "resamples columns"]], Float[Tensor, " resamples"]],
    unit: str,
    *,
    seed: int = 0,
    level: float = LEVEL,
    groups: Sequence[int] = (),
) -> Estimate:
    """An `Estimate` of `statistic(mean of columns over prompts)`, resampling with replacement.

    Rows of `columns` are prompts, so paired quantities (clean, corrupted, circuit) stay paired. `groups` gives each
    prompt's template; whole templates are drawn where there are several, prompts otherwise.
    `statistic` maps means [resamples, columns] to [resamples]. Percentile interval (Efron 1979) of 2,000 resamples,
    stretched as the module says; computed in float64. With one prompt the interval has no width to estimate and is NaN.
    """
    data = columns.detach().double().cpu()
    value = statistic(data.mean(0, keepdim=True))
    low = high = torch.full_like(value, torch.nan)
    if len(data) > 1:
        low, high = interval(value, statistic(resample_means(data, seed=seed, groups=groups)), len(data), groups, level)
    units = _units(len(data), groups)
    templates = 0 if units is None else int(units.max()) + 1
    return Estimate(float(value), float(low), float(high), unit, len(data), level, templates)


def mean(values: Float[Tensor, " n"], unit: str, *, seed: int = 0, groups: Sequence[int] = ()) -> Estimate:
    """The mean of `values` over prompts with its bootstrap interval."""
    return bootstrap(values[:, None], lambda means: means[:, 0], unit, seed=seed, groups=groups)


def interval(
    value: Tensor, draws: Float[Tensor, "resamples ..."], n: int, groups: Sequence[int] = (), level: float = LEVEL
) -> tuple[Tensor, Tensor]:
    """Low and high ends around `value` from bootstrap `draws`, stretched for the number of units that were drawn."""
    units = _units(n, groups)
    count = n if units is None else int(units.max()) + 1
    tail = (1 - level) / 2
    stretch = float(student.ppf(1 - tail, count - 1) / normal.ppf(1 - tail)) * (count / (count - 1)) ** 0.5
    low, high = (torch.quantile(draws, q, dim=0) for q in (tail, 1 - tail))
    return value + stretch * (low - value), value + stretch * (high - value)


def _units(n: int, groups: Sequence[int]) -> Int[Tensor, " n"] | None:
    """Number of each prompt's template, from 0; None where prompts are drawn one by one."""
    if not groups:
        return None
    units = torch.tensor(list(groups)).unique(return_inverse=True)[1]
    count = int(units.max()) + 1
    return units if 1 < count < n else None


def resample_means(
    data: Float[Tensor, "n columns"], *, seed: int, resamples: int = RESAMPLES, groups: Sequence[int] = ()
) -> Float[Tensor, "resamples columns"]:
    """Column means of `resamples` draws with replacement, of rows or of `groups` of them; a seed draws the same."""
    units = _units(len(data), groups)
    count = len(data) if units is None else int(units.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    weights = torch.zeros(resamples, count, dtype=data.dtype)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=data.dtype))
    weights = weights if units is None else weights[:, units]
    return weights @ data / weights.sum(1, keepdim=True)


@dataclass(frozen=True, eq=False)
class EffectMap:
    """Effects of single parts or places on the metric, laid out for a heat map."""

    name: str
    """What was done."""
    rows: tuple[str, ...]
    """Row labels."""
    columns: tuple[str, ...]
    """Column labels."""
    samples: Float[Tensor, "prompts rows columns"]
    """Metric of the intervened run minus metric of the run without; NaN where there is no such part."""
    clean: Float[Tensor, " prompts"]
    """Metric of the clean run."""
    corrupted: Float[Tensor, " prompts"]
    """Metric of the corrupted run."""
    unit: str
    """Unit of the metric."""
    groups: tuple[int, ...] = ()
    """Each prompt's template, over which intervals are taken."""

    @cached_property
    def mean(self) -> Float[Tensor, "rows columns"]:
        """Mean effect over prompts."""
        return self.samples.mean(0)

    @cached_property
    def interval(self) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "rows columns"]]:
        """Lower and upper ends of the 95 % bootstrap intervals over prompts; NaN with one prompt."""
        flat = self.samples.flatten(1).double()
        if len(flat) == 1:
            nothing = torch.full_like(self.mean, torch.nan)
            return nothing, nothing
        draws = resample_means(flat, seed=0, groups=self.groups)
        low, high = interval(flat.mean(0), draws, len(flat), self.groups)
        return low.float().view_as(self.mean), high.float().view_as(self.mean)

    @property
    def gap(self) -> float:
        """Mean metric of the clean run minus that of the corrupted one: what 100 % means."""
        return float(self.clean.mean() - self.corrupted.mean())

    def share(self) -> Float[Tensor, "rows columns"]:
        """Mean effect as a share of the gap between the clean and the corrupted run."""
        return self.mean / self.gap

    def label(self, row: int, column: int) -> str:
        """Name of a cell: a5.h1, m3, or place and position."""
        name, at = self.rows[row], self.columns[column]
        if at.startswith("h"):
            return f"{name}.{at}"
        if at == "mlp":
            return name.replace("a", "m", 1) if name.startswith("a") else name
        return f"{name}@{at}"

    def top(self, n: int) -> list[tuple[str, Estimate]]:
        """The cells with the largest mean |effect|, each with its interval."""
        order = self.mean.abs().nan_to_num(-1.0).flatten().argsort(descending=True)[:n].tolist()
        cells = [divmod(index, len(self.columns)) for index in order]
        return [(self.label(*cell), self.estimate(*cell)) for cell in cells]

    def estimate(self, row: int, column: int) -> Estimate:
        """One cell's mean effect with its interval."""
        low, high = (float(end[row, column]) for end in self.interval)
        return Estimate(float(self.mean[row, column]), low, high, self.unit, len(self.samples))

    def to_dict(self) -> dict[str, Any]:
        """Labels, means, intervals and the metrics of the plain runs, as plain JSON values."""
        low, high = self.interval
        return {
            "name": self.name,
            "unit": self.unit,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "mean": _numbers(self.mean),
            "low": _numbers(low),
            "high": _numbers(high),
            "clean": mean(self.clean, self.unit).to_dict(),
            "corrupted": mean(self.corrupted, self.unit).to_dict(),
        }


def _numbers(values: Tensor) -> list[list[float | None]]:
    """Nested lists with None for NaN, which JSON has not."""
    return [[None if x != x else x for x in row] for row in values.tolist()]
