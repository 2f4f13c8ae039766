"""Which role a head plays, from numbers alone: no rule sees a layer or a head's index.

A role is a list of tests, each between 0 (chance, or the opposite) and 1 (as the textbook head does it), and some
conditions. Its score is the geometric mean of its tests, 0 where a condition fails. A head gets the role with the best
score if that is at least `LEAST` and leads the next by `MARGIN`; else it is unclear, with the runner-up. That a head
rests (on the first position, on the token itself) says little, as most heads do at most tokens: such a role is given
only where no other has half of what it needs.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

LEAST = 0.4
"""Score that a role needs."""
MARGIN = 0.1
"""Lead that a role needs over the next one that is also likely."""
EFFECT = 0.02
"""Share of the gap between clean and ablated metric from which an effect counts."""
WHOLE = 0.1
"""Share from which a direct effect counts fully where copying cannot be tested."""
STEERED = 0.05
"""Share of the movers' focus from which a head counts as steering them."""
STEERED_WHOLE = 0.25
"""Share from which it counts fully: no real model leaves all of it to one head."""
PRESENT = 0.9
"""Share of prompts that must hold the answer for it to be there to copy."""
UNCLEAR = "unclear"

NAME_MOVER, NEGATIVE, BACKUP, INHIBITION = "mover", "negative mover", "backup mover", "inhibition"
SUPPRESSOR, WRONG_MOVER = "suppressor of the wrong answer", "mover of the wrong answer"
WRITER, NEGATIVE_WRITER = "writer", "negative writer"
PREVIOUS, DUPLICATE, INDUCTION = "previous token", "duplicate token", "induction"
FIRST, SELF = "first token", "self"

ROLES: dict[str, str] = {
    NAME_MOVER: "looks from the end at the right answer and copies it: raises its logit",
    NEGATIVE: "looks from the end at the right answer and lowers its logit",
    BACKUP: "does what movers do once they are taken out, and little before",
    SUPPRESSOR: "looks from the end at the wrong answer and lowers its logit",
    WRONG_MOVER: "looks from the end at the wrong answer and copies it: lowers the metric",
    INHIBITION: "tells the movers where not to look: changes through their queries what they look at",
    WRITER: "looks from the end at a token that is no answer and raises the metric by what it writes to the logits",
    NEGATIVE_WRITER: "looks from the end at a token that is no answer and lowers the metric by what it writes there",
    PREVIOUS: "looks at the token before",
    DUPLICATE: "looks at an earlier copy of the token, because it is a copy",
    INDUCTION: "looks at what stood behind an earlier copy of the token",
    FIRST: "rests on the first position",
    SELF: "looks at the token itself",
}
"""By role: what it is in a phrase."""
RESTING = (FIRST, SELF)
"""Roles that most heads have at most tokens: given only where no other is likely."""


IOI_TITLES = {
    NAME_MOVER: "name mover",
    NEGATIVE: "negative name mover",
    BACKUP: "backup name mover",
    INHIBITION: "S-inhibition",
    SUPPRESSOR: "S suppressor",
    WRONG_MOVER: "S mover",
}
"""What roles are called in indirect object identification (Wang et al. 2022); the last two are ours."""


def title(role: str, names: Collection[str]) -> str:
    """A role as a task whose tokens have the roles `names` calls it."""
    return IOI_TITLES.get(role, role) if {"IO", "S1", "S2"} <= set(names) else role


@dataclass(frozen=True)
class Effect:
    """A mean over prompts with its interval, as a share."""

    value: float = math.nan
    """Mean."""
    low: float = math.nan
    """Lower end of the interval."""
    high: float = math.nan
    """Upper end."""

    @property
    def helps(self) -> bool:
        """Surely above zero, and enough to count."""
        return self.low > 0 and self.value >= EFFECT

    @property
    def hurts(self) -> bool:
        """Surely below zero, and enough to count."""
        return self.high < 0 and self.value <= -EFFECT


@dataclass(frozen=True)
class Relation:
    """Attention along one relation between tokens: 0 is even attention, 1 all of it."""

    here: float = math.nan
    """On the prompts of the task; NaN where it holds nowhere."""
    because: float = math.nan
    """How much of it goes when the relation is broken by another token in the same place; NaN where none is."""
    elsewhere: float = math.nan
    """On repeated random tokens; NaN where they could not be run."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known about one head. Attention and copying are on a scale where chance is 0 and all of it 1."""

    previous: Relation = Relation()
    """Attention to the token before."""
    duplicate: Relation = Relation()
    """Attention to earlier copies of the token."""
    induction: Relation = Relation()
    """Attention to what stands behind them."""
    first: Relation = Relation()
    """Attention to the first position."""
    itself: Relation = Relation()
    """Attention to the token itself."""
    answers: float = 0.0
    """Share of prompts that hold a right answer."""
    to_right: float = math.nan
    """Attention from the end to right answers."""
    answers_behind: float = 0.0
    """Share of prompts in which a right answer stands behind an earlier copy of the last token."""
    to_wrong: float = math.nan
    """Attention from the end to wrong answers."""
    to_role: float = math.nan
    """Attention from the end to that token with a role, other than the first and the end, to which it is largest."""
    to_other: float = math.nan
    """The same among roles whose tokens are neither right nor wrong answers."""
    to_end: float = math.nan
    """Attention of the end to itself."""
    to_first: float = math.nan
    """Attention from the end to the first position."""
    copies: float = math.nan
    """How often what it writes raises the token it looks at most."""
    suppresses: float = math.nan
    """How often it lowers it most."""
    direct: Effect = Effect()
    """Direct effect on the metric."""
    without: Effect = Effect()
    """Direct effect where the movers are taken out, minus the direct effect."""
    to_right_without: float = math.nan
    """Attention from the end to right answers where the movers are taken out."""
    copies_without: float = math.nan
    """How often all that it writes there raises the right answer most; NaN unless its direct effect grows enough."""
    focus: Effect = Effect()
    """Share of the movers' focus that goes when the head is taken out at the end."""


@dataclass(frozen=True)
class Verdict:
    """The role of a head."""

    role: str
    """A name in `ROLES`, or "unclear"."""
    score: float
    """Score of the best role, in [0, 1], whether it was given or not."""
    best: str
    """The best role."""
    runner_up: str
    """The next best."""
    runner_up_score: float
    """Its score."""
    scores: Mapping[str, float]
    """Score of every role."""


def verdict(facts: Facts) -> Verdict:
    """The role that the facts speak for."""
    scores = {role: rule(facts) for role, rule in RULES.items()}
    ranked = sorted(scores, key=lambda role: -scores[role])
    if any(scores[role] >= LEAST / 2 for role in scores if role not in RESTING):
        ranked.sort(key=lambda role: role in RESTING)
    best, second = ranked[:2]
    clear = scores[best] >= LEAST and scores[best] - scores[second] >= MARGIN
    return Verdict(best if clear else UNCLEAR, scores[best], best, second, scores[second], scores)


def score(tests: Sequence[float], *conditions: bool) -> float:
    """Geometric mean of tests clipped to [0, 1]; 0 where one is unknown or a condition fails."""
    if not all(conditions) or any(math.isnan(test) for test in tests):
        return 0.0
    return math.prod(min(1.0, max(0.0, test)) for test in tests) ** (1 / len(tests))


def moves(facts: Facts) -> float:
    """How much a head does what a mover does, by whatever rule it finds the answer."""
    return score([facts.to_right, facts.copies], _there(facts), facts.direct.helps)


def _mover(facts: Facts) -> float:
    """Where the answer stands behind an earlier copy of the last token, a head that finds it there is induction."""
    by_induction = facts.answers_behind >= PRESENT and _by_content(facts.induction) >= LEAST
    return 0.0 if by_induction else moves(facts)


def _negative(facts: Facts) -> float:
    return score([facts.to_right, facts.suppresses], _there(facts), facts.direct.hurts)


def _backup(facts: Facts) -> float:
    more, small = facts.without, facts.direct.value <= facts.without.value
    return score([facts.to_right_without, facts.copies_without], _there(facts), more.helps, small)


def _suppressor(facts: Facts) -> float:
    return score([facts.to_wrong, facts.suppresses], facts.direct.helps)


def _wrong_mover(facts: Facts) -> float:
    return score([facts.to_wrong, facts.copies], facts.direct.hurts)


def _inhibition(facts: Facts) -> float:
    return score([facts.to_role, facts.focus.value / STEERED_WHOLE], _steers(facts))


def _steers(facts: Facts) -> bool:
    return facts.focus.low > 0 and facts.focus.value >= STEERED


def _writer(facts: Facts) -> float:
    return score([_looks_elsewhere(facts), facts.direct.value / WHOLE], facts.direct.helps)


def _negative_writer(facts: Facts) -> float:
    return score([_looks_elsewhere(facts), -facts.direct.value / WHOLE], facts.direct.hurts)


def _looks_elsewhere(facts: Facts) -> float:
    """Attention from the end to itself or to the token of a role, other than an answer that could be copied."""
    looks = facts.to_other if _there(facts) else facts.to_role
    return max((one for one in (looks, facts.to_end) if not math.isnan(one)), default=0.0)


def _by_position(relation: Relation) -> float:
    """Here and on random tokens; here alone where those could not be run."""
    return score([relation.here] if math.isnan(relation.elsewhere) else [relation.here, relation.elsewhere])


def _rests(facts: Facts, relation: Relation, at_end: float) -> float:
    """On the prompts, at their end, and on random tokens; a head with an effect of its own does not rest."""
    idle = not (facts.direct.helps or facts.direct.hurts or _steers(facts))
    elsewhere = [] if math.isnan(relation.elsewhere) else [relation.elsewhere]
    return score([relation.here, at_end, *elsewhere], idle)


def _by_content(relation: Relation) -> float:
    """Here, and because of the relation: it goes when the relation is broken, or it holds on random tokens too."""
    known = [value for value in (relation.because, relation.elsewhere) if not math.isnan(value)]
    return score([relation.here, max(known)]) if known else 0.0


def _there(facts: Facts) -> bool:
    return facts.answers >= PRESENT


RULES = {
    NAME_MOVER: _mover,
    NEGATIVE: _negative,
    BACKUP: _backup,
    SUPPRESSOR: _suppressor,
    WRONG_MOVER: _wrong_mover,
    INHIBITION: _inhibition,
    WRITER: _writer,
    NEGATIVE_WRITER: _negative_writer,
    PREVIOUS: lambda facts: _by_position(facts.previous),
    DUPLICATE: lambda facts: _by_content(facts.duplicate),
    INDUCTION: lambda facts: _by_content(facts.induction),
    FIRST: lambda facts: _rests(facts, facts.first, facts.to_first),
    SELF: lambda facts: _rests(facts, facts.itself, facts.to_end),
}
"""By role: its score from the facts."""
