"""What commands print: rich tables for people, JSON for programs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from circuitome.cli import explain_view, heads_view, heatmap, routes_view, streaming_view

STRONGEST = 12
"""Edges that the terminal shows."""
SHADES = " .:-=+*#%@"
"""From nothing to the strongest node of the circuit."""

Tell = Callable[[str, int, int], None]


@contextmanager
def progress() -> Iterator[Tell]:
    """Inside, calls (what, done, total) draw a bar with the time left on the error stream, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        known: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=total)
            bars.update(known[what], completed=done, total=total)

        yield tell


def table(title: str, rows: Sequence[dict[str, str]], as_json: bool, note: str) -> None:
    """Rows of equal keys, one column a key."""
    if as_json:
        print(json.dumps(list(rows), indent=1))
        return
    drawn = Table(title=title, title_justify="left", box=None, header_style="bold")
    for name in rows[0]:
        drawn.add_column(name, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(value) for value in row.values()))
    console = Console()
    console.print(drawn)
    if note:
        console.print(Text(note))


def plan(spec: Any, cost: Any, as_json: bool) -> None:
    """What a run would cost."""
    if as_json:
        print(json.dumps({"command": spec.command(), **vars(cost)}))
        return
    console = Console(highlight=False)
    console.print(f"[bold]{spec.command()}[/] would")
    for kind, count in cost.passes.items():
        console.print(f"  run {count:>5,} {kind} passes over {spec.n if not spec.data else 'all'} prompts")
    console.print(
        f"  take about {cost.seconds:,.0f} s and {cost.bytes / 1e9:.1f} GB, for a circuit of {cost.edges:,} edges"
    )
    console.print("Nothing was written.")


def run(found: Any, folder: Path, as_json: bool) -> None:
    """A finished run of any kind: what it found, how to repeat it, and where its report is."""
    from circuitome.report.payload import strongest_edges
    from circuitome.runs.store import to_json

    manifest, kind = found.manifest, found.manifest["kind"]
    if as_json:
        circuit = {"circuit": strongest_edges(found)} if kind == "find" else {}
        print(to_json({**manifest, "folder": str(folder), **circuit}))
        return
    console = Console(highlight=False)
    SHOWN[kind](found, console)
    console.print(f"\n{manifest['sign']}")
    console.print(f"Again:  {manifest['command']}", soft_wrap=True)
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True)


def _effects(found: Any, console: Console) -> None:
    from circuitome.report.payload import effects_payload

    heatmap.effects(effects_payload(found), console)


def _compare(found: Any, console: Console) -> None:
    from circuitome.report.payload import compare_payload

    heatmap.compare(compare_payload(found), console)
    for one in found.manifest["results"]["methods"]:
        if one.get("note"):
            console.print(f"[bold]{one['name']}[/]: {one['note']}")


def _verdict(found: Any, console: Console) -> None:
    """The verdict card."""
    from circuitome.report.payload import verdict_payload
    from circuitome.report.verdict_page import SIGNS, sentence, value_of

    payload = verdict_payload(found)
    console.print(f"\n[bold]{payload['title']}[/]")
    console.print(sentence(payload))
    drawn = Table(box=None, header_style="bold")
    for name in ("", "criterion", "value", "passes at", "beside"):
        drawn.add_column(name, overflow="fold")
    colours = {"pass": "green", "fail": "red", "unclear": "yellow"}
    for one in payload["criteria"]:
        sign = Text(f"{SIGNS[one['verdict']]} {one['verdict']}", style=colours[one["verdict"]])
        beside = Text("; ".join(part for part in (one["null"], one["note"]) if part))
        drawn.add_row(sign, one["name"], Text(value_of(one)), one["threshold"], beside)
    console.print(drawn)


def known(result: dict[str, Any], as_json: bool) -> None:
    """How much of each known circuit each method finds."""
    if as_json:
        from circuitome.runs.store import to_json

        print(to_json(result))
        return
    for ablation in dict.fromkeys(row["ablation"] for row in result["rows"]):
        rows = [
            {
                "model": row["model"],
                "method": row["method"],
                "true edges": f"{row['true_edges']} of {row['all_edges']}",
                **{name: _rate(row[name]) for name in RATES},
            }
            for row in result["rows"]
            if row["ablation"] == ablation
        ]
        table(f"Known circuits, {ablation} ablation", rows, False, "")
    Console().print(Text(result["note"]))


RATES = ("edge AUROC", "node AUROC", "ROC area", "precision", "recall")


def _rate(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"


def _find(found: Any, console: Console) -> None:
    """Headline, the circuit on the model's grid, strongest edges, curve."""
    manifest = found.manifest
    results, unit = manifest["results"], manifest["task"]["unit"]
    score_unit = manifest["method"].get("unit", unit)
    task, model, method = manifest["task"]["name"], manifest["model"]["name"], manifest["method"]["description"]
    console.print(f"\n[bold]{task}[/] in [bold]{model}[/]   {method}")
    console.print(
        f"{results['edges']:,} of {results['all_edges']:,} edges carry [bold]{_percent(results['faithfulness'])}[/] "
        f"of the clean-{manifest['ablation']} gap; random circuits of that size carry {_percent(results['random'])}."
    )
    console.print(
        f"Metric {manifest['task']['metric']} in {unit}: model {_estimate(results['clean'])}, "
        f"circuit {_estimate(results['circuit'])}, all ablated {_estimate(results['ablated'])}; "
        f"{results['clean']['n']} prompts, 95 % bootstrap intervals."
    )
    dropped = results["edges"] - results["edges_on_a_path"]
    console.print(f"{results['nodes']} nodes; {dropped:,} of the edges lie on no path from input to logits.\n")
    console.print(_grid(found))
    console.print(_edges(found, score_unit))
    console.print(_curve(results["curve"]))


def _estimate(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} {_interval(value['low'], value['high'], 3)}"


def _interval(low: float | None, high: float | None, digits: int) -> str:
    if low is None or high is None or low != low:
        return "[no interval]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]".replace("[", "\\[")


def _percent(value: dict[str, Any]) -> str:
    if value["low"] is None:
        return f"{100 * value['value']:.0f} %"
    return f"{100 * value['value']:.0f} % " + _interval(100 * value["low"], 100 * value["high"], 0)


def _grid(found: Any) -> Table:
    """Heads across, layers upwards; a darker sign for a node that more of the circuit's score touches."""
    import torch

    from circuitome.report.payload import graph_of

    graph, chosen = graph_of(found), found.tensors["circuit"]
    weight = found.tensors["scores"].abs() * chosen
    strength = weight.sum(1) + (graph.inputs.float() * weight.sum(0)).sum(1)
    level = torch.sqrt(strength / strength[1:].max().clamp(min=1e-12)).clamp(max=1.0)
    signs = [SHADES[0 if s == 0 else max(1, round(float(s) * (len(SHADES) - 1)))] for s in level]
    drawn = Table(
        title="Circuit by layer (up) and head (across), MLP last", title_justify="left", box=None, padding=(0, 1)
    )
    drawn.add_column("", justify="right")
    for head in range(graph.n_heads):
        drawn.add_column(str(head), width=1)
    drawn.add_column("mlp", justify="center")
    for layer in reversed(range(graph.n_layers)):
        row = graph.head_rows(layer)
        if any(sign != " " for sign in signs[row.start : row.stop + 1]):
            drawn.add_row(str(layer), *signs[row], signs[graph.mlp_row(layer)])
    return drawn


def _edges(found: Any, unit: str) -> Table:
    from circuitome.report.payload import strongest_edges

    drawn = Table(title=f"Strongest edges ({unit})", title_justify="left", box=None, header_style="bold")
    for name, justify in (("from", "left"), ("to", "left"), ("score", "right"), ("95 % interval", "left")):
        drawn.add_column(name, justify=justify)  # type: ignore[arg-type]
    for edge in strongest_edges(found)[:STRONGEST]:
        drawn.add_row(edge["from"], edge["to"], f"{edge['score']:+.4f}", _interval(edge["low"], edge["high"], 4))
    return drawn


def _curve(curve: dict[str, Any]) -> Table:
    drawn = Table(title="Faithfulness by size", title_justify="left", box=None, header_style="bold")
    for name in ("edges", "circuit", "random circuits"):
        drawn.add_column(name, justify="right")
    for size, own, random in zip(curve["sizes"], curve["circuit"], curve["random"], strict=True):
        drawn.add_row(f"{size:,}", _estimate(own), _estimate(random))
    return drawn


SHOWN: dict[str, Callable[[Any, Console], None]] = {
    "find": _find,
    "patch": _effects,
    "path": _effects,
    "compare": _compare,
    "validate": _verdict,
    "retrieval": streaming_view.retrieval,
    "stream": streaming_view.stream,
    "explain": explain_view.explanation,
    "heads": heads_view.atlas,
    "induction": heads_view.induction,
    "trace": routes_view.trace,
    "routes": routes_view.importance,
}
"""By kind of run: what draws it in the terminal."""
