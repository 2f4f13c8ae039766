"""Causal models of tasks and of models whose circuit is known, ready to be aligned."""

from collections.abc import Callable, Mapping
from typing import Any

from circuitome.causal.causal_model import CausalModel, model
from circuitome.errors import unknown_name
from circuitome.tasks.task import Pair, Tokens


def ioi() -> CausalModel:
    """Where the repeated name stood first decides which of the two names is said.

    Variables: `position`, whether the first or the second name is repeated, and `name`, the name to say.
    Inputs and roles: first and second name, S2. Source: Wang et al. 2022, arXiv:2211.00593.
    """
    causal = model(
        position=lambda first, second, S2: "first" if first == S2 else "second",
        name=lambda position, first, second: second if position == "first" else first,
        answer=lambda name: name,
    )
    return causal.reading(_ioi_inputs, _ioi_roles)


def _ioi_roles(pair: Pair) -> Mapping[str, int]:
    """IO and S1 say which name is repeated, which is what is to be found; so they are called by their order."""
    roles = dict(pair.roles)
    first, second = sorted((roles.pop("IO"), roles.pop("S1")))
    roles.pop("S1+1", None)
    return {"first": first, "second": second, **roles}


def _ioi_inputs(tokens: Tokens, pair: Pair) -> Mapping[str, Any]:
    roles = _ioi_roles(pair)
    return {name: tokens.decode([pair.clean[roles[name]]]) for name in ("first", "second", "S2")}


def known_ioi() -> CausalModel:
    """Of known-ioi: the most frequent of the three names, without the repeated one.

    Variables: `repeated`, the name that stood there before, and `name`, the name to say. Inputs: first, second, S2.
    """
    causal = model(
        repeated=lambda S2: S2,
        name=_most_frequent_other,
        answer=lambda name: name,
    )
    return causal.reading(_ioi_inputs, _ioi_roles)


def _most_frequent_other(repeated: str, first: str, second: str, S2: str) -> str:
    names = [name for name in (first, second, S2) if name != repeated]
    return max(names, key=names.count)


def greater_than() -> CausalModel:
    """The digits of the start year decide which digits may follow.

    Variable: `start`, the digits that the answer must exceed. The answer is every digit token that does.
    Source: Hanna et al. 2023, arXiv:2305.00586.
    """
    causal = model(
        start=lambda YY: YY,
        answer=lambda start, digits: tuple(digit for digit in digits if digit > start),
    )

    def read(tokens: Tokens, pair: Pair) -> Mapping[str, Any]:
        digits = sorted(tokens.decode([i]) for i in (*pair.answers, *pair.wrongs))
        return {"YY": tokens.decode([pair.clean[pair.roles["YY"]]]), "digits": tuple(digits)}

    return causal.reading(read)


def induction() -> CausalModel:
    """The word behind the earlier occurrence of the last word comes again.

    Variable: `next`, the word that stood behind it.
    """
    return model(next=lambda B: B, answer=lambda next: next)


def known_induction() -> CausalModel:
    """Of known-induction: the letter behind the earlier occurrence of the last one.

    Variable: `next`, the letter that stood behind it.
    """
    causal = model(
        next=lambda letters: letters[letters.index(letters[-1]) + 1],
        answer=lambda next: next,
    )
    return causal.reading(lambda tokens, pair: {"letters": _words(tokens, pair)})


def _words(tokens: Tokens, pair: Pair) -> tuple[str, ...]:
    """The tokens of a known model's prompt up to the one that is read, without BOS."""
    return tuple(tokens.decode([i]) for i in pair.clean[1 : pair.answer_position + 1])


READY: dict[str, Callable[[], CausalModel]] = {
    "ioi": ioi,
    "greater-than": greater_than,
    "induction": induction,
    "known-ioi": known_ioi,
    "known-induction": known_induction,
}
"""By name of the task: its causal model."""


def ready(task: str) -> CausalModel:
    """The causal model of a task that comes with the package. Raises `UnknownNameError` for a task without one.

    >>> cm.causal.ready("ioi")
    CausalModel(first, second, S2 -> position -> name -> answer)
    """
    if task not in READY:
        raise unknown_name("causal model for the task", task, READY, "Or write your own: cm.causal.model(...).")
    return READY[task]()
