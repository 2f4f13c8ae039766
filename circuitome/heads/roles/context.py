"""Some heads of a model on the prompts of a task: what all measurements of them share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues
from circuitome.engine.batches import Batch, check_aligned, group_rows, make_batch, read_tokens
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.heads.roles.head_ablation import HeadRun
from circuitome.heads.roles.positions import places
from circuitome.heads.roles.unembedding import Unembedding
from circuitome.models.activations import ActivationCache
from circuitome.tasks.task import Task

Head = tuple[int, int]
"""Layer and head."""


@dataclass(frozen=True)
class Part:
    """Prompts that run together, and what ablated heads write at the token that is read."""

    rows: tuple[int, ...]
    """Which pairs of the task."""
    ablated: WriterValues
    """Values at the token that is read [batch, 1, ...]."""
    ablated_metric: Float[Tensor, " batch"]
    """Metric with everything ablated."""


class Subject:
    """Heads of one model on one task. The head axis of every result is in the order of `heads`."""

    def __init__(self, setting: Setting, heads: Sequence[Head]) -> None:
        """Raises `InputError` for a model that is not causal, `TaskError` for pairs that cannot be swapped."""
        model, task = setting.model, setting.task
        if not model.causal:
            raise InputError(
                f"{model.name} is not causal: what it reads at the end changes everything before it, so what its heads "
                "do cannot be told apart. Explain circuits of causal models."
            )
        self.replacement = setting.replacement
        if self.replacement.from_prompts:
            check_aligned(task)
        self.setting, self.model, self.task, self.heads = setting, model, task, tuple(heads)
        self.places = places(task)
        self.unembedding = Unembedding(model)
        self.slot = {head: i for i, head in enumerate(self.heads)}
        self.layers: dict[int, list[int]] = {}
        for layer, head in sorted(self.heads):
            self.layers.setdefault(layer, []).append(head)

    def groups(self) -> list[tuple[int, ...]]:
        """Rows of the task in groups whose whole prompts run together."""
        return group_rows(self.model, self.task, shared_prefix=False, max_memory=self.setting.max_memory)

    def slots(self, layer: int) -> list[int]:
        """Where the heads of a layer are on the head axis."""
        return [self.slot[layer, head] for head in self.layers.get(layer, ())]

    def joined(self, layers: dict[int, Float[Tensor, "batch some *rest"]]) -> Float[Tensor, "batch head *rest"]:
        """What was seen of the heads of each layer, on one head axis."""
        first = next(iter(layers.values()))
        whole = first.new_zeros(first.shape[0], len(self.heads), *first.shape[2:])
        for layer, seen in layers.items():
            whole[:, self.slots(layer)] = seen
        return whole

    def metric(
        self, rows: Sequence[int], final: Float[Tensor, "copies batch d_model"]
    ) -> Float[Tensor, "copies batch"]:
        """Metric of some prompts from the residual in front of the final norm."""
        return -Readout(self.model, self.task, rows, "metric")(final)

    def watched(
        self, rows: Sequence[int], *, corrupted: bool = False
    ) -> tuple[Batch, Float[Tensor, "batch head query key"], ActivationCache]:
        """A pass over whole prompts, the clean or the corrupted ones, with the patterns of the heads."""
        task = _swapped(self.task) if corrupted else self.task
        batch = make_batch(self.model, task, rows, shared_prefix=False, corrupted=False)
        layers: dict[int, Tensor] = {}

        def keep(layer: int, pattern: Tensor) -> None:
            if layer in self.layers:
                layers[layer] = pattern[:, self.layers[layer]].float()

        with self.model.watching_attention(keep):
            activations = self.model.record(batch.clean, logits=False)
        return batch, self.joined(layers), activations

    def part(self, batch: Batch, activations: ActivationCache, corrupted: ActivationCache | None) -> Part:
        """What ablated heads write at the token that is read, from passes over the whole prompts."""
        read = torch.arange(len(batch.rows), device=batch.clean.read.device), batch.clean.read
        if self.replacement.from_prompts:
            assert corrupted is not None and corrupted.final is not None
            values, final = WriterValues.of(self.model, corrupted), corrupted.final[read].float()
            at_end = _at(values, read)
        else:
            values = self.replacement.at(batch, WriterValues.of(self.model, activations), self.task)
            at_end = _at(values, read)
            final = self._sum(at_end)
        return Part(batch.rows, at_end, self.metric(batch.rows, final[None])[0])

    def _sum(self, values: WriterValues) -> Float[Tensor, "batch d_model"]:
        """The final residual that all writers make together."""
        written = [block.join_heads(z) for block, z in zip(self.model.blocks, values.heads, strict=True)]
        return sum([*written, *values.mlps], values.embed)[:, 0]

    def at_end(self, part: Part) -> HeadRun:
        """The clean prompts at the token that is read, everything before it in a cache."""
        inputs = read_tokens(self.model, self.task, part.rows)
        return HeadRun(self.model, inputs, self.model.record(inputs, logits=False), part.ablated)

    def direct(self, rows: Sequence[int], run: HeadRun) -> Float[Tensor, "batch head"]:
        """Metric of a run minus that with the direct path of each head to the logits ablated."""
        metric = self.metric(rows, run.final[None])[0]
        found = metric.new_zeros(len(rows), len(self.heads))
        for layer, heads in self.layers.items():
            found[:, self.slots(layer)] = (metric - self.metric(rows, run.direct(layer, heads))).T
        return found


def _at(values: WriterValues, read: tuple[Tensor, Tensor]) -> WriterValues:
    """Values at one position a prompt."""
    return WriterValues(
        values.embed[read][:, None], [z[read][:, None] for z in values.heads], [m[read][:, None] for m in values.mlps]
    )


def _swapped(task: Task) -> Task:
    """The corrupted prompts in the place of the clean ones, read at the same positions."""
    return replace(
        task, pairs=tuple(replace(p, clean=p.corrupted, answer_position=p.answer_position) for p in task.pairs)
    )
