"""What each compiled program means, in plain Python: the outputs that its model must give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

LONGEST = 5
"""Tokens of the longest input, BOS not counted: what the models were compiled for."""

Output = str | float | None
"""A token, a number, or None where the program says nothing."""


@dataclass(frozen=True)
class Program:
    """A function from a sequence of tokens to one output for each of them."""

    tokens: tuple[str, ...]
    """Its input tokens."""
    meaning: Callable[[Sequence[str]], Sequence[Output]]
    """Outputs at positions 1, 2, ... (position 0 is BOS, where a compiled model's output means nothing)."""
    distinct: bool = False
    """Whether inputs hold no token twice."""

    def inputs(self) -> list[tuple[str, ...]]:
        """Every input it is defined on, shortest first."""
        rows = [row for length in range(1, LONGEST + 1) for row in product(self.tokens, repeat=length)]
        return [row for row in rows if len(set(row)) == len(row)] if self.distinct else rows


def _share(x: Sequence[str], token: str) -> list[float]:
    return [x[: i + 1].count(token) / (i + 1) for i in range(len(x))]


def _pair_balance(x: Sequence[str]) -> list[float]:
    return [opened - closed for opened, closed in zip(_share(x, "("), _share(x, ")"), strict=True)]


def _shuffle_dyck(x: Sequence[str]) -> list[str]:
    depths = [x[: i + 1].count("(") - x[: i + 1].count(")") for i in range(len(x))]
    return [str(min(depths) >= 0 and depths[-1] == 0)] * len(x)


def _count_less_freq(x: Sequence[str]) -> list[str]:
    return [str(sum(x.count(token) <= 2 for token in x))] * len(x)


def _detect_pattern(x: Sequence[str]) -> list[Output]:
    return [None if i < 2 else str(tuple(x[i - 2 : i + 1]) == tuple("abc")) for i in range(len(x))]


def _sort_freq(x: Sequence[str]) -> list[str]:
    return sorted(x, key=lambda token: -x.count(token))


ABC = ("a", "b", "c")
DIGITS = ("1", "2", "3")

PROGRAMS: dict[str, Program] = {
    "tracr-reverse": Program(DIGITS, lambda x: x[::-1]),
    "tracr-frac-prevs": Program(("w", "x", "y", "z"), lambda x: _share(x, "x")),
    "tracr-length": Program(ABC, lambda x: [str(len(x))] * len(x)),
    "tracr-hist": Program(ABC, lambda x: [str(x.count(token)) for token in x]),
    "tracr-count": Program(ABC, lambda x: [str(x.count("a"))] * len(x)),
    "tracr-count-less-freq": Program(ABC, _count_less_freq),
    "tracr-sort": Program(DIGITS, sorted),
    "tracr-sort-unique": Program(("1", "2", "3", "4", "5"), sorted, distinct=True),
    "tracr-sort-freq": Program(DIGITS, _sort_freq),
    "tracr-pair-balance": Program(("(", ")", "a"), _pair_balance),
    "tracr-shuffle-dyck": Program(("(", ")"), _shuffle_dyck),
    "tracr-shift-by": Program(ABC, lambda x: [None, *x[:-1]]),
    "tracr-detect-pattern": Program(ABC, _detect_pattern),
}
"""By name of the model."""
