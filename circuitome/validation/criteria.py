"""From results to the lines of a verdict card: value, interval, what it stands beside, and whether it holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from circuitome.results import Estimate
from circuitome.validation.tests import hypotheses as hypothesis
from circuitome.validation.tests.completeness_minimality import Completeness, Minimality
from circuitome.validation.tests.hypotheses import TestResult, holm

FAITHFUL = (0.8, 1.2)
"""Faithfulness within these passes."""
INCOMPLETE = 0.2
"""Mean incompleteness of random subsets up to this passes, as a share of the gap."""
USELESS = 0.01
"""Nodes that change less than this share of the gap are useless; a minimal circuit has none."""
PASS, FAIL, UNCLEAR = "pass", "fail", "unclear"
GOOD = ("sufficiency", "necessity")
"""Tests whose rejection is what a real circuit does; rejecting any other speaks against it."""


@dataclass(frozen=True)
class Criterion:
    """One line of the verdict."""

    name: str
    """What was tested."""
    value: float
    """The number."""
    low: float | None
    """Lower end of its 95 % interval over prompts, where there is one."""
    high: float | None
    """Upper end."""
    null: str
    """What it stands beside: a null hypothesis, or the value of circuits made by chance."""
    threshold: str
    """What passes."""
    verdict: str
    """pass, fail or unclear."""
    note: str = ""
    """What else to know."""


def missing(name: str, note: str) -> Criterion:
    """A line for what could not be tested."""
    return Criterion(name, float("nan"), None, None, "", "", UNCLEAR, note)


def faithful(share: Estimate, random: Sequence[float]) -> Criterion:
    """Normalised faithfulness within `FAITHFUL`, surely."""
    low, high = FAITHFUL
    surely = low <= share.low and share.high <= high
    verdict = PASS if surely else FAIL if share.high < low or share.low > high else UNCLEAR
    beside = f"random circuits {_mean(random):.3f}"
    return Criterion("faithfulness", share.value, share.low, share.high, beside, f"{low} to {high}", verdict)


def complete(found: Completeness, seed: int = 0) -> Criterion:
    """Mean incompleteness over random subsets, surely below `INCOMPLETE`."""
    value, worst = found.mean("random", seed), found.worst
    verdict = UNCLEAR
    if value.high <= INCOMPLETE:
        verdict = PASS
    elif value.low > INCOMPLETE:
        verdict = FAIL
    note = f"worst {float(found.scores[worst]):.3f} ({found.kinds[worst]}, {len(found.sets[worst])} nodes knocked out)"
    threshold = f"at most {INCOMPLETE}"
    return Criterion("completeness", value.value, value.low, value.high, "0 is complete", threshold, verdict, note)


def minimal(found: Minimality, seed: int = 0) -> Criterion:
    """No node that the circuit can do without."""
    share = found.useless_share(USELESS, seed)
    useless = [name for name, score in found.nodes.items() if score < USELESS]
    verdict = PASS if not useless else FAIL if not share.low <= 0 else UNCLEAR
    note = f"can go: {', '.join(useless[:12])}{' ...' if len(useless) > 12 else ''}" if useless else ""
    threshold = f"every node changes at least {100 * USELESS:.0f} % of the gap"
    beside = f"{len(useless)} of {len(found.nodes)} nodes useless"
    return Criterion("minimality", share.value, share.low, share.high, beside, threshold, verdict, note)


def beats_chance(own: float, nulls: Mapping[str, Sequence[float]]) -> list[Criterion]:
    """The circuit beside circuits that share its number of edges by layer and kind, or by node."""
    rows = []
    for name in ("layered", "rewired"):
        best = max(nulls[name])
        beside = f"mean {_mean(nulls[name]):.3f} of {len(nulls[name])}"
        verdict = PASS if own > best else FAIL
        rows.append(Criterion(f"beats {name} circuits", own - best, None, None, beside, "above the best", verdict))
    return rows


def tested(tests: Sequence[TestResult], notes: Mapping[str, str]) -> list[Criterion]:
    """Hypothesis tests as lines; their p-values corrected for there being several (Holm 1979)."""
    corrected = holm([one.p_value for one in tests])
    return [_tested(one, p, len(tests), notes.get(one.name, "")) for one, p in zip(tests, corrected, strict=True)]


def _tested(test: TestResult, corrected: float, tests: int, note: str) -> Criterion:
    words = f"p {test.p_value:.3g}, corrected {corrected:.3g}, of: {test.null}"
    rejected = replace(test, p_value=corrected).rejected()
    if test.name not in GOOD:
        threshold = f"corrected p at least {hypothesis.ALPHA}"
        return Criterion(test.name, test.statistic, None, None, words, threshold, FAIL if rejected else PASS, note)
    # With few draws even a win over all of them proves nothing.
    best = hypothesis.better_than_random("", 1.0, [0.0] * test.n).p_value * tests
    verdict = PASS if rejected else FAIL if best < hypothesis.ALPHA else UNCLEAR
    threshold = f"corrected p below {hypothesis.ALPHA}"
    return Criterion(test.name, test.statistic, None, None, words, threshold, verdict, note)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
