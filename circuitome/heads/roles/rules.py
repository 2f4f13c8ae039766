"""Which role a head plays, from numbers alone: no rule sees a layer or a head's index.

A role is a list of tests, each between 0 (chance, or the opposite) and 1 (as the textbook head does it), and some
conditions. Its score is the geometric mean of its tests, 0 where a condition fails. A head gets the role with the best
score if that is at least `LEAST` and leads the next by `MARGIN`; else it is unclear, with the runner-up. That a head
attends to the first token or to the token itself says little, as most heads do at most tokens: such a role is given
only where no other has half of what it needs.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
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
"""Share of the movers' attention from which a head counts as steering them."""
STEERED_WHOLE = 0.25
"""Share from which it counts fully: no real model leaves all of it to one head."""
PRESENT = 0.9
"""Share of prompts that must hold the answer for it to be there to copy."""
UNCLEAR = "unclear"

NAME_MOVER, NEGATIVE, BACKUP, INHIBITION = "mover", "negative mover", "backup mover", "inhibition"
SUPPRESSOR, WRONG_MOVER = "suppressor of the wrong answer", "mover of the wrong answer"
ANSWER_HEAD, NEGATIVE_ANSWER_HEAD = "answer head", "negative answer head"
PREVIOUS, DUPLICATE, INDUCTION = "previous token", "duplicate token", "induction"
FIRST, SELF = "first token", "self"

ROLES: dict[str, str] = {
    NAME_MOVER: "attends from the end to the right answer and copies it: raises its logit",
    NEGATIVE: "attends from the end to the right answer and lowers its logit",
    BACKUP: "does what movers do once they are ablated, and little before",
    SUPPRESSOR: "attends from the end to the wrong answer and lowers its logit",
    WRONG_MOVER: "attends from the end to the wrong answer and copies it: lowers the metric",
    INHIBITION: "tells the movers where not to attend: changes through their queries what they attend to",
    ANSWER_HEAD: "attends from the end to a token that is no answer and raises the metric by what it writes",
    NEGATIVE_ANSWER_HEAD: "attends from the end to a token that is no answer and lowers the metric by what it writes",
    PREVIOUS: "attends to the token before",
    DUPLICATE: "attends to an earlier copy of the token, because it is a copy",
    INDUCTION: "attends to what stood behind an earlier copy of the token",
    FIRST: "attends mostly to the first position",
    SELF: "attends mostly to the token itself",
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
class Interval:
    """A mean over prompts with its interval, as a share; NaN where it is unknown."""

    value: float = math.nan
    """Mean."""
    low: float = math.nan
    """Lower end of the interval."""
    high: float = math.nan
    """Upper end."""


def helps(effect: Interval) -> bool:
    """Whether ablation surely lowers the metric, and by enough to count."""
    return effect.high < 0 and effect.value <= -EFFECT


def hurts(effect: Interval) -> bool:
    """Whether ablation surely raises the metric, and by enough to count."""
    return effect.low > 0 and effect.value >= EFFECT


@dataclass(frozen=True)
class Relation:
    """Attention along one relation between tokens: 0 is even attention, 1 all of it."""

    on_prompts: float = math.nan
    """On the prompts of the task; NaN where it holds nowhere."""
    lost_when_broken: float = math.nan
    """How much of it goes when the relation is broken by another token in the same place; NaN where none is."""
    on_random_tokens: float = math.nan
    """On repeated random tokens; NaN where they could not be run."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is known about one head. Attention and copying are on a scale where chance is 0 and all of it 1.

    Effects are shares of the gap between clean and ablated metric: its change when the head is ablated, negative where
    the head helps.
    """

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
    answer_in_prompt: float = 0.0
    """Share of prompts that hold a right answer."""
    answer_behind_copy: float = 0.0
    """Share of prompts in which a right answer stands behind an earlier copy of the last token."""
    to_right: float = math.nan
    """Attention from the end to right answers."""
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
    """How often what it writes raises the token that it attends to most."""
    suppresses: float = math.nan
    """How often it lowers it most."""
    direct: Interval = Interval()
    """Direct effect on the metric."""
    direct_change_without_movers: Interval = Interval()
    """Direct effect where the movers are ablated, minus the direct effect: negative where it helps more there."""
    to_right_without_movers: float = math.nan
    """Attention from the end to right answers where the movers are ablated."""
    copies_without_movers: float = math.nan
    """How often all that it writes there raises the right answer most; NaN unless its direct effect grows enough."""
    movers_attention_removed: Interval = Interval()
    """Share of the movers' attention to their target that ablating the head at the last position removes."""


@dataclass(frozen=True)
class RoleVerdict:
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


def role_of(features: Features) -> RoleVerdict:
    """The role that a head's features speak for: that of the best score in [0, 1], or "unclear"; see the module.

    >>> cm.heads.role_of(cm.heads.Features(first=Relation(on_prompts=1.0), to_first=1.0)).role
    'first token'
    """
    scores = {role: rule(features) for role, rule in RULES.items()}
    ranked = sorted(scores, key=lambda role: -scores[role])
    if any(scores[role] >= LEAST / 2 for role in scores if role not in RESTING):
        ranked.sort(key=lambda role: role in RESTING)
    best, second = ranked[:2]
    clear = scores[best] >= LEAST and scores[best] - scores[second] >= MARGIN
    return RoleVerdict(best if clear else UNCLEAR, scores[best], best, second, scores[second], scores)


def score(tests: Sequence[float], *conditions: bool) -> float:
    """Geometric mean of tests clipped to [0, 1]; 0 where one is unknown or a condition fails."""
    if not all(conditions) or any(math.isnan(test) for test in tests):
        return 0.0
    return math.prod(min(1.0, max(0.0, test)) for test in tests) ** (1 / len(tests))


def moves(head: Features) -> float:
    """How much a head does what a mover does, by whatever rule it finds the answer."""
    return score([head.to_right, head.copies], _answer_is_there(head), helps(head.direct))


def _mover(head: Features) -> float:
    """Where the answer stands behind an earlier copy of the last token, a head that finds it there is induction."""
    by_induction = head.answer_behind_copy >= PRESENT and _by_content(head.induction) >= LEAST
    return 0.0 if by_induction else moves(head)


def _backup(head: Features) -> float:
    """After the movers are ablated as a mover does, and with a direct effect that then at least doubles."""
    change = head.direct_change_without_movers
    tests = [head.to_right_without_movers, head.copies_without_movers]
    return score(tests, _answer_is_there(head), helps(change), change.value <= head.direct.value)


def _steers(head: Features) -> bool:
    removed = head.movers_attention_removed
    return removed.low > 0 and removed.value >= STEERED


def _to_no_answer(head: Features) -> float:
    """Attention from the end to itself or to the token of a role, other than an answer that could be copied."""
    to_token = head.to_other if _answer_is_there(head) else head.to_role
    return max(_known(to_token, head.to_end), default=0.0)


def _rests(head: Features, relation: Relation, at_end: float) -> float:
    """On the prompts, at their end, and on random tokens; a head with an effect of its own does not rest."""
    idle = not (helps(head.direct) or hurts(head.direct) or _steers(head))
    return score([relation.on_prompts, at_end, *_known(relation.on_random_tokens)], idle)


def _by_content(relation: Relation) -> float:
    """On the prompts, and because of the relation: it goes when that is broken, or it holds on random tokens too."""
    because = _known(relation.lost_when_broken, relation.on_random_tokens)
    return score([relation.on_prompts, max(because)]) if because else 0.0


def _answer_is_there(head: Features) -> bool:
    return head.answer_in_prompt >= PRESENT


def _known(*values: float) -> list[float]:
    return [value for value in values if not math.isnan(value)]


RULES: dict[str, Callable[[Features], float]] = {
    NAME_MOVER: _mover,
    NEGATIVE: lambda head: score([head.to_right, head.suppresses], _answer_is_there(head), hurts(head.direct)),
    BACKUP: _backup,
    SUPPRESSOR: lambda head: score([head.to_wrong, head.suppresses], helps(head.direct)),
    WRONG_MOVER: lambda head: score([head.to_wrong, head.copies], hurts(head.direct)),
    INHIBITION: lambda head: score([head.to_role, head.movers_attention_removed.value / STEERED_WHOLE], _steers(head)),
    ANSWER_HEAD: lambda head: score([_to_no_answer(head), -head.direct.value / WHOLE], helps(head.direct)),
    NEGATIVE_ANSWER_HEAD: lambda head: score([_to_no_answer(head), head.direct.value / WHOLE], hurts(head.direct)),
    PREVIOUS: lambda head: score([head.previous.on_prompts, *_known(head.previous.on_random_tokens)]),
    DUPLICATE: lambda head: _by_content(head.duplicate),
    INDUCTION: lambda head: _by_content(head.induction),
    FIRST: lambda head: _rests(head, head.first, head.to_first),
    SELF: lambda head: _rests(head, head.itself, head.to_end),
}
"""By role: its score from a head's features."""
