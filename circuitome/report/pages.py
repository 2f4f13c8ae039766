"""The page of a run of any kind."""

from collections.abc import Callable
from typing import Any

from circuitome.report.compare_page import render_compare
from circuitome.report.effects_page import render_effects
from circuitome.report.explain_page import explain_payload, render_explain
from circuitome.report.heads_page import heads_payload, induction_payload, render_heads, render_induction
from circuitome.report.html import render
from circuitome.report.payload import compare_payload, effects_payload, payload, verdict_payload
from circuitome.report.retrieval_page import render_retrieval, retrieval_payload
from circuitome.report.routes_page import render_routes, render_trace, routes_payload, trace_payload
from circuitome.report.stream_page import render_stream, stream_payload
from circuitome.report.verdict_page import render_verdict
from circuitome.runs.store import Run

Payload = dict[str, Any]
PAGES: dict[str, tuple[Callable[[Run], Payload], Callable[[Payload], str]]] = {
    "find": (payload, render),
    "patch": (effects_payload, render_effects),
    "path": (effects_payload, render_effects),
    "compare": (compare_payload, render_compare),
    "validate": (verdict_payload, render_verdict),
    "retrieval": (retrieval_payload, render_retrieval),
    "stream": (stream_payload, render_stream),
    "explain": (explain_payload, render_explain),
    "heads": (heads_payload, render_heads),
    "induction": (induction_payload, render_induction),
    "trace": (trace_payload, render_trace),
    "routes": (routes_payload, render_routes),
}
"""By kind of run: what takes the page's data from it, and what makes the page of that."""


def page(run: Run) -> str:
    """One self-contained HTML page."""
    take, draw = PAGES[run.manifest["kind"]]
    return draw(take(run))
