"""A page that reads without a script: header, sections, the look of all reports."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from circuitome.report import sections
from circuitome.report.html import asset
from circuitome.report.markup import Markup, join, json_script, tag, text

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; ${policy}\
base-uri 'none'; form-action 'none'">
<title>$title</title>
<style>
$css</style>
</head>
<body>
<header class="top">
<p class="brand">circuitome report</p>
$subject
<nav aria-label="Parts of this page">$links</nav>
</header>
<main>
$body
</main>
$scripts</body>
</html>
""")

Section = tuple[str, str, Markup]
"""Anchor, title and content."""


def page(payload: Mapping[str, Any], parts: Sequence[Section], script: str = "", data: Any = None) -> str:
    """The page of `parts`, with what was done at its end. Nothing in it can load anything.

    Nothing can run but the page's own `script`, by its hash in the content policy; it finds `data` as JSON in #data.
    """
    done: Section = (
        "method",
        "What was done",
        join(
            tag("p", {"class": "note"}, "This command repeats the run."),
            tag("div", {"class": "command"}, tag("code", None, str(payload.get("command", "")))),
            sections.manifest(payload.get("manifest") or {}),
        ),
    )
    every = [*parts, done]
    links = [tag("a", {"href": f"#{anchor}"}, title) for anchor, title, _ in every]
    return PAGE.substitute(
        title=text(str(payload["title"])),
        css=asset("page.css"),
        subject=sections.subject(payload),
        links=Markup(" ".join(links)),
        body=join(*(_section(*part) for part in every)),
        policy=f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'; "
        if script
        else "",
        scripts=_scripts(script, data) if script else "",
    )


def _scripts(script: str, data: Any) -> str:
    inline = f'<script type="application/json" id="data">{json_script(data)}</script>\n'
    return f'{inline}<script type="module">{script}</script>\n'


def _section(anchor: str, title: str, content: Markup) -> Markup:
    heading = tag("div", {"class": "heading"}, tag("h2", {"id": f"{anchor}-title"}, title))
    return tag("section", {"id": anchor, "aria-labelledby": f"{anchor}-title"}, heading, content)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Markup:
    """A table in a scrolling box; columns `numbers` are aligned to the right."""

    def kind(index: int) -> str | None:
        return "num" if index in numbers else None

    head = [tag("th", {"scope": "col", "class": kind(i)}, name) for i, name in enumerate(heads)]
    body = [tag("tr", None, *(tag("td", {"class": kind(i)}, cell) for i, cell in enumerate(row))) for row in rows]
    inner = tag("table", None, tag("thead", None, tag("tr", None, *head)), tag("tbody", None, *body))
    return tag("div", {"class": "scroll"}, inner)
