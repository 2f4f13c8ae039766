"""Where in its prompts an intervention acts: what `at` may say, and which tokens of a running pass that is."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from circuitome.errors import InputError, unknown_name
from circuitome.models.hooks import hooked
from circuitome.models.inputs import FrozenLayer, OnePassLayer
from circuitome.models.model import Model
from circuitome.tasks.task import Task

At = str | int | Sequence[int] | Sequence[Sequence[int]] | Tensor
"""all, prompt, generated, end, a role of a task, one position, several, or several for each prompt; negative ones count
from the end."""
PLACES = ("all", "prompt", "generated", "end")
"""Words for positions in any prompts: every token, all but generated ones, only these, the last one of the prompt."""


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass as it was called: how its tokens lie in its prompts."""

    ids: Int[Tensor, "batch pos"] | None
    """The token ids; None where embeddings were given."""
    real: Bool[Tensor, "batch pos"]
    """False at padding."""
    index: Int[Tensor, "batch pos"]
    """Place of each token in its own prompt, padding not counted."""
    goes_on: bool
    """Whether the pass goes on from a cache."""
    unplaced: bool
    """Whether it cannot be told where in their prompts its tokens are: where circuitome's own cache has cut prompts in
    two, or the mask is no mask of tokens."""
    rows: tuple[int, ...]
    """Which prompt each row is."""
    count: int
    """How many prompts there are, of which these rows may be some; 0 where it is not known which they are."""

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return self.real.sum(1).tolist()

    @cached_property
    def order(self) -> Int[Tensor, "batch pos"]:
        """Columns of each prompt's tokens in order, padding last."""
        return self.real.long().argsort(dim=1, descending=True, stable=True)

    @cached_property
    def prompt(self) -> Int[Tensor, "batch 1"]:
        """Number of the prompt that each row is."""
        return torch.tensor(self.rows, device=self.real.device)[:, None]

    def check_count(self, count: int, what: str) -> None:
        """Raises `InputError` unless `what`, which is given for `count` prompts, is of those that run."""
        if not self.count:
            raise InputError(
                f"{what} belong to single prompts, and circuitome's methods run prompts in an order of their own. Give "
                "what holds for every prompt, or run model.hf, cm.activations or cm.attention."
            )
        if self.count != count:
            raise InputError(
                f"{what} are of {count} prompts, and {self.count} run. Run these prompts, all of them, in order."
            )

    def tokens(self, row: int) -> tuple[int, ...]:
        """The prompt's token ids."""
        assert self.ids is not None
        return tuple(self.ids[row][self.real[row]].tolist())


@dataclass(frozen=True, eq=False)
class Where:
    """The tokens of a pass on which an intervention acts: [rows, tokens a row]."""

    run: Pass
    """The pass."""
    row: Int[Tensor, "rows some"] | None
    """Row of each in the batch; None where they are all tokens of the pass."""
    column: Int[Tensor, "rows some"] | None
    """Column of each in the batch."""
    prompt: Int[Tensor, "rows _"]
    """Which prompt each belongs to."""
    index: Int[Tensor, "rows some"]
    """Place of each in its prompt."""
    rank: Int[Tensor, "rows some"]
    """Which of its prompt's positions it is, in the order in which they were given."""
    ragged: bool = False
    """Whether prompts have different numbers of positions: then each stands in a row of its own."""


@dataclass(eq=False)
class Positions:
    """What `at` says, and the pass that is running."""

    at: str | int | Sequence[Any]
    """As it was given, or a list of positions by prompt where it was a role."""
    task: Task | None = None
    """The task whose prompts must be the ones that run; None where any may."""
    run: Pass | None = None
    """The latest pass."""
    _cells: Where | None = None

    @classmethod
    def of(cls, at: Any, task: Task | None = None) -> "Positions":
        """Raises `InputError` for what is no position or for a role without a task, `UnknownNameError` for no role."""
        at = at.tolist() if hasattr(at, "tolist") else at
        if isinstance(at, str) and at in PLACES:
            return cls(at)
        if isinstance(at, str):
            return cls([[position] for position in _of_role(at, task)], task)
        if _is_int(at):
            return cls(int(at))
        given = list(at) if isinstance(at, Sequence) else []
        if given and all(_is_int(position) for position in given):
            return cls(given)
        if given and all(not isinstance(own, str) and isinstance(own, Sequence) for own in given):
            rows = [list(own) for own in given]
            if all(_is_int(position) for own in rows for position in own):
                return cls(rows)
        raise InputError(
            f"at={at!r} is no position. Give {', '.join(PLACES)}, a role of the task, a number, a list of numbers, or "
            "one such list for each prompt."
        )

    @property
    def everywhere(self) -> bool:
        """Whether every token is meant."""
        return isinstance(self.at, str) and self.at == "all"

    @contextmanager
    def followed(self, model: Model) -> Iterator[None]:
        """Inside, `where` knows the pass that is running."""
        body = _body(model)
        names = list(inspect.signature(body.forward).parameters)

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.run = _pass(model, dict(zip(names, args, strict=False)) | kwargs)
            self._cells = None

        with hooked(body.register_forward_pre_hook, note, with_kwargs=True, prepend=True):
            yield

    def where(self, shape: torch.Size) -> Where | None:
        """The tokens meant in values of `shape` [batch, pos] of the running pass; None where there are none.

        Raises `InputError` for a position outside of a prompt, prompts that are not those of the task, and a pass
        over parts of prompts in which positions cannot be told.
        """
        run = self.run
        if run is None or run.real.shape != shape or (run.unplaced and not self.everywhere):
            if self.everywhere:
                return _everywhere(_unknown_pass(shape, run))
            raise InputError(
                "This runs parts of prompts, or has an attention mask that is not [batch, tokens], so that positions "
                "cannot be told. Inside an intervention at some positions run whole prompts (in circuitome's methods, "
                'shared_prefix=False); or intervene at="all".'
            )
        if not self.everywhere and run.goes_on != (isinstance(self.at, str) and self.at == "generated"):
            return None
        if self._cells is None:
            self._cells = self._in(run)
        return self._cells

    def _in(self, run: Pass) -> Where | None:
        """The tokens meant in a whole pass."""
        if self.task is not None:
            _check_prompts(run, self.task)
        if isinstance(self.at, str) and self.at != "end":
            return _everywhere(run)
        return _some(run, [self._of_row(run, row) for row in range(len(run.rows))])

    def _of_row(self, run: Pass, row: int) -> list[int]:
        """The positions meant in one row, counted from the beginning of its prompt."""
        at, size = self.at, run.lengths[row]
        if isinstance(at, str):
            return [size - 1]
        if isinstance(at, int):
            given: Sequence[int] = [at]
        else:
            given = _for_prompt(at, run, row)
        return [inside(position, size, run.rows[row]) for position in given]


def inside(position: int, size: int, prompt: int, what: str = "prompt") -> int:
    """A position counted from the beginning. Raises `InputError` where the prompt ends before it."""
    if not -size <= position < size:
        raise InputError(
            f"Position {position} lies outside of {what} {prompt}, which has {size} tokens. Give one from 0 to "
            f"{size - 1}, or from -{size} to -1 to count from its end."
        )
    return position % size


def _for_prompt(at: Sequence[Any], run: Pass, row: int) -> Sequence[int]:
    """Of a list of positions, or of such lists by prompt, the one for a row."""
    if _is_int(at[0]):
        return at
    run.check_count(len(at), "Lists of positions")
    return at[run.rows[row]]


def _of_role(role: str, task: Task | None) -> list[int]:
    if task is None:
        raise InputError(
            f'at={role!r} is a role, and roles belong to a task. Give task=..., or "all", "end" or numbers.'
        )
    known = list(dict.fromkeys(name for pair in task.pairs for name in pair.roles))
    if role not in known:
        raise unknown_name(f"role of task {task.name}", role, known, 'Other values of at: "all", "end", numbers.')
    for row, pair in enumerate(task.pairs):
        if role not in pair.roles:
            raise InputError(f"Prompt {row} of task {task.name} has no role {role!r}; it has {', '.join(pair.roles)}.")
    return [pair.roles[role] for pair in task.pairs]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_prompts(run: Pass, task: Task) -> None:
    """Raises `InputError` unless the pass runs, or goes on from, the task's prompts in order."""
    run.check_count(len(task), f"Roles and values of task {task.name}")
    if run.ids is None or run.goes_on:
        return
    for row, number in enumerate(run.rows):
        pair = task.pairs[number]
        tokens = run.tokens(row)
        if tokens[: len(pair.clean)] != pair.clean and tokens[: len(pair.corrupted)] != pair.corrupted:
            raise InputError(
                f"Prompt {number} that runs is not prompt {number} of task {task.name}. What belongs to a task's "
                "prompts needs them in order."
            )


def _body(model: Model) -> nn.Module:
    """The module that is given token ids and mask, and holds the blocks."""
    path = "" if model.masked else model.family.layers.rpartition(".")[0]
    return attrgetter(path)(model.hf) if path else model.hf


def _pass(model: Model, given: dict[str, Any]) -> Pass:
    ids, embeds, cache = given.get("input_ids"), given.get("inputs_embeds"), given.get("past_key_values")
    tokens: Tensor = given["input_ids"] if embeds is None else embeds
    shape, device = tokens.shape[:2], tokens.device
    before = 0 if cache is None else int(cache.get_seq_length())
    mask = given.get("attention_mask")
    by_token = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
    if by_token is not None:
        seen = by_token[:, : before + shape[1]].bool()
        index, real = (seen.cumsum(1) - 1)[:, before:], seen[:, before:]
    else:
        index = torch.arange(before, before + shape[1], device=device).expand(shape)
        real = torch.ones(shape, dtype=torch.bool, device=device)
    cut = any(isinstance(layer, FrozenLayer | OnePassLayer) for layer in getattr(cache, "layers", ()))
    unplaced = cut or (mask is not None and by_token is None)
    rows, count = model.rows or ((), shape[0])
    return Pass(ids, real, index, before > 0, unplaced, rows or tuple(range(shape[0])), count)


def _unknown_pass(shape: torch.Size, run: Pass | None) -> Pass:
    """A pass over parts of prompts: no place in a prompt is known, so that only values without places fit."""
    device = run.real.device if run else None
    nowhere = torch.full(shape, -1, device=device)
    real = torch.zeros(shape, dtype=torch.bool, device=device)
    return Pass(None, real, nowhere, False, True, tuple(range(shape[0])), shape[0])


def _everywhere(run: Pass) -> Where:
    return Where(run, None, None, run.prompt, run.index, run.index)


def _some(run: Pass, by_row: list[list[int]]) -> Where | None:
    counts = {len(own) for own in by_row}
    device = run.real.device
    cells = [(row, position, rank) for row, own in enumerate(by_row) for rank, position in enumerate(own)]
    if not cells:
        return None
    ragged = len(counts) > 1
    shape = (-1, 1) if ragged else (len(by_row), -1)
    row, index, rank = (t.view(shape) for t in torch.tensor(cells, device=device).unbind(1))
    return Where(run, row, run.order[row, index], run.prompt[:, 0][row], index, rank, ragged)
