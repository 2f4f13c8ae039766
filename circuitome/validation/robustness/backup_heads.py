"""Backups: which heads take over when others are ablated.

A model without some of its parts often does the task nearly as well, because parts that were silent speak up. So a part
that matters can look useless, and "the metric hardly changed" says little.
Sources: Wang et al. 2022, arXiv:2211.00593, section 3.4 (backup name movers); McGrath et al. 2023, arXiv:2307.15771;
Rushing & Nanda 2024, arXiv:2402.15390 (how much of it is the final norm).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitome.engine.ablate_outputs import ablated_rows
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.model_graph import Graph
from circuitome.results import Estimate, plain_fields
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.robustness.direct_effects import DirectEffects, direct_effects, direct_effects_without
from circuitome.validation.tests.hypotheses import ALPHA, check_prompts, falls

LEAST = 0.01
"""A backup's direct effect grows by at least this share of the clean-ablated gap."""
HEADS = 3
"""Heads that are ablated where none are named."""


@dataclass(frozen=True)
class Reaction:
    """How one head or MLP reacts to the ablation. Effects on the metric, in its unit: negative helps."""

    name: str
    """The head or MLP."""
    before: Estimate
    """Direct effect in the intact model."""
    frozen: Estimate
    """Direct effect with the ablated paths gone and nobody reacting; only the norm differs from `before`."""
    after: Estimate
    """Direct effect with the others ablated."""
    change: Estimate
    """after - frozen, prompt by prompt: what the part itself does about it, negative where it helps more."""
    p_value: float
    """Of a paired t-test that it does not help more, Holm-corrected over all parts that can react."""
    total_before: Estimate | None = None
    """Change of the metric when it alone is ablated; None where not measured."""
    total_after: Estimate | None = None
    """Further change of the metric when it is ablated beside the others."""


@dataclass(frozen=True, eq=False)
class Backups:
    """An ablation, what it cost, and who took over."""

    ablated: tuple[str, ...]
    """Heads and MLPs that were ablated."""
    ablation: str
    """What they wrote instead."""
    intact: Estimate
    """Metric of the whole model."""
    left: Estimate
    """Metric without them."""
    effect: Estimate
    """left - intact, the total effect of the ablation."""
    direct: Estimate
    """Change of the metric when only the ablated parts' paths to the logits are ablated and nobody reacts."""
    repaired: Estimate
    """effect - direct: what the others' reaction gave back; negative where they made it worse."""
    gap: float
    """Metric of the whole model minus metric with everything ablated: what a share is of."""
    reactions: tuple[Reaction, ...]
    """Every part that can react, those that help more than before first."""
    before: DirectEffects
    """Direct effects of all writers in the intact model, per prompt."""
    after: DirectEffects
    """The same with the others ablated."""
    frozen: DirectEffects
    """The same with the ablated paths gone and nobody reacting."""
    least: float = LEAST
    """Change that counts, as a share of the gap."""

    @property
    def backups(self) -> tuple[Reaction, ...]:
        """Parts that help significantly more, by at least `least` of the gap, and do help now."""
        return tuple(part for part in self.reactions if self._helps_more(part) and part.after.value < 0)

    @property
    def relieved(self) -> tuple[Reaction, ...]:
        """Parts that changed as much but still work against the metric: they only harm less."""
        return tuple(part for part in self.reactions if self._helps_more(part) and part.after.value >= 0)

    def _helps_more(self, part: Reaction) -> bool:
        return part.p_value < ALPHA and part.change.high < 0 and part.change.value <= -self.least * self.gap

    def __getitem__(self, name: str) -> Reaction:
        """The reaction of a head or MLP. Raises `InputError` for one that cannot react, `UnknownNameError`."""
        self.before.graph.row(name)
        for part in self.reactions:
            if part.name == name:
                return part
        raise InputError(f"{name} cannot react to ablating {', '.join(self.ablated)}: nothing of it reaches it.")

    def to_dict(self) -> dict[str, Any]:
        """All but the per-prompt tensors, as plain JSON values."""
        estimates = ("intact", "left", "effect", "direct", "repaired")
        return {
            **plain_fields(self, "ablated", "ablation", *estimates, "gap", "least", "reactions"),
            "backups": [part.name for part in self.backups],
            "relieved": [part.name for part in self.relieved],
        }


@method
def backups(
    setting: Setting, heads: Sequence[str] | None = None, *, k: int = HEADS, top: int = 8, least: float = LEAST
) -> Backups:
    """Ablate `heads` and find the heads and MLPs that take over.

    Every part behind the ablation gets its direct effect on the metric before and after: cheap for all of them at once.
    It is a backup if it helps more than the final norm explains (`Reaction.change`): significantly over prompts, by at
    least `least` of the clean-ablated gap, and so that it helps at all. The `top` parts that changed most also get
    their total effects, two ablations each. `heads` default to the `k` with the most helpful direct effect, of those
    where it is at least `least` of the gap. With zero or mean ablation all positions are ablated; corrupted values
    differ only behind the first different token.
    Raises `InputError` for fewer than 8 prompts, when no part is left that could react, or when the model does not do
    the task; `UnknownNameError` for heads that do not exist.
    """
    model, task = setting.model, setting.task
    _refuse(setting, heads)
    evaluator = Evaluator(setting)
    before, gap = direct_effects(evaluator), evaluator.checked_gap()
    setting.progress("direct effects", 1, 2)
    rows = ablated_rows(model, _most_helpful(before, k, least * gap) if heads is None else heads)
    able = _can_react(model.graph, rows)
    without = direct_effects_without(evaluator, rows)
    setting.progress("direct effects", 2, 2)
    after, frozen = without.after, without.frozen
    changes = after.samples - frozen.samples
    p_values = falls(changes, able.nonzero().flatten().tolist())
    totals = _totals(evaluator, rows, list(p_values)[:top], before.metric, after.metric)

    def estimate(values: Tensor) -> Estimate:
        return setting.mean(values, task.unit)

    def reaction(row: int) -> Reaction:
        effects = (before.samples, frozen.samples, after.samples, changes)
        was, held, now, change = (estimate(samples[:, row]) for samples in effects)
        name, total = model.graph.writers[row], map(estimate, totals.get(row, ()))
        return Reaction(name, was, held, now, change, p_values[row], *total)

    return Backups(
        tuple(model.graph.writers[row] for row in rows),
        setting.ablation,
        estimate(before.metric),
        estimate(after.metric),
        estimate(after.metric - before.metric),
        estimate(frozen.metric - before.metric),
        estimate(after.metric - frozen.metric),
        gap,
        tuple(map(reaction, p_values)),
        before,
        after,
        frozen,
        least,
    )


def _refuse(setting: Setting, heads: Sequence[str] | None) -> None:
    """What cannot be answered is refused before anything runs."""
    check_prompts(setting.task, "Backups are found by a test over prompts")
    if heads is not None:
        _can_react(setting.model.graph, ablated_rows(setting.model, heads))


def _most_helpful(before: DirectEffects, k: int, least: float) -> list[str]:
    heads = before.most_helpful(k, least)
    if not heads:
        raise InputError(
            f"Ablating no head's path to the logits lowers the metric by {least:.3g}, so none is ablated by default. "
            "Name the heads to ablate."
        )
    return heads


def _can_react(graph: Graph, rows: Sequence[int]) -> Bool[Tensor, " writers"]:
    """Writers that read what the writers `rows` say and are none of them. Raises `InputError` where there are none."""
    reads = graph.mask[list(rows)].any(0)
    able = (graph.inputs & reads).any(1)
    able[list(rows)] = False
    if not bool(able.any()):
        names = ", ".join(graph.writers[row] for row in rows[:6]) + (" ..." if len(rows) > 6 else "")
        raise InputError(
            f"Ablating {names} leaves nothing that could take over: no other head or MLP reads what they say. "
            "Ablate fewer heads, or some before the last block."
        )
    return able


def _totals(
    evaluator: Evaluator, ablated: Sequence[int], rows: Sequence[int], intact: Tensor, left: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """Change of the metric, on every prompt, when each of `rows` is ablated alone and beside `ablated`."""
    if not rows:
        return {}
    sets = torch.zeros(2 * len(rows), len(evaluator.model.graph.writers), dtype=torch.bool)
    for i, row in enumerate(rows):
        sets[i :: len(rows), row] = True
    sets[len(rows) :, list(ablated)] = True
    alone, beside = evaluator.ablate(sets, "total effects").split(len(rows))
    return {row: (alone[i] - intact, beside[i] - left) for i, row in enumerate(rows)}
