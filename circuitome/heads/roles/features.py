"""From measurements over prompts to the few numbers about each head that roles are decided by."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import t as student
from torch import Tensor

from circuitome.heads.atlas.head_score import HeadScore
from circuitome.heads.atlas.relations import RELATIONS
from circuitome.heads.roles import rules
from circuitome.heads.roles.ablations import HeadAblations
from circuitome.heads.roles.measure import Measurements
from circuitome.heads.roles.positions import ANSWER, END, FIRST, WRONG
from circuitome.heads.roles.rules import Features, Interval, Relation, moves, role_of

CERTAIN = 0.99
"""Coverage of the intervals that decide whether an effect is there: many heads are asked at once."""
RANDOM_SCORES = dict(zip(RELATIONS, ("previous", "duplicate", "induction", "sink1", "self"), strict=True))
"""By relation, the score on repeated random tokens that measures it."""
FIELDS = dict(zip(RELATIONS, ("previous", "duplicate", "induction", "first", "itself"), strict=True))
"""By relation, the field of `Features` that holds it."""


def head_features(
    measurements: Measurements,
    random_tokens: Mapping[str, HeadScore] | None = None,
    ablations: HeadAblations | None = None,
) -> list[Features]:
    """The features of each head; those of `random_tokens` and `ablations` are unknown without them."""
    places = measurements.places
    by_task: dict[str, Any] = {
        "answer_in_prompt": sum(map(bool, places.right)) / len(places.right),
        "answer_behind_copy": sum(places.answer_behind_copy) / len(places.right),
    }
    by_head: dict[str, Sequence[Any]] = {
        **{field: _relation(measurements, random_tokens, name) for name, field in FIELDS.items()},
        **_attention(measurements),
        **_effects(measurements, ablations),
    }
    return [
        Features(**by_task, **{field: values[head] for field, values in by_head.items()})
        for head in range(len(measurements.heads))
    ]


def _attention(measurements: Measurements) -> dict[str, list[float]]:
    """What heads attend to from the end, and whether they copy it; by field of `Features`."""
    attention = _above_chance(measurements.attention_from_end, measurements.even_from_end)
    others = attention[:, _no_answers(measurements)]
    values = {
        "to_right": attention[:, measurements.target(ANSWER)],
        "to_wrong": attention[:, measurements.target(WRONG)],
        "to_end": attention[:, measurements.target(END)],
        "to_first": attention[:, measurements.target(FIRST)],
        "to_role": attention.gather(1, measurements.attended_role()[:, None])[:, 0],
        "to_other": others.amax(1) if others.shape[1] else torch.full((len(attention),), math.nan),
        "copies": _copy_rate(measurements, measurements.copied),
        "suppresses": _copy_rate(measurements, measurements.suppressed),
    }
    return {field: column.tolist() for field, column in values.items()}


def _effects(measurements: Measurements, ablations: HeadAblations | None) -> dict[str, Sequence[Any]]:
    """Direct effects, and what ablations show; by field of `Features`."""
    direct = intervals(measurements.direct / measurements.scale)
    if ablations is None:
        return {"direct": direct}
    right = measurements.target(ANSWER)
    to_right = _above_chance(ablations.to_right_without_movers[..., None], measurements.even_from_end[:, [right]])[:, 0]
    change = (ablations.direct_without_movers - measurements.direct) / measurements.scale
    return {
        "direct": direct,
        "direct_change_without_movers": intervals(change),
        "to_right_without_movers": to_right.tolist(),
        "copies_without_movers": _copy_rate(measurements, ablations.copied_without_movers).tolist(),
        "movers_attention_removed": intervals(ablations.movers_attention_removed),
    }


def _above_chance(
    values: Float[Tensor, "prompts head what"], even: Float[Tensor, "prompts what"]
) -> Float[Tensor, "head what"]:
    """Mean attention on a scale where even attention is 0 and all of it 1; NaN where no prompt has it."""
    chance = even.nanmean(0)
    return (values.nanmean(0) - chance) / torch.where(chance < 1, 1 - chance, torch.nan)


def _copy_rate(measurements: Measurements, flags: Float[Tensor, "prompts head"]) -> Float[Tensor, " head"]:
    """How often something that happens by chance at the rate of copying did, on a scale where chance is 0."""
    return (flags.nanmean(0) - measurements.copy_chance) / (1 - measurements.copy_chance)


def _no_answers(measurements: Measurements) -> list[int]:
    """Targets that are roles of tokens, other than the first and the end, that seldom are right or wrong answers."""
    places, targets = measurements.places, []
    answers = [{*right, *wrong} for right, wrong in zip(places.right, places.wrong, strict=True)]
    for index, name in enumerate(places.names):
        hits = [spot in spots for spot, spots in zip(places.at[:, index].tolist(), answers, strict=True)]
        if name not in (FIRST, END) and sum(hits) < len(hits) / 2:
            targets.append(index)
    return targets


def _relation(measurements: Measurements, random_tokens: Mapping[str, HeadScore] | None, name: str) -> list[Relation]:
    """One relation of every head; on the pairs that the corrupted prompt breaks where it breaks some."""
    index = RELATIONS.index(name)
    on_prompts = _above_chance(measurements.by_relation, measurements.even_by_relation)[:, index]
    lost = on_random = torch.full_like(on_prompts, math.nan)
    if name in ("duplicate", "induction"):
        drop = measurements.by_broken_relation - measurements.corrupted_by_broken_relation
        if not bool(drop[..., index].nanmean(0).isnan().all()):
            lost = drop[..., index].nanmean(0)
            on_prompts = _above_chance(measurements.by_broken_relation, measurements.even_by_broken_relation)[:, index]
    if random_tokens is not None:
        score = random_tokens[RANDOM_SCORES[name]]
        chance = score.chance or 0.0
        on_random = torch.stack([(score.mean[head] - chance) / (1 - chance) for head in measurements.heads])
    return [Relation(*map(float, values)) for values in zip(on_prompts, lost, on_random, strict=True)]


def intervals(samples: Float[Tensor, "prompts head"], level: float = CERTAIN) -> list[Interval]:
    """The mean of each column with its t-interval; no interval with fewer than three prompts, nothing where unknown."""
    n, mean = len(samples), samples.mean(0)
    if n < 3:
        return [Interval(value) for value in mean.tolist()]
    half = samples.std(0) / n**0.5 * float(student.ppf((1 + level) / 2, n - 1))
    return [Interval(*ends) for ends in torch.stack([mean, mean - half, mean + half], 1).tolist()]


def movers(measurements: Measurements, features: Sequence[Features]) -> tuple[dict[int, tuple[int, float]], list[int]]:
    """What other heads can steer or back up, from `features` that know no ablations yet.

    First, by place on the head axis, the target that each attends to and its weight, the size of its direct effect:
    heads that move the answer attend to the answer; where there are none, negative movers do; else answer heads, and
    what they attend to most. Second, the places of the heads that move the answer.
    """
    attended, weights = measurements.attended_role(), measurements.direct.mean(0).abs().tolist()
    roles = [role_of(head).role for head in features]

    def places(*names: str) -> list[int]:
        return [i for i, role in enumerate(roles) if role in names]

    moving = [i for i in places(rules.NAME_MOVER, rules.INDUCTION) if moves(features[i]) >= rules.LEAST]
    on_answer = moving or places(rules.NEGATIVE)
    if on_answer:
        return {i: (measurements.target(ANSWER), weights[i]) for i in on_answer}, moving
    answer_heads = places(rules.ANSWER_HEAD, rules.NEGATIVE_ANSWER_HEAD)
    return {i: (int(attended[i]), weights[i]) for i in answer_heads}, moving
