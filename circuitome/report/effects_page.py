"""The page of a run whose result are maps of effects: patching, path patching, the trace back."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.report import formats, sections, shell
from circuitome.report.heatmap import heatmap_svg, title_of
from circuitome.report.markup import Markup, join, tag

SHOWN = 20
"""Strongest cells in the table."""


def render_effects(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: the same data gives the same text.

    `payload` holds `title`, `command`, `sign`, `unit`, `maps` (see `heatmap_svg`; with `clean` and `corrupted`
    estimates), `top` (`map`, `label`, `mean`, `low`, `high`), `prompts`, `manifest` and, after a trace back, `tree`
    (`receiver`, `depth`, `senders`) and `circuit_edges`.
    """
    maps = payload["maps"]
    parts: list[shell.Section] = []
    if payload.get("tree"):
        parts.append(("trace", "The trace back", _tree(payload)))
    parts.append(("maps", "Effects", join(_means(maps), *(_map(one, i) for i, one in enumerate(maps)))))
    parts.append(("strongest", "Strongest", _strongest(payload)))
    parts.append(("prompts", "Example prompts", sections.prompts(payload)))
    note = tag("p", {"class": "lede"}, str(payload.get("sign", "")))
    first = parts[0]
    return shell.page(payload, [(first[0], first[1], join(note, first[2])), *parts[1:]])


def _means(maps: Sequence[Mapping[str, Any]]) -> Markup:
    """The metric of the plain runs."""
    first = maps[0]
    clean, corrupted = first.get("clean"), first.get("corrupted")
    if not clean or not corrupted:
        return Markup("")
    words = (
        f"Mean metric of the plain runs: clean {formats.estimate(clean)}, corrupted {formats.estimate(corrupted)} "
        f"{first.get('unit', '')}, {formats.count(clean.get('n'))} prompts. Outlined cells: the 95 % interval does not "
        "hold zero."
    )
    return tag("p", {"class": "note"}, words)


def _map(effects: Mapping[str, Any], index: int) -> Markup:
    figure = tag("figure", None, tag("div", {"class": "scroll"}, heatmap_svg(effects, f"map-{index}")))
    return join(tag("h3", None, title_of(effects)), figure)


def _share(effects: Mapping[str, Any] | None, mean: Any) -> str:
    """A mean as a share of the gap between the plain runs."""
    value = formats.finite(mean)
    ends = [formats.finite(((effects or {}).get(side) or {}).get("value")) for side in ("clean", "corrupted")]
    if value is None or ends[0] is None or ends[1] is None or ends[0] == ends[1]:
        return ""
    return f"{formats.rounded(100 * value / (ends[0] - ends[1]), 1)}\N{NO-BREAK SPACE}%"


def _strongest(payload: Mapping[str, Any]) -> Markup:
    by_name = {title_of(one): one for one in payload["maps"]}
    several = len(by_name) > 1
    rows = []
    for cell in sorted(payload.get("top") or [], key=lambda one: -abs(formats.finite(one["mean"]) or 0.0))[:SHOWN]:
        values = [
            str(cell["label"]),
            formats.fixed(cell["mean"], 3),
            formats.interval(cell.get("low"), cell.get("high"), 3),
            _share(by_name.get(str(cell.get("map"))), cell["mean"]),
        ]
        rows.append([str(cell.get("map")), *values] if several else values)
    heads = ["part", f"effect, {payload.get('unit', '')}", "95 % interval", "of the gap"]
    first = int(several)
    return shell.table(["map", *heads] if several else heads, rows, (first + 1, first + 2, first + 3))


def _tree(payload: Mapping[str, Any]) -> Markup:
    """Receivers by depth, each with its senders; the kept ones in bold."""
    rows = []
    for receiver in payload["tree"]:
        kept = [sender for sender in receiver["senders"] if sender.get("kept")]
        rest = [sender for sender in receiver["senders"] if not sender.get("kept")]
        words = [tag("b", None, _sender(sender)) for sender in kept] or [tag("span", None, "nothing that matters")]
        listed = join(*(join(word, "; ") for word in words[:-1]), words[-1])
        also = "; ".join(_sender(sender) for sender in rest)
        rows.append([str(receiver["depth"]), str(receiver["receiver"]), listed, also])
    edges = formats.count(payload.get("circuit_edges"))
    note = f"{edges} edges were kept: senders whose effect is large enough and surely not zero."
    return join(
        tag("p", {"class": "note"}, note), shell.table(["depth", "into", "kept senders", "next strongest"], rows)
    )


def _sender(sender: Mapping[str, Any]) -> str:
    return f"{sender['label']} {formats.fixed(sender['mean'], 3)}"
