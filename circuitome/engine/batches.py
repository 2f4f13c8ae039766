"""From prompt pairs to padded batches behind a shared prefix.

Clean and corrupted prompt agree up to their first different token. Under causal attention all activations there agree
too, so no patch can act there: the prefix runs once, without gradients, and only its keys and values are kept. It
runs as the beginning of the corrupted prompts, or, where many prompts share it, by itself.
Prefixes are padded on the left and suffixes on the right, so that each prompt's tokens stay next to each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from circuitome.errors import USED, MemoryBudgetError, TaskError, memory_option
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import FrozenLayer, Inputs
from circuitome.models.model import Model
from circuitome.tasks.task import Pair, Task

DEFAULT_MEMORY = 1_300_000_000
"""Bytes that a batch may take beside the weights where no budget is given: larger batches are hardly faster."""


@dataclass(frozen=True)
class Batch:
    """Prompt pairs that run together."""

    rows: tuple[int, ...]
    """Which pairs of the task."""
    clean: Inputs
    """The clean suffixes, behind the prefix that they share with the corrupted ones."""
    corrupted: ActivationCache | None
    """A pass over the corrupted suffixes behind the same prefix; None where nobody asked for it."""


def first_difference(pair: Pair) -> int:
    """Index of the first token in which the two prompts of a pair differ; their length where none does."""
    pairs = enumerate(zip(pair.clean, pair.corrupted, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(pair.clean))


def shared_length(pair: Pair) -> int:
    """Tokens at the beginning of both prompts of a pair that run once, where causal attention allows that."""
    return 0 if len(pair.clean) != len(pair.corrupted) else min(first_difference(pair), pair.answer_position)


def _cut(model: Model, pair: Pair, shared_prefix: bool) -> int:
    """Length of a pair's shared prefix: only causal attention leaves it untouched by what follows."""
    return shared_length(pair) if shared_prefix and model.causal else 0


def memory_budget(model: Model, max_memory: int | None) -> int:
    """Bytes that tensors may take beside the weights: of `max_memory` the share `USED`, by default `DEFAULT_MEMORY`.

    On CUDA the default is a quarter of the device's memory. There it is the many small passes that cost, not the
    arithmetic; and of the whole memory, not of what is free just now, so that batches are the same in each run.
    """
    if max_memory is not None:
        return int(USED * max_memory)
    if model.device.type == "cuda":
        return max(DEFAULT_MEMORY, torch.cuda.get_device_properties(model.device).total_memory // 4)
    return DEFAULT_MEMORY


def tokens_within(model: Model, max_memory: int | None, *, gradients: bool, beside: int = 0) -> int:
    """How many tokens of a batch fit into a budget in bytes (None: the default).

    `beside` is what each takes besides what passes of the model do.
    """
    return memory_budget(model, max_memory) // (model.bytes_per_token(gradients=gradients) + beside)


def group_rows(
    model: Model,
    task: Task,
    *,
    shared_prefix: bool,
    max_memory: int | None = None,
    gradients: bool = False,
    beside: int = 0,
) -> list[tuple[int, ...]]:
    """Rows of `task` in groups alike in length whose padded tokens fit into the budget, as in `tokens_within`.

    Raises `MemoryBudgetError` where not even one prompt fits.
    """
    if shared_prefix:
        check_aligned(task)
    max_tokens = tokens_within(model, max_memory, gradients=gradients, beside=beside)
    longest = max(len(pair.clean) for pair in task.pairs)
    need = longest * (model.least_bytes_per_token(gradients=gradients) + beside)
    if need > memory_budget(model, max_memory):
        rest = (
            ", or let activations wait elsewhere (--activations cpu or disk)"
            if model.activations_on == "device"
            else ""
        )
        raise MemoryBudgetError(
            f"One prompt of {longest} tokens needs about {need / 1e6:,.0f} MB beside the weights, the budget leaves "
            f"{memory_budget(model, max_memory) / 1e6:,.0f} MB for that. Raise "
            f"{memory_option(need)}, or shorten the prompts{rest}."
        )
    cuts = [_cut(model, pair, shared_prefix) for pair in task.pairs]
    lengths = [len(pair.clean) - cut for pair, cut in zip(task.pairs, cuts, strict=True)]
    order = sorted(range(len(task)), key=lambda row: (lengths[row], cuts[row], row))
    groups: list[list[int]] = []
    for row in order:
        # The prefix runs without gradients, and all that stays of it is keys and values: a tenth of the memory.
        if groups and (len(groups[-1]) + 1) * (lengths[row] + cuts[row] // 10) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [tuple(group) for group in groups]


def make_batch(model: Model, task: Task, rows: Sequence[int], *, shared_prefix: bool, corrupted: bool) -> Batch:
    """The pairs `rows` as one batch. Runs the corrupted prompts if `corrupted`, which a shared prefix comes from.

    Raises `TaskError` if activations of pairs that are not aligned would be swapped.
    """
    pairs = [task.pairs[row] for row in rows]
    if corrupted:
        check_aligned(task, rows)
    cuts = [_cut(model, pair, shared_prefix) for pair in pairs]
    prefixes = [pair.clean[:cut] for pair, cut in zip(pairs, cuts, strict=True)]
    read = torch.tensor([pair.answer_position - cut for pair, cut in zip(pairs, cuts, strict=True)])
    clean = _inputs(model, prefixes, [pair.clean[cut:] for pair, cut in zip(pairs, cuts, strict=True)], read)
    if not corrupted:
        return Batch(tuple(rows), clean, None)
    other = _inputs(model, prefixes, [pair.corrupted[cut:] for pair, cut in zip(pairs, cuts, strict=True)], read)
    width = max(cuts)
    with torch.no_grad():
        if not width:
            return Batch(tuple(rows), clean, model.record(other, logits=False))
        distinct = sorted(set(prefixes))
        if 2 * len(distinct) > len(rows):  # one pass over the whole prompts is cheaper than prefix and suffix apart
            layers = model.new_cache()
            activations = model.record(
                replace(_whole(model, prefixes, other), cache=layers), logits=False, start=width, whole=False
            )
            before = [(layer.keys[:, :, :width], layer.values[:, :, :width]) for layer in layers.layers]
            cache = Cache([FrozenLayer(keys, values) for keys, values in before])
        else:
            index = torch.tensor([distinct.index(prefix) for prefix in prefixes], device=model.device)
            before = model.prefix_cache(_inputs(model, [()] * len(distinct), distinct, left=True))
            cache = Cache([FrozenLayer(keys[index], values[index]) for keys, values in before])
            activations = model.record(replace(other, cache=cache), logits=False, whole=False)
    return Batch(tuple(rows), replace(clean, cache=cache), activations)


def batches(
    model: Model,
    task: Task,
    *,
    shared_prefix: bool = True,
    corrupted: bool = True,
    max_memory: int | None = None,
    gradients: bool = False,
    beside: int = 0,
) -> Iterator[Batch]:
    """All pairs of `task`, batch by batch; `gradients` and `beside` say what they are for, which decides their size."""
    options: dict[str, Any] = {
        "shared_prefix": shared_prefix,
        "max_memory": max_memory,
        "gradients": gradients,
        "beside": beside,
    }
    for rows in group_rows(model, task, **options):
        yield make_batch(model, task, rows, shared_prefix=shared_prefix, corrupted=corrupted)


def read_tokens(model: Model, task: Task, rows: Sequence[int]) -> Inputs:
    """Of each clean prompt only the token after which the logits are read; all tokens before it stand in a cache.

    For what can change nothing at other positions, one token then costs what a whole prompt would. Causal models only.
    """
    pairs = [task.pairs[row] for row in rows]
    prefixes = [pair.clean[: pair.answer_position] for pair in pairs]
    inputs = _inputs(model, prefixes, [pair.clean[pair.answer_position : pair.answer_position + 1] for pair in pairs])
    if not any(prefixes):
        return inputs
    with torch.no_grad():
        before = model.prefix_cache(_inputs(model, [()] * len(prefixes), prefixes, left=True))
    return replace(inputs, cache=Cache([FrozenLayer(keys, values) for keys, values in before]))


def check_aligned(task: Task, rows: Sequence[int] | None = None) -> None:
    """Raises `TaskError` if a pair, of all or of `rows`, has prompts of different lengths."""
    for row in range(len(task)) if rows is None else rows:
        pair = task.pairs[row]
        if len(pair.clean) != len(pair.corrupted):
            raise TaskError(
                f"Prompt pair {row} of task {task.name} is not aligned: {len(pair.clean)} clean and "
                f"{len(pair.corrupted)} corrupted tokens, so activations cannot be swapped position by position. Make "
                "them equally long, or use zero or mean ablation."
            )


def _inputs(
    model: Model,
    prefixes: Sequence[tuple[int, ...]],
    suffixes: Sequence[tuple[int, ...]],
    read: Tensor | None = None,
    *,
    left: bool = False,
) -> Inputs:
    """The suffixes, padded on the right (or left), behind prefixes padded on the left; no cache yet.

    `read` are indices into the suffixes; None where nobody reads.
    """
    width, longest = max(map(len, prefixes)), max(map(len, suffixes))
    _, prefix_mask = _pad(prefixes, width, left=True)
    ids, mask = _pad(suffixes, longest, left=left)
    first = torch.tensor(
        [len(prefix) - left * (longest - len(suffix)) for prefix, suffix in zip(prefixes, suffixes, strict=True)]
    )
    # Padding repeats the last position: beyond it, a table of learned positions may have ended.
    last = torch.tensor([len(prefix) + len(suffix) - 1 for prefix, suffix in zip(prefixes, suffixes, strict=True)])
    positions = torch.minimum(first[:, None] + torch.arange(longest), last[:, None]).clamp(min=0)
    read = torch.full((len(suffixes),), longest - 1) if read is None else read
    return _placed(model, ids, torch.cat([prefix_mask, mask], 1), positions, read)


def _whole(model: Model, prefixes: Sequence[tuple[int, ...]], suffixes: Inputs) -> Inputs:
    """Prefixes and suffixes as prompts of one pass."""
    before = _inputs(model, [()] * len(prefixes), prefixes, left=True)
    ids, positions = torch.cat([before.ids, suffixes.ids], 1), torch.cat([before.positions, suffixes.positions], 1)
    return Inputs(ids, suffixes.mask, positions, before.ids.shape[1] + suffixes.read)


def _placed(model: Model, ids: Tensor, mask: Tensor, positions: Tensor, read: Tensor) -> Inputs:
    """The inputs on the model's device."""
    device = model.device
    return Inputs(ids.to(device), mask.to(device), positions.to(device), read.to(device))


def _pad(rows: Sequence[tuple[int, ...]], width: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids [rows, width] filled up with token 0, and a mask that is 1 at real tokens."""
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids, mask
