"""The page of an explanation: the circuit in words, its heads by role with their evidence, and where they look."""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitome.report import formats, sections, shell
from circuitome.report.heatmap import heatmap_svg
from circuitome.report.markup import Markup, join, tag
from circuitome.report.payload import PROMPTS
from circuitome.runs.store import Run

COLUMNS = (
    ("head", False, "the head"),
    ("role", False, "its role, or unclear"),
    ("score", True, "score of the role, 0 to 1; for an unclear head that of the nearest"),
    ("next", False, "the runner-up and its score; for an unclear head the nearest role"),
    ("attends", False, "from which token it attends most to which, and with how much of its attention"),
    ("copies", True, "how often what it writes raises that token most (negative: lowers it most)"),
    ("direct", True, "direct effect on the metric through the logits alone, as a share of the gap"),
    ("last position", True, "change of the metric when it is ablated at the answer position"),
    ("all positions", True, "the same at all positions, on a few prompts"),
    ("feeds", False, "inputs of other heads that the circuit's edges lead to"),
)
"""Name of each column, whether it holds numbers, and what it says."""
RESTING = ("unclear", "first token", "self")
MAPPED = 30
"""Heads in the map of attention."""
LISTED = 3
"""Heads that are named as fed by one."""
TESTS = ("previous", "duplicate", "induction")
RELATIONS = ("previous token", "duplicate token", "induction")


def explain_payload(run: Run) -> dict[str, Any]:
    """The data of the page of an `explain` run."""
    manifest, results = run.manifest, run.manifest["results"]
    left_out = ("results", "prompts", "summary")
    order = [tuple(pair) for pair in run.tensors["heads"].tolist()]
    metric, ablated = run.tensors["metric"].tolist(), run.tensors["ablated_metric"].tolist()
    return {
        "title": f"What the heads do: {manifest['task']['name']} in {manifest['model']['name']}",
        "command": manifest["command"],
        "sign": manifest["sign"],
        "unit": manifest["task"]["unit"],
        "summary": manifest["summary"],
        "edges": manifest["edges"],
        "scale": results["scale"],
        "clean": results["clean"],
        "ablated": results["ablated"],
        "roles": results["roles"],
        "heads": results["heads"],
        "token_roles": results["token_roles"],
        "attention": {
            f"a{layer}.h{head}": rows
            for (layer, head), rows in zip(order, run.tensors["attention_by_role"].tolist(), strict=True)
        },
        "prompts": [
            {**prompt, "clean_metric": a, "corrupted_metric": b}
            for prompt, a, b in zip(manifest["prompts"][:PROMPTS], metric, ablated, strict=False)
        ],
        "manifest": {key: value for key, value in manifest.items() if key not in left_out},
    }


def render_explain(payload: Mapping[str, Any]) -> str:
    """The page, from the plain JSON data of `explain_payload`: the same data gives the same text."""
    parts: list[shell.Section] = [
        ("summary", "The circuit in words", _account(payload)),
        ("heads", "Heads by role", _heads(payload)),
        ("looks", "What they attend to from the end", _looks(payload)),
        ("evidence", "Evidence, head by head", _evidence(payload)),
        ("prompts", "Example prompts", sections.prompts(payload)),
    ]
    return shell.page(payload, parts)


def _account(payload: Mapping[str, Any]) -> Markup:
    cards = [
        sections.tile(role, str(len(names)), "", "", ", ".join(names[:8]) + (" …" if len(names) > 8 else ""))
        for role, names in payload["roles"].items()
    ]
    return join(
        tag("p", {"class": "lede"}, str(payload["summary"])),
        tag("div", {"class": "cards"}, *cards),
        tag("p", {"class": "note"}, str(payload["sign"])),
    )


def shown(heads: Sequence[Mapping[str, Any]], unnamed: int) -> tuple[list[Mapping[str, Any]], int]:
    """Heads with an active role, grouped by it, then some of the others; and how many were left out."""
    active = [head for head in heads if head["role"] not in RESTING]
    first = {head["role"]: i for i, head in reversed(list(enumerate(active)))}
    active.sort(key=lambda head: first[head["role"]])
    others = [head for head in heads if head["role"] in RESTING]
    return active + others[:unnamed], max(0, len(others) - unnamed)


def cells(head: Mapping[str, Any], payload: Mapping[str, Any]) -> list[str]:
    """A head's row under `COLUMNS`."""
    features, effects = head["features"], head["effects"]
    unclear = head["role"] == "unclear"
    other, score = (head["best"], head["best_score"]) if unclear else (head["runner_up"], head["runner_up_score"])
    return [
        head["head"],
        head["role"],
        formats.rounded(head["best_score"], 2),
        f"{other} {formats.rounded(score, 2)}" if score >= 0.05 else "",
        looks(head, payload),
        _signed(features),
        *(_percent(effects[name], payload["scale"]) for name in ("direct", "last_position", "all_positions")),
        _feeds(head["feeds"]),
    ]


def looks(head: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    """From the token of which role a head attends most to which: from the end, or along its relation of tokens."""
    names, attention = payload["token_roles"], payload["attention"][head["head"]]
    if head["role"] not in RELATIONS:
        return _arrow(names[-1], head["attends_to"], formats.finite(head["attention"]))
    known = [
        (value, names[i], names[j])
        for i, row in enumerate(attention)
        for j, cell in enumerate(row)
        if i != j > 0 and (value := formats.finite(cell)) is not None
    ]
    value, start, end = max(known, default=(None, names[-1], names[0]))
    return _arrow(start, end, value)


def _arrow(start: str, end: str, value: float | None) -> str:
    share = "" if value is None else f" {formats.rounded(value, 2)}"
    return f"{start} \N{RIGHTWARDS ARROW} {end}{share}"


def _signed(facts: Mapping[str, Any]) -> str:
    up, down = formats.finite(facts.get("copies")), formats.finite(facts.get("suppresses"))
    if up is None or down is None:
        return formats.MISSING
    value = up if up >= down else -down
    return formats.rounded(value if abs(value) >= 0.01 else 0.0, 2)


def _percent(effect: Mapping[str, Any], scale: float) -> str:
    value = formats.finite(effect["value"])
    return formats.MISSING if value is None else f"{formats.rounded(100 * value / scale, 1)} %"


def _feeds(feeds: Mapping[str, Sequence[str]]) -> str:
    parts = [
        f"{kind}: {', '.join(names[:LISTED])}" + (f" +{len(names) - LISTED}" if len(names) > LISTED else "")
        for kind, names in feeds.items()
        if kind in ("q", "k", "v")
    ]
    return "; ".join([*parts, *(["logits"] if "logits" in feeds else [])])


def _heads(payload: Mapping[str, Any]) -> Markup:
    rows, _ = shown(payload["heads"], len(payload["heads"]))
    numbers = [i for i, (_, numeric, _) in enumerate(COLUMNS) if numeric]
    names = [name for name, _, _ in COLUMNS]
    notes = [part for name, _, what in COLUMNS for part in (tag("dt", None, name), tag("dd", {"class": "note"}, what))]
    gap = formats.fixed(payload["scale"], 3)
    return join(
        tag(
            "p", {"class": "note"}, f"Effects are shares of the gap of {gap} {payload['unit']}; strongest heads first."
        ),
        shell.table(names, [cells(head, payload) for head in rows], numbers),
        tag("details", None, tag("summary", None, "What the columns say"), tag("dl", {"class": "methods"}, *notes)),
    )


def _looks(payload: Mapping[str, Any]) -> Markup:
    """Attention from the end to the token of each role."""
    rows, _ = shown(payload["heads"], len(payload["heads"]))
    names = [head["head"] for head in rows][:MAPPED]
    cells_of = [payload["attention"][name][-1] for name in names]
    figure = {
        "title": "Attention from the end",
        "unit": "share of attention",
        "rows": names,
        "columns": payload["token_roles"],
        "mean": [[formats.finite(value) for value in row] for row in cells_of],
        "low": [[None] * len(row) for row in cells_of],
        "high": [[None] * len(row) for row in cells_of],
    }
    note = f"Mean attention from the token that is read to the token of each role; the first {len(names)} heads above."
    return join(
        tag("p", {"class": "note"}, note),
        tag("figure", None, tag("div", {"class": "scroll"}, heatmap_svg(figure, "looks-svg"))),
    )


def _evidence(payload: Mapping[str, Any]) -> Markup:
    rows, _ = shown(payload["heads"], len(payload["heads"]))
    return join(*(_one(head, payload) for head in rows))


def _one(head: Mapping[str, Any], payload: Mapping[str, Any]) -> Markup:
    """Everything about one head, folded."""
    role = head["role"] if head["role"] != "unclear" else f"unclear, nearest {head['best']}"
    summary = tag("summary", None, tag("span", {"class": "name"}, head["head"]), f" {role}")
    return tag("details", None, summary, shell.table(["test", "result"], _tests(head, payload), ()))


def _tests(head: Mapping[str, Any], payload: Mapping[str, Any]) -> list[list[str]]:
    facts = head["features"]
    rows = [["roles by score", _ranking(head)]]
    for name, value in facts.items():
        if name in TESTS or name in ("first", "itself"):
            rows.append([f"attention: {name.replace('itself', 'self')}", _relation(value)])
    rows += [
        [f"attention from the end {name.replace('_', ' ')}", formats.rounded(facts[name], 2)]
        for name in ("to_right", "to_wrong", "to_role", "to_end", "to_first")
        if formats.finite(facts.get(name)) is not None
    ]
    rows += [
        [f"{name} the token it attends to", formats.rounded(facts[name], 2)]
        for name in ("copies", "suppresses")
        if formats.finite(facts.get(name)) is not None
    ]
    writes = [f"{name} {formats.fixed(value, 2)}" for name, value in head["role_logits"].items() if value is not None]
    rows.append(["adds to the logits of the roles' tokens", ", ".join(writes)])
    rows.append(["attention and what it writes agree (correlation)", formats.fixed(head["copying_correlation"], 2)])
    for name, words in (
        ("direct", "direct effect"),
        ("last_position", "total effect: last position"),
        ("all_positions", "total effect: all positions"),
    ):
        rows.append([f"{words}, {payload['unit']}", _interval(head["effects"][name])])
    for name, words in (
        ("movers_attention_removed", "share of the movers' attention that ablating it removes"),
        ("direct_change_without_movers", "change of the direct effect without movers"),
    ):
        if formats.finite((facts.get(name) or {}).get("value")) is not None:
            rows.append([words, _interval(facts[name])])
    moves = [f"{one['head']} to {one['to']} {formats.fixed(one['change'], 2)}" for one in head["attention_changes"]]
    rows.append(["changes the attention of", ", ".join(moves) or "none"])
    rows.append(["feeds", "; ".join(f"{kind}: {', '.join(names)}" for kind, names in head["feeds"].items()) or "none"])
    return rows


def _ranking(head: Mapping[str, Any]) -> str:
    parts = [(head["best"], head["best_score"]), (head["runner_up"], head["runner_up_score"])]
    return ", ".join(f"{name} {formats.rounded(score, 2)}" for name, score in parts)


def _relation(value: Mapping[str, Any]) -> str:
    words = {
        "on_prompts": "on the prompts",
        "lost_when_broken": "goes when broken",
        "on_random_tokens": "on random tokens",
    }
    known = [f"{formats.rounded(value[key], 2)} {said}" for key, said in words.items() if key in value]
    return ", ".join(known) or formats.MISSING


def _interval(effect: Mapping[str, Any]) -> str:
    value = formats.finite(effect.get("value"))
    if value is None:
        return formats.MISSING
    ends = formats.interval(effect.get("low"), effect.get("high"), 3)
    return f"{formats.rounded(value, 3)} {ends}".strip()
