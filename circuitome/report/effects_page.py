"""The page of a run whose results are maps of effects: patching, path patching, the trace back."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.report import circuit, formats, heatmap, sections, shell
from circuitome.report.grid import make_grid
from circuitome.report.heatmap import heatmap_svg, title_of
from circuitome.report.markup import Markup, join, tag

SHOWN = 20
"""Strongest cells in the table."""
OPEN_MAPS = 3
"""Maps shown without opening their folds."""


def render_effects(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: the same data gives the same text.

    `payload` holds `title`, `command`, `sign` (what the sign of an effect means), `maps` (see `heatmap_svg`), `top`
    (`map`, `label`, `mean`, `low`, `high`), `prompts` and `manifest`; where there are any, `unit` (else that of the
    maps), `headline` (titles with values, a mapping or pairs; else the metric of the plain runs) and, after a trace
    back, `tree` (`receiver`, `depth`, `senders` with `label`, `mean`, `low`, `high`, `kept`) and `circuit_edges`.
    """
    unit = str(payload.get("unit") or next((one.get("unit", "") for one in payload["maps"]), ""))
    payload = {**payload, "unit": unit}
    parts: list[shell.Section] = [("result", "Result", _result(payload))]
    if payload.get("tree"):
        parts.append(("trace", "The trace back", _trace(payload)))
    parts.append(("maps", "Effects", _maps(payload["maps"])))
    parts.append(("strongest", "Strongest effects", _strongest(payload)))
    parts.append(("prompts", "Example prompts", sections.prompts(payload)))
    return shell.page(payload, parts)


def _result(payload: Mapping[str, Any]) -> Markup:
    """The strongest effect in a sentence, the numbers behind it, and what the sign means."""
    lede = _sentence(payload)
    cards = _cards(payload)
    return join(
        tag("p", {"class": "lede"}, lede) if lede else Markup(""),
        tag("div", {"class": "cards"}, *cards) if cards else Markup(""),
        tag("p", {"class": "note"}, str(payload.get("sign", ""))),
    )


def _sentence(payload: Mapping[str, Any]) -> str:
    cells = _ranked(payload)
    if payload.get("tree"):  # what the trace starts from says more than its strongest edge, often the embedding's
        first = title_of(next(iter(payload["maps"]), {}))
        cells = [cell for cell in cells if cell.get("map") == first] or cells
    if not cells:
        return ""
    cell = cells[0]
    where = f" ({cell['map']})" if len(payload["maps"]) > 1 and cell.get("map") else ""
    ends = formats.interval(cell.get("low"), cell.get("high"), 3)
    share = heatmap.share(_maps_by_title(payload).get(str(cell.get("map")), {}), cell["mean"], 0)
    effect = f"{formats.fixed(cell['mean'], 3)} {payload['unit']} {ends}".strip()
    return f"{cell['label']} has the strongest effect{where}: {effect}" + (f", {share} of the gap." if share else ".")


def _cards(payload: Mapping[str, Any]) -> list[Markup]:
    given = payload.get("headline")
    if given:
        pairs = given.items() if isinstance(given, Mapping) else given
        return [sections.tile(str(title), _words(value), "", "", "") for title, value in pairs]
    first: Mapping[str, Any] = next(iter(payload["maps"]), {})
    cards = [
        sections.tile(title, formats.plain(run.get("value")), formats.bounds(run), payload["unit"], _prompts(name, run))
        for name, title in (("clean", "Clean"), ("corrupted", "Corrupted"))
        if (run := first.get(name))
    ]
    whole = heatmap.gap(first)
    if whole is not None:
        cards.append(sections.tile("Gap", formats.plain(whole), "", payload["unit"], "clean minus corrupted: 100 %"))
    if payload.get("circuit_edges") is not None:
        asked = formats.count(len(payload.get("tree") or []))
        cards.append(
            sections.tile("Edges kept", formats.count(payload["circuit_edges"]), "", "", f"{asked} receivers asked")
        )
    return cards


def _words(value: Any) -> str:
    return formats.plain(value) if isinstance(value, float) else str(value)


def _prompts(name: str, run: Mapping[str, Any]) -> str:
    return f"mean metric on {formats.count(run.get('n'))} {name} prompts"


def _maps(maps: Sequence[Mapping[str, Any]]) -> Markup:
    """Every map; of many, all but the first few are folded."""
    note = (
        "Layers go upwards. Outlined: the 95 % interval over prompts leaves out zero; of parts that do nothing, about "
        "one in twenty is outlined by chance."
    )
    figures = [_map(one, i, folded=i >= OPEN_MAPS) for i, one in enumerate(maps)]
    return join(tag("p", {"class": "note"}, note), *figures)


def _map(effects: Mapping[str, Any], index: int, folded: bool) -> Markup:
    figure = tag("figure", None, tag("div", {"class": "scroll"}, heatmap_svg(effects, f"map-{index}")))
    counts = [heatmap.certain(effects, row, column) for row, column, _ in heatmap.values(effects)]
    outlined = f"{sum(counts):,} of {len(counts):,} outlined"
    if folded:
        summary = tag("summary", None, title_of(effects), ", ", outlined)
        return tag("details", {"class": "map"}, summary, figure)
    return join(tag("h3", None, f"{title_of(effects)}, {outlined}"), figure)


def _maps_by_title(payload: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {title_of(one): one for one in payload["maps"]}


def _ranked(payload: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The strongest cells, by |mean|; those without one are left out."""
    known = [cell for cell in payload.get("top") or [] if formats.finite(cell.get("mean")) is not None]
    return sorted(known, key=lambda cell: -abs(cell["mean"]))


def _strongest(payload: Mapping[str, Any]) -> Markup:
    maps = _maps_by_title(payload)
    several = len(payload["maps"]) > 1
    rows = []
    for cell in _ranked(payload)[:SHOWN]:
        row = [
            tag("span", {"class": "name"}, str(cell["label"])),
            tag("span", {"class": "hurts" if cell["mean"] > 0 else "helps"}, formats.fixed(cell["mean"], 3)),
            formats.interval(cell.get("low"), cell.get("high"), 3) or "no interval",
            heatmap.share(maps.get(str(cell.get("map")), {}), cell["mean"]),
        ]
        rows.append([str(cell.get("map", "")), *row] if several else row)
    if not rows:
        return tag("p", {"class": "note"}, "There is no effect to show.")
    heads = ["part", f"effect, {payload['unit']}", "95 % interval", "of the gap"]
    first = int(several)
    return shell.table(["map", *heads] if several else heads, rows, (first + 1, first + 2, first + 3))


def _trace(payload: Mapping[str, Any]) -> Markup:
    """The kept edges on the model's grid, then every receiver with its senders, depth by depth."""
    kept = [one for one in payload["tree"] if any(sender.get("kept") for sender in one["senders"])]
    empty = [one for one in payload["tree"] if one not in kept]
    edges = formats.count(payload.get("circuit_edges"))
    note = (
        f"{edges} edges were kept: of each receiver the strongest senders whose effect is large enough and whose "
        "interval leaves out zero."
    )
    rows = [
        [str(one["depth"]), tag("span", {"class": "name"}, str(one["receiver"])), _senders(one, True), _others(one)]
        for one in kept
    ]
    table = shell.table(["depth", "into", "kept senders, effect and interval", "next strongest"], rows)
    return join(tag("p", {"class": "note"}, note), _diagram(payload), table, _nothing(empty))


def _nothing(receivers: Sequence[Mapping[str, Any]]) -> Markup:
    """Receivers into which nothing was kept, folded."""
    if not receivers:
        return Markup("")
    rows = [
        [str(one["depth"]), tag("span", {"class": "name"}, str(one["receiver"])), _others(one)] for one in receivers
    ]
    summary = tag("summary", None, f"{len(rows):,} receivers with nothing that matters")
    return tag("details", None, summary, shell.table(["depth", "into", "strongest, not kept"], rows))


def _senders(receiver: Mapping[str, Any], kept: bool) -> Markup:
    """Kept senders with their effects and intervals, one below the other."""
    lines = [
        tag(
            "li",
            None,
            tag("b", {"class": "name"}, str(sender["label"])),
            " ",
            tag("span", {"class": "hurts" if (sender["mean"] or 0) > 0 else "helps"}, formats.fixed(sender["mean"], 3)),
            " ",
            tag("span", {"class": "note"}, formats.interval(sender.get("low"), sender.get("high"), 3)),
        )
        for sender in receiver["senders"]
        if bool(sender.get("kept")) is kept
    ]
    return tag("ul", {"class": "senders"}, *lines)


def _others(receiver: Mapping[str, Any]) -> Markup:
    words = [f"{s['label']} {formats.fixed(s['mean'], 3)}" for s in receiver["senders"] if not s.get("kept")]
    return tag("div", {"class": "note others"}, ", ".join(words))


def _diagram(payload: Mapping[str, Any]) -> Markup:
    """The kept edges, drawn as a circuit is; nothing where the model's shape is unknown."""
    model = (payload.get("manifest") or {}).get("model") or {}
    if not {"layers", "heads"} <= set(model):
        return Markup("")
    edges = [
        {"from": str(sender["label"]), "to": str(one["receiver"]), "score": sender["mean"]}
        | {end: sender.get(end) for end in ("low", "high")}
        for one in payload["tree"]
        for sender in one["senders"]
        if sender.get("kept")
    ]
    grid = make_grid(model, (edge["from"] for edge in edges))
    drawn = [edge for edge in edges if {grid.reader_node(edge["to"])} & (grid.nodes.keys() | grid.brackets.keys())]
    figure = circuit.svg(circuit.draw({"model": model, "edges": drawn}))
    missing = len(edges) - min(len(drawn), circuit.STRONGEST)
    words = "Blue: corrupting the path lowers the metric, it helps; orange: it raises the metric."
    words += f" {missing:,} weaker edges are not drawn." if missing else ""
    return tag(
        "figure",
        {"class": "traced"},
        tag("div", {"class": "scroll"}, figure),
        tag("figcaption", {"class": "note"}, words),
    )
