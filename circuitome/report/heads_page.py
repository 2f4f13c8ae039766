"""Pages about single heads: the atlas, and induction with what goes without its heads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from circuitome.report import formats, heatmap, sections, shell
from circuitome.report.markup import Attributes, Markup, join, tag
from circuitome.runs.store import Run

OPEN_MAPS = 3
"""Maps shown without opening their folds."""
STRONGEST = 5
"""Heads of a score in the table."""
KINDS = {
    "previous": ("P", "look at the token before"),
    "duplicate": ("D", "look at earlier copies of a token"),
    "induction": ("I", "look behind earlier copies of a token (induction)"),
    "self": ("=", "look at the token itself"),
    "sink4": ("s", "only rest on the first four positions"),
}
"""Scores by which a head is called something: its sign, and what such heads do."""
CALLED = 0.3
"""Share of attention that the lower end of the interval must reach for that."""
WIDE, HIGH, EDGE = 620.0, 240.0, 44.0
"""Size of the drawing of losses, and the room for its labels."""
LINES = {"whole": "var(--ink)", "without": "var(--hurts)", "random": "var(--helps)"}
"""Colours of the lines of losses."""
NAMES = {"whole": "whole model", "without": "without the strongest", "random": "without random ones"}


def heads_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `heads` run."""
    manifest = run.manifest
    scores = manifest["results"]["scores"]
    return {
        "title": f"Heads of {manifest['model']['name']}",
        "command": manifest["command"],
        "maps": [score_map(score) for score in scores.values()],
        "scores": list(scores.values()),
        "top": manifest["results"]["top"],
        "kinds": kinds(scores),
        "manifest": {key: value for key, value in manifest.items() if key != "results"},
    }


def induction_payload(run: Run) -> dict[str, Any]:
    """The data of the page of an `induction` run."""
    manifest = run.manifest
    results = manifest["results"]
    scores = [score for score in (results["prefix"], results["copying"]) if score]
    return {
        "title": f"Induction in {manifest['model']['name']}",
        "command": manifest["command"],
        "maps": [score_map(score) for score in scores],
        **{key: value for key, value in results.items() if key not in ("prefix", "copying")},
        "manifest": {key: value for key, value in manifest.items() if key != "results"},
    }


def score_map(score: Mapping[str, Any]) -> dict[str, Any]:
    """A score as a map with layers as rows and heads as columns."""
    return {
        "title": f"{score['name']}: {score['what']}",
        "unit": score["unit"],
        "rows": [f"a{layer}" for layer in range(len(score["mean"]))],
        "columns": [f"h{head}" for head in range(len(score["mean"][0]))],
        **{key: score[key] for key in ("mean", "low", "high", "chance")},
    }


def kinds(scores: Mapping[str, Any]) -> list[list[str]]:
    """The sign of each head [layer][head]: what it does most beside resting; "" where nothing reaches the threshold."""
    known = {name: scores[name] for name in KINDS if name in scores}
    first = next(iter(scores.values()))["mean"]
    return [[_kind(known, layer, head) for head in range(len(first[layer]))] for layer in range(len(first))]


def _kind(scores: Mapping[str, Any], layer: int, head: int) -> str:
    found = [
        (score["mean"][layer][head], name)
        for name, score in scores.items()
        if (_lower(score, layer, head) or 0.0) >= CALLED
    ]
    elsewhere = [one for one in found if one[1] != "sink4"]  # a head rests there whenever its rule finds nothing
    return KINDS[max(elsewhere or found)[1]][0] if found else ""


def _lower(score: Mapping[str, Any], layer: int, head: int) -> float | None:
    low = formats.finite(score["low"][layer][head])
    return formats.finite(score["mean"][layer][head]) if low is None else low


def kinds_sentence(found: Sequence[Sequence[str]]) -> str:
    """How many heads are of each kind."""
    signs = [sign for row in found for sign in row]
    parts = [f"{signs.count(sign)} {what}" for sign, what in KINDS.values() if sign in signs]
    if not parts:
        return f"None of {len(signs)} heads follows a simple rule."
    return f"Of {len(signs)} heads {', '.join(parts)}; {signs.count('')} follow no such rule."


def top_rows(payload: Mapping[str, Any]) -> list[list[str]]:
    """Score, what it says, chance, noise, and its strongest heads with intervals."""
    return [
        [
            str(score["name"]),
            str(score["what"]),
            formats.plain(score["chance"]),
            formats.plain(score["random_ceiling"]),
            strongest_words(payload["top"][score["name"]][:STRONGEST]),
        ]
        for score in payload["scores"]
    ]


def strongest_words(heads: Sequence[Mapping[str, Any]]) -> str:
    """Heads with value and interval in a line that breaks between heads only."""
    return ", ".join(_head(one).replace(" ", "\N{NO-BREAK SPACE}") for one in heads)


def _head(one: Mapping[str, Any]) -> str:
    low, high = formats.finite(one["low"]), formats.finite(one["high"])
    ends = "" if low is None or high is None else f"[{formats.rounded(low, 2)}, {formats.rounded(high, 2)}]"
    return f"{one['label']} {formats.rounded(one['mean'], 2)} {ends}".strip()


def render_heads(payload: Mapping[str, Any]) -> str:
    """The page of the atlas, from plain JSON data: the same data gives the same text."""
    note = (
        f"A head is counted where a share of attention is at least {CALLED} at the lower end of its interval. "
        "Chance: even attention over all a head may see, or 0. Noise: the largest value of any head when each weight "
        "matrix is noise of the same size."
    )
    heads = ["score", "what it says", "chance", "noise", f"strongest {STRONGEST} heads with 95 % intervals"]
    result = join(
        tag("p", {"class": "lede"}, kinds_sentence(payload["kinds"])),
        tag("p", {"class": "note"}, note),
        shell.table(heads, top_rows(payload), (2, 3)),
    )
    return shell.page(payload, [("result", "Result", result), ("maps", "Scores of all heads", _maps(payload["maps"]))])


def render_induction(payload: Mapping[str, Any]) -> str:
    """The page of induction, from plain JSON data: the same data gives the same text."""
    return shell.page(
        payload,
        [
            ("result", "Result", _induction(payload)),
            ("losses", "Loss by position", _losses(payload)),
            ("maps", "Scores of all heads", _maps(payload["maps"])),
        ],
    )


def induction_sentence(payload: Mapping[str, Any]) -> str:
    """What switching off the strongest heads does, beside random ones."""
    effects, heads = payload["effects"], payload["heads"]
    return (
        f"Without {', '.join(heads)} the loss on repeated tokens rises by {formats.estimate(effects['without'])} nats "
        f"a token, without as many random heads by {formats.estimate(effects['random'])}."
    )


def effect_rows(payload: Mapping[str, Any]) -> list[list[str]]:
    """What is switched off, the rise of the loss on repeated tokens, and that of the in-context-learning score."""
    count = len(payload["heads"])
    names = {
        "without": f"the {count} strongest",
        "random": f"{count} random ones, mean of {len(payload['random_heads'])} draws",
        "difference": "the difference",
    }
    return [
        [name, formats.estimate(payload["effects"][part]), formats.estimate(payload["context_effects"].get(part))]
        for part, name in names.items()
    ]


def _induction(payload: Mapping[str, Any]) -> Markup:
    titles = {
        "first_half": ("First time", "loss on random tokens said for the first time"),
        "second_half": ("Again", "loss when they are said again"),
        "advantage": ("Advantage", "the first minus the second"),
        "in_context": ("In-context learning", "on text: loss late minus loss early in a piece"),
    }
    cards = [
        sections.tile(title, formats.plain(one["value"]), formats.bounds(one), "nats", note)
        for name, (title, note) in titles.items()
        if (one := payload.get(name))
    ]
    heads = ["switched off", "rise of the loss on repeated tokens, nats", "change of in-context learning, nats"]
    note = (
        f"Means over {payload['sequences']} sequences of {payload['period']} random tokens said {payload['repeats']} "
        f"times and {payload['pieces']} pieces of text. Heads switched off write nothing; patterns stay as they were."
    )
    return join(
        tag("p", {"class": "lede"}, induction_sentence(payload)),
        tag("div", {"class": "cards"}, *cards),
        shell.table(heads, effect_rows(payload), (1, 2)),
        tag("p", {"class": "note"}, note),
    )


def _losses(payload: Mapping[str, Any]) -> Markup:
    note = "Mean loss of each token of the repeated sequences. "
    note += "; ".join(f"{word}: {NAMES[name]}" for name, word in zip(LINES, ("dark", "orange", "blue"), strict=True))
    figure = tag("figure", None, tag("div", {"class": "scroll"}, losses_svg(payload["loss_by_position"])))
    return join(tag("p", {"class": "note"}, note + "."), figure)


def losses_svg(lines: Mapping[str, Sequence[float]]) -> Markup:
    """Loss over position, one line each for the whole model, without the strongest heads, without random ones."""
    values = [value for line in lines.values() for one in line if (value := formats.finite(one)) is not None]
    highest, count = max(values, default=1.0) or 1.0, max(map(len, lines.values()))

    def place(index: int, value: float) -> str:
        x = EDGE + index / max(1, count - 1) * (WIDE - EDGE - 12)
        return f"{x:.1f} {HIGH - EDGE - value / highest * (HIGH - EDGE - 12):.1f}"

    drawn = [
        tag(
            "path",
            {"d": _path(line, place), "fill": "none", "stroke": LINES[name]} | {"stroke-width": 1.6},
            tag("title", None, NAMES[name]),
        )
        for name, line in lines.items()
    ]
    axis: Attributes = {"fill": "none", "stroke": "var(--faint)"}
    ticks = [
        tag("text", {"x": EDGE - 6, "y": HIGH - EDGE, "text-anchor": "end"}, "0"),
        tag("text", {"x": EDGE - 6, "y": 16.0, "text-anchor": "end"}, formats.fixed(highest, 1)),
        tag("text", {"x": EDGE, "y": HIGH - EDGE + 16}, "2nd token"),
        tag("text", {"x": WIDE - 12, "y": HIGH - EDGE + 16, "text-anchor": "end"}, f"token {count + 1}"),
        tag("text", {"x": EDGE, "y": HIGH - 10}, "loss in nats, by position in the sequence"),
    ]
    corner = f"M{EDGE:.0f} 10V{HIGH - EDGE:.0f}H{WIDE - 12:.0f}"
    return tag(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "class": "fig",
            "viewBox": f"0 0 {WIDE:.0f} {HIGH:.0f}",
            "width": WIDE,
            "height": HIGH,
            "role": "img",
            "aria-label": "Loss by position on repeated random tokens",
            "font-family": "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif",
            "font-size": 11,
        },
        tag("rect", {"class": "backdrop", "width": WIDE, "height": HIGH, "fill": "var(--panel)"}),
        tag("path", axis | {"d": corner}),
        tag("g", {"fill": "var(--muted)"}, *ticks),
        *drawn,
    )


def _path(line: Sequence[float | None], place: Callable[[int, float], str]) -> str:
    """A line through the values that are there."""
    known = [(i, value) for i, one in enumerate(line) if (value := formats.finite(one)) is not None]
    return "".join(f"{'ML'[i > 0]}{place(*point)}" for i, point in enumerate(known))


def _maps(maps: Sequence[Mapping[str, Any]]) -> Markup:
    note = "Layers go upwards. Outlined: the 95 % interval lies above chance, or leaves out 0 where chance is 0."
    figures = []
    for index, one in enumerate(maps):
        figure = tag("figure", None, tag("div", {"class": "scroll"}, heatmap.heatmap_svg(one, f"map-{index}")))
        title = heatmap.title_of(one)
        folded = tag("details", {"class": "map"}, tag("summary", None, title), figure)
        figures.append(folded if index >= OPEN_MAPS else join(tag("h3", None, title), figure))
    return join(tag("p", {"class": "note"}, note), *figures)
