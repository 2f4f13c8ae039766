"""The test suite's run-time type checker: beartype, taking an int for a float as type checkers do.

Functions that are made inside functions, such as hooks, are not checked: their checks would be compiled anew each time,
which took half of the suite's time.
"""

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped: Any = jaxtyping.jaxtyped


def outside_functions(*, typechecker: Any) -> Callable[[Any], Any]:
    """In place of `jaxtyping.jaxtyped`, which the import hook puts on every class and function."""
    decorate = _jaxtyped(typechecker=typechecker)
    return lambda made: made if "<locals>" in made.__qualname__ else decorate(made)


jaxtyping.jaxtyped = outside_functions  # type: ignore[assignment]
