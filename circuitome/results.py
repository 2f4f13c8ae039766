"""Numbers with their uncertainty: one of them (`Estimate`), a table of them (`Samples`), and the bootstrap behind both.

What is resampled are templates, where prompts come from several: prompts of one template resemble one another, and as
if they were independent, an interval over 64 prompts of 4 templates holds the truth in 45 % of cases instead of 95 %.
Percentile intervals are too narrow where few units are resampled. Both ends are therefore moved away from the value by
t / z * sqrt(G / (G - 1)), with t and z the quantiles of Student's t with G - 1 degrees of freedom and of the normal
distribution, G the number of units: what makes the interval of a mean exact for normal data (Hesterberg 2015,
arXiv:1411.5279, section 4). Simulated coverage of 95 % intervals stands in tests/test_results.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import norm as normal
from scipy.stats import t as student
from torch import Tensor

from circuitome.errors import unknown_name

RESAMPLES = 2000
LEVEL = 0.95
CELLS = 4096
"""Columns that are resampled at once: `torch.quantile` takes at most 2**24 numbers."""


class Record:
    """A dataclass that gives all its fields as plain JSON values."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return plain_fields(self)


class Shown:
    """A result that shows itself: in a notebook as a page would, elsewhere by `.plot()` and `.to_pandas()`.

    What it shows is said in `circuitome.studies.result_views`. That stands above all results, so that it is imported by
    its name, and only when somebody looks.
    """

    def _repr_html_(self) -> str:
        return str(_views().html(self))

    def plot(self) -> Any:
        """Its picture: an Altair chart, or a drawing with `.save(path)`. Raises `InputError` where it has none."""
        return _views().plot(self)

    def to_pandas(self) -> Any:
        """Its numbers as a DataFrame. Raises `InputError` where pandas is not installed."""
        return _views().to_pandas(self)


def _views() -> Any:
    return import_module("circuitome.studies.result_views")


@dataclass(frozen=True)
class Estimate(Record, Shown):
    """A mean over prompts, or a function of such means, with a percentile-bootstrap interval."""

    value: float
    """The estimate on all prompts, in `unit`."""
    low: float
    """Lower end of the interval at `level`."""
    high: float
    """Upper end of the interval at `level`."""
    unit: str
    """What one of it is, e.g. "logits" or "share of the gap of clean and corrupted metric"."""
    n: int
    """Number of prompts."""
    level: float = LEVEL
    """Coverage of the interval."""
    templates: int = 0
    """Number of templates that were resampled; 0 where prompts were, one by one."""

    @property
    def over(self) -> str:
        """What the interval is over, in words: 64 prompts of 4 templates."""
        return _over(self.n, self.templates)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


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
        draws = statistic(resample_means(data, seed=seed, groups=groups))
        low, high = _ends(value, draws, len(data), groups, level)
    units = _units(len(data), groups)
    templates = 0 if units is None else int(units.max()) + 1
    return Estimate(float(value), float(low), float(high), unit, len(data), level, templates)


def mean(values: Float[Tensor, " n"], unit: str, *, seed: int = 0, groups: Sequence[int] = ()) -> Estimate:
    """The mean of `values` over prompts with its bootstrap interval."""
    return bootstrap(values[:, None], lambda means: means[:, 0], unit, seed=seed, groups=groups)


def intervals(
    data: Float[Tensor, "n ..."],
    *,
    groups: Sequence[int] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Float[Tensor, "2 ..."]:
    """Low and high ends of the intervals of the means of every column, float32; NaN where there is one row only."""
    if len(data) < 2:
        return torch.full((2, *data.shape[1:]), torch.nan)
    parts = []
    for part in data.flatten(1).double().split(CELLS, dim=1):
        draws = resample_means(part, seed=seed, resamples=resamples, groups=groups)
        parts.append(torch.stack(_ends(part.mean(0), draws, len(part), groups, level)))
    return torch.cat(parts, 1).float().view(2, *data.shape[1:])


def middle(draws: Float[Tensor, "draws ..."], level: float = LEVEL) -> tuple[Tensor, Tensor]:
    """The two values between which a share `level` of `draws` lies, as many draws below them as above."""
    tail = (1 - level) / 2
    return torch.quantile(draws, tail, dim=0), torch.quantile(draws, 1 - tail, dim=0)


def _ends(
    value: Tensor, draws: Float[Tensor, "resamples ..."], n: int, groups: Sequence[int], level: float
) -> tuple[Tensor, Tensor]:
    """Low and high ends around `value` from bootstrap `draws`, stretched for the number of units that were drawn."""
    units = _units(n, groups)
    count = n if units is None else int(units.max()) + 1
    tail = (1 - level) / 2
    stretch = float(student.ppf(1 - tail, count - 1) / normal.ppf(1 - tail)) * (count / (count - 1)) ** 0.5
    low, high = middle(draws, level)
    return value + stretch * (low - value), value + stretch * (high - value)


def over(n: int, groups: Sequence[int] = ()) -> str:
    """What intervals over `n` prompts are over, in words; `groups` gives each prompt's template."""
    units = _units(n, groups)
    return _over(n, 0 if units is None else int(units.max()) + 1)


def _over(n: int, templates: int) -> str:
    return f"{n} prompts" + (f" of {templates} templates" if templates else "")


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


def drawn_rows(n: int, *, draws: int, seed: int = 0, groups: Sequence[int] = ()) -> list[Int[Tensor, " drawn"]]:
    """Rows that `resample_means` takes the means of: `draws` times, of `n` rows or of whole `groups` of them."""
    units = _units(n, groups)
    units = torch.arange(n) if units is None else units
    count = int(units.max()) + 1
    drawn = torch.randint(count, (draws, count), generator=torch.Generator().manual_seed(seed))
    return [torch.cat([(units == unit).nonzero()[:, 0] for unit in chosen]) for chosen in drawn]


def proportion(hits: Float[Tensor, " n"], unit: str = "share") -> Estimate:
    """The share of hits (1, others 0) with its Wilson interval, which stays within 0 and 1 and is no point at either.

    Source: Wilson 1927, JASA 22; scipy.stats.binomtest.
    """
    from scipy.stats import binomtest

    ends = binomtest(int(hits.sum()), len(hits)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(hits.mean()), float(ends.low), float(ends.high), unit, len(hits))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Samples(Shown):
    """A number on every prompt for each cell of a table whose axes have labels: what one method measured of many parts.

    A result that is such a table inherits it and adds what else it holds, all by keyword:

        @dataclass(frozen=True, eq=False, kw_only=True, repr=False)
        class HeadScore(Samples):
            name: str

        score = HeadScore(samples=attention, axes=(("a0", "a1"), ("h0", "h1", "h2")), unit="share", name="sinks")
        score.mean, score.interval        # over prompts, laid out like the table
        score.top(5, signed=True)         # [("a1.h0", Estimate), ...]
        score["a1.h0"]                    # Estimate

    A result that holds several tables has several `Samples`. A table of one axis is a list: axes=((names),).
    """

    samples: Float[Tensor, "n ..."]
    """The values, prompts (or sequences) first; NaN in cells that do not exist."""
    axes: tuple[tuple[str, ...], ...]
    """Labels of each axis of the table."""
    unit: str
    """Unit of the values."""
    groups: tuple[int, ...] = ()
    """Each prompt's template (`Task.groups`), which intervals are taken over; empty where prompts are independent."""

    def __repr__(self) -> str:
        table = " x ".join(str(len(axis)) for axis in self.axes)
        return f"{type(self).__name__}({table} cells, {len(self.samples)} prompts, {self.unit})"

    def __getitem__(self, name: str) -> Estimate:
        """The cell called `name`. Raises `UnknownNameError`."""
        if name not in self._places:
            raise unknown_name("part", name, tuple(self._places))
        return self.estimate(*self._places[name])

    @cached_property
    def mean(self) -> Float[Tensor, " ..."]:
        """Mean over prompts."""
        return self.samples.mean(0)

    @cached_property
    def interval(self) -> tuple[Float[Tensor, " ..."], Float[Tensor, " ..."]]:
        """Lower and upper ends of the 95 % bootstrap intervals of the means; NaN with one prompt."""
        low, high = intervals(self.samples, groups=self.groups)
        return low, high

    def label(self, *cell: int) -> str:
        """Name of a cell: the labels of its row and column, joined as in a5.h1."""
        return ".".join(axis[index] for axis, index in zip(self.axes, cell, strict=True))

    def estimate(self, *cell: int) -> Estimate:
        """One cell's mean with its interval."""
        values = self.samples.flatten(1)[:, int(np.ravel_multi_index(cell, self.mean.shape))]
        return mean(values, self.unit, groups=self.groups)

    def top(self, n: int, *, signed: bool = False) -> list[tuple[str, Estimate]]:
        """The `n` cells with the largest |mean|, with `signed` the largest mean, largest first; ties in order."""
        strength = (self.mean if signed else self.mean.abs()).flatten()
        cells = min(n, int((~strength.isnan()).sum()))
        order = strength.nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:cells]
        places = torch.stack(torch.unravel_index(order, self.mean.shape), 1).tolist()
        return [(self.label(*place), self.estimate(*place)) for place in places]

    def to_dict(self) -> dict[str, Any]:
        """Unit, means and ends of the intervals as plain JSON values, laid out like the table."""
        low, high = self.interval
        return {"unit": self.unit, "mean": listed(self.mean), "low": listed(low), "high": listed(high)}

    @cached_property
    def _places(self) -> dict[str, tuple[int, ...]]:
        """Every cell by its name."""
        return {self.label(*cell): cell for cell in product(*map(range, self.mean.shape))}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class EffectMap(Samples):
    """Effects of single parts or places on the metric, laid out for a heat map of rows and columns.

    `samples` are the metric of the intervened run minus that of the run without; NaN where there is no such part.
    """

    name: str
    """What was done."""
    clean: Float[Tensor, " prompts"]
    """Metric of the clean run."""
    corrupted: Float[Tensor, " prompts"]
    """Metric of the corrupted run."""

    @property
    def rows(self) -> tuple[str, ...]:
        """Row labels."""
        return self.axes[0]

    @property
    def columns(self) -> tuple[str, ...]:
        """Column labels."""
        return self.axes[1]

    @property
    def gap(self) -> float:
        """Mean metric of the clean run minus that of the corrupted one: what 100 % means."""
        return float(self.clean.mean() - self.corrupted.mean())

    def share(self) -> Float[Tensor, "rows columns"]:
        """Mean effect as a share of the gap between the clean and the corrupted run."""
        return self.mean / self.gap

    def label(self, *cell: int) -> str:
        """Name of a cell: a5.h1, m3, or place and position."""
        name, at = (axis[index] for axis, index in zip(self.axes, cell, strict=True))
        if at.startswith("h"):
            return f"{name}.{at}"
        if at == "mlp":
            return name.replace("a", "m", 1) if name.startswith("a") else name
        return f"{name}@{at}"

    def to_dict(self) -> dict[str, Any]:
        """Labels, means, intervals and the metrics of the plain runs, as plain JSON values."""
        plain = {"clean": self.clean, "corrupted": self.corrupted}
        return {
            "name": self.name,
            "rows": list(self.rows),
            "columns": list(self.columns),
            **super().to_dict(),
            **{name: mean(values, self.unit, groups=self.groups).to_dict() for name, values in plain.items()},
        }


def plain(value: Any) -> Any:
    """Plain JSON values: results by `to_dict` or all their fields, tensors as lists, tuples as lists; others as is."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if is_dataclass(value):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return listed(value) if isinstance(value, Tensor) else value


def plain_fields(result: Any, *names: str) -> dict[str, Any]:
    """Fields or properties of a result by name, all fields of a dataclass unless `names` are given, made `plain`."""
    chosen = names or [field.name for field in fields(result)]
    return {name: plain(getattr(result, name)) for name in chosen}


def listed(values: Tensor) -> Any:
    """The values as nested lists with None for NaN, which JSON has not."""
    if values.ndim:
        return [listed(row) for row in values]
    return None if values.isnan() else float(values)
