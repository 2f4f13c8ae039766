"""What `explain` prints: the summary, and a table of the heads by role."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SHOWN = ("head", "role", "score", "attends", "copies", "direct", "last position", "all positions")
"""Columns that fit into a terminal."""
UNNAMED = 8
"""Unclear and resting heads in the table."""


def explanation(found: Any, console: Console) -> None:
    """A finished run of `explain`."""
    from circuitome.report.explain_page import COLUMNS, cells, explain_payload, shown

    payload = explain_payload(found)
    console.print(f"\n[bold]{payload['title']}[/]")
    console.print(Text(payload["summary"]))
    names = [name for name, _, _ in COLUMNS]
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name, numeric, _ in COLUMNS:
        if name in SHOWN:
            drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    rows, left_out = shown(payload["heads"], UNNAMED)
    for head in rows:
        row = dict(zip(names, cells(head, payload), strict=True))
        unclear = head["role"] == "unclear"
        if unclear and head["best_score"] >= 0.05:
            row["role"] = f"unclear ({head['best']}?)"
        drawn.add_row(*(Text(row[name], style="bold" if name == "role" and not unclear else "") for name in SHOWN))
    console.print(drawn)
    if left_out:
        console.print(
            f"and {left_out} more that attend to the first token or themselves, or are unclear; the report has them all"
        )
