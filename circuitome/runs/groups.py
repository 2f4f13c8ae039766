"""Groups and pins that somebody made by hand in a run's drawings, in a file beside its manifest."""

import functools
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from circuitome.errors import InputError, RunError
from circuitome.runs.store import GROUPS, to_json

LARGEST = 2_000_000
"""Bytes of a file of groups that is read or written."""
Text = Annotated[str, Field(min_length=1, max_length=200)]
View = Annotated[str, Field(pattern=r"^(circuit|attribution_graph)[0-9]{0,3}$")]


@dataclass(frozen=True)
class Group:
    """Nodes that are drawn as one."""

    name: Text
    """What somebody called them."""
    members: list[Text]
    """Names of nodes."""


@dataclass(frozen=True)
class Kept:
    """What was made in one view."""

    groups: Annotated[list[Group], Field(max_length=200)] = field(default_factory=list)
    """Its groups."""
    pinned: list[Text] = field(default_factory=list)
    """Names of nodes that an attribution graph has pinned."""


Groups = dict[str, dict[str, Any]]
"""By view of the page (circuit, circuit2, attribution_graph and so on), its groups and pins as plain data."""


@functools.cache
def _adapter() -> Any:  # a TypeAdapter, which runtime type checkers do not know
    return TypeAdapter(dict[View, Kept])


def read_groups(folder: Path) -> Groups:
    """The groups kept with the run in `folder`; none where nobody kept any. Raises `RunError` for a damaged file."""
    path = folder / GROUPS
    if not path.exists():
        return {}
    try:
        if not path.resolve().is_relative_to(folder.resolve()) or path.stat().st_size > LARGEST:
            raise RunError(f"{path} leads out of its folder or has over {LARGEST:,} bytes and is not read.")
        adapter = _adapter()
        return dict(adapter.dump_python(adapter.validate_json(path.read_bytes())))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValidationError as error:
        raise RunError(f"{path} is damaged ({_first(error)}); remove it to do without its groups.") from None


def write_groups(folder: Path, view: str, kept: Any) -> None:
    """Keep the groups and pins of one view, in place of those it had; written beside, then renamed.

    Raises `InputError` for what are none, `RunError` where the folder cannot be written to.
    """
    try:
        adapter = _adapter()
        made = adapter.dump_python(adapter.validate_python({view: kept}))
    except ValidationError as error:
        raise InputError(f"These groups cannot be kept: {_first(error)}.") from None
    try:
        before = read_groups(folder)
    except RunError:  # a damaged file gives way to a good one
        before = {}
    text = to_json({**before, **made}) + "\n"
    if len(text.encode()) > LARGEST:
        raise InputError(f"These groups have over {LARGEST:,} bytes and are not kept.")
    try:
        part = folder / f".{GROUPS}.{secrets.token_hex(8)}"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / GROUPS)
    except OSError as error:
        raise RunError(f"The groups cannot be kept in {folder}: {error.strerror or error}.") from None


def _first(error: ValidationError) -> str:
    """What is wrong, and where."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{first['msg']} at {place}" if place else str(first["msg"])
