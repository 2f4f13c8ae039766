"""From results to the lines of a verdict card: value, interval, what it stands beside, and whether it holds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from circuitome.results import Estimate
from circuitome.validation.tests.completeness import Completeness
from circuitome.validation.tests.hypotheses import ALPHA, POWERFUL, TestResult, better_than_random, holm, nearness
from circuitome.validation.tests.minimality import Minimality
from circuitome.validation.tests.nulls import SHAPED

FAITHFUL = (0.8, 1.2)
"""Faithfulness within these passes."""
INCOMPLETE = 0.2
"""Mean incompleteness of random subsets up to this passes, as a share of the gap."""
USELESS = 0.01
"""Nodes that change less than this share of the gap are useless; a minimal circuit has none."""
PASS, FAIL, UNCLEAR = "pass", "fail", "unclear"


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
    said: str = ""
    """The value in words, where a number alone would mislead."""


def decided(low: float, high: float, least: float, most: float) -> str:
    """Pass where an interval surely lies within `least` and `most`, fail where it surely lies outside; else unclear."""
    return PASS if least <= low and high <= most else FAIL if high < least or low > most else UNCLEAR


def missing(name: str, note: str) -> Criterion:
    """A line for what could not be tested."""
    return Criterion(name, float("nan"), None, None, "", "", UNCLEAR, note)


def faithful(share: Estimate, random: Sequence[float]) -> Criterion:
    """Normalised faithfulness within `FAITHFUL`, surely."""
    verdict, beside = decided(share.low, share.high, *FAITHFUL), f"random circuits {mean(random):.3f}"
    threshold = f"{FAITHFUL[0]} to {FAITHFUL[1]}"
    return Criterion("faithfulness", share.value, share.low, share.high, beside, threshold, verdict)


def complete(completeness: Completeness, seed: int = 0) -> Criterion:
    """Mean incompleteness over random subsets, surely below `INCOMPLETE`."""
    value, worst = completeness.mean("random", seed), completeness.worst
    verdict = decided(value.low, value.high, -math.inf, INCOMPLETE)
    nodes, kind = len(completeness.sets[worst]), completeness.kinds[worst]
    note = f"worst {float(completeness.scores[worst]):.3f} ({kind}, {nodes} nodes ablated)"
    threshold = f"at most {INCOMPLETE}"
    return Criterion("completeness", value.value, value.low, value.high, "0 is complete", threshold, verdict, note)


def minimal(minimality: Minimality, seed: int = 0) -> Criterion:
    """No node that the circuit can do without."""
    share = minimality.useless_share(USELESS, seed)
    useless = [name for name, score in minimality.nodes.items() if score < USELESS]
    verdict = PASS if not useless else FAIL if not share.low <= 0 else UNCLEAR
    note = f"can go: {', '.join(useless[:12])}{' ...' if len(useless) > 12 else ''}" if useless else ""
    threshold = f"every node changes at least {100 * USELESS:.0f} % of the gap"
    beside = f"{len(useless)} of {len(minimality.nodes)} nodes useless"
    return Criterion("minimality", share.value, share.low, share.high, beside, threshold, verdict, note)


def beats_chance(share: float, nulls: Mapping[str, Sequence[float]]) -> list[Criterion]:
    """The circuit compared with circuits that share its number of edges by layer and kind, or by node.

    It passes where its share is nearer to 1 than that of each of them.
    """
    rows = []
    for name in SHAPED:
        best = max(nulls[name], key=nearness)
        ahead = nearness(share) - nearness(best)
        said = f"{share:.3f} against the best of {len(nulls[name])}: {best:.3f} ({ahead:+.3f})"
        verdict = PASS if ahead > 0 else FAIL
        against = f"{name} random circuits, mean {mean(nulls[name]):.3f}"
        line, threshold = f"beats {name} circuits", "nearer to 1 than each"
        rows.append(Criterion(line, ahead, None, None, against, threshold, verdict, said=said))
    return rows


def hypothesis_criteria(tests: Sequence[TestResult], notes: Mapping[str, str]) -> list[Criterion]:
    """Hypothesis tests as lines of the verdict; `notes` by name of the test.

    Where rejecting speaks for the circuit, p-values are corrected for there being several such tests (Holm 1979). Where
    rejecting speaks against it they are not: a correction would turn failures into passes.
    """
    several = [test for test in tests if test.supports]
    corrected = dict(zip((test.name for test in several), holm([test.p_value for test in several]), strict=True))
    return [
        _rejection_passes(test, corrected[test.name], len(several), notes.get(test.name, ""))
        if test.supports
        else _rejection_fails(test, notes.get(test.name, ""))
        for test in tests
    ]


def _rejection_passes(test: TestResult, corrected: float, tests: int, note: str) -> Criterion:
    """A line for one of several `tests` whose rejection speaks for the circuit."""
    # With few draws even a win over all of them proves nothing.
    best_possible = better_than_random("", 1.0, [0.0] * test.n).p_value * tests
    verdict = PASS if corrected < ALPHA else FAIL if best_possible < ALPHA else UNCLEAR
    words = f"H0: {test.null}, p = {test.p_value:.3g}, corrected {corrected:.3g}"
    return Criterion(test.name, test.statistic, None, None, words, f"corrected p below {ALPHA}", verdict, note)


def _rejection_fails(test: TestResult, note: str) -> Criterion:
    """A line for a test whose rejection speaks against the circuit; unrejected it says something only with power."""
    weak = test.power < POWERFUL
    verdict = FAIL if test.rejected() else UNCLEAR if weak else PASS
    words = f"H0: {test.null}, p = {test.p_value:.3g}"
    few = f"with {test.n} it would notice a clear difference in {test.power:.0%} of cases" if weak else ""
    note = "; ".join(part for part in (note, few) if part)
    return Criterion(test.name, test.statistic, None, None, words, f"p at least {ALPHA}", verdict, note)


def answer(criteria: Sequence[Criterion]) -> tuple[str, str]:
    """The verdict in a word, and the reason in a sentence.

    ESTABLISHED where every criterion passes, NOT ESTABLISHED where one fails, INCONCLUSIVE where none fails but the
    data do not decide on some.
    """
    failed, unclear = ([c.name for c in criteria if c.verdict == kind] for kind in (FAIL, UNCLEAR))
    if failed:
        return "NOT ESTABLISHED", f"It fails {_listed(failed)}."
    if unclear:
        return "INCONCLUSIVE", f"Nothing speaks against it, but these prompts do not decide on {_listed(unclear)}."
    return "ESTABLISHED", f"It passes all {len(criteria)} criteria."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1]
