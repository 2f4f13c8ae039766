"""Hypothesis tests of circuits: what a claim says about per-prompt scores, and how surely the data refuse it.

Source: Shi et al. 2024, arXiv:2410.13032, with two corrections of the published code: the equivalence test counts wins
(the code compares the mean score difference with one half), and many tests at once are corrected for (Holm 1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binom, ttest_1samp
from scipy.stats import norm as normal
from torch import Tensor

from circuitome.errors import InputError
from circuitome.results import Record
from circuitome.tasks.task import Task

ALPHA = 0.05
FEWEST_PROMPTS = 8
"""Prompts that a test over prompts needs, and a template that is to be a task of its own."""
EPSILON = 0.1
"""Equivalence: how far the share of wins may be from one half."""
CLEARLY = 0.1
"""Share of wins at which a circuit clearly differs from the model."""
POWERFUL = 0.8
"""Power from which on an unrejected null counts for something."""
QUANTILE = 0.9
"""Share of random circuits or edges that must be beaten."""


@dataclass(frozen=True)
class TestResult(Record):
    """One test: `p_value` is the chance of a statistic at least this extreme under the null hypothesis `null`."""

    __test__ = False  # no test case for pytest

    name: str
    """Which test."""
    null: str
    """The null hypothesis in words."""
    statistic: float
    """Its statistic: a share of wins, or HSIC."""
    p_value: float
    """In [0, 1]."""
    n: int
    """Prompts or draws it rests on."""
    power: float = 1.0
    """Chance that it would reject if the null were clearly wrong: what an unrejected null is worth."""
    supports: bool = False
    """Whether rejecting the null speaks for the circuit; else it speaks against it."""

    def rejected(self, alpha: float = ALPHA) -> bool:
        """Whether the null hypothesis is refused at level `alpha`."""
        return self.p_value < alpha


def equivalence(
    circuit: Float[Tensor, " prompts"], model: Float[Tensor, " prompts"], *, epsilon: float = EPSILON
) -> TestResult:
    """Is the circuit's score above the model's as often as below? Rejection: no, they differ.

    Null: |P(circuit > model) - 1/2| <= epsilon. With w wins in n prompts without a tie and t = |w / n - 1/2|,
    p = P(|K / n - 1/2| >= t) for K ~ Binomial(n, 1/2 + epsilon): the null's edge, where such a t is likeliest.
    All ties give p = 1. Power: the chance of a rejection where the circuit scores above the model on 10 % of prompts.
    Raises `InputError` for fewer than two prompts or scores of different length.
    """
    _paired(circuit, model)
    wins, n = int((circuit > model).sum()), int((circuit != model).sum())
    null = f"the circuit scores above the model on {50 - 100 * epsilon:.0f} to {50 + 100 * epsilon:.0f} % of prompts"
    if n == 0:
        return TestResult("equivalence", null, 0.5, 1.0, 0)
    k = np.arange(n + 1)
    far, chance = np.abs(k / n - 0.5), binom.pmf(k, n, 0.5 + epsilon)
    p_values = np.array([chance[far >= distance - 1e-12].sum() for distance in far])  # of every number of wins
    power = float(binom.pmf(k, n, CLEARLY)[p_values < ALPHA].sum())
    return TestResult("equivalence", null, wins / n, min(1.0, float(p_values[wins])), n, power)


def independence(
    complement: Float[Tensor, " prompts"], model: Float[Tensor, " prompts"], *, permutations: int = 1000, seed: int = 0
) -> TestResult:
    """Does the model without the circuit still tell prompts apart as the whole model does? Rejection: yes.

    Null: scores of the complement are independent of the model's. Statistic: HSIC = trace(K H L H) / n^2 with Gaussian
    kernels whose width is the median distance (Gretton et al. 2007); p from `permutations` of the prompts,
    (1 + permuted at least as large) / (1 + permutations). Constant scores give p = 1. Power: that of the test of a
    correlation of .7 on as many prompts, which HSIC with these kernels comes near to. Raises as `equivalence`.
    """
    _paired(complement, model)
    n = len(model)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    first, second = _kernel(complement), _kernel(model)
    null = "what is left without the circuit says nothing about the model's score"
    if first is None or second is None:
        return TestResult("independence", null, 0.0, 1.0, n, _power_of_correlation(n))
    centred = centre @ first @ centre
    value = float((centred * second).sum()) / n**2
    generator = torch.Generator().manual_seed(seed)
    larger = 0
    for _ in range(permutations):
        order = torch.randperm(n, generator=generator)
        larger += float((centred * second[order][:, order]).sum()) / n**2 >= value - 1e-12
    p = (1 + larger) / (1 + permutations)
    return TestResult("independence", null, value, p, n, _power_of_correlation(n))


def better_than_random(name: str, value: float, random: Sequence[float], *, quantile: float = QUANTILE) -> TestResult:
    """Does `value` beat at least `quantile` of random draws (larger is better)? Rejection: yes, surely more.

    Null: P(value > random) <= quantile; p = P(K >= wins) for K ~ Binomial(n, quantile). Ties are no wins.
    Used for sufficiency and for partial necessity (damage of the knock-out against that of random ones). At quantile
    .9, 29 draws are the fewest that can reject at 5 %. Raises `InputError` without draws.
    """
    if not random:
        raise InputError("A comparison with random draws needs at least one draw.")
    wins, n = sum(value > other for other in random), len(random)
    null = f"it beats at most {100 * quantile:.0f} % of random ones"
    return TestResult(name, null, wins / n, float(binom.sf(wins - 1, n, quantile)), n, supports=True)


def sufficiency(share: float, random: Sequence[float]) -> TestResult:
    """Is the circuit's faithfulness nearer to 1 than that of random circuits? Rejection: yes; see `better_than_random`.

    Not the larger share is better but the nearer to 1: a circuit of share 3 is as far from the model as one of -1.
    """
    return better_than_random("sufficiency", nearness(share), [nearness(other) for other in random])


def nearness(share: float) -> float:
    """How near a share is to 1, the whole model: minus its distance. Overshooting is no better than falling short."""
    return -abs(1.0 - share)


def needed_edges(
    changes: Float[Tensor, " edges"], random: Float[Tensor, " draws"], *, quantile: float = QUANTILE
) -> list[TestResult]:
    """For each edge, does leaving it out change the score more than leaving out a useless one? Rejection: no.

    `changes` are the sizes of the circuit's changes without each edge, `random` those of edges that were added at
    random. Null: P(change > random) >= quantile; p = P(K <= wins) for K ~ Binomial(n, quantile), then Holm's correction
    over the edges. One rejection means that the circuit is not minimal.
    """
    n = len(random)
    if n == 0:
        raise InputError("The minimality test needs at least one random edge to compare with.")
    wins = (changes[:, None] > random[None]).sum(1)
    corrected = holm(binom.cdf(wins.numpy(), n, quantile).tolist())
    null = f"leaving the edge out changes more than {100 * quantile:.0f} % of useless edges do"
    power = float(holm([binom.cdf(0, n, quantile)] * len(changes))[0] < ALPHA)
    return [TestResult("minimality", null, w / n, p, n, power) for w, p in zip(wins.tolist(), corrected, strict=True)]


def fell(changes: Float[Tensor, " prompts"]) -> float:
    """P of a one-sided paired t-test; null: the mean change over prompts is at least 0. No spread: 0 or 1."""
    values = changes.double()
    if float(values.std()) <= 1e-9 * abs(float(values.mean())):
        return 0.0 if float(values.mean()) < 0 else 1.0
    return float(ttest_1samp(values.numpy(), 0.0, alternative="less").pvalue)


def falls(changes: Float[Tensor, "prompts parts"], parts: Sequence[int]) -> dict[int, float]:
    """P of `fell` for each of the columns `parts`, corrected by Holm for their number; the lowest mean first."""
    means = changes.mean(0).tolist()
    order = sorted(parts, key=means.__getitem__)
    return dict(zip(order, holm([fell(changes[:, part]) for part in order]), strict=True))


def check_prompts(task: Task, what: str) -> None:
    """Raises `InputError` where the task has fewer prompts than a test over them needs; `what` is such a test."""
    if len(task) < FEWEST_PROMPTS:
        raise InputError(
            f"{what}, which needs at least {FEWEST_PROMPTS}; {task.name} has {len(task)}. Take more prompts (--n)."
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p of several tests such that the chance of any false rejection stays below alpha."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(order))
    steps = np.minimum(1.0, np.arange(len(order), 0, -1) * np.asarray(p_values)[order])
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()


def _power_of_correlation(n: int, correlation: float = 0.7) -> float:
    """Power of the two-sided test of a correlation at `ALPHA` (Fisher's z), 0 below 5 prompts."""
    if n < 5:
        return 0.0
    return float(normal.sf(normal.isf(ALPHA / 2) - math.atanh(correlation) * (n - 3) ** 0.5))


def _paired(a: Tensor, b: Tensor) -> None:
    if len(a) != len(b):
        raise InputError(f"Scores of the same prompts are needed; got {len(a)} and {len(b)}.")
    if len(a) < 2:
        raise InputError(f"A test over prompts needs at least two, got {len(a)}. Take more prompts (--n).")


def _kernel(values: Tensor) -> Float[Tensor, "prompts prompts"] | None:
    """Gaussian kernel of scalars, its width the median of the distances above 0; None where all are equal."""
    distance = (values[:, None] - values[None]).abs().double()
    positive = distance[distance > 0]
    if not len(positive):
        return None
    return (-(distance**2) / (2 * positive.median() ** 2)).exp()
