"""The page of a search for retrieval heads: scores, which prompts were answered, and answers with heads masked."""

from collections.abc import Mapping
from typing import Any

from circuitome.report import formats, sections, shell
from circuitome.report.heatmap import heatmap_svg
from circuitome.report.markup import Markup, join, tag
from circuitome.runs.store import Run

NAMES = {
    "unmasked": "no head masked",
    "masked": "retrieval heads masked",
    "random": "random others masked",
    "masked_minus_random": "retrieval heads minus random others",
}
"""What the masking check compares."""


def retrieval_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `retrieval` run."""
    manifest = run.manifest
    return {
        "title": f"Retrieval heads of {manifest['model']['name']}",
        "command": manifest["command"],
        "sign": manifest["sign"],
        **manifest["results"],
        "manifest": {key: value for key, value in manifest.items() if key not in ("results", "sign")},
    }


def render_retrieval(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: the same data gives the same text.

    `payload` holds `title`, `command`, `sign`, `manifest` and, as the run has them, `conditional`, `successes`, `runs`,
    `heads`, `retrieval_heads`, `strong`, `never`, `threshold`, `top`, `map` and `masking`.
    """
    figure = tag("figure", None, tag("div", {"class": "scroll"}, heatmap_svg(payload["map"], "retrieval-map")))
    return shell.page(
        payload,
        [
            ("result", "Result", _result(payload)),
            ("heads", "Heads", join(figure, _top(payload))),
            ("masking", "Are they needed?", _masking(payload["masking"])),
            ("runs", "Prompts and answers", _runs(payload)),
        ],
    )


def sentence(payload: Mapping[str, Any]) -> str:
    """What was found, in one sentence or two."""
    count, runs = len(payload["retrieval_heads"]), len(payload["runs"])
    words = (
        f"{count} of {formats.count(payload['heads'])} heads score {payload['threshold']:g} or more; "
        f"the model answered {payload['successes']} of {runs} prompts."
    )
    return words if payload["conditional"] else f"{words} As it answered none, scores are over all prompts."


def verdict(masking: Mapping[str, Any]) -> str:
    """What masking did, in one sentence."""
    rows = masking["estimates"]["log_prob"]
    unmasked, masked, others = (rows[name]["value"] for name in ("unmasked", "masked", "random"))
    return (
        f"Masking the top {len(masking['heads'])} takes the right answer's log-probability from "
        f"{formats.fixed(unmasked, 2)} to {formats.fixed(masked, 2)} nats a token; as many random others, "
        f"{len(masking['draws'])} times, to {formats.fixed(others, 2)}."
    )


def _result(payload: Mapping[str, Any]) -> Markup:
    total, least = payload["heads"], payload["threshold"]
    cards = [
        sections.tile(
            "Retrieval heads", str(len(payload["retrieval_heads"])), "", "", f"score {least:g} or more, of {total}"
        ),
        sections.tile("Strong ones", str(payload["strong"]), "", "", "score above 0.5"),
        sections.tile("Never copied", str(payload["never"]), "", "", f"of {total} heads, in the counted runs"),
        sections.tile("Answered", str(payload["successes"]), "", "", f"of {len(payload['runs'])} prompts"),
    ]
    return join(
        tag("p", {"class": "lede"}, sentence(payload)),
        tag("p", {"class": "lede"}, verdict(payload["masking"])),
        tag("div", {"class": "cards"}, *cards),
        tag("p", {"class": "note"}, str(payload["sign"])),
    )


def _top(payload: Mapping[str, Any]) -> Markup:
    rows = [
        [
            tag("span", {"class": "name"}, str(one["label"])),
            formats.fixed(one["mean"], 3),
            formats.interval(one["low"], one["high"], 3) or "no interval",
            formats.fixed(one["hits"], 3),
            formats.percent({"value": one["frequency"]}),
        ]
        for one in payload["top"]
    ]
    heads = ["head", "score", "95 % interval", "hits per needle token", "runs in which it copied"]
    return shell.table(heads, rows, (1, 2, 3, 4))


def _masking(found: Mapping[str, Any]) -> Markup:
    how = {"zero": "their output is 0", "even": "they attend evenly to all that they may see"}[found["mode"]]
    when = {"decode": "once the prompt was read", "everywhere": "from the first token on"}[found["where"]]
    note = (
        f"Masked {when}: {how}. The random others are drawn from heads outside the top "
        f"{len(found['heads'])} and outside all retrieval heads. Masked: {', '.join(found['heads'])}."
    )
    names = {"log_prob": "log-probability of the right answer", "recall": "words of the right answer that were said"}
    rows = [
        [NAMES[condition], *(formats.estimate(found["estimates"][kind][condition]) for kind in names)]
        for condition in NAMES
    ]
    heads = ["", f"{names['log_prob']}, nats a token", f"{names['recall']}, share"]
    return join(shell.table(heads, rows, (1, 2)), tag("p", {"class": "note"}, note))


def success_grid(payload: Mapping[str, Any]) -> tuple[list[float], dict[int, list[tuple[int, int]]]]:
    """Depths, and by length how many prompts of each depth were answered, of how many."""
    runs = payload["runs"]
    depths = sorted({run["depth"] for run in runs})
    grid: dict[int, list[tuple[int, int]]] = {}
    for length in sorted({run["length"] for run in runs}):
        same = [[run for run in runs if run["length"] == length and run["depth"] == depth] for depth in depths]
        grid[length] = [(sum(run["recall"] > 0.5 for run in some), len(some)) for some in same]
    return depths, grid


def _runs(payload: Mapping[str, Any]) -> Markup:
    depths, grid = success_grid(payload)
    rows = [[f"{length:,}", *(f"{good} of {all_}" for good, all_ in cells)] for length, cells in grid.items()]
    answered = shell.table(["tokens", *(f"depth {100 * depth:.0f} %" for depth in depths)], rows)
    said = [
        [
            f"{run['length']:,}",
            f"{100 * run['depth']:.0f} %",
            run["expected"],
            run["said"] or "(nothing)",
            formats.fixed(run["recall"], 2),
        ]
        for run in payload["runs"]
    ]
    every = shell.table(["tokens", "depth", "expected", "said", "recall"], said, (0, 1, 4))
    return join(answered, tag("details", None, tag("summary", None, f"All {len(said)} answers"), every))
