"""The page of a run: one HTML file that needs no network, still reads without its script, and runs no other."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from circuitome.present import charts, formats
from circuitome.present.assets import asset, rendered, script_hash
from circuitome.present.blocks import (
    AnyBlock,
    Attention,
    Block,
    CausalMap,
    Checkpoints,
    CircuitMap,
    Document,
    HeatMap,
    NeuronIndex,
    Number,
    PromptGraph,
    Roles,
    Routes,
)
from circuitome.present.drawings import (
    attention,
    attribution_graph,
    causal_map,
    checkpoints,
    circuit,
    roles,
    routes,
)
from circuitome.present.rows import as_csv
from circuitome.runs.store import plain

OPEN_PAIRS = 4
"""Prompt pairs shown without opening the fold."""
QUOTED = re.compile(r"&#34;(?:\\(?:&#34;|.)|(?!&#34;)[^\\]){0,32}&#34;")
"""A short text in quotes, escaped; it may hold quotes behind a backslash."""
REPEATED = ("command", "sign", "title", "blocks", "results", "prompts")
"""Facts that stand elsewhere on the page."""

BLOCKS: dict[type[Block], str] = {
    CircuitMap: "report.js",
    Routes: "report.js",
    Checkpoints: "report.js",
    Attention: "report.js",
    Roles: "report.js",
    NeuronIndex: "neurons.js",
    PromptGraph: "report.js",
}
"""By kind of block, the script that it needs beside that of every page; report.js is built from viewer/."""
SCRIPTS = tuple(dict.fromkeys(("page.js", *BLOCKS.values())))
"""All scripts of pages."""


@dataclass(frozen=True)
class Section:
    """Blocks under one heading."""

    anchor: str
    """Its id on the page."""
    title: str
    """Its heading; empty for what stands above all headings."""
    blocks: tuple[AnyBlock, ...]
    """What it holds."""

    @property
    def groups(self) -> Iterator[tuple[str, list[AnyBlock]]]:
        """Its blocks one by one, and heat maps that follow each other together, beside each other or in one fold."""
        for (is_map, folded), blocks in groupby(self.blocks, lambda block: (isinstance(block, HeatMap), block.folded)):
            if is_map:
                yield "folded maps" if folded else "maps", list(blocks)
            else:
                yield from (("block", [block]) for block in blocks)


def page(document: Document, kept: Mapping[str, Any] | None = None) -> str:
    """The whole page. The same document gives the same text; only its own scripts may run, by their hashes.

    `kept` has the groups and pins that somebody made by hand, by view; a page with it is the app's, which keeps more.
    """
    shown = [block for block in document.blocks if block.where != "terminal"]
    needed = {name for kind, name in BLOCKS.items() if any(isinstance(block, kind) for block in shown)}
    scripts = [name for name in SCRIPTS if name in {"page.js", *needed}]
    written = rendered(
        "page.html.j2",
        document=document,
        subject=_subject(document.facts),
        sections=_sections(shown),
        facts={name: value for name, value in document.facts.items() if name not in REPEATED},
        css=Markup(asset("page.css")),
        kept=kept,
        scripts=[(Markup(asset(name)), script_hash(asset(name))) for name in scripts],
        **TOOLS,
    )
    return str(written)


def fragment(blocks: Sequence[AnyBlock]) -> Markup:
    """Blocks without a page around them."""
    return rendered("fragment.html.j2", sections=_sections(blocks), **TOOLS)


def _sections(blocks: Sequence[AnyBlock]) -> list[Section]:
    """Blocks by heading: one with a title opens a section, several heat maps one together; folded ones open none."""
    groups: list[tuple[str, list[AnyBlock]]] = [("", [])]
    for number, block in enumerate(blocks):
        before, after = blocks[number - 1 : number], blocks[number + 1 : number + 2]
        if isinstance(block, HeatMap) and any(isinstance(other, HeatMap) for other in (*before, *after)):
            if not any(isinstance(other, HeatMap) for other in before):
                groups.append(("Maps", []))
        elif block.title and not block.folded:
            groups.append((block.title, []))
        groups[-1][1].append(block)
    filled = [(title, tuple(inside)) for title, inside in groups if inside]
    anchors: list[str] = []
    for title, _ in filled:
        name = formats.slug(title) or "result"
        anchors.append(f"{name}-{len(anchors)}" if name in anchors else name)
    return [Section(anchor, *section) for anchor, section in zip(anchors, filled, strict=True)]


def _subject(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Task, model, method and time in a line."""
    named = {kind: facts[kind].get("name") for kind in ("task", "model", "method") if isinstance(facts.get(kind), dict)}
    return [
        (kind, str(name))
        for kind, name in {**named, "created": str(facts.get("created") or "")[:16].replace("T", " ")}.items()
        if name
    ]


def marked(clean: str, corrupted: str) -> tuple[Markup, Markup]:
    """Both texts with the words that differ in `mark` elements."""
    left, right = (re.findall(r"\w+|\s+|[^\w\s]", words) for words in (clean, corrupted))
    sides: tuple[list[Markup], list[Markup]] = ([], [])
    for step, a, b, c, d in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for side, words in zip(sides, ("".join(left[a:b]), "".join(right[c:d])), strict=True):
            side.append(escape(words) if step == "equal" or not words else Markup("<mark>{}</mark>").format(words))
    return Markup("").join(sides[0]), Markup("").join(sides[1])


def unbroken(text: str) -> Markup:
    """Text for a cell of a table, in which short texts in quotes, such as tokens, stay on one line."""
    return Markup(QUOTED.sub(lambda match: f'<span class="whole">{match[0]}</span>', str(escape(text))))


def shade(value: Number, largest: float) -> str:
    """The colour behind a token: the stronger, the more of it."""
    known = formats.finite(value)
    if not known or not largest:
        return "none"
    name = "hurts" if known > 0 else "helps"
    return f"color-mix(in srgb, var(--{name}) calc({min(1, abs(known) / largest):.2f} * var(--full)), transparent)"


def fact(key: str, value: Any) -> str:
    """A single fact for reading: counts with separators, seeds as they are typed, bytes also in larger units."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) and key != "seed":
        if formats.finite(value) is None:
            return formats.MISSING
        if key.endswith("_bytes"):
            return f"{formats.size(value)} ({value:,.0f} bytes)"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    return str(value)


def drawing(block: Block) -> Markup:
    """A chart or a drawing as SVG in the page's colours."""
    draw: dict[type[Block], Callable[[Any], str]] = {
        CircuitMap: lambda circuit_map: circuit.svg(circuit.draw(circuit_map)),
        CausalMap: causal_map.svg,
        Roles: roles.svg,
        Routes: routes.svg,
        PromptGraph: attribution_graph.svg,
        Attention: attention.together,
    }
    return Markup(draw.get(type(block), charts.svg)(block))


def json_script(value: Any) -> Markup:
    """`value` as JSON that may stand inside a script element: no `<`, `>` or `&`; NaN and infinities become null."""
    raw = json.dumps(plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(raw.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


TOOLS: dict[str, Any] = {
    "as_csv": as_csv,
    "asdict": asdict,
    "attention_svg": lambda block, head: Markup(attention.svg(block, head)),
    "attention": attention,
    "attribution_graph": attribution_graph,
    "checkpoints": checkpoints,
    "circuit": circuit,
    "drawing": drawing,
    "fact": fact,
    "formats": formats,
    "json_script": json_script,
    "marked": marked,
    "open_pairs": OPEN_PAIRS,
    "roles": roles,
    "routes": routes,
    "shade": shade,
    "unbroken": unbroken,
}
"""What the templates call."""
