"""A study's settings as options: what a command line, and a form, take, and the settings that words on it make."""

import re
import shlex
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from inspect import Parameter as Kind
from inspect import Signature, get_annotations
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cyclopts import App, CycloptsError, Parameter
from docstring_parser import parse_from_object

from circuitome.errors import InputError
from circuitome.studies.settings import RUN, Settings, options
from circuitome.studies.study import Study


def parameters(kind: type[Settings]) -> list[Kind]:
    """What a command takes: its positional arguments, and the settings, whose fields are its options."""
    settings: Any = Annotated[kind, Parameter(name="*")]  # type: ignore[valid-type]  # a type that is made here
    return [
        *(_positional(kind, name) for name in kind.arguments),
        Kind("settings", Kind.KEYWORD_ONLY, default=kind(), annotation=settings),
    ]


def _positional(settings: type[Settings], argument: str) -> Kind:
    """A positional argument, with the help of its field; required where the field's default is empty."""
    default = getattr(settings(), argument)
    return Kind(
        argument,
        Kind.POSITIONAL_ONLY,
        default=Kind.empty if default == "" else default,
        annotation=Annotated[str, Parameter(help=field_line(settings, argument))],
    )


def field_line(settings: type[Settings], name: str) -> str:
    """The line below a field of settings, from the class that declares it."""
    owner = next(kind for kind in settings.__mro__ if name in get_annotations(kind))
    return _lines_of(owner)[name]


NOT_TYPED = re.compile("[\x00\ud800-\udfff]")
"""Characters that no word of a command line can hold."""
_READING = threading.Lock()
"""Held while a class's source is parsed: in Python 3.11 two threads that do so at a time can get a SystemError."""


@cache
def _lines_of(kind: type) -> dict[str, str]:
    """By field that the class itself declares, the line below it. Kept: reading a class's source takes a while."""
    with _READING:
        params = parse_from_object(kind).params
    return {line.arg_name: " ".join((line.description or "").split()) for line in params}


@dataclass(frozen=True)
class Field:
    """A field of a form."""

    name: str
    """Of the settings' field."""
    label: str
    """Its option without hyphens in front."""
    about: str
    """What it says, in a line."""
    kind: Literal["text", "number", "flag", "choice"]
    """How it is filled in."""
    default: str
    """Its default as text; empty where there is none."""
    choices: tuple[str, ...] = ()
    """Of a choice."""
    required: bool = False
    """Whether it must be filled in."""
    common: bool = False
    """Whether every study has it, so that it can stand last."""


def form(study: Study) -> list[Field]:
    """The fields of a study's form, positional arguments first."""
    kind = study.settings
    names, hints = options(kind), get_type_hints(kind, include_extras=True)
    order = [*kind.arguments, *(field.name for field in fields(kind) if field.name not in kind.arguments)]
    return [_field(kind, name, names[name], hints[name]) for name in order]


def _field(settings: type[Settings], name: str, option: str, hint: Any) -> Field:
    plain, marks = _bare(hint), getattr(hint, "__metadata__", ())
    literal = get_origin(plain) is Literal
    kinds: dict[Any, Literal["number", "flag"]] = {bool: "flag", int: "number", float: "number"}
    converted = any(getattr(mark, "converter", None) for mark in marks)
    default = getattr(settings(), name)
    return Field(
        name=name,
        label=option.removeprefix("--"),
        about=field_line(settings, name).replace("`", ""),
        kind="choice" if literal else "text" if converted else kinds.get(plain, "text"),
        default=_written(default),
        choices=tuple(map(str, get_args(plain))) if literal else (),
        required=name in settings.arguments and default == "",
        common=any(_group(mark) for mark in marks if isinstance(mark, Parameter)),
    )


def _group(mark: Parameter) -> bool:
    """Whether it puts an option among those that every study has."""
    return mark.group is RUN or (isinstance(mark.group, tuple) and RUN in mark.group)


def _bare(hint: Any) -> Any:
    """A type without marks and without None."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not NoneType]
        return _bare(kinds[0]) if len(kinds) == 1 else str
    return hint


def _written(value: Any) -> str:
    if value is None or value is False:
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def filled_in(study: Study, values: Mapping[str, str]) -> list[str]:
    """The words of a command line for what a form holds; fields that are empty or hold their default are left out.

    Raises `InputError` for a field that the study has not, and for a text that no command line can hold.
    """
    by_name = {field.name: field for field in form(study)}
    if unknown := sorted(set(values) - set(by_name)):
        raise InputError(f"{study.name} has no field {', '.join(unknown)}. It has {', '.join(by_name)}.")
    if bad := [name for name, value in values.items() if NOT_TYPED.search(value)]:
        raise InputError(f"What stands in {bad[0]} has a character that no command line can hold.")
    words: list[str] = []
    for name, field in by_name.items():
        value = values.get(name, "")
        if name in study.settings.arguments or value in ("", field.default):
            continue
        words += _option_words(study, field, value)
    given = [values.get(name) or by_name[name].default for name in study.settings.arguments]
    return [*words, "--", *given] if all(given) else words


def _option_words(study: Study, field: Field, value: str) -> list[str]:
    option, hint = f"--{field.label}", get_type_hints(study.settings, include_extras=True)[field.name]
    if field.kind == "flag":
        return [option]
    several = get_origin(_bare(hint)) is tuple and not any(
        getattr(mark, "converter", None) for mark in getattr(hint, "__metadata__", ())
    )
    if not several:
        return [f"{option}={value}"]
    try:
        return [option, *shlex.split(value)]
    except ValueError as error:
        raise InputError(f"{option} takes words, in quotes where they hold spaces, got {value!r}: {error}.") from None


def parsed(study: Study, words: Sequence[str]) -> Settings:
    """The settings that the words of a command line make. Raises `InputError` that says what is wrong with them."""
    made: list[Settings] = []

    def take(*arguments: str, settings: Settings | None = None) -> None:
        given: dict[str, Any] = dict(zip(study.settings.arguments, arguments, strict=False))
        made.append(replace(settings or study.settings(), **given))

    signature = Signature(parameters(study.settings))
    take.__signature__ = signature  # type: ignore[attr-defined]
    take.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    command = App(name=study.name, help_flags=(), version_flags=(), result_action="return_value")
    command.default(take)
    try:
        command(list(words), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise InputError(str(error)) from None
    return made[0]
