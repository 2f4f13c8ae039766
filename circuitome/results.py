"""Numbers with their uncertainty: an estimate over prompts and the bootstrap that gives its interval."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
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
