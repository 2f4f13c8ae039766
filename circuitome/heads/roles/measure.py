"""What is measured about heads on the prompts of a task: what they attend to, what they write, their direct effects.

All of it is exact. Effects are differences of runs; projections on tokens hold the scale of the final norm fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.heads.atlas.relations import broken, even, per_query, relations
from circuitome.heads.roles.context import AnswerBatch, Head, HeadContext
from circuitome.heads.roles.head_ablation import HeadRun
from circuitome.heads.roles.positions import END, FIRST, Places, by_role
from circuitome.heads.roles.unembedding import copied
from circuitome.models.activations import ActivationCache

CLEARLY = 0.05
"""Attention by which answers lead the role that a head attends to most, to be named in its place."""


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements of some heads, prompt by prompt; NaN where a prompt has no such token.

    "The end" is the token at the answer position. "Even" values are those of a head that attends evenly to all tokens
    that it may see.
    """

    heads: tuple[Head, ...]
    """The heads, in the order of the head axis."""
    places: Places
    """Roles of the tokens."""
    attention_by_role: Float[Tensor, "head from_role to_role"]
    """Mean attention from the token of each role to that of each."""
    attention_from_end: Float[Tensor, "prompts head target"]
    """Attention from the end to each of `places.targets`; those at right and wrong answers are sums."""
    even_from_end: Float[Tensor, "prompts target"]
    """The same of even attention."""
    corrupted_from_end: Float[Tensor, "prompts head target"]
    """Attention from the end to the same positions of the corrupted prompts; NaN where lengths differ."""
    by_relation: Float[Tensor, "prompts head relation"]
    """Attention along each of `RELATIONS`, mean over the queries that have such a key."""
    even_by_relation: Float[Tensor, "prompts relation"]
    """The same of even attention."""
    by_broken_relation: Float[Tensor, "prompts head relation"]
    """Attention along those relations that the corrupted prompt breaks."""
    even_by_broken_relation: Float[Tensor, "prompts relation"]
    """The same of even attention."""
    corrupted_by_broken_relation: Float[Tensor, "prompts head relation"]
    """Attention between the same positions of the corrupted prompt, where the relation does not hold."""
    copied: Float[Tensor, "prompts head"]
    """1 where the token that the head attends to most from the end is among those that its value there raises most,
    else 0."""
    suppressed: Float[Tensor, "prompts head"]
    """The same for the tokens that it lowers most."""
    copy_chance: float
    """What either is by chance."""
    role_logits: Float[Tensor, "prompts head role"]
    """What the head adds at the end to the logit of each role's token, above the mean over all tokens; logits."""
    metric: Float[Tensor, " prompts"]
    """Metric of the clean run."""
    ablated_metric: Float[Tensor, " prompts"]
    """Metric with everything ablated."""
    direct: Float[Tensor, "prompts head"]
    """Direct effect: change of the metric when the logits, and nothing else, see the head ablated; negative: it helps
    by what it writes to the logits."""
    unit: str
    """Unit of the metric."""

    @property
    def scale(self) -> float:
        """What effects are shares of, `scale_of` both metrics."""
        return scale_of(self.metric, self.ablated_metric)

    def target(self, name: str) -> int:
        """Index of a target of attention from the end."""
        return self.places.targets.index(name)

    def attended_role(self) -> Tensor:
        """By head, the role that it attends to most from the end, other than the first token and the end itself."""
        names = self.places.names
        attention = self.attention_from_end.nanmean(0)[:, : len(names)].clone()
        attention[:, [name in (FIRST, END) for name in names]] -= 2.0
        return attention.argmax(-1)

    def main_target(self) -> Tensor:
        """By head, `attended_role`, or right or wrong answers where these have clearly more attention."""
        attention, role = self.attention_from_end.nanmean(0), self.attended_role()
        to_answers, side = attention[:, -2:].max(-1)
        more = to_answers > attention.gather(1, role[:, None])[:, 0] + CLEARLY
        return torch.where(more, attention.shape[1] - 2 + side, role)


def scale_of(metric: Float[Tensor, " prompts"], ablated_metric: Float[Tensor, " prompts"]) -> float:
    """What effects are shares of: the gap between the clean and the ablated metric, mean over prompts.

    Or the spread of the clean metric over prompts where that is larger, as in a model that does not do the task.
    """
    gap = float((metric - ablated_metric).mean())
    spread = float(metric.std(correction=0)) if len(metric) > 1 else 0.0
    return max(gap, spread, 1e-9)


def measure(context: HeadContext) -> tuple[Measurements, list[AnswerBatch]]:
    """The measurements, and the prompts in the batches in which they ran.

    Costs three passes over the prompts: clean, corrupted, and what stands before the answer position for a cache.
    Raises `NumericsError` for a metric that is not finite, `UnsupportedModelError` for a model that shows no attention.
    """
    tell = context.setting.tell("measuring attention and direct effects")
    parts: list[tuple[AnswerBatch, dict[str, Tensor]]] = []
    order: list[int] = []
    with torch.no_grad():
        for rows in context.groups():
            parts.append(_batch(context, rows))
            order += rows
            tell(len(order), len(context.task))
    back, batches = torch.tensor(order).argsort(), [batch for batch, _ in parts]
    whole = {name: torch.cat([values[name].cpu() for _, values in parts])[back] for name in parts[0][1]}
    measurements = Measurements(
        heads=context.heads,
        places=context.places,
        attention_by_role=whole.pop("attention_by_role").nanmean(0),
        copy_chance=context.unembedding.chance,
        unit=context.task.unit,
        **whole,
    )
    return measurements, batches


def _batch(context: HeadContext, rows: tuple[int, ...]) -> tuple[AnswerBatch, dict[str, Tensor]]:
    """One batch, and its part of the measurements by name."""
    clean, patterns, activations = context.whole_prompts(rows)
    pairs, corrupted, other = [context.task.pairs[row] for row in rows], None, None
    if all(len(pair.clean) == len(pair.corrupted) for pair in pairs):
        _, corrupted, other = context.whole_prompts(rows, corrupted=True)
    batch, ablated_metric = context.at_answer(clean, activations, other)
    run = context.run(batch)
    attention = [
        _attention(context, row, patterns[i].cpu(), None if corrupted is None else corrupted[i].cpu())
        for i, row in enumerate(rows)
    ]
    return batch, {
        **{name: torch.stack([values[name] for values in attention]) for name in attention[0]},
        **_writes(context, rows, patterns.cpu(), activations, run),
        "metric": context.metric(rows, run.final[None])[0],
        "ablated_metric": ablated_metric,
        "direct": context.direct_effects(rows, run),
    }


def _attention(context: HeadContext, row: int, pattern: Tensor, corrupted: Tensor | None) -> dict[str, Tensor]:
    """Attention on one prompt, from its clean and corrupted patterns [head, query, key], padded."""
    pair = context.task.pairs[row]
    size, read = len(pair.clean), pair.answer_position
    ids, other = torch.tensor(pair.clean), torch.tensor(pair.corrupted)
    pattern, flat = pattern[:, :size, :size], even(size)
    after = torch.full_like(pattern, torch.nan) if corrupted is None else corrupted[:, :size, :size]
    holds, breaks = per_query(relations(ids)), per_query(broken(ids, other))
    targets = context.places.masks(row, size)
    return {
        "attention_by_role": by_role(pattern, context.places.at[row]),
        "attention_from_end": torch.einsum("hk,tk->ht", pattern[:, read], targets),
        "even_from_end": targets @ flat[read],
        "corrupted_from_end": torch.einsum("hk,tk->ht", after[:, read], targets),
        "by_relation": torch.einsum("hqk,rqk->hr", pattern, holds),
        "even_by_relation": torch.einsum("qk,rqk->r", flat, holds),
        "by_broken_relation": torch.einsum("hqk,rqk->hr", pattern, breaks),
        "even_by_broken_relation": torch.einsum("qk,rqk->r", flat, breaks),
        "corrupted_by_broken_relation": torch.einsum("hqk,rqk->hr", after, breaks),
    }


def _writes(
    context: HeadContext, rows: Sequence[int], patterns: Tensor, activations: ActivationCache, run: HeadRun
) -> dict[str, Float[Tensor, "batch head *role"]]:
    """Whether heads copy the token that they attend to most from the end, and what they add to each role's logit."""
    model, pairs, batch = context.model, [context.task.pairs[row] for row in rows], torch.arange(len(rows))
    at, ids = context.places.at[list(rows)], [torch.tensor(pair.clean) for pair in pairs]
    role_tokens = torch.stack([tokens[where.clamp(min=0)] for tokens, where in zip(ids, at, strict=True)])
    attended = _most_attended(patterns, torch.tensor([pair.answer_position for pair in pairs]))
    sigma = context.unembedding.norm.sigma(run.final)
    up, down, logits = {}, {}, {}
    for layer, heads in context.layers.items():
        block, kv = model.blocks[layer], [model.graph.kv_head(head) for head in heads]
        values = block.split(activations.projected[layer])[:, :, -model.heads.kv :][:, :, kv].float()
        places = attended[:, context.slots(layer)]
        value = torch.stack([values[batch, where, i] for i, where in enumerate(places.clamp(min=0).T)], 1)
        token = torch.stack([tokens[where] for tokens, where in zip(ids, places, strict=True)])
        weights = block.head_weights(heads)
        raised = copied(context.unembedding, torch.einsum("bhe,hed->bhd", value, weights), token)
        up[layer], down[layer] = (torch.where(places < 0, torch.nan, flags) for flags in raised)
        out = torch.einsum("bhe,hed->bhd", run.clean.heads[layer][:, 0, heads], weights)
        logits[layer] = context.unembedding.logits_of(out / sigma[:, None], role_tokens).cpu()
    role_logits = torch.where((at >= 0)[:, None], context.joined(logits), torch.nan)
    return {"copied": context.joined(up), "suppressed": context.joined(down), "role_logits": role_logits}


def _most_attended(patterns: Float[Tensor, "batch head query key"], read: Tensor) -> Tensor:
    """What each head attends to most from the end, other than the first position and the end; -1 for nothing."""
    batch = torch.arange(len(read))
    attention = patterns[batch, :, read].clone()
    attention[:, :, 0] = -1.0
    attention[batch, :, read] = -1.0
    value, where = attention.max(-1)
    return torch.where(value < 0, -1, where)
