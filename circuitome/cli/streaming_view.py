"""Streams and retrieval heads in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitome.report import formats

HEADS = 12
"""Heads in the table."""
ROWS = 14
"""Stretches of positions at most; of more, every second, third, ... is shown."""
LAYERS = 12
"""Layers in the table of sinks at most."""


def stream(found: Any, console: Console) -> None:
    """Loss before and after the first eviction, by position, and where attention sinks are."""
    from circuitome.report.stream_page import sentence, stream_payload

    payload = stream_payload(found)
    console.print(f"\n[bold]{payload['title']}[/]")
    console.print(Text(sentence(payload)))
    drawn = _table(
        "Loss in nats a token, before and after the first eviction", "cache", "before", "after", "perplexity"
    )
    for name, one in payload["policies"].items():
        drawn.add_row(name, *(Text(formats.estimate(one[when])) for when in ("before", "after")), _after(one))
    console.print(drawn)
    rows, names = payload["stretches"], list(payload["policies"])
    every = -(-len(rows) // ROWS)
    drawn = _table("Loss by position", "tokens", *names)
    for row in rows[::every]:
        values = [formats.fixed(row[name]["value"], 3) for name in names]
        drawn.add_row(f"{row['start']:,} to {row['end'] - 1:,}", *values)
    console.print(drawn)
    console.print(_sinks(payload["sink_mass"]))


def _after(one: dict[str, Any]) -> str:
    before, after = (formats.rounded(one[f"perplexity_{when}"], 2) for when in ("before", "after"))
    return f"{before} \N{RIGHTWARDS ARROW} {after}"


def _sinks(found: dict[str, Any]) -> Table:
    names = [f"first {k}" if k > 1 else "first token" for k in found["first"]]
    drawn = _table("Attention to the first tokens, mean over the heads of a layer", "layer", *names)
    layers = len(found["layers"][0])
    every = -(-layers // LAYERS)
    for layer in range(0, layers, every):
        drawn.add_row(f"a{layer}", *(formats.fixed(column[layer]["value"], 3) for column in found["layers"]))
    drawn.add_row("even", *(formats.fixed(value, 3) for value in found["uniform"]))
    return drawn


def retrieval(found: Any, console: Console) -> None:
    """The strongest heads, which prompts were answered, and what masking does."""
    from circuitome.report.retrieval_page import NAMES, retrieval_payload, sentence, success_grid, verdict

    payload = retrieval_payload(found)
    console.print(f"\n[bold]{payload['title']}[/]")
    console.print(Text(sentence(payload)))
    console.print(Text(verdict(payload["masking"])))
    drawn = _table("Strongest heads", "head", "score", "95 % interval", "hits per token", "copies in")
    for one in payload["top"][:HEADS]:
        ends = formats.interval(one["low"], one["high"], 3) or "no interval"
        numbers = (formats.fixed(one["mean"], 3), Text(ends), formats.fixed(one["hits"], 3))
        drawn.add_row(one["label"], *numbers, formats.percent({"value": one["frequency"]}))
    console.print(drawn)
    depths, grid = success_grid(payload)
    drawn = _table("Prompts answered, by length and depth", "tokens", *(f"{100 * depth:.0f} %" for depth in depths))
    for length, cells in grid.items():
        drawn.add_row(f"{length:,}", *(f"{good} of {total}" for good, total in cells))
    console.print(drawn)
    masking = payload["masking"]
    drawn = _table(
        f"Top {len(masking['heads'])} heads masked ({masking['mode']}, {masking['where']})",
        "",
        "log-probability, nats a token",
        "recall",
    )
    for condition, name in NAMES.items():
        values = (Text(formats.estimate(masking["estimates"][kind][condition])) for kind in ("log_prob", "recall"))
        drawn.add_row(name, *values)
    console.print(drawn)


def _table(title: str, *columns: str) -> Table:
    drawn = Table(title=title, title_justify="left", box=None, header_style="bold", min_width=len(title) + 2)
    for index, name in enumerate(columns):
        drawn.add_column(name, justify="right" if index else "left")
    return drawn
