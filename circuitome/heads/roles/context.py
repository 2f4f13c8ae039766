"""Some heads of a model on the prompts of a task: what all measurements of them share."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues
from circuitome.engine.batches import Batch, check_aligned, group_rows, make_batch, memory_budget, read_tokens
from circuitome.engine.partial_forward import dense_copies
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


def by_layer(heads: Iterable[Head]) -> dict[int, list[int]]:
    """The heads of each layer, both in order."""
    return {layer: [head for _, head in group] for layer, group in groupby(sorted(heads), key=itemgetter(0))}


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts that run together at their answer position."""

    rows: tuple[int, ...]
    """Which pairs of the task."""
    ablated: WriterValues
    """What ablated heads write at the answer position [batch, 1, ...]."""


class HeadContext:
    """Heads of one model on one task. The head axis of every result is in the order of `heads`."""

    def __init__(self, setting: Setting, heads: Sequence[Head]) -> None:
        """Raises `InputError` for a model that is not causal, `TaskError` for pairs that cannot be swapped."""
        model, task = setting.model, setting.task
        if not model.causal:
            raise InputError(
                f"{model.name} is not causal: what it reads at the end changes everything before it, so what its heads "
                "do cannot be told apart. Explain circuits of causal models."
            )
        if setting.replacement.from_prompts:
            check_aligned(task)
        self.setting, self.model, self.task, self.heads = setting, model, task, tuple(heads)
        self.places = places(task)
        self.unembedding = Unembedding(model)
        self.slot = {head: i for i, head in enumerate(self.heads)}
        self._runs: dict[tuple[int, ...], HeadRun] = {}
        self._room = memory_budget(model, setting.max_memory)
        self.layers = by_layer(self.heads)

    def groups(self) -> list[tuple[int, ...]]:
        """Rows of the task in groups whose whole prompts run together."""
        return group_rows(self.model, self.task, shared_prefix=False, max_memory=self.setting.max_memory)

    def slots(self, layer: int) -> list[int]:
        """Where the heads of a layer are on the head axis."""
        return [self.slot[layer, head] for head in self.layers.get(layer, ())]

    def portions(self, run: HeadRun) -> Iterator[tuple[int, list[int], list[int]]]:
        """Layer, heads and their places on the head axis, as many heads at a time as can be ablated in one run."""
        limit = dense_copies(self.model, run.inputs, self.setting.max_memory)
        for layer, heads in self.layers.items():
            for start in range(0, len(heads), limit):
                some = heads[start : start + limit]
                yield layer, some, [self.slot[layer, head] for head in some]

    def joined(self, layers: dict[int, Float[Tensor, "batch some *rest"]]) -> Float[Tensor, "batch head *rest"]:
        """Values of the heads of each layer, on one head axis."""
        first = next(iter(layers.values()))
        whole = first.new_zeros(first.shape[0], len(self.heads), *first.shape[2:])
        for layer, values in layers.items():
            whole[:, self.slots(layer)] = values
        return whole

    def metric(
        self, rows: Sequence[int], final: Float[Tensor, "copies batch d_model"]
    ) -> Float[Tensor, "copies batch"]:
        """Metric of some prompts from the residual in front of the final norm."""
        return -Readout(self.model, self.task, rows, "metric")(final)

    def effect(
        self, rows: Sequence[int], run: HeadRun, changed: Float[Tensor, "copies batch d_model"]
    ) -> Float[Tensor, "batch copies"]:
        """Metric of each changed final residual minus that of the run as it is: negative where the change hurts."""
        metric = self.metric(rows, torch.cat([run.final[None], changed]))
        return (metric[1:] - metric[0]).T.cpu()

    def direct_effects(self, rows: Sequence[int], run: HeadRun) -> Float[Tensor, "batch head"]:
        """Effect of ablating the direct path of each head to the logits, and nothing else."""
        readout = Readout(self.model, self.task, rows, "metric")
        effects = {
            layer: readout.effects(run.final, run.inputs.at_read(run.change(layer, heads)))[1].T.cpu()
            for layer, heads in self.layers.items()
        }
        return self.joined(effects)

    def whole_prompts(
        self, rows: Sequence[int], *, corrupted: bool = False
    ) -> tuple[Batch, Float[Tensor, "batch head query key"], ActivationCache]:
        """A pass over whole prompts, the clean or the corrupted ones, with the attention patterns of the heads."""
        task = _swapped(self.task) if corrupted else self.task
        batch = make_batch(self.model, task, rows, shared_prefix=False, corrupted=False)
        layers: dict[int, Tensor] = {}

        def keep(layer: int, pattern: Tensor) -> None:
            if layer in self.layers:
                layers[layer] = pattern[:, self.layers[layer]].float()

        with self.model.watching_attention(keep):
            activations = self.model.record(batch.clean, logits=False)
        return batch, self.joined(layers), activations

    def run(self, batch: AnswerBatch) -> HeadRun:
        """The clean prompts at the answer position, everything before it in a cache.

        Made once and kept as long as keys and values of all prompts fit into the memory budget.
        """
        if batch.rows in self._runs:
            return self._runs[batch.rows]
        model, inputs = self.model, read_tokens(self.model, self.task, batch.rows)
        run = HeadRun(model, inputs, model.record(inputs, logits=False), batch.ablated)
        size = inputs.mask.numel() * 2 * model.heads.kv * model.heads.width * len(model.blocks) * model.dtype.itemsize
        if size <= self._room:
            self._room -= size
            self._runs[batch.rows] = run
        return run

    def at_answer(
        self, batch: Batch, clean: ActivationCache, corrupted: ActivationCache | None
    ) -> tuple[AnswerBatch, Float[Tensor, " batch"]]:
        """The prompts of a batch at their answer position, and their metric with everything ablated.

        `clean` and `corrupted` are passes over the whole prompts, which say what ablated heads write at that position.
        """
        read = torch.arange(len(batch.rows), device=batch.clean.read.device), batch.clean.read
        if self.setting.replacement.from_prompts:
            assert corrupted is not None and corrupted.final is not None
            values, final = WriterValues.of(self.model, corrupted).at(*read), corrupted.final[read].float()
        else:
            whole = self.setting.replacement.at(batch, WriterValues.of(self.model, clean), self.task)
            values = whole.at(*read)
            final = self._sum(values)
        return AnswerBatch(batch.rows, values), self.metric(batch.rows, final[None])[0]

    def _sum(self, values: WriterValues) -> Float[Tensor, "batch d_model"]:
        """The final residual that all writers make together."""
        written = [block.join_heads(z) for block, z in zip(self.model.blocks, values.heads, strict=True)]
        return sum([*written, *values.mlps], values.embed)[:, 0]


def _swapped(task: Task) -> Task:
    """The corrupted prompts in the place of the clean ones, read at the same positions."""
    return replace(
        task, pairs=tuple(replace(p, clean=p.corrupted, answer_position=p.answer_position) for p in task.pairs)
    )
