"""The algorithm that a model may follow, as Python: variables that are functions of others, and interventions on them.

A variable is a function whose parameters name what it is computed from. Names without a function are inputs. What no
other variable is computed from is the answer.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from typing import Any

from circuitome.errors import InputError, unknown_name
from circuitome.tasks.task import Pair, Tokens

Read = Callable[[Tokens, Pair], Mapping[str, Any]]
"""Gives the inputs of a causal model for the clean prompt of a pair."""
Roles = Callable[[Pair], Mapping[str, int | tuple[int, ...]]]
"""Gives the named positions of the clean prompt of a pair; a role may be several tokens."""


@dataclass(frozen=True, repr=False)
class CausalModel:
    """Variables, each a function of others; made by `cm.causal.model`."""

    functions: Mapping[str, Callable[..., Any]]
    """By variable, how it is computed."""
    parents: Mapping[str, tuple[str, ...]]
    """By variable, what it is computed from, in the order of its function's parameters."""
    order: tuple[str, ...]
    """The variables, each behind all that it is computed from."""
    inputs: tuple[str, ...]
    """What has no function."""
    output: str
    """The variable that is the answer."""
    read: Read | None = None
    """How inputs are read from a prompt; None: an input is the token at the role of its name."""
    roles: Roles | None = None
    """Positions of a prompt by name; None: those of the pair."""

    def __repr__(self) -> str:
        return f"CausalModel({', '.join(self.inputs)} -> {' -> '.join(self.order)})"

    @property
    def variables(self) -> tuple[str, ...]:
        """What is computed on the way from the inputs to the answer."""
        return tuple(name for name in self.order if name != self.output)

    @property
    def first(self) -> str:
        """The first of the variables; the answer where there is no other."""
        return (self.variables or (self.output,))[0]

    def run(self, inputs: Mapping[str, Any], *, set: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The value of every input and variable; those in `set` have the value given there, whatever the others are.

        Raises `InputError` for an input that is missing, and for a function that raises; `UnknownNameError` for a name
        in `set` that is none of the model's.
        """
        given = dict(set or {})
        for name in given:
            self.check_name(name)
        if missing := [name for name in self.inputs if name not in inputs and name not in given]:
            raise InputError(
                f"The causal model lacks its input {missing[0]!r}; got {', '.join(inputs) or 'none'}. Give a value for "
                f"each of {', '.join(self.inputs)}."
            )
        values = {name: given[name] if name in given else inputs[name] for name in self.inputs}
        for name in self.order:
            values[name] = given[name] if name in given else self._computed(name, values)
        return values

    def interchange(
        self, base: Mapping[str, Any], source: Mapping[str, Any], variables: Sequence[str]
    ) -> dict[str, Any]:
        """All values on the inputs `base` when `variables` have the values that they have on the inputs `source`.

        Raises as `run` does.
        """
        for name in variables:
            self.check_name(name)
        there = self.run(source)
        return self.run(base, set={name: there[name] for name in variables})

    def reading(self, read: Read, roles: Roles | None = None) -> "CausalModel":
        """The same model with its own way to read inputs, and named positions, from a prompt.

        `read(model, pair)` gives the inputs by name; `roles(pair)` positions in `pair.clean` by name, one or several.
        """
        return replace(self, read=read, roles=roles)

    def inputs_of(self, tokens: Tokens, pair: Pair) -> dict[str, Any]:
        """The inputs on the clean prompt of a pair. Raises `InputError` for an input that the prompt does not name."""
        if self.read is not None:
            return dict(self.read(tokens, pair))
        roles = self.roles_of(pair)
        for name in self.inputs:
            if name not in roles:
                raise unknown_name("role", name, roles, self._hint(name))
        at = {name: [where] if isinstance(where := roles[name], int) else where for name in self.inputs}
        return {name: tokens.decode([pair.clean[i] for i in where]) for name, where in at.items()}

    def sources_of(self, variable: str) -> tuple[str, ...]:
        """The inputs that a variable is computed from, through whatever other variables."""
        if variable in self.inputs:
            return (variable,)
        return tuple(dict.fromkeys(name for parent in self.parents[variable] for name in self.sources_of(parent)))

    def roles_of(self, pair: Pair) -> dict[str, int | tuple[int, ...]]:
        """The named positions of the clean prompt of a pair."""
        return dict(pair.roles if self.roles is None else self.roles(pair))

    def check_name(self, name: str) -> None:
        """Raises `UnknownNameError` unless `name` is an input or a variable."""
        if name not in (known := (*self.inputs, *self.order)):
            raise unknown_name("variable", name, known)

    def _computed(self, name: str, values: Mapping[str, Any]) -> Any:
        given = {parent: values[parent] for parent in self.parents[name]}
        try:
            return self.functions[name](**given)
        except Exception as error:  # of no narrower type: the function is the user's
            shown = ", ".join(f"{parent}={value!r}" for parent, value in given.items())
            raise InputError(
                f"The variable {name!r} cannot be computed from {shown}: {_told(error)}. "
                "Mend its function, or say how inputs are read from a prompt: causal.reading(...)."
            ) from error

    def _hint(self, name: str) -> str:
        near = get_close_matches(name, self.order, n=1)
        meant = f"The variable {near[0]!r} has a like name. " if near else ""
        readers = ", ".join(repr(variable) for variable, parents in self.parents.items() if name in parents)
        return (
            f"{meant}{name!r} has no function, so it is an input (of {readers}), read at the role of its name. "
            "Name a role, give it a function, or say how inputs are read: causal.reading(...)."
        )


def model(**functions: Any) -> CausalModel:
    """The causal model whose variables are `functions`, each of the variables and inputs that its parameters name.

    The answer is `answer`, or, where nothing is called so, the one variable from which no other is computed. It is a
    text that the model can say in one token, or several of which each is right.
    Raises `InputError` for functions in a circle, for what is no function or has parameters without names of their own
    (`*args`), and where it is not clear which variable is the answer.
    Source: Geiger et al. 2021, arXiv:2106.02997; Geiger et al. 2023, arXiv:2301.04709.

    >>> causal = cm.causal.model(
    ...     position=lambda first, S2: "first" if first == S2 else "second",
    ...     answer=lambda position, first, second: second if position == "first" else first,
    ... )
    >>> base = {"first": "Ann", "second": "Bob", "S2": "Bob"}
    >>> causal.run(base)["answer"], causal.run(base, set={"position": "first"})["answer"]
    ('Ann', 'Bob')
    """
    if not functions:
        raise InputError("A causal model needs at least one variable: cm.causal.model(answer=lambda a, b: ...).")
    parents = {name: _parameters(name, function) for name, function in functions.items()}
    inputs = tuple(dict.fromkeys(name for names in parents.values() for name in names if name not in functions))
    try:
        order = [name for name in TopologicalSorter(parents).static_order() if name in functions]
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InputError(
            f"Variables of the causal model are computed from one another: {circle}. Let one of them be computed from "
            "others, or have no function: then it is an input."
        ) from None
    used = {name for names in parents.values() for name in names}
    ends = [name for name in order if name not in used]
    if "answer" in functions:
        ends = ["answer"]
    if len(ends) != 1:
        raise InputError(
            f"No other variable is computed from {' or '.join(ends)}, so it is not clear which one is the answer. Call "
            "the answer `answer`."
        )
    return CausalModel(dict(functions), parents, tuple(order), inputs, ends[0])


def _parameters(name: str, function: Any) -> tuple[str, ...]:
    if not callable(function):
        raise InputError(
            f"The variable {name!r} must be a function of others, got {function!r}. Give a lambda or a def."
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise InputError(
            f"Python does not say what {function!r}, the function of {name!r}, is computed from. Name that: "
            "lambda a, b: ..."
        ) from None
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InputError(
                f"The variable {name!r} has the parameter {parameter}; each must name one input or one variable."
            )
    return tuple(parameter.name for parameter in parameters)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
