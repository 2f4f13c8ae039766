"""The whole report: one HTML file that needs no network and still reads without its script."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from circuitome.report import circuit, curve, formats, sections
from circuitome.report.circuit import Drawing
from circuitome.report.markup import json_script, tag, text


def render(payload: dict[str, Any]) -> str:
    """The page of one run, from plain JSON data.

    `payload` holds `title`, `command`, `manifest`, `model` (`layers`, `heads`, `kv_heads`, `parallel`), `edges`
    (`from`, `to`, `score`, `low`, `high`), `unit`, `headline`, and, where measured, `curve` and `prompts`.
    Scores are in `unit`: the change of the metric when the edge is corrupted, so a negative one helps.
    The same payload gives the same text. Only the page's own script may run, by its hash in the content policy.
    """
    drawing = circuit.draw(payload)
    decimals = formats.score_decimals(max((abs(edge.score or 0.0) for edge in drawing.edges), default=0.0))
    script, unit = asset("page.js"), str(payload.get("unit", ""))
    return Template(asset("page.html")).substitute(
        title=text(str(payload["title"])),
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        css=asset("page.css"),
        subject=sections.subject(payload),
        headline=sections.headline(payload),
        circuit=circuit.svg(drawing),
        strongest=sections.strongest(drawing),
        shared=shared_note(drawing),
        unit=text(unit),
        curve=_curve(payload),
        edge_count=f"{len(drawing.edges):,}",
        edge_rows=sections.edge_rows(drawing.edges, decimals),
        prompts=sections.prompts(payload),
        command=text(str(payload.get("command", ""))),
        manifest=sections.manifest(payload.get("manifest") or {}),
        data=json_script(script_data(payload, drawing, decimals)),
        script=script,
    )


def script_data(payload: Mapping[str, Any], drawing: Drawing, decimals: int) -> dict[str, Any]:
    """What the page's script works on: the edges with their curves, and the places of the nodes."""
    grid = drawing.grid
    places = {name: [point.x, point.y] for name, point in grid.nodes.items() if name in drawing.strengths}
    for name, bracket in grid.brackets.items():
        if name in drawing.strengths:
            places[name] = [(bracket.left + bracket.right) / 2, bracket.y]
    groups = {f"h{head}": f"kv{kv}" for kv in range(grid.kv_heads) for head in grid.group(kv)} if grid.shared else {}
    return {
        "title": payload["title"],
        "unit": payload.get("unit", ""),
        "decimals": decimals,
        "strongest": circuit.STRONGEST,
        "strengths": {name: float(f"{value:.4g}") for name, value in drawing.strengths.items()},
        "places": places,
        "groups": groups,
        "edges": circuit.columns(drawing.edges),
    }


def _curve(payload: Mapping[str, Any]) -> str:
    if not curve.has_curve(payload):
        return tag("p", {"class": "note"}, "No faithfulness curve was measured in this run.")
    figure = tag("div", {"class": "scroll"}, curve.svg(payload))
    return tag("figure", {"id": "curve-figure"}, figure) + sections.curve_table(payload)


def shared_note(drawing: Drawing) -> str:
    """The legend's line about keys and values, for models whose query heads share them."""
    if not drawing.grid.shared:
        return "Keys and values end at the head itself."
    each = drawing.grid.heads // drawing.grid.kv_heads
    return (
        f"A bracket is one key/value head, below the {each} query heads that share it. "
        "Edges into keys and values are drawn once, to the bracket."
    )


@cache
def asset(name: str) -> str:
    """One of the page's static files."""
    return resources.files("circuitome.report").joinpath(name).read_text("utf-8")
