"""What is put in place of what a part writes: zero, a mean, a given tensor, or values of other prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitome.engine.ablation import WriterValues
from circuitome.engine.batches import batches
from circuitome.engine.interventions.changes import Change
from circuitome.engine.interventions.positions import Where
from circuitome.engine.interventions.prompts import as_task
from circuitome.errors import InputError, NumericsError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.hooks import hooked
from circuitome.models.model import Model
from circuitome.tasks.task import Task

VALUES = ("zero", "mean", "corrupted")


def zero(values: Tensor, where: Where) -> Tensor:
    """Zeros."""
    return torch.zeros_like(values)


def times(factor: float) -> Change:
    """The values times a number."""
    return lambda values, where: values * factor


def constant(value: Tensor, names: str) -> Change:
    """A tensor that is broadcast over the values; heads of a block all get the same.

    One that differs by position belongs to the prompts: generated tokens keep their own values.
    """

    def put(values: Tensor, where: Where) -> Tensor | None:
        new = value.to(values).unsqueeze(-2) if value.ndim else value.to(values)
        if where.run.goes_on and value.ndim > 1 and value.shape[-2] > 1:
            return None
        if where.ragged and any(size > 1 for size in new.shape[:-2]):
            raise InputError(
                f"The value of {names} has shape {list(value.shape)}, but prompts have different numbers of positions "
                "here, so only one value of the part's width fits all of them."
            )
        try:
            return new.expand_as(values)
        except RuntimeError:
            written = [*values.shape[:2], values.shape[-1]]
            raise InputError(
                f"The value of {names} has shape {list(value.shape)}, which does not broadcast to what is replaced, "
                f"{written} (prompts, positions, width)."
            ) from None

    return put


def check_value(value: Tensor, node: Node, width: int) -> None:
    """Raises `InputError` for a tensor of another width than a part writes, `NumericsError` for NaN or infinity."""
    if value.ndim > 3 or (value.ndim and value.shape[-1] not in (1, width)):
        raise InputError(
            f"The value of {node} has shape {list(value.shape)}; what {node} writes is [prompts, positions, {width}], "
            "and the value must broadcast to it."
        )
    check_finite(f"The value of {node}", value)


def check_finite(what: str, values: Tensor, before: Tensor | None = None) -> None:
    """Raises `NumericsError` where `values` are not finite, unless those `before` were not either."""
    bad = ~torch.isfinite(values) if before is None else torch.isfinite(before) & ~torch.isfinite(values)
    if bool(bad.any()):
        raise NumericsError(f"{what} holds NaN or infinity in {int(bad.sum())} of {bad.numel()} places.")


class OfPrompts:
    """Values of parts on some prompts, put in prompt by prompt."""

    def __init__(
        self, values: list[Tensor], what: str, picked: list[list[int]] | None = None, *, exact: bool = False
    ) -> None:
        """`values` by prompt [pos, chunk, width]; `picked` of their positions, in order, else each at its own place.

        With `exact`, prompts that run are refused if they are longer than the values, where all positions are meant.
        """
        self.what, self.by_rank, self.exact = what, picked is not None, exact
        rows = values if picked is None else [value[own] for value, own in zip(values, picked, strict=True)]
        self.lengths = [len(row) for row in rows]
        self.values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def __call__(self, values: Tensor, where: Where) -> Tensor:
        """The values at the positions that are meant; generated tokens and padding keep theirs."""
        self._check_prompts(where)
        prompt = where.prompt if len(self.lengths) > 1 else torch.zeros_like(where.prompt)
        place = where.rank if self.by_rank else where.index
        lengths = torch.tensor(self.lengths, device=place.device)[prompt]
        self._check(where, place, lengths)
        new = self.values.to(values)[prompt, place.clamp(0, self.values.shape[1] - 1)]
        if where.row is None:
            inside = (where.run.real & (place < lengths))[..., None, None]
            return torch.where(inside, new, values)
        return new

    def _check_prompts(self, where: Where) -> None:
        """Raises `InputError` unless the prompts that run are as many as those of the values, and whole."""
        run = where.run
        if run.unplaced:
            raise InputError(
                f"{self.what} belong to whole prompts, and this runs parts of prompts. Run whole prompts (in "
                "circuitome's methods, shared_prefix=False)."
            )
        if len(self.lengths) > 1:
            run.check_count(len(self.lengths), self.what)

    def _check(self, where: Where, place: Int[Tensor, "rows some"], lengths: Int[Tensor, "rows _"]) -> None:
        """Raises `InputError` where a position that is meant has no value."""
        run = where.run
        if where.row is None and not run.goes_on:
            for row, (size, expected) in enumerate(zip(run.lengths, lengths[:, 0].tolist(), strict=True)):
                if size < expected or (size > expected and self.exact):
                    raise InputError(
                        f"{self.what} are at {expected} positions, and prompt {run.rows[row]} has {size} tokens. Give "
                        "at and source_at as many positions, or prompts of one length."
                    )
        elif where.row is not None and bool((place >= lengths).any()):
            row, at = (place >= lengths).nonzero()[0].tolist()
            number, end = (int(t.expand_as(place)[row, at]) for t in (where.prompt, lengths))
            raise InputError(
                f"{self.what} for prompt {number} are at {end} positions, and position {int(where.index[row, at])} "
                f"asks for number {int(place[row, at])} of them, counted from 0. Give source_at, or a longer source."
            )


def written(
    model: Model, prompts: Sequence[tuple[int, ...]], groups: Sequence[list[Node]], max_memory: int | None
) -> list[list[Float[Tensor, "pos chunk width"]]]:
    """By group of parts and by prompt: what the parts write, float32, in the model as it is now."""
    task, whole = as_task(prompts), model.with_neurons([])
    values: list[list[Tensor]] = [[torch.empty(0)] * len(prompts) for _ in groups]
    for batch in batches(model, task, shared_prefix=False, corrupted=False, max_memory=max_memory):
        with torch.no_grad(), model.running_rows(batch.rows, len(prompts)), _neurons(model, groups) as neurons:
            writers = WriterValues.of(whole, whole.record(batch.clean, logits=False))
        for own, group in zip(values, groups, strict=True):
            for i, row in enumerate(batch.rows):
                own[row] = _of(writers, neurons, group)[i, : len(prompts[row])].clone()
    return values


@contextmanager
def _neurons(model: Model, groups: Sequence[list[Node]]) -> Iterator[dict[int, Tensor]]:
    """By block that has neurons among the parts: what the MLP's last projection read in the pass that ran inside."""
    seen: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in {group[0].layer for group in groups if group[0].kind == "neuron"}:

            def note(module: nn.Module, args: tuple[Any, ...], layer: int = layer) -> None:
                seen[layer] = args[0].detach().float()

            stack.enter_context(hooked(model.blocks[layer].mlp_writer.register_forward_pre_hook, note))
        yield seen


def _of(writers: WriterValues, neurons: Mapping[int, Tensor], group: list[Node]) -> Tensor:
    """What some parts of one place write, [batch, pos, chunk, width]."""
    first, which = group[0], [node.index for node in group]
    if first.kind == "neuron":
        return neurons[first.layer].view(*writers.embed.shape[:2], -1)[:, :, which, None]
    if first.kind == "head":
        return writers.heads[first.layer][:, :, which]
    return (writers.embed if first.kind == "embed" else writers.mlps[first.layer])[:, :, None]


def means(
    model: Model, task: Task | None, prompts: Sequence[tuple[int, ...]] | None, groups: Sequence[list[Node]]
) -> list[Change]:
    """By group of parts, their mean output over the tokens of `prompts`, or of the task's corrupted prompts."""
    if prompts is None:
        if task is None:
            raise InputError('value="mean" is a mean over prompts: give prompts=... or task=....')
        prompts = [pair.corrupted for pair in task.pairs]
    return [put_each(torch.cat(values).mean(0)) for values in written(model, prompts, groups, None)]


def put_each(constants: Float[Tensor, "chunk width"]) -> Change:
    """A constant for each of some parts of one place."""
    return lambda values, where: constants.to(values).expand_as(values)


def replacements(
    model: Model,
    groups: Sequence[list[Node]],
    value: str | Tensor,
    task: Task | None,
    prompts: Sequence[tuple[int, ...]] | None,
) -> list[Change]:
    """What `value` says, by group of parts."""
    if isinstance(value, Tensor):
        width = {"head": model.heads.width, "neuron": 1}
        for group in groups:
            check_value(value, group[0], width.get(group[0].kind, model.d_model))
        return [constant(value, ", ".join(map(str, group))) for group in groups]
    makers: dict[str, Callable[[], list[Change]]] = {
        "zero": lambda: [zero] * len(groups),
        "mean": lambda: means(model, task, prompts, groups),
        "corrupted": lambda: _corrupted(model, task, groups),
    }
    if value not in makers:
        raise unknown_name("value", str(value), VALUES, "A tensor may be given as well.")
    return makers[value]()


def _corrupted(model: Model, task: Task | None, groups: Sequence[list[Node]]) -> list[Change]:
    if task is None:
        raise InputError('value="corrupted" is what parts write on the corrupted prompts of a task: give task=....')
    corrupted = [pair.corrupted for pair in task.pairs]
    return [OfPrompts(values, "Corrupted values") for values in written(model, corrupted, groups, None)]
