"""Every exception circuitome raises on purpose.

    CircuitomeError
    └── InputError                what the user gave cannot be used; the CLI exits with 1
        ├── UnknownNameError      no model, task, method, site or edge has this name; suggests near ones
        ├── UnsupportedModelError the architecture, or an option of it, has no adapter row
        ├── AdapterError          the load-time check found that the adapter does not describe the model
        ├── TaskError             prompts or answers that cannot be compared
        │   └── DataFileError     a data file that is missing, empty or malformed; names file and line
        ├── NumericsError         NaN or infinity where numbers were expected
        ├── MemoryBudgetError     the work does not fit the budget; says what would
        └── RunError              a run folder that is taken, damaged or of another kind
            └── WorkersLostError  processes that did parts of the work were lost again and again

A message says what came, what was expected, where, and what to do.
"""

import math
from collections.abc import Iterable
from difflib import get_close_matches


class CircuitomeError(Exception):
    """Base of all errors raised by circuitome."""


class InputError(CircuitomeError):
    """The user's input cannot be used as given."""


class UnknownNameError(InputError):
    """A name that stands for nothing; built by `unknown_name`, which suggests near ones."""


class UnsupportedModelError(InputError):
    """The model's architecture, or one of its options, is not supported."""


class AdapterError(InputError):
    """The load-time self-check failed at a site."""


class TaskError(InputError):
    """A prompt pair or an answer that cannot be scored."""


class DataFileError(TaskError):
    """A data file that cannot be read; the message starts with file and line."""


class NumericsError(InputError):
    """NaN or infinity came out of the model."""


class MemoryBudgetError(InputError):
    """The smallest possible batch does not fit into the memory budget."""


class RunError(InputError):
    """A run folder cannot be written, read or trusted."""


class WorkersLostError(RunError):
    """Processes that did parts of the work were lost again and again; what others have done is kept."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """The error for a `name` that is no `kind`, with the nearest of `known` as suggestions.

    Lists all of `known` when there are few; `hint` says where to find the rest.
    """
    names = list(known)
    spelled = {n.lower(): n for n in names}
    near = [spelled[n] for n in get_close_matches(name.lower(), spelled, n=3, cutoff=0.5)]
    message = f"There is no {kind} {name!r}."
    if near:
        message += f" Did you mean {' or '.join(repr(n) for n in near)}?"
    if len(names) <= 20:
        message += f" Known: {', '.join(names)}."
    return UnknownNameError(f"{message} {hint}".strip())


USED = 0.85
"""Share of a budget that tensors may take: beside them lie holes between freed ones, and what libraries need."""


def memory_option(need: float) -> str:
    """What to give --max-memory for so many bytes of tensors: whole megabytes that are enough."""
    return f"--max-memory to {math.ceil(need / USED / 1e6)}MB"
