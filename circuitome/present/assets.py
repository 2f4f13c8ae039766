"""Static files of pages, the colours they share with files and notebooks, and the templates."""

import functools
import hashlib
import re
from base64 import b64encode
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from circuitome.present import formats

FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@functools.cache
def asset(name: str) -> str:
    """One of the static files."""
    return resources.files("circuitome.present").joinpath("assets", name).read_text("utf-8")


def script_hash(script: str) -> str:
    """How a content-security policy names a script that may run."""
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


def demo_page() -> str:
    """The page of the finished run that comes with the package; its styles and scripts are those of all pages."""

    def filled(match: re.Match[str]) -> str:
        return script_hash(asset(match[2])) if match[1] else asset(match[2])

    return re.sub(r"@@(hash of )?([\w.]+)@@", filled, asset("demo.html"))


@functools.cache
def palette() -> dict[str, str]:
    """The page's colours on paper by name: the first rule of its style sheet."""
    style = asset("page.css")
    return dict(re.findall(r"--(\w+):\s*(#[0-9a-f]{6})", style[: style.index("}")]))


def on_paper(drawing: str) -> str:
    """A drawing with the page's variables replaced by its colours on paper, for files without a page around them."""
    return re.sub(r"var\(--(\w+)\)", lambda match: palette()[match[1]], drawing)


@functools.cache
def environment() -> Environment:
    """Jinja with escaping always on."""
    made = Environment(
        loader=PackageLoader("circuitome.present"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["n"] = short
    made.globals |= {"font": FONT, "plain": formats.plain, "visible": formats.visible, "quoted": formats.quoted}
    return made


def rendered(template: str, **values: Any) -> Markup:
    """A template with its values, as markup; characters that XML forbids become U+FFFD."""
    return Markup(formats.CONTROL.sub("\ufffd", environment().get_template(template).render(**values)))


def short(value: float) -> str:
    """A number for an attribute, with two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
