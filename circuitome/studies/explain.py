"""The heads of a finished run's circuit named, on the very prompts, weights and ablation that it was found with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from circuitome.present.blocks import Block, Cell, Column, HeatMap, Lede, RoleClass, Roles, Table
from circuitome.studies.settings import Names, RunSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.heads.roles.result import Explanation
    from circuitome.studies.context import Context

SIGN = (
    "An effect is the metric of the clean run minus that of the run without the head: positive where it helps. Tests "
    "of attention and copying are 0 by chance and 1 at most. Intervals are 99 %, since many heads are asked at once."
)
COLUMNS = (
    ("head", "node", "the head"),
    ("role", "text", "its role, or unclear"),
    ("score", "text", "score of the role, 0 to 1; for an unclear head that of the nearest"),
    ("attends to", "text", "from which token it attends most to which, and with how much of its attention"),
    ("copies", "text", "how often what it writes raises that token most (negative: lowers it most)"),
    ("direct effect", "text", "on the metric through the logits alone, as a share of the gap"),
    ("total effect: last position", "text", "what the metric loses when it is ablated at the token that is read"),
    ("total effect: all positions", "text", "the same at all positions, on a few prompts"),
    ("next", "text", "the runner-up and its score; for an unclear head the nearest role"),
    ("feeds", "text", "inputs of other heads that the circuit's edges lead to"),
)
"""Name, style and meaning of each column."""
NARROW = 8
"""Columns that a narrow terminal may show."""
RESTING = ("unclear", "first token", "self")
RELATIONS = ("previous token", "duplicate token", "induction")
TESTS = ("previous", "duplicate", "induction")
UNNAMED = 8
"""Unclear and resting heads in the terminal's table."""
MAPPED = 30
"""Heads in the map of attention."""
LISTED = 3
"""Heads that are named as fed by one."""


@dataclass(frozen=True, kw_only=True)
class Explain(RunSettings):
    """Name the role of every head of a finished run's circuit, with the evidence, and tell the circuit in words."""

    heads: Names = ()
    """Heads to explain, with commas between, e.g. a9.h1,a5.h0; all of the circuit by default."""


def work(settings: Explain, context: "Context") -> Work:
    """Measured on SmolLM2: as much as a dozen bare passes."""
    return Work.over(context.task, forward=12.5)


def run(settings: Explain, context: "Context") -> Findings:
    """Roles of the heads of a run's circuit, with their evidence."""
    from circuitome.heads.roles.explanation import explain
    from circuitome.heads.roles.narrative import account
    from circuitome.results import mean
    from circuitome.studies.pieces import example_pairs

    found, task = context.found, context.task
    named = explain(
        context.model,
        found.circuit,
        task,
        heads=settings.heads or None,
        ablation=found.ablation,  # type: ignore[arg-type]  # `find` checked it
        seed=settings.seed,
        max_memory=settings.max_memory,
        progress=context.progress,
    )
    evidence = named.evidence
    results = {
        **named.to_dict(),
        "clean": mean(evidence.metric, task.unit).to_dict(),
        "ablated": mean(evidence.ablated_metric, task.unit).to_dict(),
        "token_roles": list(evidence.places.names),
    }
    text = account(named, task.name)
    attention = dict(zip(named.heads, evidence.by_role.tolist(), strict=True))
    metrics = {"clean": evidence.metric, "ablated": evidence.ablated_metric}
    return Findings(
        title=f"What the heads do: {task.name} in {found.origin.model}",
        sign=SIGN,
        results=results,
        blocks=[*blocks(results, text, attention), example_pairs(context.model, task, metrics)],
        tensors={"circuit": found.circuit.mask, **tensors(named)},
        more={"edges": len(found.circuit), "account": text},
    )


def tensors(named: "Explanation") -> dict[str, "Tensor"]:
    """The measurements; their head axis is in the order of layers and heads."""
    import torch

    evidence, knocks = named.evidence, named.knocks
    return {
        "heads": torch.tensor(evidence.heads),
        "attention_by_role": evidence.by_role,
        "attention_from_end": evidence.targets,
        "attention_by_relation": evidence.relations,
        "copied": evidence.copied,
        "suppressed": evidence.suppressed,
        "writes": evidence.writes,
        "metric": evidence.metric,
        "ablated_metric": evidence.ablated_metric,
        "direct": evidence.direct,
        "direct_without_movers": knocks.direct_without,
        "taken_out_at_end": knocks.at_end,
        "taken_out_everywhere": knocks.everywhere,
        "attention_to_answers_without_movers": knocks.right_without,
        "raised_without_movers": knocks.raised_without,
        "focus": knocks.focus,
        "shifts": knocks.shifts,
    }


def blocks(results: Mapping[str, Any], text: str, attention: Mapping[str, Any]) -> list[Block]:
    """The circuit in words, its classes of heads, every head by role, where they attend, and the evidence."""
    active, others = by_role(results["heads"])
    gap = f"Effects are shares of the gap of {results['scale']:.3f} {results['unit']}; strongest heads first."
    columns = tuple(
        Column(name=name, style=style, about=about, narrow=i < NARROW)  # type: ignore[arg-type]
        for i, (name, style, about) in enumerate(COLUMNS)
    )
    rows = tuple(row(head, results, attention) for head in [*active, *others])
    return [
        Lede(text=text),
        roles(results),
        Table(title="Heads by role", note=gap, columns=columns, rows=rows, top=len(active) + UNNAMED),
        attended(results, [*active, *others][:MAPPED], attention),
        *(evidence_of(head, results["unit"]) for head in [*active, *others]),
    ]


def by_role(heads: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Heads with an active role, grouped by it, and the others."""
    active = [head for head in heads if head["role"] not in RESTING]
    first = {head["role"]: i for i, head in reversed(list(enumerate(active)))}
    active.sort(key=lambda head: first[head["role"]])
    return active, [head for head in heads if head["role"] in RESTING]


def roles(results: Mapping[str, Any]) -> Roles:
    """Classes of heads, in the order of their layers, and which class feeds which, by the circuit's edges."""
    class_of = {name: role for role, names in results["roles"].items() if role not in RESTING for name in names}
    arrows: dict[tuple[str, str, str], int] = {}
    for head in results["heads"]:
        start = class_of.get(head["head"])
        for kind, names in head["feeds"].items() if start else ():
            for end in {class_of.get(name) for name in names} if kind in ("q", "k", "v") else {"logits"}:
                if end and end != start and kind != "mlp":
                    arrows[str(start), end, kind] = arrows.get((str(start), end, kind), 0) + 1
    layers: dict[str, list[int]] = {}
    for name, role in class_of.items():
        layers.setdefault(role, []).append(int(name[1:].split(".")[0]))
    order = sorted(layers, key=lambda role: sum(layers[role]) / len(layers[role]))
    classes = tuple(RoleClass(name=role, members=tuple(results["roles"][role])) for role in order)
    return Roles(
        title="Roles",
        note="Classes of heads, earliest layers first; an arrow counts heads of a class whose edges lead to another.",
        classes=classes,
        arrows=tuple((*ends, float(count)) for ends, count in sorted(arrows.items())),
        positions=tuple(results["token_roles"]),
    )


def row(head: Mapping[str, Any], results: Mapping[str, Any], attention: Mapping[str, Any]) -> tuple[Cell, ...]:
    """A head's row under `COLUMNS`."""
    facts, effects, scale = head["facts"], head["effects"], results["scale"]
    unclear = head["role"] == "unclear"
    other, score = (head["best"], head["best_score"]) if unclear else (head["runner_up"], head["runner_up_score"])
    near = f"unclear ({head['best']}?)" if unclear and head["best_score"] >= 0.05 else head["role"]
    return (
        head["head"],
        near,
        f"{head['best_score']:.2f}",
        attends(head, results["token_roles"], attention[head["head"]]),
        copies(facts),
        *(_share(effects[name], scale) for name in ("direct", "at_end", "everywhere")),
        f"{other} {score:.2f}" if score >= 0.05 else "",
        feeds(head["feeds"]),
    )


def _share(effect: Mapping[str, Any], scale: float) -> str:
    from circuitome.present import formats

    value = formats.finite(effect["value"])
    return formats.MISSING if value is None else f"{formats.rounded(100 * value / scale, 1)}\N{NO-BREAK SPACE}%"


def attends(head: Mapping[str, Any], names: Sequence[str], attention: Sequence[Sequence[float]]) -> str:
    """From which token to which a head attends most: from the end, unless it acts by a relation of tokens."""
    from circuitome.present.formats import finite

    if head["role"] not in RELATIONS:
        return _arrow(names[-1], head["looks_at"], finite(head["looks"]))
    known = [
        (value, names[i], names[j])
        for i, row in enumerate(attention)
        for j, cell in enumerate(row)
        if i != j > 0 and (value := finite(cell)) is not None
    ]
    value, start, end = max(known, default=(None, names[-1], names[0]))
    return _arrow(start, end, value)


def _arrow(start: str, end: str, value: float | None) -> str:
    return f"{start} \N{RIGHTWARDS ARROW} {end}" + ("" if value is None else f" {value:.2f}")


def copies(facts: Mapping[str, Any]) -> str:
    """How often a head's output raises the token it attends to most; negative: lowers it most."""
    from circuitome.present import formats

    up, down = formats.finite(facts.get("copies")), formats.finite(facts.get("suppresses"))
    if up is None or down is None:
        return formats.MISSING
    value = up if up >= down else -down
    return formats.rounded(value if abs(value) >= 0.01 else 0.0, 2)


def feeds(led: Mapping[str, Sequence[str]]) -> str:
    """Whose inputs the circuit's edges lead to from a head."""
    parts = [
        f"{kind}: {', '.join(names[:LISTED])}" + (f" +{len(names) - LISTED}" if len(names) > LISTED else "")
        for kind, names in led.items()
        if kind in ("q", "k", "v")
    ]
    return "; ".join([*parts, *(["logits"] if "logits" in led else [])])


def attended(results: Mapping[str, Any], heads: Sequence[Mapping[str, Any]], attention: Mapping[str, Any]) -> HeatMap:
    """Attention from the token that is read to the token of each role."""
    from circuitome.studies.pieces import finite

    names = [head["head"] for head in heads]
    return HeatMap(
        title="Where they attend from the end",
        note=f"Mean attention from the token that is read to that of each role; the first {len(names)} heads above.",
        rows=tuple(names),
        columns=tuple(results["token_roles"]),
        values=tuple(tuple(finite(value) for value in attention[name][-1]) for name in names),
        unit="share of attention",
        scale="positive",
        where="page",
    )


def evidence_of(head: Mapping[str, Any], unit: str) -> Table:
    """Everything about one head, folded."""
    role = head["role"] if head["role"] != "unclear" else f"unclear, nearest {head['best']}"
    columns = (Column(name="test"), Column(name="result"))
    return Table(title=f"{head['head']}: {role}", columns=columns, rows=tuple(tests(head, unit)), folded=True)


def tests(head: Mapping[str, Any], unit: str) -> list[tuple[Cell, ...]]:
    """Name and result of every test of a head."""
    from circuitome.present.formats import finite, fixed

    facts = head["facts"]
    ranking = f"{head['best']} {head['best_score']:.2f}, {head['runner_up']} {head['runner_up_score']:.2f}"
    rows: list[tuple[Cell, ...]] = [("roles by score", ranking)]
    for name, value in facts.items():
        if name in (*TESTS, "first", "itself"):
            rows.append((f"attention: {name.replace('itself', 'self')}", _relation(value)))
    for name, words in (
        *(
            (n, f"attention from the end {n.replace('_', ' ')}")
            for n in ("to_right", "to_wrong", "to_role", "to_end", "to_first")
        ),
        *((n, f"{n} the token it attends to") for n in ("copies", "suppresses")),
    ):
        if finite(facts.get(name)) is not None:
            rows.append((words, f"{facts[name]:.2f}"))
    writes = [f"{name} {fixed(value, 2)}" for name, value in head["writes"].items() if value is not None]
    rows.append(("adds to the logits of the roles' tokens", ", ".join(writes)))
    rows.append(("attention and what it writes agree (correlation)", fixed(head["agreement"], 2)))
    for name, words in (
        ("direct", "direct effect"),
        ("at_end", "total effect: last position"),
        ("everywhere", "total effect: all positions"),
    ):
        rows.append((f"{words}, {unit}", _interval(head["effects"][name])))
    for name, words in (
        ("focus", "share of the movers' attention to their target lost without it"),
        ("without", "direct effect gained without movers"),
    ):
        if finite((facts.get(name) or {}).get("value")) is not None:
            rows.append((words, _interval(facts[name])))
    moves = [f"{move['head']} to {move['to']} {fixed(move['change'], 2)}" for move in head["moves"]]
    rows.append(("moves the attention of", ", ".join(moves) or "none"))
    led = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in head["feeds"].items())
    return [*rows, ("feeds", led or "none")]


def _relation(value: Mapping[str, Any]) -> str:
    from circuitome.present.formats import MISSING, rounded

    words = {"here": "on the prompts", "because": "goes when broken", "elsewhere": "on random tokens"}
    known = [f"{rounded(value[key], 2)} {said}" for key, said in words.items() if key in value]
    return ", ".join(known) or MISSING


def _interval(effect: Mapping[str, Any]) -> str:
    from circuitome.present import formats

    value = formats.finite(effect.get("value"))
    if value is None:
        return formats.MISSING
    ends = formats.interval(effect.get("low"), effect.get("high"), 3)
    return f"{formats.rounded(value, 3)} {ends}".strip()


STUDY = Study("explain", Explain, run, work)
