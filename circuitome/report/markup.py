"""HTML and SVG as text that cannot be broken by what is put into it."""

import json
import math
import re
from collections.abc import Mapping
from html import escape
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")

Attributes = dict[str, str | float | None]
"""What `tag` writes into an element's head."""


class Markup(str):
    """Text that is markup already; every other string is escaped where `tag` inserts it."""


def text(value: str) -> Markup:
    """`value` escaped for element content and attributes; characters that XML forbids become U+FFFD."""
    return Markup(escape(_CONTROL.sub("\ufffd", value)))


def join(*parts: str) -> Markup:
    """The parts one after another: `Markup` as it is, plain strings escaped."""
    return Markup("".join(part if isinstance(part, Markup) else text(part) for part in parts))


def tag(name: str, attributes: Mapping[str, str | float | None] | None = None, *children: str) -> Markup:
    """One element; attributes that are None are left out, floats are written with two decimals at most."""
    pairs = [(key, value) for key, value in (attributes or {}).items() if value is not None]
    head = "".join(f' {key}="{text(number(value))}"' for key, value in pairs)
    return Markup(f"<{name}{head}>{join(*children)}</{name}>")


def number(value: str | float) -> str:
    """A number for an attribute, short; strings pass through."""
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def json_script(value: Any) -> str:
    """`value` as JSON that may stand inside a script element: no `<`, `>` or `&`; NaN and infinities become null."""
    raw = json.dumps(finite_only(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite_only(value: Any) -> Any:
    """A copy of plain data with every NaN and infinity replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite_only(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_only(item) for item in value]
    return value
