"""What masks on edges are learned by: how near a masked run of some prompts comes to the clean model."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.batches import group_rows, make_batch, memory_budget
from circuitome.engine.circuit_run import Baseline, baseline
from circuitome.engine.masked_run import masked_final
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting
from circuitome.errors import MemoryBudgetError, memory_option, unknown_name
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.model import Model
from circuitome.tasks.losses import kl
from circuitome.tasks.task import Task

MASK_LOSSES = ("both", "kl", "metric")
METRIC_WEIGHT = 5.0
"""Weight of the squared difference of metrics, in units of the gap between clean and ablated, beside 1 nat of KL."""
PROMPTS = 8
"""Prompts a step."""


def log_ranks(scores: EdgeScores) -> Float[Tensor, " edges"]:
    """Minus the logarithm of each edge's rank by |score|, 0 for the strongest: where learning starts."""
    strength = scores.values[scores.graph.mask].abs()
    ranks = torch.empty_like(strength)
    ranks[strength.argsort(descending=True, stable=True)] = torch.arange(1.0, len(strength) + 1)
    return -ranks.log()


@dataclass(frozen=True)
class _Clean:
    """What a run on one minibatch is compared with."""

    base: Baseline
    """The minibatch."""
    logits: Float[Tensor, "batch vocab"]
    """The clean model's logits."""
    metric: Float[Tensor, " batch"]
    """The clean model's metric."""


class MaskObjective:
    """The loss of a mask on one minibatch after another, in an order shuffled each time all have had their turn."""

    def __init__(self, setting: Setting, loss: str, prompts: int = PROMPTS) -> None:
        """Prompts alike in length share a minibatch, of `prompts` at most.

        Raises for an unknown loss or ablation, or too little memory.
        """
        if loss not in MASK_LOSSES:
            raise unknown_name("loss", loss, MASK_LOSSES)
        self.setting, self.loss, self.prompts = setting, loss, prompts
        self.model, self.task = model, task = setting.model, setting.task
        self.generator = torch.Generator().manual_seed(setting.seed)
        budget = memory_budget(model, setting.max_memory)
        self.shared = setting.replacement.from_prompts
        groups = group_rows(model, task, shared_prefix=self.shared, max_memory=setting.max_memory)
        order = [row for rows in groups for row in rows]
        each = _prompt_bytes(model, task, budget)
        at_once = min(prompts, budget // each)
        self.groups = _parts(order, at_once)
        self.kept: dict[int, _Clean] = {}
        # by default as much again, since baselines that are made afresh cost a third of a step
        self.room = budget if setting.max_memory is None else budget - at_once * each
        self.order: list[int] = []

    def __call__(self, z: Float[Tensor, "writers readers"], step: int) -> Float[Tensor, ""]:
        """Mean loss over the prompts of the next minibatch."""
        if step % len(self.groups) == 0:
            self.order = torch.randperm(len(self.groups), generator=self.generator).tolist()
        clean = self._clean(self.order[step % len(self.groups)])
        rows = clean.base.batch.rows
        with self.model.frozen_parameters():
            final = masked_final(self.model, clean.base, z.to(clean.metric.device))
            logits = self.model.unembed(final.to(self.model.dtype))
        total = torch.zeros(len(rows), device=logits.device)
        if self.loss != "metric":
            total = total + kl(clean.logits, logits)
        if self.loss != "kl":
            total = total + METRIC_WEIGHT * ((self.task.score(logits, rows) - clean.metric) / self.gap).square()
        check_numbers(total, "loss")
        return total.mean()

    def metric_slope(self, z: Float[Tensor, "writers readers"]) -> Float[Tensor, "writers readers"]:
        """Slope of the metric's mean over all prompts in every mask; where a mask is 0 it is 0."""
        total = torch.zeros_like(z)
        for group in range(len(self.groups)):
            clean = self._clean(group)
            leaf = z.to(clean.metric.device, copy=True).requires_grad_(True)
            with self.model.frozen_parameters():
                logits = self.model.unembed(masked_final(self.model, clean.base, leaf).to(self.model.dtype))
                metric = self.task.score(logits, clean.base.batch.rows).sum()
            check_numbers(metric, "metric")
            total += torch.autograd.grad(metric, leaf)[0].to(z.device)
        return total / len(self.task)

    def _clean(self, group: int) -> _Clean:
        """The group's baseline and clean logits; made afresh each time where no more fit into memory."""
        if group in self.kept:
            return self.kept[group]
        rows = self.groups[group]
        with torch.no_grad():
            batch = make_batch(self.model, self.task, rows, shared_prefix=self.shared, corrupted=self.shared)
            base = baseline(self.model, self.task, batch, self.setting.replacement)
            logits = self.model.logits(batch.clean)
        clean = _Clean(base, logits, self.task.score(logits, rows))
        size = batch.clean.ids.numel() * self.model.bytes_per_token(gradients=False)
        if size <= self.room:
            self.kept[group] = clean
            self.room -= size
        return clean

    @cached_property
    def gap(self) -> float:
        """Mean absolute difference of the metric between the clean and the wholly ablated run; the metric's unit."""
        differences = []
        for group in range(len(self.groups)):
            clean = self._clean(group)
            rows = clean.base.batch.rows
            nothing = torch.zeros(self.model.graph.mask.shape, device=clean.metric.device)
            with torch.no_grad():
                logits = self.model.unembed(masked_final(self.model, clean.base, nothing).to(self.model.dtype))
            differences.append((clean.metric - self.task.score(logits, rows)).abs())
        return max(float(torch.cat(differences).mean()), 1e-6)


def _prompt_bytes(model: Model, task: Task, budget: int) -> int:
    """Bytes of a prompt of a minibatch. Raises `MemoryBudgetError` where not even one fits."""
    graph = model.graph
    vectors = 2 * len(graph.writers) + 2 * len(graph.readers)  # differences and inputs, each with its gradient
    each = max(len(pair.clean) for pair in task.pairs) * (
        model.bytes_per_token(gradients=True) + 4 * model.d_model * vectors
    )
    if each > budget:
        raise MemoryBudgetError(
            f"Learning masks takes about {each / 1e6:,.0f} MB a prompt beside the weights, the budget leaves "
            f"{budget / 1e6:,.0f} MB for that. Raise {memory_option(each)}, or shorten the prompts."
        )
    return each


def _parts(rows: list[int], at_most: int) -> list[tuple[int, ...]]:
    """`rows` in as few parts as can be, as even as can be."""
    count = -(-len(rows) // at_most)
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [tuple(rows[a:b]) for a, b in pairwise(cuts)]
