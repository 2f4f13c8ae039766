"""Hypothesis tests of circuits: what a claim says about per-prompt scores, and how surely the data refuse it.

Source: Shi et al. 2024, arXiv:2410.13032, with two corrections of the published code: the equivalence test counts wins
(the code compares the mean score difference with one half), and many tests at once are corrected for (Holm 1979).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import binom
from torch import Tensor

from circuitome.errors import InputError

ALPHA = 0.05
EPSILON = 0.1
"""Equivalence: how far the share of wins may be from one half."""
QUANTILE = 0.9
"""Share of random circuits or edges that must be beaten."""


@dataclass(frozen=True)
class TestResult:
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

    def rejected(self, alpha: float = ALPHA) -> bool:
        """Whether the null hypothesis is refused at level `alpha`."""
        return self.p_value < alpha

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)


def equivalence(
    circuit: Float[Tensor, " prompts"], model: Float[Tensor, " prompts"], *, epsilon: float = EPSILON
) -> TestResult:
    """Is the circuit's score above the model's as often as below? Rejection: no, they differ.

    Null: |P(circuit > model) - 1/2| <= epsilon. With w wins in n prompts without a tie and t = |w / n - 1/2|,
    p = P(|K / n - 1/2| >= t) for K ~ Binomial(n, 1/2 + epsilon): the null's edge, where such a t is likeliest.
    All ties give p = 1. Raises `InputError` for fewer than two prompts or scores of different length.
    """
    _paired(circuit, model)
    wins, n = int((circuit > model).sum()), int((circuit != model).sum())
    null = f"the circuit scores above the model on {50 - 100 * epsilon:.0f} to {50 + 100 * epsilon:.0f} % of prompts"
    if n == 0:
        return TestResult("equivalence", null, 0.5, 1.0, 0)
    far = abs(wins / n - 0.5)
    k = torch.arange(n + 1).double()
    extreme = (k / n - 0.5).abs() >= far - 1e-12
    p = float(torch.from_numpy(binom.pmf(k.numpy(), n, 0.5 + epsilon))[extreme].sum())
    return TestResult("equivalence", null, wins / n, min(1.0, p), n)


def independence(
    complement: Float[Tensor, " prompts"],
    model: Float[Tensor, " prompts"],
    *,
    permutations: int = 1000,
    seed: int = 0,
) -> TestResult:
    """Does the model without the circuit still tell prompts apart as the whole model does? Rejection: yes.

    Null: scores of the complement are independent of the model's. Statistic: HSIC = trace(K H L H) / n^2 with Gaussian
    kernels whose width is the median distance (Gretton et al. 2007); p from `permutations` of the prompts,
    (1 + permuted at least as large) / (1 + permutations). Constant scores give p = 1. Raises as `equivalence`.
    """
    _paired(complement, model)
    n = len(model)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    first, second = _kernel(complement), _kernel(model)
    null = "what is left without the circuit says nothing about the model's score"
    if first is None or second is None:
        return TestResult("independence", null, 0.0, 1.0, n)
    centred = centre @ first @ centre
    value = float((centred * second).sum()) / n**2
    generator = torch.Generator().manual_seed(seed)
    larger = 0
    for _ in range(permutations):
        order = torch.randperm(n, generator=generator)
        larger += float((centred * second[order][:, order]).sum()) / n**2 >= value - 1e-12
    return TestResult("independence", null, value, (1 + larger) / (1 + permutations), n)


def better_than_random(name: str, own: float, random: Sequence[float], *, quantile: float = QUANTILE) -> TestResult:
    """Does `own` beat at least `quantile` of random draws (larger is better)? Rejection: yes, surely more.

    Null: P(own > random) <= quantile; p = P(K >= wins) for K ~ Binomial(n, quantile). Ties are no wins.
    Used for sufficiency (faithfulness against random circuits) and partial necessity (damage of the knock-out against
    that of random ones). At quantile .9, 29 draws are the fewest that can reject at 5 %. Raises `InputError` without
    draws.
    """
    if not random:
        raise InputError("A comparison with random draws needs at least one draw.")
    wins, n = sum(own > other for other in random), len(random)
    null = f"it beats at most {100 * quantile:.0f} % of random ones"
    return TestResult(name, null, wins / n, float(binom.sf(wins - 1, n, quantile)), n)


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
    return [TestResult("minimality", null, int(w) / n, p, n) for w, p in zip(wins.tolist(), corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p of several tests such that the chance of any false rejection stays below alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


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
