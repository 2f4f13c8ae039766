"""Causal models of the compiled programs, each with the variables of its program, as `scripts/compile_tracr.py` has it.

Inputs are the tokens without BOS and the position `at` of the output, counted from 1. A variable that has a value at
every position is a tuple, and stands at the role `all`; one of the output's position alone stands at `end`.
Source: Lindner et al. 2023, arXiv:2301.05062, tracr/compiler/lib.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from circuitome.causal.causal_model import CausalModel, model
from circuitome.tasks.task import Pair, Tokens

Words = tuple[str, ...]
LONGEST = 5
"""Tokens of the longest input that the programs were compiled for."""


def words(tokens: Tokens, pair: Pair) -> Words:
    """The tokens of a known model's prompt, without BOS."""
    return tuple(tokens.decode([i]) for i in pair.clean[1:])


def _read(tokens: Tokens, pair: Pair) -> Mapping[str, Any]:
    return {"tokens": words(tokens, pair), "at": pair.answer_position}


def _end(pair: Pair) -> Mapping[str, int | tuple[int, ...]]:
    return {"end": pair.answer_position}


def _everywhere(pair: Pair) -> Mapping[str, int | tuple[int, ...]]:
    return {"end": pair.answer_position, "all": tuple(range(1, len(pair.clean)))}


def _at_end(**functions: Callable[..., Any]) -> CausalModel:
    """A program whose variables are those of one position."""
    return model(**functions).reading(_read, _end)


def _at_all(**functions: Callable[..., Any]) -> CausalModel:
    """A program with variables of all positions: base and source are then equally long."""
    return model(**functions).reading(_read, _everywhere)


def reverse() -> CausalModel:
    """Of tracr-reverse: the length, its distance from this position, and that less one, where the answer is copied."""
    return _at_end(
        length=lambda tokens: len(tokens),
        opposite=lambda length, at: length - (at - 1),
        copied_from=lambda opposite: opposite - 1,
        answer=lambda copied_from, tokens: tokens[copied_from] if 0 <= copied_from < len(tokens) else None,
    )


def frac_prevs() -> CausalModel:
    """Of tracr-frac-prevs: whether each token is x, and the share of these so far."""
    return _at_all(is_x=_is("x"), share=lambda is_x, at: _share(is_x, at), answer=lambda share: share)


def length() -> CausalModel:
    """Of tracr-length: the length."""
    return _at_end(length=lambda tokens: len(tokens), answer=lambda length: str(length))


def hist() -> CausalModel:
    """Of tracr-hist: how often the token at this position occurs."""
    return _at_end(count=lambda tokens, at: tokens.count(tokens[at - 1]), answer=lambda count: str(count))


def count() -> CausalModel:
    """Of tracr-count: how often a occurs."""
    return _at_end(count=lambda tokens: tokens.count("a"), answer=lambda count: str(count))


def count_less_freq() -> CausalModel:
    """Of tracr-count-less-freq: how often each token occurs, and how many occur at most twice."""
    return _at_all(hist=_hist, rare=lambda hist: sum(h <= 2 for h in hist), answer=lambda rare: str(rare))


def sort() -> CausalModel:
    """Of tracr-sort: each token's key, which breaks ties by position, and the place that it goes to."""
    return _at_all(
        keys=lambda tokens: tuple(int(token) + i / LONGEST for i, token in enumerate(tokens)),
        target=lambda keys: _rank(keys),
        answer=_sorted,
    )


def sort_unique() -> CausalModel:
    """Of tracr-sort-unique: the place that each token goes to."""
    return _at_all(target=lambda tokens: _rank(tokens), answer=_sorted)


def sort_freq() -> CausalModel:
    """Of tracr-sort-freq: how often each token occurs, the same negative, keys that break ties, and target places."""
    return _at_all(
        hist=_hist,
        negative=lambda hist: tuple(-h for h in hist),
        keys=lambda negative: tuple(n + i / LONGEST for i, n in enumerate(negative)),
        target=lambda keys: _rank(keys),
        answer=_sorted,
    )


def pair_balance() -> CausalModel:
    """Of tracr-pair-balance: which tokens open and close, the shares of these so far, and their difference."""
    return _at_all(
        opening=_is("("),
        closing=_is(")"),
        opens=lambda opening, at: _share(opening, at),
        closes=lambda closing, at: _share(closing, at),
        balance=lambda opens, closes: opens - closes,
        answer=lambda balance: balance,
    )


def shuffle_dyck() -> CausalModel:
    """Of tracr-shuffle-dyck: shares of ( and ) so far, their difference, where it is negative or zero.

    `ends_even` is whether it is zero at the last token, `dips` the share of positions at which it is negative.
    """
    return _at_all(
        opening=_is("("),
        closing=_is(")"),
        opens=lambda opening: tuple(_share(opening, i + 1) for i in range(len(opening))),
        closes=lambda closing: tuple(_share(closing, i + 1) for i in range(len(closing))),
        balance=lambda opens, closes: tuple(round(o - c, 6) for o, c in zip(opens, closes, strict=True)),
        negative=lambda balance: tuple(b < 0 for b in balance),
        zero=lambda balance: tuple(b == 0 for b in balance),
        ends_even=lambda zero: zero[-1],
        dips=lambda negative: _share(negative, len(negative)),
        never_dips=lambda dips: dips == 0,
        answer=lambda ends_even, never_dips: str(ends_even and never_dips),
    )


def shift_by() -> CausalModel:
    """Of tracr-shift-by: the token before."""
    return _at_end(before=lambda tokens, at: tokens[at - 2] if at > 1 else None, answer=lambda before: before)


def detect_pattern() -> CausalModel:
    """Of tracr-detect-pattern: where a, b and c stand, whether a is two back and b one back, and whether both are."""
    return _at_all(
        is_a=_is("a"),
        is_b=_is("b"),
        is_c=_is("c"),
        two_back=lambda is_a, at: is_a[at - 3] if at > 2 else None,
        one_back=lambda is_b, at: is_b[at - 2] if at > 1 else None,
        begins=lambda two_back, one_back: None if two_back is None else two_back and one_back,
        answer=lambda begins, is_c, at: None if begins is None else str(begins and is_c[at - 1]),
    )


def _is(word: str) -> Callable[[Words], tuple[bool, ...]]:
    """By position, whether a token is `word`."""

    def known(tokens: Words) -> tuple[bool, ...]:
        return tuple(token == word for token in tokens)

    return known


def _hist(tokens: Words) -> tuple[int, ...]:
    return tuple(tokens.count(token) for token in tokens)


def _share(values: Sequence[bool], at: int) -> float:
    """The share of true values up to a position."""
    return sum(values[:at]) / at


def _rank(keys: Sequence[Any]) -> tuple[int, ...]:
    """By position, how many keys are smaller."""
    return tuple(sum(other < key for other in keys) for key in keys)


def _sorted(target: Sequence[int], tokens: Words, at: int) -> str | None:
    """The token that goes to this position."""
    return tokens[target.index(at - 1)] if at - 1 in target else None


PROGRAM_MODELS: dict[str, Callable[[], CausalModel]] = {
    f"tracr-{made.__name__.replace('_', '-')}": made
    for made in (
        reverse,
        frac_prevs,
        length,
        hist,
        count,
        count_less_freq,
        sort,
        sort_unique,
        sort_freq,
        pair_balance,
        shuffle_dyck,
        shift_by,
        detect_pattern,
    )
}
"""By name of the known model: the causal model of its program."""
