"""Pages of information flow routes: token by layer, with a threshold to slide, and importances over a corpus."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.report import formats, shell
from circuitome.report.html import asset
from circuitome.report.markup import Attributes, Markup, join, tag
from circuitome.runs.store import Run

COLUMN, ROW, LEFT, TOP, FOOT = 58.0, 26.0, 46.0, 34.0, 96.0
"""Size of a token's column and a block's row, and room for labels, in pixels."""
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def trace_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `trace` run."""
    manifest = run.manifest
    return {
        "title": f"Routes of {json.dumps(manifest['prompt'], ensure_ascii=False)}",
        "command": manifest["command"],
        "sign": manifest["sign"],
        "routes": manifest["results"]["routes"],
        "manifest": {key: value for key, value in manifest.items() if key != "results"},
    }


def render_trace(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: `title`, `command`, `sign`, `manifest`, and `routes` as a trace run has them."""
    parts: list[shell.Section] = []
    for index, route in enumerate(payload["routes"]):
        parts.append((f"flow-{index}", heading(route), _route(index, route, str(payload["sign"]))))
    data = {"routes": [{key: route[key] for key in ("tokens", "target", "edges")} for route in payload["routes"]]}
    return shell.page(payload, parts, asset("routes.js"), data)


def quoted(text: str) -> str:
    """A token with its spaces visible."""
    return json.dumps(text, ensure_ascii=False)


def visible(text: str) -> str:
    """A token with signs in place of spaces and line breaks."""
    return text.replace(" ", "\N{OPEN BOX}").replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}")


def heading(route: Mapping[str, Any]) -> str:
    """What the route leads to."""
    if route["contrast"]:
        first, second = map(quoted, route["contrast"])
        return f"{first} against {second} after {quoted(route['tokens'][route['position']])}"
    best = route["generated"] or (route["predictions"][0][0] if route["predictions"] else "")
    return f"{quoted(best)} after {quoted(route['tokens'][route['position']])}"


def on_route(route: Mapping[str, Any], threshold: float) -> list[int]:
    """Indices of the edges on the route at a threshold: the same as `onRoute` of the page's script."""
    into: dict[str, list[int]] = {}
    for index, edge in enumerate(route["edges"]):
        into.setdefault(edge["target"], []).append(index)
    seen, todo, found = {route["target"]}, [route["target"]], []
    while todo:
        for index in into.get(todo.pop(), []):
            edge = route["edges"][index]
            if edge["kind"] == "reads" or edge["importance"] >= threshold:
                found.append(index)
                if edge["source"] not in seen:
                    seen.add(edge["source"])
                    todo.append(edge["source"])
    return sorted(found)


def _route(index: int, route: Mapping[str, Any], sign: str) -> Markup:
    lowest, shown = route["threshold"], route["shown_threshold"]
    slider = tag(
        "div",
        {"class": "controls js"},
        tag(
            "label",
            {"class": "slider"},
            tag("span", None, "Threshold"),
            tag(
                "input",
                {
                    "type": "range",
                    "id": f"threshold-{index}",
                    "min": f"{lowest:g}",
                    "max": "0.5",
                    "step": "0.005",
                    "value": f"{shown:g}",
                },
            ),
        ),
        tag("output", {"id": f"readout-{index}"}, ""),
    )
    note = (
        f"{sign} Columns are tokens, rows blocks; a circle is the residual stream, a square an MLP, blue lines are "
        f"attention. Lines are as wide as they are important. Drawn at threshold {shown:g}."
    )
    guesses = ", ".join(f"{quoted(token)} {100 * p:.0f}\N{NO-BREAK SPACE}%" for token, p in route["predictions"])
    panel = tag("p", {"class": "note"}, "Click a line to see its heads.")
    return join(
        tag("p", {"class": "note"}, note),
        tag("p", {"class": "facts"}, f"Next token: {guesses}"),
        *([slider] if not route["renormalize"] and lowest < shown else []),
        tag(
            "div",
            {"class": "stage"},
            tag("figure", {"id": f"route-{index}"}, tag("div", {"class": "scroll"}, draw(route))),
            tag("aside", None, tag("div", {"class": "panel", "id": f"panel-{index}", "role": "status"}, panel)),
        ),
        tag("h3", None, "What heads and MLPs on the route say about the next token"),
        parts_table(route["parts"], "flow"),
        *(
            join(tag("h3", None, f"Neurons of {node}"), parts_table(neurons, "importance"))
            for node, neurons in route["neurons"].items()
        ),
    )


def parts_table(parts: Sequence[Mapping[str, Any]], what: str) -> Markup:
    """Parts with their importance and the tokens that they promote and suppress."""
    rows = []
    for part in parts:
        words = [
            ", ".join(f"{quoted(token)} {value:+.2f}" for token, value in part[key])
            for key in ("promotes", "suppresses")
        ]
        acts = [] if part["activation"] is None else [formats.fixed(part["activation"], 2)]
        rows.append([part["name"], formats.fixed(part["importance"], 4), *acts, *words])
    acts = ["activation"] if parts and parts[0]["activation"] is not None else []
    heads = ["part", what, *acts, "raises the logits of", "lowers the logits of"]
    return shell.table(heads, rows, range(1, 2 + len(acts)))


FITS = 1200.0
"""Width up to which a figure is scaled down to the page; wider ones scroll."""


def draw(route: Mapping[str, Any]) -> Markup:
    """Every kept edge and node; what is not on the route at the shown threshold is hidden."""
    shown = set(on_route(route, route["shown_threshold"] if not route["renormalize"] else 0.0))
    reached = {route["target"], *(route["edges"][i]["source"] for i in shown)}
    places = sorted({_position(node["id"]) for node in route["nodes"]})
    columns = {place: LEFT + COLUMN * (i + 0.5) for i, place in enumerate(places)}
    width, height = LEFT + COLUMN * len(places) + 10, TOP + ROW * route["layers"] + FOOT
    ground = height - FOOT

    def at(node: str) -> tuple[float, float]:
        kind, x = node.partition("@")[0], columns[_position(node)]
        layer = int("".join(letter for letter in kind.partition(".")[0] if letter.isdigit()))
        if kind.startswith("x"):
            return x, ground - ROW * layer
        if kind.startswith("mid"):
            return x, ground - ROW * (layer + 0.5)
        return x + (14.0 if ".bias" not in kind else -12.0), ground - ROW * (layer + 0.75)

    lines = [_line(route, i, at, i in shown) for i in sorted(range(len(route["edges"])), key=_on_top(route))]
    dots = [_dot(node, at(node["id"]), node["id"] in reached) for node in route["nodes"]]
    labels = [
        tag(
            "text",
            {"transform": f"translate({columns[p]:.1f} {ground + 16:.1f}) rotate(40)", "fill": "var(--ink)"},
            f"{p} {visible(route['tokens'][p])[:12]}",
        )
        for p in places
    ]
    labels += [
        tag("text", {"x": 8.0, "y": ground - ROW * layer + 4, "fill": "var(--muted)"}, str(layer))
        for layer in range(0, route["layers"] + 1, 1 if route["layers"] <= 12 else 5)
    ]
    top = at(route["target"])
    labels.append(
        tag(
            "text",
            {"x": top[0], "y": top[1] - 12, "text-anchor": "middle", "fill": "var(--ink)"},
            heading(route).partition(" after")[0],
        )
    )
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig fit" if width <= FITS else "fig",
            "viewBox": f"0 0 {width:.0f} {height:.0f}",
            "width": width,
            "height": height,
            "role": "img",
            "font-size": 11,
            "font-family": FONT,
            "aria-label": "Tokens across, blocks up: the nodes and edges of the route",
        },
        tag("rect", {"class": "backdrop", "width": width, "height": height, "fill": "var(--panel)"}),
        *lines,
        *dots,
        *labels,
    )


def _position(node: str) -> int:
    return int(node.rpartition("@")[2])


def _on_top(route: Mapping[str, Any]) -> Any:
    """Thin lines first, so that strong ones lie on top."""
    return lambda index: route["edges"][index]["importance"]


COLOURS = {"attention": "var(--helps)", "stay": "var(--faint)", "mlp": "var(--hurts)", "reads": "var(--hurts)"}


def _line(route: Mapping[str, Any], index: int, at: Any, shown: bool) -> Markup:
    edge = route["edges"][index]
    (x1, y1), (x2, y2) = at(edge["source"]), at(edge["target"])
    strongest = sorted(((v, h) for h, v in enumerate(edge["heads"]) if v > 0), reverse=True)[:4]
    words = f"{edge['source']} to {edge['target']}: {edge['importance']:.3f}"
    words += "".join(f", h{head} {value:.3f}" for value, head in strongest)
    words += f", residual {edge['residual']:.3f}" if edge["residual"] else ""
    look: Attributes = {
        "stroke": COLOURS.get(edge["kind"], "var(--muted)"),
        "stroke-width": 0.8 + 4.5 * edge["importance"],
        "opacity": 0.35 + 0.65 * min(1.0, 2 * edge["importance"]),
        "data-edge": str(index),
        "hidden": None if shown else "",
    }
    return tag("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2} | look, tag("title", None, words))


def _dot(node: Mapping[str, Any], place: tuple[float, float], shown: bool) -> Markup:
    size = 1.8 + 4.0 * float(node["flow"]) ** 0.5
    look: Attributes = {"data-node": node["id"], "hidden": None if shown else "", "fill": "var(--ink)"}
    title = tag("title", None, f"{node['id']}, flow {node['flow']:.3f}")
    if node["id"][0] == "m" and not node["id"].startswith("mid"):
        square: Attributes = {"x": place[0] - size, "y": place[1] - size, "width": 2 * size, "height": 2 * size}
        return tag("rect", square | look | {"fill": "var(--hurts)"}, title)
    return tag("circle", {"cx": place[0], "cy": place[1], "r": size} | look, title)


def routes_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `routes` run."""
    manifest = run.manifest
    return {
        "title": f"Importances over {manifest['texts']} texts in {manifest['model']['name']}",
        "command": manifest["command"],
        "sign": manifest["sign"],
        **manifest["results"],
        "manifest": {key: value for key, value in manifest.items() if key != "results"},
    }


def render_routes(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: `groups`, `general`, `sign`, `title`, `command`, `manifest`."""
    groups = payload["groups"]
    general = [
        [one["head"], *(formats.estimate(one["by_group"][group["name"]]) for group in groups)]
        for one in payload["general"]
    ]
    names = [f"{group['name']} ({group['tokens']:,} tokens)" for group in groups]
    parts: list[shell.Section] = [
        (
            "general",
            "Heads that matter in every group" if len(groups) > 1 else "Heads that matter most",
            join(
                tag("p", {"class": "note"}, str(payload["sign"])),
                shell.table(["head", *names], general, range(1, 1 + len(names))),
            ),
        )
    ]
    for index, group in enumerate(groups):
        heads = ["block", *(f"h{i}" for i in range(len(group["heads"][0]))), "mlp"]
        rows = [
            [str(layer), *(formats.rounded(value, 3) for value in (*row, mlp))]
            for layer, (row, mlp) in reversed(list(enumerate(zip(group["heads"], group["mlps"], strict=True))))
        ]
        own = [[one["head"], formats.fixed(one["lead"], 4), formats.estimate(one["mean"])] for one in group["specific"]]
        lead = (
            []
            if not own
            else [
                tag("h3", None, "Heads of this group: lead over every other group"),
                shell.table(["head", "lead", "importance here"], own, (1, 2)),
            ]
        )
        table = tag(
            "details", None, tag("summary", None, "All heads and MLPs"), shell.table(heads, rows, range(1, len(heads)))
        )
        parts.append((f"group-{index}", names[index], join(*lead, table)))
    return shell.page(payload, parts)
