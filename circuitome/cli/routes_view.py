"""Information flow routes in the terminal: tokens across, blocks up, and the strongest edges, parts and heads."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

EDGES = 15
"""Attention edges that are listed."""
PARTS, NEURONS = 8, 4
"""Heads, MLPs and neurons of an MLP that are listed; the report has more."""
SHADES = ".:-=+*#%@"
"""From hardly any flow to all of it."""
CELL = 4
"""Characters of a token's column."""


def trace(found: Any, console: Console) -> None:
    """Every route of a `trace` run."""
    from circuitome.report.routes_page import heading, on_route

    for route in found.manifest["results"]["routes"]:
        console.print(f"\n[bold]{heading(route)}[/]".replace("\\", "\\\\"), markup=True)
        shown = [route["edges"][i] for i in on_route(route, 0.0 if route["renormalize"] else route["shown_threshold"])]
        _facts(route, shown, console)
        console.print(_grid(route, shown, console.width))
        console.print(_edges(route, shown))
        for kind, what in (("a", "Heads"), ("m", "MLPs")):
            own = [part for part in route["parts"] if part["name"][0] == kind]
            console.print(_parts(f"{what} on the route, and whose logits they raise and lower", own[:PARTS]))
        for node, neurons in route["neurons"].items():
            console.print(_parts(f"Neurons of {node}", neurons[:NEURONS]))


def _facts(route: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], console: Console) -> None:
    from circuitome.report.routes_page import quoted

    guesses = ", ".join(f"{quoted(token)} {100 * p:.0f} %" for token, p in route["predictions"])
    console.print(Text(f"Next token: {guesses}"))
    if route["logit_diff"] is not None:
        console.print(Text(f"Logit difference {route['logit_diff']:+.3f}"))
    kinds = [edge["kind"] for edge in shown]
    console.print(
        Text(
            f"{len(kinds)} edges at threshold {route['shown_threshold']:g}: {kinds.count('attention')} between tokens, "
            f"{kinds.count('mlp')} from MLPs."
        )
    )


def _grid(route: Mapping[str, Any], shown: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Flow through each token's stream by block; m where its MLP is on the route."""
    from circuitome.report.routes_page import visible

    flow = {node["id"]: node["flow"] for node in route["nodes"]}
    nodes = {route["target"], *(edge["source"] for edge in shown)}
    places = sorted({int(node.rpartition("@")[2]) for node in nodes})
    fit = max(1, (width - 8) // (CELL + 1))
    left_out = len(places) - fit
    title = "Flow by block (up) and token (across), m: through its MLP"
    drawn = Table(
        title=title + (f"; {left_out} earlier tokens left out" if left_out > 0 else ""), box=None, padding=(0, 1, 0, 0)
    )
    drawn.title_justify = "left"
    places = places[-fit:]
    for name in ("", *(str(p) for p in places)):
        drawn.add_column(name, justify="left")
    for layer in reversed(range(route["layers"] + 1)):
        cells = []
        for place in places:
            node, mlp = f"x{layer}@{place}", f"m{layer - 1}@{place}"
            sign = SHADES[min(len(SHADES) - 1, int(flow[node] ** 0.5 * len(SHADES)))] if node in nodes else " "
            cells.append(sign + ("m" if mlp in nodes else ""))
        drawn.add_row(f"x{layer}", *cells)
    drawn.add_row("", *(Text(visible(route["tokens"][p])[:CELL]) for p in places))
    return drawn


def _edges(route: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> Table:
    from circuitome.report.routes_page import quoted

    flow = {node["id"]: node["flow"] for node in route["nodes"]}
    between = [edge for edge in shown if edge["kind"] == "attention"]
    between.sort(key=lambda edge: -edge["importance"] * flow[edge["target"]])
    drawn = Table(
        title=f"Strongest of {len(between)} edges between tokens", title_justify="left", box=None, header_style="bold"
    )
    for name in ("from", "token", "to", "token", "importance", "heads"):
        drawn.add_column(name, justify="right" if name == "importance" else "left")
    for edge in between[:EDGES]:
        heads = sorted(((value, head) for head, value in enumerate(edge["heads"])), reverse=True)[:3]
        words = " ".join(f"h{head} {value:.3f}" for value, head in heads if value >= 0.0005)
        ends = [
            Text(cell)
            for node in (edge["source"], edge["target"])
            for cell in (node, quoted(route["tokens"][int(node.rpartition("@")[2])]))
        ]
        drawn.add_row(*ends, f"{edge['importance']:.3f}", words)
    return drawn


def _parts(title: str, parts: Sequence[Mapping[str, Any]]) -> Table:
    from circuitome.report.routes_page import quoted

    drawn = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in ("part", "share", "raises", "lowers"):
        drawn.add_column(name, justify="right" if name == "share" else "left", overflow="fold")
    for part in parts:
        words = [Text(" ".join(quoted(token) for token, _ in part[key][:4])) for key in ("promotes", "suppresses")]
        drawn.add_row(part["name"], f"{part['importance']:.4f}", *words)
    return drawn


def importance(found: Any, console: Console) -> None:
    """A `routes` run: heads that matter everywhere, and those of each group."""
    manifest = found.manifest
    groups = manifest["results"]["groups"]
    console.print(f"\n[bold]Importances[/] over {manifest['texts']:,} texts in [bold]{manifest['model']['name']}[/]")
    drawn = Table(title="Heads that matter in every group", title_justify="left", box=None, header_style="bold")
    for name in ("head", *(f"{group['name']} ({group['tokens']:,})" for group in groups)):
        drawn.add_column(Text(name), justify="left" if name == "head" else "right")
    for one in manifest["results"]["general"]:
        drawn.add_row(one["head"], *(_estimate(one["by_group"][group["name"]]) for group in groups))
    console.print(drawn)
    for group in groups:
        if not group["specific"]:
            continue
        own = Table(title=f"Heads of {group['name']}", title_justify="left", box=None, header_style="bold")
        for name in ("head", "lead over every other group", "importance"):
            own.add_column(name, justify="left" if name == "head" else "right")
        for one in group["specific"][:5]:
            own.add_row(one["head"], f"{one['lead']:.4f}", _estimate(one["mean"]))
        console.print(own)


def _estimate(value: Mapping[str, Any]) -> Text:
    low, high = value["low"], value["high"]
    ends = "" if low is None or low != low else f" [{low:.3f}, {high:.3f}]"
    return Text(f"{value['value']:.3f}{ends}")
