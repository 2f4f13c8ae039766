"""Search again with some parts ablated: what the circuit becomes when they are gone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.edges import eap_ig
from circuitome.engine.ablate_outputs import ablate, ablated_rows
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.results import Estimate, plain, plain_fields
from circuitome.validation.robustness.stability import samples_of
from circuitome.validation.tests.hypotheses import ALPHA, check_prompts, falls


@dataclass(frozen=True)
class Rise:
    """The effect of one head or MLP before and after. Unit of the metric: negative helps."""

    name: str
    """The head or MLP."""
    before: Estimate
    """The sum of the scores of the edges that leave it, in the intact model."""
    after: Estimate
    """The same in the model without the ablated parts."""
    change: Estimate
    """after - before, prompt by prompt; negative where it helps more."""
    p_value: float
    """Of a paired t-test that it does not help more, Holm-corrected over all parts that are left."""
    joined: bool
    """Whether it is in the new circuit and not in the old one."""


@dataclass(frozen=True, eq=False)
class Rediscovery:
    """Two searches, without and with the ablation."""

    ablated: tuple[str, ...]
    """Heads and MLPs that were ablated."""
    ablation: str
    """What they wrote instead."""
    before: EdgeScores
    """Scores of the intact model."""
    after: EdgeScores
    """Scores of the model without them."""
    size: int
    """Edges of both circuits."""
    rises: tuple[Rise, ...]
    """Every part that is left, those that help more than before first."""

    @property
    def circuits(self) -> tuple[Circuit, Circuit]:
        """The `size` strongest edges before and after."""
        return self.before.top(self.size), self.after.top(self.size)

    @property
    def risen(self) -> tuple[Rise, ...]:
        """Parts that help significantly more, and do help now."""
        more = [part for part in self.rises if part.p_value < ALPHA and part.change.high < 0]
        return tuple(part for part in more if part.after.value < 0)

    def to_dict(self, top: int = 20) -> dict[str, Any]:
        """The circuits' edges, what is new in them, and the `top` parts that rose most, as plain JSON values."""
        old, new = self.circuits
        return {
            **plain_fields(self, "ablated", "ablation", "size"),
            "method": self.after.method,
            "gained": [{"edge": edge, "score": score} for edge, score in self.after.ranked(new - old)],
            "lost": [{"edge": edge, "score": score} for edge, score in self.before.ranked(old - new)],
            "kept": len(old & new),
            "rises": plain(self.rises[:top]),
        }


@method
def rediscovery(
    setting: Setting,
    heads: Sequence[str],
    *,
    edges: int,
    knock_out: str = "mean",
    search: Callable[[Setting], EdgeScores] = eap_ig,
    before: EdgeScores | None = None,
) -> Rediscovery:
    """Score all edges with `heads` ablated, by the same `search` as before, and see which parts help more.

    A part's effect is the sum of the scores of all edges that leave it: to first order, the change of the metric when
    it is corrupted. The ablation (`knock_out`: mean or zero, at every position) holds in every pass of the search, see
    `ablate`; edges out of ablated heads score 0. `before` are scores of the intact model where they are at hand. Costs
    the search once, or twice.
    Raises as `ablate` and `EdgeScores.top`, and `InputError` for fewer than 8 prompts or scores without samples.
    """
    model, task = setting.model, setting.task
    check_prompts(task, "Whether a part helps more is tested over prompts")
    rows = ablated_rows(model, heads)
    first = search(setting) if before is None else before
    first.top(edges)  # refuse sizes and scores that cannot be before the search
    old = summed_effects(first)
    with ablate(model, task, heads, ablation=knock_out):
        second = search(setting)
    new = summed_effects(second)
    if old.shape != new.shape:
        raise InputError(
            f"The scores from before are of {len(old)} prompts, {task.name} has {len(task)}; effects are compared "
            "prompt by prompt. Give scores of the same task."
        )
    changes = new - old
    left = [row for row in range(len(model.graph.embeds), len(model.graph.writers)) if row not in rows]
    joined = set(second.top(edges).nodes) - set(first.top(edges).nodes)

    def rise(row: int, p: float) -> Rise:
        name = model.graph.writers[row]
        was, now, change = (setting.mean(values[:, row], task.unit) for values in (old, new, changes))
        return Rise(name, was, now, change, p, name in joined)

    names = tuple(model.graph.writers[row] for row in rows)
    rises = tuple(rise(row, p) for row, p in falls(changes, left).items())
    return Rediscovery(names, knock_out, first, second, edges, rises)


def summed_effects(scores: EdgeScores) -> Float[Tensor, "prompts writers"]:
    """The sum of the scores of all edges that leave each writer, on every prompt: negative helps.

    Raises `InputError` for scores without samples.
    """
    samples = samples_of(scores)
    rows = scores.graph.mask.nonzero()[:, 0]
    return torch.zeros(len(samples), len(scores.graph.writers)).index_add_(1, rows, samples)
