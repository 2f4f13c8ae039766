"""Where heads look on the prompts of a task: by role of the tokens, and by relations that hold between tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.tasks.task import Pair, Task

RELATIONS = ("previous", "duplicate", "induction", "first", "self")
"""The token before; an earlier copy of the token; what stands behind an earlier copy; the first position; itself."""
END, FIRST, CHANGED, ANSWER, WRONG = "end", "first", "changed", "answer", "wrong"


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
    behind: tuple[bool, ...]
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
    behind = tuple(
        any(spot > 0 and pair.clean[spot - 1] == pair.clean[pair.answer_position] for spot in spots)
        for pair, spots in zip(task.pairs, right, strict=True)
    )
    return Places(names, at, right, wrong, behind)


def _roles(pair: Pair) -> Mapping[str, int]:
    named = {name: where for name, where in pair.roles.items() if name != END and where < pair.answer_position}
    differ = [
        i
        for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=False))
        if a != b and i < pair.answer_position
    ]
    if not named and differ:
        named = {CHANGED: differ[-1]}
    return {FIRST: 0, **named, END: pair.answer_position}


def _occurrences(pair: Pair, tokens: Sequence[int]) -> tuple[int, ...]:
    return tuple(i for i, token in enumerate(pair.clean[: pair.answer_position]) if token in tokens)


def relations(ids: Int[Tensor, " pos"]) -> Float[Tensor, "relation query key"]:
    """1 where a key stands in a relation to a query. The first query has nothing to choose from and has none."""
    size = len(ids)
    same = (ids[:, None] == ids).tril(-1)
    behind = torch.zeros(size, size, dtype=torch.bool)
    behind[:, 1:] = same[:, :-1]
    first = torch.zeros(size, size, dtype=torch.bool)
    first[1:, 0] = True
    itself = torch.eye(size, dtype=torch.bool)
    itself[0] = False
    before = torch.diag(torch.ones(size - 1, dtype=torch.bool), -1)
    return torch.stack([before, same, behind.tril(-1), first, itself]).float()


def broken(clean: Int[Tensor, " pos"], corrupted: Int[Tensor, " others"]) -> Float[Tensor, "relation query key"]:
    """Those relations of the clean prompt that do not hold in the corrupted one; none where lengths differ."""
    ours = relations(clean)
    return ours * (1 - relations(corrupted)) if len(clean) == len(corrupted) else torch.zeros_like(ours)


def per_query(marks: Float[Tensor, "*any query key"]) -> Float[Tensor, "*any query key"]:
    """Weights that sum a pattern over the marked keys and average over the queries that have any; NaN for none."""
    queries = marks.any(-1).sum(-1)[..., None, None].float()
    return marks / torch.where(queries > 0, queries, torch.nan)


def even(size: int) -> Float[Tensor, "query key"]:
    """The pattern of a head that looks evenly at all it may see."""
    return torch.ones(size, size).tril() / torch.arange(1, size + 1)[:, None]


def above_chance(value: Float[Tensor, "*any"], chance: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """A share of attention on a scale where even attention is 0 and all of it is 1 (negative: less than even)."""
    return (value - chance) / (1 - chance)


def by_role(
    pattern: Float[Tensor, "head query key"], at: Int[Tensor, " role"]
) -> Float[Tensor, "head from_role to_role"]:
    """Attention from the token of each role to that of each; NaN where one is missing or the key comes later."""
    found = pattern[:, at.clamp(min=0)][:, :, at.clamp(min=0)].clone()
    absent = (at[:, None] < 0) | (at < 0) | (at > at[:, None])
    found[:, absent] = torch.nan
    return found
