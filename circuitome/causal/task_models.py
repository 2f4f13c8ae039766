"""Causal models of tasks and of models whose circuit is known, ready to be aligned."""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from circuitome.causal.causal_model import CausalModel, model
from circuitome.causal.program_models import PROGRAM_MODELS, words
from circuitome.errors import InputError, unknown_name
from circuitome.tasks.task import Pair, Tokens

FORMULA = (
    *(ast.Expression, ast.Name, ast.Load, ast.Constant),
    *(ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Compare, ast.Eq, ast.NotEq),
)
"""What Boolean formulas are made of."""


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
    """The digits of the start year decide which digits may follow: larger ones, and not much larger.

    Variable: `start`, the digits that the answer must exceed. Right are the digit tokens behind it, a third of all at
    most: were all larger ones right, the largest would be so after every year, and a place that holds the year could
    not be told from a model that always says it. Source of the task: Hanna et al. 2023, arXiv:2305.00586.
    """
    causal = model(start=lambda YY: YY, answer=_next_third)

    def read(tokens: Tokens, pair: Pair) -> Mapping[str, Any]:
        digits = sorted(tokens.decode([i]) for i in (*pair.answers, *pair.wrongs))
        return {"YY": tokens.decode([pair.clean[pair.roles["YY"]]]), "digits": tuple(digits)}

    return causal.reading(read)


def _next_third(start: str, digits: tuple[str, ...]) -> tuple[str, ...]:
    larger = [digit for digit in digits if digit > start]
    return tuple(larger[: len(digits) // 3])


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
    return causal.reading(lambda tokens, pair: {"letters": words(tokens, pair)[: pair.answer_position]})


def known_equality() -> CausalModel:
    """Of known-equality: whether the first two of four things are the same, and whether the last two are.

    Variables: `left` and `right`. Inputs: W, X, Y, Z. Source: Geiger et al. 2024, arXiv:2303.02536.
    """
    return model(
        left=lambda W, X: W == X,
        right=lambda Y, Z: Y == Z,
        answer=lambda left, right: "same" if left == right else "different",
    )


def known_addition() -> CausalModel:
    """Of known-addition: the tens digit of a sum, from the sum of the tens and the carry of the units.

    Variables: `carry` and `tens`. Inputs: the digits a1, a0, b1, b0.
    """
    return model(
        carry=lambda a0, b0: int(a0) + int(b0) > 9,
        tens=lambda a1, b1: int(a1) + int(b1),
        answer=lambda carry, tens: str((tens + carry) % 10),
    )


def boolean(true: str = "True", false: str = "False", **formulas: str) -> CausalModel:
    """The causal model of Boolean formulas: each is a variable, written with and, or, not, == and names.

    Names without a formula are inputs, true where the token at their role is the word `true`; the answer is the word
    `true` or `false`. Raises `InputError` for what is no such formula, and as `model`.

    >>> causal = cm.causal.boolean("T", "F", both="a and b", answer="both or not c")
    >>> causal, causal.run({"a": "T", "b": "F", "c": "T"})["answer"]
    (CausalModel(a, b, c -> both -> answer), 'F')
    """
    made = model(**{name: _formula(name, text, formulas, true) for name, text in formulas.items()})
    inner = made.functions[made.output]
    return replace(
        made,
        functions={**made.functions, made.output: lambda **given: true if inner(**given) else false},
    )


def _formula(name: str, text: str, formulas: Mapping[str, str], true: str) -> Callable[..., bool]:
    """A Boolean formula as a function of the names in it."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise InputError(f"The formula of {name!r} cannot be read: {text!r}: {error.msg}.") from None
    if bad := [node for node in ast.walk(tree) if not isinstance(node, FORMULA)]:
        raise InputError(
            f"The formula of {name!r}, {text!r}, holds {type(bad[0]).__name__}; write it with and, or, not, == and "
            "names."
        )
    names = dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    code = compile(tree, text, "eval")

    def value(**given: Any) -> bool:
        known = {name: value if name in formulas else value.strip() == true for name, value in given.items()}
        return bool(eval(code, {"__builtins__": {}}, known))  # nothing but the nodes in FORMULA

    keyword = inspect.Parameter.KEYWORD_ONLY
    value.__signature__ = inspect.Signature([inspect.Parameter(n, keyword) for n in names])
    return value


READY: dict[str, Callable[[], CausalModel]] = {
    "ioi": ioi,
    "greater-than": greater_than,
    "induction": induction,
    "known-ioi": known_ioi,
    "known-induction": known_induction,
    "known-equality": known_equality,
    "known-boolean": lambda: boolean("T", "F", both="a and b", answer="both or not c"),
    "known-addition": known_addition,
    **PROGRAM_MODELS,
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
