"""The page of a run of any kind."""

from circuitome.report.compare_page import render_compare
from circuitome.report.effects_page import render_effects
from circuitome.report.html import render
from circuitome.report.payload import compare_payload, effects_payload, payload, verdict_payload
from circuitome.report.verdict_page import render_verdict
from circuitome.runs import Run


def page(run: Run) -> str:
    """One self-contained HTML page."""
    kind = run.manifest["kind"]
    if kind == "find":
        return render(payload(run))
    if kind == "validate":
        return render_verdict(verdict_payload(run))
    return render_compare(compare_payload(run)) if kind == "compare" else render_effects(effects_payload(run))
