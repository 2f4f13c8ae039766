"""What `explain` prints: the account, and a table of the heads by role."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

UNNAMED = 8
"""Unclear and resting heads in the table."""


def explanation(found: Any, console: Console) -> None:
    """A finished run of `explain`."""
    from circuitome.report.explain_page import COLUMNS, cells, explain_payload, shown

    payload = explain_payload(found)
    console.print(f"\n[bold]{payload['title']}[/]")
    console.print(Text(payload["account"]), soft_wrap=False)
    rows, left_out = shown(payload["heads"], UNNAMED)
    drawn = Table(box=None, header_style="bold", padding=(0, 1, 0, 0))
    for name, numeric, _ in COLUMNS:
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for head in rows:
        drawn.add_row(
            *(Text(cell, style=_style(head) if i == 1 else "") for i, cell in enumerate(cells(head, payload)))
        )
    console.print(drawn)
    if left_out:
        console.print(Text(f"and {left_out} more that rest or are unclear; the report has them all"))


def _style(head: Mapping[str, Any]) -> str:
    return "yellow" if head["role"] == "unclear" else "bold"
