"""Pages of the root, which are included here, and a look at what was built, for `conf.py`."""

import re
from pathlib import Path
from typing import Any

from sphinx.errors import SphinxError

ROOT = Path(__file__).parents[1]
INCLUDED = {"ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the root, and the pages of `docs/project` that include them."""


def relink(app: Any, path: Path, parent: str, content: list[str]) -> None:
    """Links of a page of the root, from where it is included: to its page here, or none to what is no page."""

    def link(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if target in INCLUDED:
            return f"[{text}]({INCLUDED[target]})"
        if target.startswith("docs/"):
            return f"[{text}](../{target.removeprefix('docs/')})"
        return text if (ROOT / target).exists() else found[0]

    content[0] = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", link, content[0])


def check_offline(app: Any, error: Exception | None) -> None:
    """Raises `SphinxError` where a page that was built loads a script, a style, a font or a picture from elsewhere."""
    loads = r"""<(?:script|img|iframe)[^>]*\ssrc="https?:[^"]*|<link[^>]*href="https?:[^"]*|url\(["']?https?:[^)]*"""
    built = [path for path in Path(app.outdir).rglob("*") if path.suffix in (".html", ".css")]
    found = [f"{path.name}: {load}" for path in built for load in re.findall(loads, path.read_text("utf-8"))]
    if found and error is None:
        raise SphinxError("The pages must need no network, but they load\n" + "\n".join(found))
