"""Where the tokens with a role stand in the prompts of a task, and attention between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.tasks.task import Pair, Task

END, FIRST, CHANGED, ANSWER, WRONG = "end", "first", "changed", "answer", "wrong"
"""Roles of tokens: the one at the answer position, the first, the last that differs; right and wrong answers."""


@dataclass(frozen=True)
class Places:
    """Which roles the tokens of a task have, and where each stands in each prompt."""

    names: tuple[str, ...]
    """Roles in the order in which they stand in the first prompt that has them: "first", the task's own, "end"."""
    at: Int[Tensor, "prompts role"]
    """Position of each in the clean prompt, -1 where it has none."""
    right: tuple[tuple[int, ...], ...]
    """By prompt: positions before the end whose token is a right answer."""
    wrong: tuple[tuple[int, ...], ...]
    """By prompt: positions before the end whose token is a wrong answer."""
    answer_behind_copy: tuple[bool, ...]
    """By prompt: whether a right answer stands behind an earlier copy of the last token."""

    @property
    def targets(self) -> tuple[str, ...]:
        """What attention from the end is summed over: each role, right answers, wrong answers."""
        return (*self.names, ANSWER, WRONG)

    def masks(self, row: int, size: int) -> Float[Tensor, "target key"]:
        """1 at the positions of each target in one prompt of `size` tokens."""
        marks = torch.zeros(len(self.targets), size)
        for target, place in enumerate(self.at[row].tolist()):
            if 0 <= place < size:
                marks[target, place] = 1
        marks[-2, list(self.right[row])] = 1
        marks[-1, list(self.wrong[row])] = 1
        return marks


def places(task: Task) -> Places:
    """Roles and places of the tokens of a task.

    A task that names no roles but the end gets the role "changed": the last token in which the two prompts differ.
    """
    roles = [_roles(pair) for pair in task.pairs]
    first_seen = {name: where for where_of in reversed(roles) for name, where in where_of.items()}
    names = tuple(sorted(first_seen, key=lambda name: (name == END, name != FIRST, first_seen[name], name)))
    at = torch.tensor([[where_of.get(name, -1) for name in names] for where_of in roles])
    right = tuple(_occurrences(pair, pair.answers) for pair in task.pairs)
    wrong = tuple(_occurrences(pair, pair.wrongs) for pair in task.pairs)
    behind_copy = tuple(
        any(spot > 0 and pair.clean[spot - 1] == pair.clean[pair.answer_position] for spot in spots)
        for pair, spots in zip(task.pairs, right, strict=True)
    )
    return Places(names, at, right, wrong, behind_copy)


def _roles(pair: Pair) -> Mapping[str, int]:
    named = {name: where for name, where in pair.roles.items() if name != END and where < pair.answer_position}
    before = pair.clean[: pair.answer_position]
    differ = [i for i, (a, b) in enumerate(zip(before, pair.corrupted, strict=False)) if a != b]
    if not named and differ:
        named = {CHANGED: differ[-1]}
    return {FIRST: 0, **named, END: pair.answer_position}


def _occurrences(pair: Pair, tokens: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i, token in enumerate(pair.clean[: pair.answer_position]) if token in tokens)


def by_role(
    pattern: Float[Tensor, "head query key"], at: Int[Tensor, " role"]
) -> Float[Tensor, "head from_role to_role"]:
    """Attention from the token of each role to that of each; NaN where one is missing or the key comes later."""
    between = pattern[:, at.clamp(min=0)][:, :, at.clamp(min=0)].clone()
    absent = (at[:, None] < 0) | (at < 0) | (at > at[:, None])
    between[:, absent] = torch.nan
    return between
