"""The page of a run: one HTML file that needs no network, still reads without its script, and runs no other."""

import functools
import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from circuitome.errors import InputError
from circuitome.present import charts
from circuitome.present.blocks import AnyBlock, CircuitMap, Document, Number, Routes, Tokens
from circuitome.present.written import SIGNS, cell_text, ends, numeric, visible, written
from circuitome.report import circuit as drawings
from circuitome.report import formats, routes_page, sections
from circuitome.report import html as circuit_page
from circuitome.report.markup import json_script

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Section:
    """Blocks under one heading."""

    anchor: str
    """Its id on the page."""
    title: str
    """Its heading; empty for what stands above all headings."""
    blocks: tuple[AnyBlock, ...]
    """What it holds."""


@dataclass(frozen=True)
class Script:
    """A script of the page, allowed by its hash."""

    name: str
    """What it moves: circuit, routes, page."""
    text: Markup
    """The code."""
    data: Markup | None = None
    """What it works on, as JSON that may stand inside a script element."""

    @property
    def hash(self) -> str:
        """SHA-256 of its code, as the content policy wants it."""
        return b64encode(hashlib.sha256(str(self.text).encode()).digest()).decode()


def page(document: Document) -> str:
    """The whole page. The same document gives the same text."""
    shown = [block for block in document.blocks if block.where != "terminal"]
    facts = sections.manifest(document.facts)
    rendered = (
        environment()
        .get_template("page.html.j2")
        .render(
            document=document,
            subject=subject(document.facts),
            sections=sections_of(shown),
            css=Markup(asset("page.css")),
            facts=Markup(facts),
            scripts=scripts_of(document, shown),
        )
    )
    return _CONTROL.sub("\ufffd", rendered)


def sections_of(blocks: Sequence[AnyBlock]) -> list[Section]:
    """Blocks by heading: a block with a title that is not folded opens a section, others belong to the one before."""
    groups: list[tuple[str, list[AnyBlock]]] = [("", [])]
    for block in blocks:
        if block.title and not block.folded:
            groups.append((block.title, []))
        groups[-1][1].append(block)
    return [Section(slug(title) or "result", title, tuple(inside)) for title, inside in groups if inside]


def slug(title: str) -> str:
    """A title as an id: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def subject(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Task, model and method in a line."""
    names = ((kind, (facts.get(kind) or {}).get("name")) for kind in ("task", "model", "method"))
    return [(kind, str(name)) for kind, name in names if name]


def scripts_of(document: Document, blocks: Sequence[AnyBlock]) -> list[Script]:
    """The scripts that the page's blocks need, each with its data."""
    scripts = [Script("page", Markup(asset("common.js")))]
    circuits = [block for block in blocks if isinstance(block, CircuitMap)]
    if len(circuits) > 1:
        raise InputError(f"A page draws one circuit; this document holds {len(circuits)}.")
    for block in circuits:
        payload = _payload(block, document.title)
        drawing = drawings.draw(payload)
        data = circuit_page.script_data(payload, drawing, _decimals(drawing))
        scripts.append(Script("circuit", Markup(circuit_page.asset("page.js")), Markup(json_script(data))))
    if routes := [block for block in blocks if isinstance(block, Routes)]:
        data = {"routes": [_route(block) for block in routes]}
        scripts.append(Script("routes", Markup(circuit_page.asset("routes.js")), Markup(json_script(data))))
    return scripts


def _payload(block: CircuitMap, title: str = "") -> dict[str, Any]:
    """What the drawing of a circuit is made from."""
    shape = block.shape
    return {
        "title": title,
        "unit": block.unit,
        "model": {"layers": shape.layers, "heads": shape.heads, "kv_heads": shape.kv_heads, "parallel": shape.parallel},
        "edges": [
            {"from": edge.source, "to": edge.reader, "score": edge.score, "low": edge.low, "high": edge.high}
            for edge in block.edges
        ],
    }


def _decimals(drawing: drawings.Drawing) -> int:
    return formats.score_decimals(max((abs(edge.score or 0.0) for edge in drawing.edges), default=0.0))


def _circuit(block: CircuitMap) -> Markup:
    drawing = drawings.draw(_payload(block))
    template = environment().get_template("circuit.html.j2")
    return Markup(
        template.render(
            svg=Markup(drawings.svg(drawing)),
            strongest=Markup(sections.strongest(drawing)),
            shared=circuit_page.shared_note(drawing),
            unit=block.unit,
            count=f"{len(drawing.edges):,}",
            rows=Markup(sections.edge_rows(drawing.edges, _decimals(drawing))),
        )
    )


def _route(block: Routes) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(block)


def _routes(block: Routes) -> Markup:
    return Markup(routes_page.draw(_route(block)))


def shade(value: Number, block: Tokens | None) -> str:
    """The colour behind a token: the stronger, the more of it."""
    if value is None:
        return "none"
    every = [abs(v) for line in block.lines for _, v in line if v is not None] if block else [1.0]
    share = min(1.0, abs(value) / (max(every, default=1.0) or 1.0))
    return f"color-mix(in srgb, var(--{'hurts' if value > 0 and block else 'helps'}) {100 * share:.0f}%, transparent)"


def marked(clean: str, corrupted: str) -> tuple[Markup, Markup]:
    """Both texts with the words that differ in `mark` elements."""
    left, right = (re.findall(r"\w+|\s+|[^\w\s]", words) for words in (clean, corrupted))
    sides: tuple[list[Markup], list[Markup]] = ([], [])
    for step, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, words in zip(sides, ("".join(left[a:b]), "".join(right[c:d])), strict=True):
            side.append(escape(words) if step == "equal" or not words else Markup("<mark>{}</mark>").format(words))
    return Markup("").join(sides[0]), Markup("").join(sides[1])


def quoted(text: str) -> str:
    """A token with its spaces visible, in quotes."""
    return json.dumps(text, ensure_ascii=False)


def _chart(block: Any) -> Markup:
    drawing = re.sub(r' (role|aria-roledescription)="[^"]*"', "", charts.svg(block))
    return Markup(drawing)


@functools.cache
def environment() -> Environment:
    """Jinja with escaping always on, and all that the templates call."""
    made = Environment(
        loader=PackageLoader("circuitome.present"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {
        "written": written,
        "ends": ends,
        "cell_text": cell_text,
        "numeric": numeric,
        "sign": SIGNS.__getitem__,
        "shade": shade,
        "visible": visible,
        "marked": marked,
        "quoted": quoted,
        "chart": _chart,
        "circuit": _circuit,
        "routes": _routes,
    }
    return made


@functools.cache
def asset(name: str) -> str:
    """One of the page's static files."""
    return resources.files("circuitome.present").joinpath(name).read_text("utf-8")
