"""The page of a validation: the verdict card, then what each line rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.report import formats, shell
from circuitome.report.markup import Attributes, Markup, join, tag

SIDE, EDGE = 420.0, 52.0
"""Size of the scatter, and the room for its labels."""
SHOWN = 40
"""Nodes in the table of minimality."""
SIGNS = {"pass": "\N{HEAVY CHECK MARK}", "fail": "\N{HEAVY BALLOT X}", "unclear": "?"}


def render_verdict(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: the same data gives the same text.

    `payload` holds `title`, `command`, `unit`, `edges`, `holds`, `manifest` and, as `Verdict.to_dict` gives them,
    `criteria`, `variants`, `ablations`, `templates`, `spread`, `nulls`, `completeness`, `minimality`, `single_edges`,
    `auc`, `curve`, `robustness` and `known`.
    """
    parts: list[shell.Section] = [
        ("verdict", "The verdict", join(tag("p", {"class": "lede"}, sentence(payload)), _card(payload["criteria"]))),
        ("faithfulness", "Faithfulness, as papers define it", _faithfulness(payload)),
        ("completeness", "Completeness", _completeness(payload)),
        ("minimality", "Minimality", _minimality(payload["minimality"])),
    ]
    if payload["single_edges"]:
        parts.append(("edges", "Single edges", _edges(payload["single_edges"])))
    if payload["auc"]:
        parts.append(("sizes", "Faithfulness by size", _sizes(payload)))
    if payload["robustness"]:
        parts.append(("robustness", "Backups, other prompts, tasks and methods", _robustness(payload["robustness"])))
    if payload["known"]:
        rows = [[name, formats.fixed(value, 3)] for name, value in payload["known"].items()]
        parts.append(("known", "Against the true circuit", shell.table(["measure", "value"], rows, (1,))))
    return shell.page(payload, parts)


def sentence(payload: Mapping[str, Any]) -> str:
    """The verdict in one sentence."""
    counts = {kind: sum(one["verdict"] == kind for one in payload["criteria"]) for kind in SIGNS}
    size = formats.count(payload["edges"])
    return (
        f"Of {len(payload['criteria'])} criteria the circuit of {size} edges passes {counts['pass']}, fails "
        f"{counts['fail']}, and on {counts['unclear']} the data do not tell."
    )


def value_of(criterion: Mapping[str, Any]) -> str:
    """A criterion's number with its interval."""
    value = formats.finite(criterion["value"])
    if value is None:
        return formats.MISSING
    return f"{formats.rounded(value, 3)} {formats.interval(criterion['low'], criterion['high'], 3)}".strip()


def _card(criteria: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [
        [
            f"{SIGNS[one['verdict']]} {one['verdict']}",
            one["name"],
            value_of(one),
            one["threshold"],
            join(one["null"], *([tag("br"), tag("span", {"class": "note"}, one["note"])] if one["note"] else [])),
        ]
        for one in criteria
    ]
    return shell.table(["verdict", "criterion", "value", "passes at", "beside"], rows, (2,))


def _faithfulness(payload: Mapping[str, Any]) -> Markup:
    rows = [[name, formats.estimate(one), str(one["unit"])] for name, one in payload["variants"].items()]
    parts = [shell.table(["definition", "value", "unit"], rows, (1,))]
    nulls = [
        [name, str(len(values)), formats.rounded(sum(values) / len(values), 3), formats.rounded(max(values), 3)]
        for name, values in payload["nulls"].items()
        if values
    ]
    parts.append(tag("h3", None, "Circuits made by chance"))
    parts.append(shell.table(["kind", "circuits", "mean faithfulness", "largest"], nulls, (1, 2, 3)))
    if payload["templates"]:
        rows = [[name, formats.estimate(one)] for name, one in payload["templates"].items()]
        parts += [tag("h3", None, "By template"), shell.table(["template", "faithfulness"], rows, (1,))]
    if payload["spread"]:
        rows = [[name, formats.fixed(value, 3)] for name, value in payload["spread"].items()]
        parts += [tag("h3", None, "Over prompts"), shell.table(["prompt", "faithfulness"], rows, (1,))]
    if payload["ablations"]:
        rows = [
            [one["name"], one["note"] if one["edges"] is None else formats.estimate(one["edges"])]
            for one in payload["ablations"]
        ]
        parts += [tag("h3", None, "Under other ablations"), shell.table(["ablation", "faithfulness"], rows, (1,))]
    return join(*parts)


def _sizes(payload: Mapping[str, Any]) -> Markup:
    """CPR and CMD, and the curve they are areas of."""
    found = payload["auc"]
    note = (
        "Areas of faithfulness f over the share p of edges. CPR is the integral of f (circuits by signed score), CMD "
        "that of |1 - f| (by size of the score); on the linear axis half the weight lies above p = .5."
    )
    rows = [
        ["linear axis", formats.fixed(found["cpr"], 3), formats.fixed(found["cmd"], 3)],
        ["logarithmic axis", formats.fixed(found["cpr_log"], 3), formats.fixed(found["cmd_log"], 3)],
    ]
    curve = [[f"{p:g}", formats.fixed(signed, 3), formats.fixed(size, 3)] for p, signed, size in payload["curve"]]
    heads = ["share of the edges", "f, by signed score", "f, by size"]
    return join(
        tag("p", {"class": "note"}, note),
        shell.table(["axis", "CPR", "CMD"], rows, (1, 2)),
        shell.table(heads, curve, (0, 1, 2)),
    )


def _edges(found: Mapping[str, Any]) -> Markup:
    """The edges that were tested one by one, least needed first."""
    useless = sorted(found["useless"])
    note = (
        f"{len(found['changes'])} edges of the circuit, left out one by one, against {len(useless)} edges of random "
        f"paths that were added (median change {formats.plain(useless[len(useless) // 2])}). "
        f"{len(found['unneeded'])} of them are no better than that."
    )
    ranked = sorted(found["changes"].items(), key=lambda item: item[1])
    rows = [
        [name, formats.plain(change), "no better than a useless edge" if name in found["unneeded"] else ""]
        for name, change in ranked[:SHOWN]
    ]
    return join(tag("p", {"class": "note"}, note), shell.table(["edge", "change of the metric", ""], rows, (1,)))


def _robustness(found: Mapping[str, Any]) -> Markup:
    """Tables of every section of `robustness`, or why there is none."""
    drawn = {
        "backups": ("Heads knocked out, and who took over", _backups),
        "across": ("On other prompts and tasks", _across),
        "stability": ("On resampled prompts", _stability),
        "methods": ("Overlap of methods (Jaccard of edges)", _methods),
    }
    parts = []
    for name, (title, draw) in drawn.items():
        section = found.get(name, {"note": "not measured"})
        content = tag("p", {"class": "note"}, section["note"]) if "note" in section else draw(section)
        parts += [tag("h3", None, title), content]
    return join(*parts)


def _backups(found: Mapping[str, Any]) -> Markup:
    note = (
        f"Knocked out ({found['ablation']}): {', '.join(found['knocked'])}. Metric {formats.estimate(found['intact'])} "
        f"before, {formats.estimate(found['left'])} after; without any reaction it would have lost "
        f"{formats.estimate(found['direct'])}, the others gave {formats.estimate(found['repaired'])} back. "
        f"Backups: {', '.join(found['backups']) or 'none'}."
    )
    rows = [
        [
            one["name"],
            formats.estimate(one["before"]),
            formats.estimate(one["after"]),
            formats.estimate(one["growth"]),
            "backup" if one["name"] in found["backups"] else "",
        ]
        for one in found["reactions"][:10]
    ]
    risen = ", ".join(one["name"] for one in found["research"]["rises"][:8])
    heads = ["part", "direct effect before", "after", "growth", ""]
    return join(
        tag("p", {"class": "note"}, note),
        shell.table(heads, rows, (1, 2, 3)),
        tag("p", {"class": "note"}, f"Searched again without them, these gained most: {risen}."),
    )


def _across(found: Mapping[str, Any]) -> Markup:
    note = "Faithfulness of the circuit of each row on the prompts of each column; the first row is this circuit."
    rows = [
        [name, *(formats.fixed(one["value"], 2) for one in row)]
        for name, row in zip(found["names"], found["faithfulness"], strict=True)
    ]
    edges = [formats.fixed(value, 2) for value in found["overlap"]["edges"][0]]
    rows.append(["edges shared with the first search", *edges])
    names = list(found["names"])
    return join(tag("p", {"class": "note"}, note), shell.table(["circuit of", *names], rows, range(1, len(names) + 1)))


def _stability(found: Mapping[str, Any]) -> Markup:
    kinds = {
        "edges": "edges",
        "nodes": "nodes",
        "ranks": "rank correlation of edges",
        "node_ranks": "rank correlation of nodes",
        "edges_halves": "edges, disjoint halves",
    }
    rows = [
        [words, formats.fixed(found[name]["mean"], 3), formats.interval(found[name]["low"], found[name]["high"], 3)]
        for name, words in kinds.items()
    ]
    chance = formats.fixed(found["chance_edges"], 3)
    note = f"Jaccard with the circuit of all prompts; random circuits share {chance} of their edges."
    return join(tag("p", {"class": "note"}, note), shell.table(["of", "mean", "95 % of draws"], rows, (1,)))


def _methods(found: Mapping[str, Any]) -> Markup:
    rows = [
        [name, *(formats.fixed(value, 2) for value in row)]
        for name, row in zip(found["names"], found["edges"], strict=True)
    ]
    return shell.table(["", *found["names"]], rows, range(1, len(found["names"]) + 1))


def _completeness(payload: Mapping[str, Any]) -> Markup:
    found = payload["completeness"]
    if not found:
        return tag("p", {"class": "note"}, "No subsets were measured.")
    note = (
        "Each mark is a set of nodes knocked out of the circuit and of the model. On the diagonal both suffer alike; "
        "off it the model has parts that the circuit lacks. Circles: random sets; squares: groups; crosses: the worst "
        "sets found."
    )
    figure = tag("figure", None, tag("div", {"class": "scroll"}, scatter(found, str(payload["unit"]))))
    return join(tag("p", {"class": "note"}, note), figure)


def scatter(found: Sequence[Mapping[str, Any]], unit: str) -> Markup:
    """F(C without K) over F(M without K)."""
    pairs = [(formats.finite(one["model"]), formats.finite(one["circuit"]), one) for one in found]
    known = [(x, y, one) for x, y, one in pairs if x is not None and y is not None]
    ends = [value for x, y, _ in known for value in (x, y)] or [0.0, 1.0]
    low, high = min(ends), max(ends)
    pad = (high - low or 1.0) * 0.06
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        return (value - low) / (high - low) * (SIDE - EDGE - 16)

    marks = []
    for x, y, one in known:
        across, up = EDGE + place(x), SIDE - EDGE - place(y)
        words = f"{one['kind']}, {len(one['nodes'])} nodes: circuit {formats.plain(y)}, model {formats.plain(x)}"
        marks.append(_mark(str(one["kind"]), across, up, words))
    corner: Attributes = {"x1": EDGE, "y1": SIDE - EDGE, "x2": SIDE - 16, "y2": 16.0}
    labels = [
        tag(
            "text",
            {"x": (EDGE + SIDE) / 2, "y": SIDE - 10, "text-anchor": "middle", "fill": "var(--muted)"},
            f"model without K, {unit}",
        ),
        tag(
            "text",
            {
                "x": 14.0,
                "y": SIDE / 2,
                "fill": "var(--muted)",
                "text-anchor": "middle",
                "transform": f"rotate(-90 14 {SIDE / 2:.0f})",
            },
            f"circuit without K, {unit}",
        ),
        *(
            tag(
                "text",
                {"x": EDGE + place(v), "y": SIDE - EDGE + 16, "text-anchor": "middle", "fill": "var(--muted)"},
                formats.rounded(v, 1),
            )
            for v in (low + pad, high - pad)
        ),
        *(
            tag(
                "text",
                {"x": EDGE - 6, "y": SIDE - EDGE - place(v) + 4, "text-anchor": "end", "fill": "var(--muted)"},
                formats.rounded(v, 1),
            )
            for v in (low + pad, high - pad)
        ),
    ]
    frame: Attributes = {"x": EDGE, "y": 16.0, "width": SIDE - EDGE - 16, "height": SIDE - EDGE - 16}
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig",
            "viewBox": f"0 0 {SIDE:.0f} {SIDE:.0f}",
            "width": SIDE,
            "height": SIDE,
            "role": "img",
            "font-size": 11,
            "aria-label": "Metric of the circuit over metric of the model, the same nodes knocked out of both",
            "font-family": "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
        },
        tag("rect", {"class": "backdrop", "width": SIDE, "height": SIDE, "fill": "var(--panel)"}),
        tag("rect", frame | {"fill": "none", "stroke": "var(--line)"}),
        tag("line", corner | {"stroke": "var(--muted)", "stroke-dasharray": "3 4"}),
        *labels,
        *marks,
    )


def _mark(kind: str, x: float, y: float, words: str) -> Markup:
    paint: Attributes = {"fill": "none", "stroke": "var(--helps)", "stroke-width": 1.6}
    title = tag("title", None, words)
    if kind == "random":
        return tag("circle", {"cx": x, "cy": y, "r": 3.5} | paint, title)
    if kind == "greedy":
        cross = f"M{x - 4:.1f} {y - 4:.1f}L{x + 4:.1f} {y + 4:.1f}M{x - 4:.1f} {y + 4:.1f}L{x + 4:.1f} {y - 4:.1f}"
        return tag("path", paint | {"d": cross, "stroke": "var(--hurts)"}, title)
    return tag("rect", {"x": x - 3.4, "y": y - 3.4, "width": 6.8, "height": 6.8} | paint, title)


def _minimality(scores: Mapping[str, float]) -> Markup:
    ranked = sorted(scores.items(), key=lambda item: formats.finite(item[1]) or 0.0)
    rows = [[name, formats.fixed(value, 4)] for name, value in ranked[:SHOWN]]
    note = (
        "What the circuit loses without each node, or without all edges into a reader, least first; "
        f"{min(SHOWN, len(ranked))} of {len(ranked)} parts."
    )
    heads = ["part", "change as a share of the gap"]
    return join(tag("p", {"class": "note"}, note), shell.table(heads, rows, (1,)))
