"""From measurements over prompts to the few numbers about each head that roles are decided by."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from circuitome.heads.atlas.patterns import PatternScores
from circuitome.heads.roles.ablations import Knocks
from circuitome.heads.roles.measure import Evidence, own_targets
from circuitome.heads.roles.positions import ANSWER, END, FIRST, RELATIONS, WRONG
from circuitome.heads.roles.rules import (
    INDUCTION,
    LEAST,
    NAME_MOVER,
    NEGATIVE,
    NEGATIVE_WRITER,
    WRITER,
    Effect,
    Facts,
    Relation,
    moves,
    verdict,
)

CERTAIN = 0.99
"""Coverage of the intervals that decide whether an effect is there: many heads are asked at once."""
ELSEWHERE = {
    "previous": "previous",
    "duplicate": "duplicate",
    "induction": "induction",
    "first": "sink1",
    "self": "self",
}
"""By relation, the score on repeated random tokens that measures it."""


def facts(evidence: Evidence, generic: PatternScores | None = None, knocks: Knocks | None = None) -> list[Facts]:
    """The facts about each head; those of `generic` and `knocks` are unknown without them."""
    targets = _above(evidence.targets, evidence.even_targets)
    right, wrong, end, first = (evidence.target(name) for name in (ANSWER, WRONG, END, FIRST))
    own = own_targets(evidence)
    relations = [_relations(evidence, generic, index) for index in range(len(RELATIONS))]
    scale, unknown = evidence.scale, [Effect()] * len(evidence.heads)
    direct = effects(evidence.direct / scale)
    without, focus = unknown, unknown
    right_without = copies_without = torch.full((len(unknown),), math.nan)
    if knocks is not None:
        right_without = _above(knocks.right_without[..., None], evidence.even_targets[:, [right]])[:, 0]
        copies_without = _above_rate(evidence, knocks.raised_without)
        without, focus = effects((knocks.direct_without - evidence.direct) / scale), effects(knocks.focus)
    copies, suppresses = (_above_rate(evidence, values) for values in (evidence.copied, evidence.suppressed))
    others = _no_answers(evidence)
    places = evidence.places
    answers, behind = (sum(flags) / len(flags) for flags in ([*map(bool, places.right)], places.behind))
    return [
        Facts(
            **dict(
                zip(("previous", "duplicate", "induction", "first", "itself"), (r[i] for r in relations), strict=True)
            ),
            answers=answers,
            answers_behind=behind,
            to_right=float(targets[i, right]),
            to_wrong=float(targets[i, wrong]),
            to_role=float(targets[i, own[i]]),
            to_other=max((float(targets[i, j]) for j in others), default=math.nan),
            to_end=float(targets[i, end]),
            to_first=float(targets[i, first]),
            copies=float(copies[i]),
            suppresses=float(suppresses[i]),
            direct=direct[i],
            without=without[i],
            focus=focus[i],
            to_right_without=float(right_without[i]),
            copies_without=float(copies_without[i]),
        )
        for i in range(len(evidence.heads))
    ]


def _above(
    values: Float[Tensor, "prompts head what"], even: Float[Tensor, "prompts what"]
) -> Float[Tensor, "head what"]:
    """Mean attention on a scale where even attention is 0 and all of it 1; NaN where no prompt has it."""
    chance = even.nanmean(0)
    return (values.nanmean(0) - chance) / torch.where(chance < 1, 1 - chance, torch.nan)


def _above_rate(evidence: Evidence, flags: Float[Tensor, "prompts head"]) -> Float[Tensor, " head"]:
    """How often something that happens by chance at the rate of copying did, on a scale where chance is 0."""
    return (flags.nanmean(0) - evidence.copy_chance) / (1 - evidence.copy_chance)


def _no_answers(evidence: Evidence) -> list[int]:
    """Targets that are roles of tokens, other than the first and the end, that seldom are right or wrong answers."""
    places = evidence.places
    found = []
    for index, name in enumerate(places.names):
        at = places.at[:, index].tolist()
        hits = [
            spot in right or spot in wrong for spot, right, wrong in zip(at, places.right, places.wrong, strict=True)
        ]
        if name not in (FIRST, END) and sum(hits) < len(hits) / 2:
            found.append(index)
    return found


def _relations(evidence: Evidence, generic: PatternScores | None, index: int) -> list[Relation]:
    """One relation of every head. Where the corrupted prompt breaks some of its pairs, those are the ones looked at."""
    name = RELATIONS[index]
    here = _above(evidence.relations, evidence.even_relations)[:, index]
    because = torch.full_like(here, math.nan)
    if name in ("duplicate", "induction"):
        lost = (evidence.broken - evidence.broken_corrupted)[..., index].nanmean(0)
        if not bool(lost.isnan().all()):
            here, because = _above(evidence.broken, evidence.even_broken)[:, index], lost
    elsewhere = torch.full_like(here, math.nan)
    if generic is not None:
        score = generic[ELSEWHERE[name]]
        chance = score.chance or 0.0
        elsewhere = torch.stack([(score.mean[head] - chance) / (1 - chance) for head in evidence.heads])
    return [Relation(*map(float, values)) for values in zip(here, because, elsewhere, strict=True)]


def effects(samples: Float[Tensor, "prompts head"], certain: float = CERTAIN) -> list[Effect]:
    """The mean of each column with its t-interval; no interval with fewer than three prompts, nothing where unknown."""
    n = len(samples)
    mean = samples.mean(0)
    if n < 3:
        return [Effect(value) for value in mean.tolist()]
    half = samples.std(0) / n**0.5 * float(student.ppf((1 + certain) / 2, n - 1))
    return [Effect(*ends) for ends in zip(*((mean + k * half).tolist() for k in (0, -1, 1)), strict=True)]


def movers(evidence: Evidence, known: Sequence[Facts]) -> tuple[dict[int, tuple[int, float]], list[int]]:
    """What others can steer or back up, from a first look without `Knocks`.

    First, by place on the head axis, the target that each looks at and its weight, the size of its direct effect:
    those that move the answer look at the answer; where there are none, negative movers; else writers, and what they
    look at most. Second, the places of the heads that move the answer.
    """
    own, weights = own_targets(evidence), evidence.direct.mean(0).abs().tolist()
    roles = [verdict(one).role for one in known]
    carry = [i for i, one in enumerate(known) if roles[i] in (NAME_MOVER, INDUCTION) and moves(one) >= LEAST]
    on_answer = carry or [i for i, role in enumerate(roles) if role == NEGATIVE]
    if on_answer:
        return {i: (evidence.target(ANSWER), weights[i]) for i in on_answer}, carry
    writers = [i for i, role in enumerate(roles) if role in (WRITER, NEGATIVE_WRITER)]
    return {i: (int(own[i]), weights[i]) for i in writers}, carry
