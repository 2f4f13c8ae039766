"""Single heads in the terminal: what kind each is, the strongest of every score, induction and what it is worth."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitome.cli.heatmap import map_table, plain_table, print_table
from circuitome.report import formats, heads_page

SHOWN = 3
"""Heads of each score."""
STYLES = {"P": "dodger_blue2", "D": "green", "I": "bold dark_orange3", "=": "magenta", "s": "dim"}
"""By sign of a kind of head."""


def atlas(run: Any, console: Console) -> None:
    """Every head's kind, the map of induction, and the strongest heads of every score."""
    payload = heads_page.heads_payload(run)
    console.print(Text(f"\n{payload['title']}", style="bold"))
    console.print(Text(heads_page.kinds_sentence(payload["kinds"])))
    signs = "; ".join(f"{sign} {what}" for sign, what in heads_page.KINDS.values())
    print_table(console, f"Kinds of heads, layers upwards: {signs}", _kinds(payload["kinds"]))
    induction = next((one for one in payload["maps"] if one["title"].startswith("induction")), None)
    if induction:
        print_table(console, *map_table(induction, console.width))
    print_table(console, "Strongest heads of every score, with 95 % intervals", _strongest(payload))


def induction(run: Any, console: Console) -> None:
    """The map of prefix matching, losses, and what switching heads off costs."""
    payload = heads_page.induction_payload(run)
    console.print(Text(f"\n{payload['title']}", style="bold"))
    console.print(Text(heads_page.induction_sentence(payload)))
    for one in payload["maps"]:
        print_table(console, *map_table(one, console.width))
    drawn = plain_table(("loss", "left"), ("nats a token", "left"), gap=2)
    names = {
        "first_half": "random tokens, first time",
        "second_half": "the same again",
        "advantage": "first minus second",
        "in_context": "text, late minus early in a piece (in-context learning)",
    }
    for name, words in names.items():
        if payload.get(name):
            drawn.add_row(Text(words), Text(formats.estimate(payload[name])))
    print_table(console, "Learning in context", drawn)
    effects = plain_table(("switched off", "left"), ("loss on repeats", "left"), ("in-context learning", "left"), gap=2)
    for row in heads_page.effect_rows(payload):
        effects.add_row(*(Text(cell) for cell in row))
    print_table(console, "Rise without heads, patterns kept, nats", effects)


def _kinds(kinds: Sequence[Sequence[str]]) -> Table:
    drawn = plain_table(("", "right"), *((f"h{head}", "left") for head in range(len(kinds[0]))))
    for layer in reversed(range(len(kinds))):
        cells = [Text(sign or "\N{MIDDLE DOT}", style=STYLES.get(sign, "dim")) for sign in kinds[layer]]
        drawn.add_row(Text(f"a{layer}"), *cells)
    return drawn


def _strongest(payload: Mapping[str, Any]) -> Table:
    drawn = plain_table(("score", "left"), ("chance", "right"), ("noise", "right"), ("strongest heads", "left"), gap=2)
    for score in payload["scores"]:
        heads = heads_page.strongest_words(payload["top"][score["name"]][:SHOWN])
        numbers = [Text(formats.plain(score[key])) for key in ("chance", "random_ceiling")]
        drawn.add_row(Text(str(score["name"])), *numbers, Text(heads))
    return drawn
