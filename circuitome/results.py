"""Numbers with their uncertainty: an estimate over prompts and the bootstrap that gives its interval."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
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
) -> Estimate:
    """An `Estimate` of `statistic(mean of columns over prompts)`, resampling prompts with replacement.

    Rows of `columns` are prompts, so paired quantities (clean, corrupted, circuit) stay paired.
    `statistic` maps means [resamples, columns] to [resamples]. Percentile interval (Efron 1979), 2,000 resamples;
    computed in float64. With one prompt the interval has no width to estimate and is NaN.
    """
    data = columns.detach().double().cpu()
    value = float(statistic(data.mean(0, keepdim=True))[0])
    low, high = float("nan"), float("nan")
    if len(data) > 1:
        draws = statistic(resample_means(data, seed=seed))
        tail = (1 - level) / 2
        low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Estimate(value, low, high, unit, len(data), level)


def mean(values: Float[Tensor, " n"], unit: str, *, seed: int = 0) -> Estimate:
    """The mean of `values` over prompts with its bootstrap interval."""
    return bootstrap(values[:, None], lambda means: means[:, 0], unit, seed=seed)


def resample_means(
    data: Float[Tensor, "n columns"], *, seed: int, resamples: int = RESAMPLES
) -> Float[Tensor, "resamples columns"]:
    """Column means of `resamples` draws of n rows with replacement; the same seed draws the same rows."""
    n = len(data)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(n, (resamples, n), generator=generator)
    weights = torch.zeros(resamples, n, dtype=data.dtype)
    weights.scatter_add_(1, rows, torch.ones_like(rows, dtype=data.dtype))
    return weights @ data / n


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
        draws = resample_means(flat, seed=0)
        tail = (1 - LEVEL) / 2
        low, high = (torch.quantile(draws, q, dim=0).float().view_as(self.mean) for q in (tail, 1 - tail))
        return low, high

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
