"""Prompts as they are given to interventions: a text, token ids, or a list of either."""

from collections.abc import Sequence
from typing import Any

from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.tasks.task import Pair, Task


def token_ids(model: Model, prompts: Any) -> list[tuple[int, ...]]:
    """Token ids of each prompt. Raises `InputError` for no prompt, an empty one, ids that the model lacks."""
    prompts = prompts.tolist() if hasattr(prompts, "tolist") else prompts
    if isinstance(prompts, Task):
        prompts = [pair.clean for pair in prompts.pairs]
    if isinstance(prompts, str) or (isinstance(prompts, Sequence) and prompts and isinstance(prompts[0], int)):
        prompts = [prompts]
    if not isinstance(prompts, Sequence) or not prompts:
        raise InputError(f"There are no prompts in {prompts!r}; give a text, token ids, or a list of them.")
    rows = [tuple(model.encode(prompt) if isinstance(prompt, str) else prompt) for prompt in prompts]
    for number, row in enumerate(rows):
        if not row:
            raise InputError(f"Prompt {number} has no tokens; give at least one.")
        size = model.hf.config.vocab_size
        if bad := [token for token in row if not 0 <= token < size]:
            raise InputError(f"Prompt {number} has the token id {bad[0]}; those of {model.name} are 0 to {size - 1}.")
    return rows


def as_task(prompts: Sequence[tuple[int, ...]]) -> Task:
    """Prompts without twins or answers as a task, for what batches and averages tasks."""
    return Task("prompts", tuple(Pair(row, row, (), ()) for row in prompts))


def texts(model: Model, prompts: Sequence[tuple[int, ...]]) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Each prompt as text, and its tokens; ids where there is no tokenizer."""
    spell = str if model.tokenizer is None else lambda token: model.decode([token])
    tokens = tuple(tuple(spell(token) for token in row) for row in prompts)
    joined = tuple((" " if model.tokenizer is None else "").join(row) for row in tokens)
    return (joined if model.tokenizer is None else tuple(model.decode(row) for row in prompts)), tokens
