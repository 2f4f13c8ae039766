"""From prompt pairs to padded batches behind a shared prefix.

Clean and corrupted prompt agree up to their first different token. Under causal attention all activations there agree
too, so no patch can act there: the prefix runs once, without gradients, and only its keys and values are kept.
Prefixes are padded on the left and suffixes on the right, so that each prompt's tokens stay next to each other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from circuitome.errors import MemoryBudgetError
from circuitome.models import FrozenLayer, Inputs, Model
from circuitome.tasks import Pair, Task

DEFAULT_MEMORY = 1_300_000_000
"""Bytes that a batch may take beside the weights where no budget is given: larger batches are hardly faster."""


@dataclass(frozen=True)
class Batch:
    """Prompt pairs that run together."""

    rows: tuple[int, ...]
    """Which pairs of the task."""
    clean: Inputs
    """The clean suffixes."""
    corrupted: Inputs
    """The corrupted suffixes, behind the same prefix."""


def first_difference(pair: Pair) -> int:
    """Index of the first token in which the two prompts of a pair differ."""
    return next(i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b)


def tokens_within(model: Model, max_memory: int | None, *, gradients: bool) -> int:
    """How many tokens of a batch fit into a budget in bytes (None: the default)."""
    budget = DEFAULT_MEMORY if max_memory is None else max_memory
    return budget // model.bytes_per_token(gradients=gradients)


def group_rows(
    model: Model, task: Task, *, shared_prefix: bool, max_memory: int | None = None, gradients: bool = False
) -> list[tuple[int, ...]]:
    """Rows of `task` in groups alike in length whose padded tokens fit into the budget.

    Raises `MemoryBudgetError` where not even one prompt fits.
    """
    max_tokens = tokens_within(model, max_memory, gradients=gradients)
    longest = max(len(pair.clean) for pair in task.pairs)
    if max_tokens < longest:
        need = longest * model.bytes_per_token(gradients=gradients)
        raise MemoryBudgetError(
            f"One prompt of {longest} tokens needs about {need / 1e6:,.0f} MB beside the weights, the budget is "
            f"{(max_memory or DEFAULT_MEMORY) / 1e6:,.0f} MB. Raise --max-memory to {need / 1e9:.1f}GB, or shorten "
            "the prompts."
        )
    cuts = [first_difference(pair) if shared_prefix else 0 for pair in task.pairs]
    lengths = [len(pair.clean) - cut for pair, cut in zip(task.pairs, cuts, strict=True)]
    order = sorted(range(len(task)), key=lambda row: (lengths[row], cuts[row], row))
    groups: list[list[int]] = []
    for row in order:
        # The prefix runs as one batch too, without gradients and without a tape: a tenth of the memory.
        if groups and (len(groups[-1]) + 1) * (lengths[row] + cuts[row] // 10) <= max_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [tuple(group) for group in groups]


def make_batch(model: Model, task: Task, rows: Sequence[int], *, shared_prefix: bool = True) -> Batch:
    """The pairs `rows` as one batch; runs the shared prefix."""
    pairs = [task.pairs[row] for row in rows]
    cuts = [first_difference(pair) if shared_prefix else 0 for pair in pairs]
    prefix = [pair.clean[:cut] for pair, cut in zip(pairs, cuts, strict=True)]
    width = max(cuts)
    cache_layers = _prefix_layers(model, prefix, width) if width else None

    def inputs(prompts: Sequence[tuple[int, ...]]) -> Inputs:
        suffixes = [prompt[cut:] for prompt, cut in zip(prompts, cuts, strict=True)]
        ids, mask = _pad(suffixes, max(map(len, suffixes)), left=False)
        before = torch.tensor(cuts)
        _, prefix_mask = _pad(prefix, width, left=True)
        positions = before[:, None] + torch.arange(ids.shape[1])
        read = torch.tensor([len(suffix) - 1 for suffix in suffixes])
        cache = None if cache_layers is None else Cache(list(cache_layers))
        return _placed(model, ids, torch.cat([prefix_mask, mask], 1), positions, read, cache)

    return Batch(tuple(rows), inputs([p.clean for p in pairs]), inputs([p.corrupted for p in pairs]))


def batches(
    model: Model, task: Task, *, shared_prefix: bool = True, max_memory: int | None = None, gradients: bool = False
) -> Iterator[Batch]:
    """All pairs of `task`, batch by batch; `gradients` says what the batches are for, which decides their size."""
    for rows in group_rows(model, task, shared_prefix=shared_prefix, max_memory=max_memory, gradients=gradients):
        yield make_batch(model, task, rows, shared_prefix=shared_prefix)


def _prefix_layers(model: Model, prefixes: Sequence[tuple[int, ...]], width: int) -> list[FrozenLayer]:
    """Keys and values of the prefixes; equal prefixes run once."""
    distinct = sorted(set(prefixes))
    ids, mask = _pad(distinct, width, left=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read = torch.full((len(distinct),), width - 1)
    with torch.no_grad():
        cached = model.prefix_cache(_placed(model, ids, mask, positions, read, None))
    where = {prefix: i for i, prefix in enumerate(distinct)}
    index = torch.tensor([where[prefix] for prefix in prefixes], device=model.device)
    return [FrozenLayer(keys[index], values[index]) for keys, values in cached]


def _placed(model: Model, ids: Tensor, mask: Tensor, positions: Tensor, read: Tensor, cache: Cache | None) -> Inputs:
    """The inputs on the model's device."""
    device = model.device
    return Inputs(ids.to(device), mask.to(device), positions.to(device), read.to(device), cache)


def _pad(rows: Sequence[tuple[int, ...]], width: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids [rows, width] filled up with token 0, and a mask that is 1 at real tokens."""
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, where] = torch.tensor(row, dtype=torch.long)
        mask[i, where] = 1
    return ids, mask
