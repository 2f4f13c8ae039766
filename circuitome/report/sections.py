"""The parts of the page that are plain HTML: headline, tables, prompts and what was done."""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

from circuitome.report import curve, formats
from circuitome.report.circuit import Drawing, DrawnEdge
from circuitome.report.markup import Markup, join, tag

FIRST_ROWS = 25
"""Edges in the table before a script has run."""
OPEN_PROMPTS = 4
"""Prompt pairs shown without opening the fold."""


def subject(payload: Mapping[str, Any]) -> Markup:
    """Title, and the task, model and method in a line."""
    manifest = payload.get("manifest") or {}
    parts = [(kind, (manifest.get(kind) or {}).get("name")) for kind in ("task", "model", "method")]
    if manifest.get("created"):
        parts.append(("created", manifest["created"]))
    facts = [tag("span", None, f"{kind} ", tag("b", None, str(name))) for kind, name in parts if name]
    return join(tag("h1", None, str(payload["title"])), tag("p", {"class": "facts"}, *facts))


def sentence(headline: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    size, total = formats.count(headline.get("edges")), formats.count(headline.get("all_edges"))
    share, chance = _known(headline, "faithfulness"), _known(headline, "random")
    if share is None:
        return f"The circuit has {size} of {total} edges; its faithfulness was not measured."
    words = f"{size} of {total} edges carry {formats.percent(share)} of the clean-corrupted gap"
    if chance is None:
        return f"{words}."
    return f"{words}; random circuits of that size carry {formats.percent(chance)}."


def _known(headline: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    found = headline.get(name)
    return found if found and formats.finite(found.get("value")) is not None else None


_CARDS = (
    ("faithfulness", "Faithfulness", "share of the gap that the circuit keeps; 1 is the whole model"),
    ("random", "Random circuits", "the same share for random circuits of that size"),
    ("clean", "Clean", "metric of the whole model on clean prompts"),
    ("circuit", "Circuit", "metric with only the circuit running clean"),
    ("corrupted", "Corrupted", "metric on corrupted prompts"),
)


def headline(payload: Mapping[str, Any]) -> Markup:
    """The sentence, the number cards, and what the intervals are."""
    numbers = payload["headline"]
    cards = [_card(title, note, numbers[name]) for name, title, note in _CARDS if numbers.get(name)]
    counts = f"of {formats.count(numbers.get('all_edges'))}; they touch {formats.count(numbers.get('nodes'))} nodes"
    cards.append(tile("Edges", formats.count(numbers.get("edges")), "", "", counts))
    return join(
        tag("p", {"class": "lede"}, sentence(numbers)),
        tag("div", {"class": "cards"}, *cards),
        tag("p", {"class": "note"}, _levels(numbers)),
    )


def _card(title: str, note: str, value: Mapping[str, Any]) -> Markup:
    unit = str(value.get("unit") or "")
    short = "" if title in ("Faithfulness", "Random circuits") else unit
    return tile(title, formats.plain(value.get("value")), formats.bounds(value), short, note)


def tile(title: str, value: str, ends: str, unit: str, note: str) -> Markup:
    """A card: a value with its interval and unit under a title, and a note."""
    figure = tag("p", {"class": "value"}, value, tag("small", None, f" {unit}") if unit else "")
    range_ = tag("p", {"class": "range"}, ends or "\N{NO-BREAK SPACE}")
    return tag("div", {"class": "card"}, tag("h3", None, title), figure, range_, tag("p", {"class": "note"}, note))


def _levels(numbers: Mapping[str, Any]) -> str:
    value: Mapping[str, Any] = next((numbers[name] for name, _, _ in _CARDS if numbers.get(name)), {})
    level, n = formats.finite(value.get("level")), formats.finite(value.get("n"))
    if level is None or n is None:
        return ""
    return f"Brackets are {100 * level:g}\N{NO-BREAK SPACE}% intervals over {int(n):,} prompts."


def strongest(drawing: Drawing) -> Markup:
    """The nodes with the largest sums of |score|, with bars."""
    rows = sorted(drawing.strengths.items(), key=lambda item: -item[1])[:12]
    top = rows[0][1] if rows and rows[0][1] else 1.0
    items = [
        tag(
            "li",
            None,
            tag("button", {"type": "button", "class": "name", "data-pin": name}, name),
            tag("meter", {"min": 0.0, "max": 1.0, "value": round(value / top, 2), "aria-hidden": "true"}),
            tag("span", {"class": "num"}, formats.plain(value)),
        )
        for name, value in rows
    ]
    note = "sum of |score| over a node's edges"
    return join(tag("h3", None, "Strongest nodes"), tag("p", {"class": "note"}, note), tag("ol", None, *items))


def edge_rows(edges: Sequence[DrawnEdge], decimals: int) -> Markup:
    """The first rows of the edges table."""
    return join(*(_edge_row(rank, edge, decimals) for rank, edge in enumerate(edges[:FIRST_ROWS], 1)))


def _edge_row(rank: int, edge: DrawnEdge, decimals: int) -> Markup:
    return tag(
        "tr",
        None,
        tag("td", {"class": "num"}, f"{rank:,}"),
        tag("td", {"class": "name"}, edge.source),
        tag("td", {"class": "name"}, edge.reader),
        tag("td", {"class": f"num {edge.colour}"}, formats.fixed(edge.score, decimals)),
        tag("td", {"class": "num range"}, formats.interval(edge.low, edge.high, decimals)),
        tag("td", {"class": "num"}, str(edge.layers)),
    )


def curve_table(payload: Mapping[str, Any]) -> Markup:
    """The numbers behind the faithfulness curve, folded."""
    data = payload.get("curve") or {}
    chance = {point.size: point for point in curve.samples(data, "random")}
    head = tag("tr", None, *(tag("th", {"scope": "col"}, name) for name in ("Edges", "Circuit", "Random circuits")))
    rows = [
        tag("tr", None, *(tag("td", {"class": "num"}, cell) for cell in _curve_row(point, chance.get(point.size))))
        for point in curve.samples(data, "circuit")
    ]
    table = tag("table", {"class": "compact"}, tag("thead", None, head), tag("tbody", None, *rows))
    return tag("details", None, tag("summary", None, "The numbers as a table"), table)


def _curve_row(point: curve.Sample, chance: curve.Sample | None) -> list[str]:
    cells = [f"{point.size:,}"]
    for sample in (point, chance):
        ends = "" if sample is None else formats.interval(sample.low, sample.high, 3)
        cells.append(formats.MISSING if sample is None else f"{formats.plain(sample.value)} {ends}".strip())
    return cells


def prompts(payload: Mapping[str, Any]) -> Markup:
    """The example pairs; all but the first few are folded."""
    unit = str(payload.get("unit", ""))
    pairs = [_pair(pair, unit) for pair in payload.get("prompts") or []]
    if not pairs:
        return tag("p", {"class": "note"}, "This run keeps no example prompts.")
    shown = tag("div", {"class": "pairs"}, *pairs[:OPEN_PROMPTS])
    rest = pairs[OPEN_PROMPTS:]
    if not rest:
        return shown
    more = tag("summary", None, f"{len(rest)} more")
    return join(shown, tag("details", None, more, tag("div", {"class": "pairs"}, *rest)))


def _pair(pair: Mapping[str, Any], unit: str) -> Markup:
    clean, corrupted = marked(str(pair["clean"]), str(pair["corrupted"]))
    texts = [("clean", clean), ("corrupted", corrupted)]
    lines = [part for name, words in texts for part in (tag("dt", None, name), tag("dd", {"class": "prompt"}, words))]
    for name, key in (("right", "answers"), ("wrong", "wrongs")):
        if pair.get(key):
            lines += [tag("dt", None, name), tag("dd", None, *_tokens(pair[key]))]
    metrics = [
        tag("span", None, f"{name} ", tag("b", None, formats.plain(pair.get(f"{name}_metric"))))
        for name in ("clean", "circuit", "corrupted")
        if f"{name}_metric" in pair
    ]
    foot = tag("p", {"class": "facts"}, *metrics, tag("span", None, unit))
    return tag("article", {"class": "pair"}, tag("dl", None, *lines), foot)


def _tokens(answers: Sequence[str]) -> list[Markup]:
    """Answers in quotes, so that their leading spaces can be seen."""
    return [tag("code", None, json.dumps(str(answer), ensure_ascii=False)) for answer in answers]


def marked(clean: str, corrupted: str) -> tuple[Markup, Markup]:
    """Both texts with the words that differ in `mark` elements."""
    left, right = (re.findall(r"\w+|\s+|[^\w\s]", words) for words in (clean, corrupted))
    steps = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
    sides: tuple[list[str], list[str]] = ([], [])
    for step, a, b, c, d in steps:
        for side, words in zip(sides, ("".join(left[a:b]), "".join(right[c:d])), strict=True):
            side.append(words if step == "equal" or not words else tag("mark", None, words))
    return join(*sides[0]), join(*sides[1])


def manifest(values: Mapping[str, Any]) -> Markup:
    """Everything that was done: one table of single values, one for each group."""
    single = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    tables = [_group("run", single)] + [_group(name, group) for name, group in groups.items()]
    return tag("div", {"class": "groups"}, *tables)


def _group(name: str, values: Mapping[str, Any]) -> Markup:
    return tag("section", {"class": "group"}, tag("h3", None, _words(name)), _table(values))


def _table(values: Mapping[str, Any]) -> Markup:
    rows = [
        tag("tr", None, tag("th", {"scope": "row"}, _words(str(key))), tag("td", None, _value(str(key), value)))
        for key, value in values.items()
    ]
    return tag("table", {"class": "facts-table"}, tag("tbody", None, *rows))


def _words(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _value(key: str, value: Any) -> str:
    """A manifest value for reading: groups as tables, hashes as code, counts with separators, bytes with both."""
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, (list, tuple)):
        return tag("ul", None, *(tag("li", None, _value(key, item)) for item in value)) if value else "none"
    if value is None:
        return "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return _number(key, value)
    return tag("code", None, value) if key.endswith(("hash", "command")) else str(value)


def _number(key: str, value: float) -> str:
    """Seeds as they are typed, bytes also in larger units, everything else with separators."""
    if key == "seed" or formats.finite(value) is None:
        return str(value) if key == "seed" else formats.MISSING
    if key.endswith("_bytes"):
        return f"{formats.size(value)} ({value:,.0f} bytes)"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
