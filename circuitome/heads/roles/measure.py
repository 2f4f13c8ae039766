"""What is measured about heads on the prompts of a task: where they look, what they write, and the direct effect of it.

All of it is exact. Effects are differences of runs; projections on tokens hold the scale of the final norm fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import NumericsError
from circuitome.heads.roles.context import Head, Part, Subject
from circuitome.heads.roles.head_ablation import HeadRun
from circuitome.heads.roles.positions import END, FIRST, Places, broken, by_role, even, per_query, relations
from circuitome.heads.roles.unembedding import copied
from circuitome.models.activations import ActivationCache

CLEARLY = 0.05
"""Attention by which answers lead the role that is looked at most, to be named in its place."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Measurements of some heads, prompt by prompt; NaN where a prompt has no such token."""

    heads: tuple[Head, ...]
    """The heads, in the order of the head axis."""
    places: Places
    """Roles of the tokens."""
    by_role: Float[Tensor, "head from_role to_role"]
    """Mean attention from the token of each role to that of each."""
    targets: Float[Tensor, "prompts head target"]
    """Attention from the end to each of `places.targets`; those at right and wrong answers are sums."""
    even_targets: Float[Tensor, "prompts target"]
    """The same of a head that looks evenly at all it sees."""
    corrupted_targets: Float[Tensor, "prompts head target"]
    """Attention from the end to the same positions of the corrupted prompts; NaN where lengths differ."""
    relations: Float[Tensor, "prompts head relation"]
    """Attention along each of `RELATIONS`, mean over the queries that have such a key."""
    even_relations: Float[Tensor, "prompts relation"]
    """The same of even attention."""
    broken: Float[Tensor, "prompts head relation"]
    """Attention along those relations that the corrupted prompt breaks."""
    even_broken: Float[Tensor, "prompts relation"]
    """The same of even attention."""
    broken_corrupted: Float[Tensor, "prompts head relation"]
    """Attention between the same positions of the corrupted prompt, where the relation does not hold."""
    copied: Float[Tensor, "prompts head"]
    """1 where the token that the head looks at most from the end is among the tokens that its value there raises most,
    else 0."""
    suppressed: Float[Tensor, "prompts head"]
    """The same for the tokens that it lowers most."""
    copy_chance: float
    """What either is by chance."""
    writes: Float[Tensor, "prompts head role"]
    """What the head adds at the end to the logit of each role's token, above the mean over all tokens."""
    metric: Float[Tensor, " prompts"]
    """Metric of the clean run."""
    ablated_metric: Float[Tensor, " prompts"]
    """Metric with everything ablated."""
    direct: Float[Tensor, "prompts head"]
    """Metric of the clean run minus that of the run in which the logits, and nothing else, see the head taken out:
    positive where the head helps by what it writes to the logits."""
    unit: str
    """Unit of the metric."""

    @property
    def scale(self) -> float:
        """What effects are shares of: the gap between the clean and the ablated metric.

        Or the spread of the clean metric over prompts where that is larger, as in a model that does not do the task.
        """
        gap = float((self.metric - self.ablated_metric).mean())
        spread = float(self.metric.std(correction=0)) if len(self.metric) > 1 else 0.0
        return max(gap, spread, 1e-9)

    def target(self, name: str) -> int:
        """Index of a target of attention from the end."""
        return self.places.targets.index(name)


def measure(subject: Subject) -> tuple[Evidence, list[Part]]:
    """The evidence, and the prompts in the parts in which they ran.

    Costs three passes over the prompts: clean, corrupted, and what stands before the end for a cache.
    Raises `NumericsError` for a metric that is not finite, `UnsupportedModelError` for a model that shows no attention.
    """
    tell = subject.setting.tell("looking at heads")
    found: dict[str, list[Tensor]] = {}
    parts: list[Part] = []
    order: list[int] = []
    with torch.no_grad():
        for rows in subject.groups():
            part, values = _batch(subject, rows)
            for name, value in values.items():
                found.setdefault(name, []).append(value.cpu())
            parts.append(part)
            order += rows
            tell(len(order), len(subject.task))
    back = torch.tensor(order).argsort()
    whole = {name: torch.cat(values)[back] for name, values in found.items()}
    for name in ("metric", "ablated_metric"):
        if not bool(torch.isfinite(whole[name]).all()):
            row = int((~torch.isfinite(whole[name])).nonzero()[0])
            raise NumericsError(
                f"The {name.replace('_', ' ')} of {subject.model.name} on prompt {row} of {subject.task.name} is not "
                "finite."
            )
    evidence = Evidence(
        heads=subject.heads,
        places=subject.places,
        by_role=whole.pop("by_role").nanmean(0),
        copy_chance=subject.unembedding.chance,
        unit=subject.task.unit,
        **whole,
    )
    return evidence, parts


def own_targets(evidence: Evidence) -> Tensor:
    """By head, the role that it looks at most from the end, other than the first token and the end itself."""
    names = evidence.places.names
    looks = evidence.targets.nanmean(0)[:, : len(names)].clone()
    looks[:, [name in (FIRST, END) for name in names]] -= 2.0
    return looks.argmax(-1)


def focus_targets(evidence: Evidence) -> Tensor:
    """By head, what it is about: `own_targets`, or right or wrong answers where these have clearly more attention."""
    looks, own = evidence.targets.nanmean(0), own_targets(evidence)
    value, place = looks[:, -2:].max(-1)
    more = value > looks.gather(1, own[:, None])[:, 0] + CLEARLY
    return torch.where(more, looks.shape[1] - 2 + place, own)


def _batch(subject: Subject, rows: tuple[int, ...]) -> tuple[Part, dict[str, Tensor]]:
    clean, patterns, activations = subject.watched(rows)
    pairs, corrupted, other = [subject.task.pairs[row] for row in rows], None, None
    if all(len(pair.clean) == len(pair.corrupted) for pair in pairs):
        _, corrupted, other = subject.watched(rows, corrupted=True)
    part = subject.part(clean, activations, other)
    run = subject.at_end(part)
    looks = [
        _looks(subject, row, patterns[i].cpu(), None if corrupted is None else corrupted[i].cpu())
        for i, row in enumerate(rows)
    ]
    return part, {
        **{name: torch.stack([one[name] for one in looks]) for name in looks[0]},
        **_writes(subject, rows, patterns.cpu(), activations, run),
        "metric": subject.metric(rows, run.final[None])[0],
        "ablated_metric": part.ablated_metric,
        "direct": subject.direct(rows, run),
    }


def _looks(subject: Subject, row: int, pattern: Tensor, corrupted: Tensor | None) -> dict[str, Tensor]:
    """Where heads look on one prompt: `pattern` [head, query, key], padded."""
    pair = subject.task.pairs[row]
    size, read = len(pair.clean), pair.answer_position
    ids, other = torch.tensor(pair.clean), torch.tensor(pair.corrupted)
    pattern, flat = pattern[:, :size, :size], even(size)
    after = torch.full_like(pattern, torch.nan) if corrupted is None else corrupted[:, :size, :size]
    holds, breaks = per_query(relations(ids)), per_query(broken(ids, other))
    targets = subject.places.masks(row, size)
    return {
        "by_role": by_role(pattern, subject.places.at[row]),
        "targets": torch.einsum("hk,tk->ht", pattern[:, read], targets),
        "even_targets": targets @ flat[read],
        "corrupted_targets": torch.einsum("hk,tk->ht", after[:, read], targets),
        "relations": torch.einsum("hqk,rqk->hr", pattern, holds),
        "even_relations": torch.einsum("qk,rqk->r", flat, holds),
        "broken": torch.einsum("hqk,rqk->hr", pattern, breaks),
        "even_broken": torch.einsum("qk,rqk->r", flat, breaks),
        "broken_corrupted": torch.einsum("hqk,rqk->hr", after, breaks),
    }


def _writes(
    subject: Subject, rows: Sequence[int], patterns: Tensor, activations: ActivationCache, run: HeadRun
) -> dict[str, Float[Tensor, "batch head *role"]]:
    """Whether heads copy the token that they look at most from the end, and what they write there on each role's."""
    model, pairs, batch = subject.model, [subject.task.pairs[row] for row in rows], torch.arange(len(rows))
    at, ids = subject.places.at[list(rows)], [torch.tensor(pair.clean) for pair in pairs]
    tokens = torch.stack([one[where.clamp(min=0)] for one, where in zip(ids, at, strict=True)])
    spots = _most(patterns, torch.tensor([pair.answer_position for pair in pairs]))
    sigma = subject.unembedding.norm.sigma(run.final)
    up, down, written = {}, {}, {}
    for layer, heads in subject.layers.items():
        block, kv = model.blocks[layer], [model.graph.kv_head(head) for head in heads]
        values = block.split(activations.projected[layer])[:, :, -model.heads.kv :][:, :, kv].float()
        spot = spots[:, subject.slots(layer)]
        seen = torch.stack([values[batch, where, i] for i, where in enumerate(spot.clamp(min=0).T)], 1)
        weights = block.head_weights(heads)
        token = torch.stack([one[where] for one, where in zip(ids, spot, strict=True)])
        raised = copied(subject.unembedding, torch.einsum("bhe,hed->bhd", seen, weights), token)
        up[layer], down[layer] = (torch.where(spot < 0, torch.nan, flags) for flags in raised)
        out = torch.einsum("bhe,hed->bhd", run.clean.heads[layer][:, 0, heads], weights)
        written[layer] = subject.unembedding.logits_of(out / sigma[:, None], tokens).cpu()
    writes = torch.where((at >= 0)[:, None], subject.joined(written), torch.nan)
    return {"copied": subject.joined(up), "suppressed": subject.joined(down), "writes": writes}


def _most(patterns: Float[Tensor, "batch head query key"], read: Tensor) -> Tensor:
    """Where each head looks most from the end, other than the first position and the end; -1 where nothing is left."""
    batch = torch.arange(len(read))
    seen = patterns[batch, :, read].clone()
    seen[:, :, 0] = -1.0
    seen[batch, :, read] = -1.0
    value, where = seen.max(-1)
    return torch.where(value < 0, -1, where)
