"""Backups: which heads take over when others are knocked out.

A knocked-out model often does the task nearly as well, because parts that were silent speak up. So a part that matters
can look useless, and "the metric hardly changed" says little.
Sources: Wang et al. 2022, arXiv:2211.00593, section 3.4 (backup name movers); McGrath et al. 2023, arXiv:2307.15771;
Rushing & Nanda 2024, arXiv:2402.15390 (how much of it is the final norm).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.stats import ttest_1samp
from torch import Tensor

from circuitome.engine.ablate_outputs import ablated_rows
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.model_graph import Graph
from circuitome.results import Estimate
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.robustness.direct_effects import Direct, direct_contributions, knocked_contributions
from circuitome.validation.tests.hypotheses import ALPHA, holm

LEAST = 0.01
"""A backup's direct contribution grows by at least this share of the clean-ablated gap."""
HEADS = 3
"""Heads that are knocked out where none are named."""
FEWEST_PROMPTS = 8
"""Prompts that the test of a change needs."""


@dataclass(frozen=True)
class Reaction:
    """How one head or MLP reacts to the knock-out. All contributions: positive helps, unit of the metric."""

    name: str
    """The head or MLP."""
    before: Estimate
    """Direct contribution in the intact model."""
    frozen: Estimate
    """Direct contribution with the knocked-out paths gone and nobody reacting; only the norm differs from `before`."""
    after: Estimate
    """Direct contribution with the knock-out in force."""
    growth: Estimate
    """after - frozen, prompt by prompt: what the part itself does about it."""
    p_value: float
    """Of a paired t-test that it did not grow, Holm-corrected over all parts that can react."""
    total_before: Estimate | None = None
    """What the metric loses when it alone is knocked out as well; None where not measured."""
    total_after: Estimate | None = None
    """What the metric loses further when it is knocked out beside the others."""


@dataclass(frozen=True, eq=False)
class Backups:
    """A knock-out, what it cost, and who took over."""

    knocked: tuple[str, ...]
    """Heads and MLPs that were knocked out."""
    ablation: str
    """What they wrote instead."""
    intact: Estimate
    """Metric of the whole model."""
    left: Estimate
    """Metric with the knock-out in force."""
    lost: Estimate
    """intact - left."""
    direct: Estimate
    """What the metric loses when only the knocked-out parts' paths to the logits are ablated and nobody reacts."""
    repaired: Estimate
    """direct - lost: what the others' reaction gave back; negative where they made it worse."""
    gap: float
    """Metric of the whole model minus metric with everything ablated: what a share is of."""
    reactions: tuple[Reaction, ...]
    """Every part that can react, the largest growth first."""
    before: Direct
    """Direct contributions of all writers in the intact model, per prompt."""
    after: Direct
    """The same with the knock-out in force."""
    frozen: Direct
    """The same with the knocked-out paths gone and nobody reacting."""
    least: float = LEAST
    """Growth that counts, as a share of the gap."""

    @property
    def found(self) -> tuple[Reaction, ...]:
        """The backups: grew significantly and by at least `least` of the gap, and help now."""
        return tuple(one for one in self.reactions if self._grew(one) and one.after.value > 0)

    @property
    def relieved(self) -> tuple[Reaction, ...]:
        """Parts that grew as much but still work against the metric: they only harm less."""
        return tuple(one for one in self.reactions if self._grew(one) and one.after.value <= 0)

    def _grew(self, one: Reaction) -> bool:
        return one.p_value < ALPHA and one.growth.low > 0 and one.growth.value >= self.least * self.gap

    def __getitem__(self, name: str) -> Reaction:
        """The reaction of a head or MLP. Raises `InputError` for one that cannot react, `UnknownNameError`."""
        self.before.graph.row(name)
        for one in self.reactions:
            if one.name == name:
                return one
        raise InputError(f"{name} cannot react to a knock-out of {', '.join(self.knocked)}: nothing of it reaches it.")

    def table(self, top: int = 10) -> list[tuple[str, str, str, str, str, str]]:
        """Cells of the parts that grew most: name, before, after, growth with interval, corrected p, what it is."""
        kinds = {one.name: "backup" for one in self.found} | {one.name: "harms less" for one in self.relieved}
        return [
            (
                one.name,
                f"{one.before.value:.3f}",
                f"{one.after.value:.3f}",
                str(one.growth),
                f"{one.p_value:.2g}",
                kinds.get(one.name, ""),
            )
            for one in self.reactions[:top]
        ]

    def to_dict(self) -> dict[str, Any]:
        """All but the per-prompt tensors, as plain JSON values."""
        estimates = ("intact", "left", "lost", "direct", "repaired")
        return {
            "knocked": list(self.knocked),
            "ablation": self.ablation,
            **{name: getattr(self, name).to_dict() for name in estimates},
            "gap": self.gap,
            "least": self.least,
            "backups": [one.name for one in self.found],
            "relieved": [one.name for one in self.relieved],
            "reactions": [asdict(one) for one in self.reactions],
        }


@method
def backups(
    setting: Setting, heads: Sequence[str] | None = None, *, k: int = HEADS, top: int = 8, least: float = LEAST
) -> Backups:
    """Knock out `heads` and find the heads and MLPs that take over.

    Every part behind the knock-out gets its direct contribution to the metric before and after: cheap for all of them
    at once. It is a backup if that contribution grows by more than the final norm explains (`Reaction.growth`):
    significantly over prompts, by at least `least` of the clean-ablated gap, to something positive. The `top` parts
    that grew most also get their total contributions, two knock-outs each. `heads` default to the `k` with the largest
    direct contribution, of those where it is at least `least` of the gap. With zero or mean ablation all positions are
    knocked out; corrupted values differ only behind the first different token.
    Raises `InputError` for fewer than 8 prompts, when no part is left that could react, or when the model does not do
    the task; `UnknownNameError` for heads that do not exist.
    """
    model, task = setting.model, setting.task
    if len(task) < FEWEST_PROMPTS:
        raise InputError(
            f"Backups are found by a test over prompts, which needs at least {FEWEST_PROMPTS}; {task.name} has "
            f"{len(task)}. Take more prompts (--n)."
        )
    if heads is not None:
        _can_react(model.graph, ablated_rows(model, heads))  # refuse before anything runs
    evaluator = Evaluator(setting)
    before, gap = direct_contributions(evaluator), evaluator.checked_gap()
    setting.progress("direct effects", 1, 2)
    rows = ablated_rows(model, _movers(before, k, least * gap) if heads is None else heads)
    able = _can_react(model.graph, rows)
    knocked = knocked_contributions(evaluator, rows)
    setting.progress("direct effects", 2, 2)
    after, frozen = knocked.after, knocked.frozen
    growth = after.samples - frozen.samples
    order = [r for r in growth.mean(0).argsort(descending=True).tolist() if able[r]]
    totals = _totals(evaluator, rows, order[:top], before.metric, after.metric)
    corrected = dict(zip(order, holm([grew(growth[:, row]) for row in order]), strict=True))

    def estimate(values: Tensor) -> Estimate:
        return setting.mean(values, task.unit)

    def reaction(row: int) -> Reaction:
        first, middle, last = (estimate(one.samples[:, row]) for one in (before, frozen, after))
        alone, beside = map(estimate, totals[row]) if row in totals else (None, None)
        name, change = model.graph.writers[row], estimate(growth[:, row])
        return Reaction(name, first, middle, last, change, corrected[row], alone, beside)

    return Backups(
        tuple(model.graph.writers[row] for row in rows),
        setting.ablation,
        estimate(before.metric),
        estimate(after.metric),
        estimate(before.metric - after.metric),
        estimate(before.metric - frozen.metric),
        estimate(after.metric - frozen.metric),
        gap,
        tuple(reaction(row) for row in order),
        before,
        after,
        frozen,
        least,
    )


def grew(change: Float[Tensor, " prompts"]) -> float:
    """P of a one-sided paired t-test; null: the mean change over prompts is at most 0. No spread: 0 or 1."""
    values = change.double()
    if float(values.std()) <= 1e-9 * abs(float(values.mean())):
        return 0.0 if float(values.mean()) > 0 else 1.0
    return float(ttest_1samp(values.numpy(), 0.0, alternative="greater").pvalue)


def _movers(before: Direct, k: int, least: float) -> list[str]:
    found = before.strongest(k, least)
    if not found:
        raise InputError(
            f"No head contributes at least {least:.3g} directly to the metric, so none is knocked out by default. Name "
            "the heads to knock out."
        )
    return found


def _can_react(graph: Graph, rows: Sequence[int]) -> Bool[Tensor, " writers"]:
    """Writers that see what the writers `rows` say and are none of them. Raises `InputError` where there are none."""
    seen = graph.mask[list(rows)].any(0)
    able = (graph.inputs & seen).any(1)
    able[list(rows)] = False
    if not bool(able.any()):
        names = ", ".join(graph.writers[row] for row in rows[:6]) + (" ..." if len(rows) > 6 else "")
        raise InputError(
            f"A knock-out of {names} leaves nothing that could take over: no other head or MLP sees what they say. "
            "Knock out fewer heads, or some before the last block."
        )
    return able


def _totals(
    evaluator: Evaluator, knocked: Sequence[int], rows: Sequence[int], intact: Tensor, left: Tensor
) -> dict[int, tuple[Tensor, Tensor]]:
    """What the metric loses, on every prompt, when each of `rows` is knocked out alone and beside `knocked`."""
    if not rows:
        return {}
    sets = torch.zeros(2 * len(rows), len(evaluator.model.graph.writers), dtype=torch.bool)
    for i, row in enumerate(rows):
        sets[i :: len(rows), row] = True
    sets[len(rows) :, list(knocked)] = True
    metric = evaluator.ablate(sets, "total effects")
    alone, beside = metric.split(len(rows))
    return {row: (intact - alone[i], left - beside[i]) for i, row in enumerate(rows)}
