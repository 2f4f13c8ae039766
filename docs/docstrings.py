"""Docstrings as Sphinx reads them, for `conf.py`.

Docstrings are plain text: paragraphs, code in single backticks, indented code, examples with `>>>`. reStructuredText
would read their stars, bars and underscores as markup.
"""

import ast
import re
import textwrap
from typing import Any


def as_rst(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite the lines of a docstring in place."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))
    lines[:] = [*"\n\n".join(map(_paragraph, paragraphs)).splitlines(), ""]


def _paragraph(text: str) -> str:
    if text.startswith(">>>"):
        return text
    if text.startswith("    ") or re.match(r"\S+ {2,}\S", text):
        code = textwrap.dedent(text)
        return f".. code-block:: {_language(code)}\n\n{textwrap.indent(code, '    ')}"
    return re.sub(r"`([^`]+)`|([^`]+)", lambda part: _code(part[1]) if part[1] else _escaped(part[2]), text)


def _code(text: str) -> str:
    return rf"\ ``{text}``\ "


def _escaped(text: str) -> str:
    """Text with list marks and emphasis as they are, and everything else that is markup escaped."""
    kept = r"^- |\*\w[\w -]*\*"
    return re.sub(rf"({kept})|([\\*|_:<>])", lambda found: found[1] or "\\" + found[2], text, flags=re.MULTILINE)


def _language(code: str) -> str:
    try:
        ast.parse(code)
    except SyntaxError:
        return "text"
    return "python"


def for_pages(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A signature without the modules that its types come from, and with functions that are defaults by name."""

    def readable(text: str | None) -> str | None:
        return text and re.sub(r"~?\b(?:[a-z_0-9]+\.)+(?=[A-Z])|<function (\w+)>", r"\1", text)

    return readable(signature), readable(returns)
