"""The page of a stream: loss by position under three cache policies, and the attention sinks behind it."""

from collections.abc import Mapping
from typing import Any

from circuitome.report import formats, shell
from circuitome.report.heatmap import heatmap_svg
from circuitome.report.lines import Point, lines_svg
from circuitome.report.markup import Markup, join, tag
from circuitome.runs.store import Run


def stream_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `stream` run."""
    manifest = run.manifest
    return {
        "title": f"A long text in {manifest['model']['name']}",
        "command": manifest["command"],
        "sign": manifest["sign"],
        "text": manifest["text"],
        "cache": manifest["cache"],
        **manifest["results"],
        "manifest": {key: value for key, value in manifest.items() if key not in ("results", "sign")},
    }


def render_stream(payload: Mapping[str, Any]) -> str:
    """The page, from plain JSON data: the same data gives the same text.

    `payload` holds `title`, `command`, `sign`, `text`, `cache`, `manifest` and, as the run has them, `policies`,
    `against_dense`, `stretches` and `sink_mass`.
    """
    return shell.page(
        payload,
        [
            ("result", "Result", _result(payload)),
            ("positions", "Loss by position", _positions(payload)),
            ("sinks", "Attention to the first tokens", _sinks(payload["sink_mass"])),
        ],
    )


def sentence(payload: Mapping[str, Any]) -> str:
    """What evicting the first tokens does, in one sentence."""
    cache, after = payload["cache"], payload["policies"]
    dense, window, kept = (after[name]["after"]["value"] for name in ("dense", "window", "sinks and window"))
    return (
        f"From token {formats.count(cache['first_evicted_at'])} on, the loss is {formats.fixed(dense, 3)} nats a token "
        f"with everything in the cache, {formats.fixed(window, 3)} with the latest tokens alone, and "
        f"{formats.fixed(kept, 3)} when the first {cache['sinks']} are kept beside the latest {cache['window']}."
    )


def _result(payload: Mapping[str, Any]) -> Markup:
    rows = []
    for name, one in payload["policies"].items():
        more = payload["against_dense"].get(name)
        rows.append(
            [
                name,
                formats.estimate(one["before"]),
                formats.estimate(one["after"]),
                formats.estimate(more) if more else "",
                formats.rounded(one["perplexity_before"], 2),
                formats.rounded(one["perplexity_after"], 2),
            ]
        )
    heads = ["cache", "loss before", "loss after", "more than dense, after", "perplexity before", "perplexity after"]
    first = ", ".join(repr(token) for token in payload["text"]["sinks"]) or "none"
    note = f"{payload['sign']} Before and after the first eviction. Tokens kept as sinks: {first}."
    return join(
        tag("p", {"class": "lede"}, sentence(payload)),
        shell.table(heads, rows, (1, 2, 3, 4, 5)),
        tag("p", {"class": "note"}, note),
    )


def points_of(payload: Mapping[str, Any]) -> dict[str, list[Point]]:
    """The points of the figure, one line a policy."""
    return {
        name: [
            Point(
                row["start"],
                row["end"],
                row[name]["value"],
                formats.finite(row[name]["low"]),
                formats.finite(row[name]["high"]),
            )
            for row in payload["stretches"]
        ]
        for name in payload["policies"]
    }


def stream_svg(payload: Mapping[str, Any]) -> Markup:
    """Loss over position, one line a policy."""
    at = payload["cache"]["first_evicted_at"]
    label = "position in the text, tokens"
    return lines_svg(points_of(payload), x_label=label, y_label="loss, nats a token", mark=(at, "first eviction"))


def _positions(payload: Mapping[str, Any]) -> Markup:
    names = list(payload["policies"])
    rows = [
        [f"{row['start']:,} to {row['end'] - 1:,}", *(formats.estimate(row[name]) for name in names)]
        for row in payload["stretches"]
    ]
    numbers = shell.table(["tokens", *names], rows, tuple(range(1, len(names) + 1)))
    return join(
        tag("figure", None, tag("div", {"class": "scroll"}, stream_svg(payload))),
        tag("details", None, tag("summary", None, "The numbers as a table"), numbers),
    )


def _sinks(found: Mapping[str, Any]) -> Markup:
    parts: list[Markup] = []
    for index, first in enumerate(found["first"]):
        mean, layers = found["heads"][index], found["layers"][index]
        what = "the first token" if first == 1 else f"the first {first} tokens"
        effects = {
            "title": f"Attention to {what}",
            "unit": "share of attention",
            "rows": [f"a{layer}" for layer in range(len(mean))],
            "columns": [*(f"h{head}" for head in range(len(mean[0]))), "mean"],
            "mean": [[*row, one["value"]] for row, one in zip(mean, layers, strict=True)],
            "low": [[*[None] * len(row), one["low"]] for row, one in zip(mean, layers, strict=True)],
            "high": [[*[None] * len(row), one["high"]] for row, one in zip(mean, layers, strict=True)],
        }
        even = formats.fixed(found["uniform"][index], 3)
        figure = tag("div", {"class": "scroll"}, heatmap_svg(effects, f"sinks-{index}"))
        parts += [tag("h3", None, f"To {what}; even attention would give {even}"), tag("figure", None, figure)]
    note = (
        f"Mean over queries from position {found['start']} on, in {found['texts']} stretches of the text. "
        f"{formats.percent({'value': found['share_above_0.3']})} of heads give 30 % or more to the first token."
    )
    return join(tag("p", {"class": "note"}, note), *parts)
