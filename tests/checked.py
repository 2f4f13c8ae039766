"""The test suite's run-time type checker: beartype, taking an int for a float as type checkers do.

Each test checks the first calls that it makes of each function: loops call the same functions thousands of times with
the same shapes, and their checks took half of the suite's time. Functions that are made inside functions, such as
hooks, are not checked: their checks would be compiled anew each time.
"""

import functools
import itertools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

CALLS = 3
"""Calls of each function that each test checks."""
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped: Any = jaxtyping.jaxtyped
_tests, _test = itertools.count(1), 0


def next_test() -> None:
    """Count the calls of all functions anew."""
    global _test
    _test = next(_tests)


def outside_functions(*, typechecker: Any) -> Callable[[Any], Any]:
    """In place of `jaxtyping.jaxtyped`, which the import hook puts on every class and function."""
    decorate = _jaxtyped(typechecker=typechecker)

    def decorated(made: Any) -> Any:
        if "<locals>" in made.__qualname__:
            return made
        return first_calls(made, decorate(made)) if isinstance(made, FunctionType) else decorate(made)

    return decorated


def first_calls(plain: Callable[..., Any], checking: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first calls of each test are checked."""
    test, left = 0, CALLS

    @functools.wraps(checking)
    def call(*given: Any, **named: Any) -> Any:
        nonlocal test, left
        if test != _test:
            test, left = _test, CALLS
        if left:
            left -= 1
            return checking(*given, **named)
        return plain(*given, **named)

    return call


jaxtyping.jaxtyped = outside_functions  # type: ignore[assignment]
