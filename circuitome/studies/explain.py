"""The heads and MLPs of a finished run's circuit explained, on the prompts, weights and ablation it was found with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.present import formats
from circuitome.present.blocks import (
    Block,
    Cell,
    CircuitMap,
    Figure,
    HeatMap,
    Lede,
    Note,
    Numbers,
    Roles,
    Table,
    table,
)
from circuitome.studies import explained_mlps
from circuitome.studies.aligned_parts import held_variables
from circuitome.studies.context import Context
from circuitome.studies.explain_cost import passes
from circuitome.studies.explained_neurons import census_of, fires_on
from circuitome.studies.explained_roles import Attention, attends, attention_of, diagram
from circuitome.studies.pieces import example_pairs, figure, rounded
from circuitome.studies.settings import Names, RunSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting

SIGN = (
    "An effect is the change of the metric when the head or MLP is ablated: negative where it helps. Tests of a head's "
    "attention and copying are 0 by chance and 1 at most. Intervals are 99 %, since many parts are asked at once."
)
OF_NEURONS = "Neurons of the circuit are explained as the MLPs that they belong to."
COLUMNS = (
    ("head", "node", None, "", "the head"),
    ("role", "text", None, "", "its role, or unclear, with the nearest one"),
    ("score", "number", 2, "", "score of the role or of the nearest, 0 to 1"),
    ("attends", "text", None, "", "from which token it attends most to which, and with how much of its attention"),
    ("copies", "number", 2, "", "how often what it writes raises (negative: lowers) that"),
    ("direct, %", "number", 1, "", "effect on the metric through the logits alone"),
    ("last, %", "number", 1, "", "total effect: change of the metric when ablated at the last token"),
    ("all, %", "number", 1, "", "total effect: the same at all positions, on few prompts"),
    ("next", "text", None, "", "the runner-up and its score; for an unclear head the nearest role", False),
    ("feeds", "text", None, "", "inputs of other heads that the circuit's edges lead to", False),
)
"""What is said of each head, as fields of columns; effects are shares of the gap of clean and ablated metric."""
RESTING = ("unclear", "first token", "self")
UNNAMED = 8
"""Unclear and resting heads in the terminal's table."""
MAPPED = 30
"""Heads in the map of attention."""
LISTED = 3
"""Heads that are named as fed by one."""
LIKELY = 0.05
"""Score from which on a role is named as the nearest or the next."""


@dataclass(frozen=True, kw_only=True)
class Explain(RunSettings):
    """Name the role of every head of a finished run's circuit, say what its MLPs do, and tell the circuit in words."""

    heads: Names = ()
    """Heads to explain, with commas between, e.g. a9.h1,a5.h0; all of the circuit by default."""
    census: str | None = None
    """A run of circuitome neurons on the same model: what the circuit's neurons, and its MLPs' strongest, fire on."""
    alignment: str | None = None
    """A run of circuitome align --sites heads (or mlps, q, k, v) on the same model, to say what variables they hold."""


def work(settings: Explain, context: Context) -> Work:
    """Passes by heads, MLPs and prompts."""
    from circuitome.engine.ablation import UNALIGNED

    circuit, aligned = circuit_of(context), context.ablation not in UNALIGNED
    heads = settings.heads or heads_of(circuit)
    return Work.over(context.task, forward=passes(circuit, heads, context.task, aligned=aligned))


def circuit_of(context: Context) -> "cm.Circuit":
    """The run's circuit, with neurons as the MLPs that they belong to."""
    circuit = context.reopened.circuit
    return circuit.with_whole_mlps() if circuit.graph.has_parts else circuit


def setting_of(context: Context) -> "Setting":
    """The setting in which that circuit is explained."""
    setting = context.setting
    return setting.but(model=setting.model.with_neurons([])) if setting.model.graph.has_parts else setting


def heads_of(circuit: "cm.Circuit") -> tuple[str, ...]:
    """Names of a circuit's heads."""
    from circuitome.graph.node import Node

    return tuple(name for name in circuit.nodes if Node.parse(name).kind == "head")


def run(settings: Explain, context: Context) -> Findings:
    """Roles of the heads of a run's circuit, and what its MLPs do, with the evidence."""
    census = census_of(settings.census, context)  # first, since it may refuse
    task, setting, circuit = context.task, setting_of(context), circuit_of(context)
    held = held_variables(settings.alignment, context.model, circuit)
    mlps = cm.heads.explain_mlps(setting, circuit)
    named = None
    if settings.heads or heads_of(circuit) or not mlps.names:  # without either, this says what is missing
        named = cm.heads.explain(setting, circuit, heads=settings.heads or None)
    kept = explained_mlps.metrics(setting) if named is None else tensors(named)
    metrics = {"clean": kept["metric"], "ablated": kept["ablated_metric"]}
    clean, ablated = (setting.mean(metric, task.unit) for metric in metrics.values())
    gap = figure("Clean", clean, "mean on clean prompts"), figure("Ablated", ablated, "mean with everything ablated")
    results = {
        **(explained_mlps.numbers(mlps, kept) if named is None else numbers(named)),
        "mlps": mlps.to_dict(),
        "clean": clean.to_dict(),
        "ablated": ablated.to_dict(),
    }
    if named is None:
        told, shown = explained_mlps.opening(mlps, task.name), explained_mlps.alone(mlps, results, task.name, gap)
    else:
        told, shown = cm.heads.summary(named, task.name), blocks(named, mlps, results, task.name, gap)
    parts = "MLPs" if named is None else "heads and MLPs"
    return Findings(
        title=f"What the {parts} do: {task.name} in {context.reopened.origin.model}",
        sign=f"{SIGN} {OF_NEURONS}" if context.reopened.circuit.graph.has_parts else SIGN,
        results=results,
        blocks=[
            *with_circuit(shown, context),
            *held,
            *fires_on(census, context, setting),
            example_pairs(context.model, task, metrics),
        ],
        tensors={"circuit": circuit.mask, **kept, **explained_mlps.tensors(mlps)},
        more={"edges": len(circuit), "summary": f"{told} {explained_mlps.sentence(results)}".strip()},
    )


def with_circuit(shown: Sequence[Block], context: Context) -> list[Block]:
    """The blocks, and behind their diagram of roles the run's circuit as its own page draws it, grouped by them."""
    from circuitome.present.stored import loaded

    maps = [block for block in loaded(context.reopened.manifest.get("blocks", ())) if isinstance(block, CircuitMap)]
    parts: list[Block] = []
    for block in shown:
        parts.append(block)
        if isinstance(block, Roles) and maps:
            groups = tuple((role.name, role.members) for role in block.classes)
            note = f"{maps[0].note} Nodes of a role are drawn as one.".strip()
            parts.append(
                replace(maps[0], title="The circuit by role", note=note, where="page", groups=groups, others=())
            )
    return parts


def numbers(named: "cm.heads.Explanation") -> dict[str, Any]:
    """What an explanation says, and the names of the tokens that it is about."""
    return {**named.to_dict(), "token_roles": list(named.measurements.places.names)}


def pictured(named: "cm.heads.Explanation", mlps: "cm.heads.MlpExplanation | None" = None) -> list[Roles | Table]:
    """The classes of heads (and of MLPs) and every head by role, for who has an explanation and no run."""
    results = numbers(named)
    attention = attention_of(named)
    active, others = by_role(results["heads"])
    rows = (row(head, results, attention) for head in (*active, *others))
    note = f"Effects are in % of the gap of {results['scale']:.3f} {results['unit']}; strongest heads first."
    return [
        *diagram(named, mlps, results),
        table("Heads by role", COLUMNS, rows, note=note, top=len(active) + UNNAMED),
    ]


def tensors(named: "cm.heads.Explanation") -> dict[str, Any]:
    """The measurements; their head axis is in the order of layers and heads."""
    import torch

    measured, ablations = named.measurements, named.ablations
    measurements = ("attention_by_role", "attention_from_end", "copied", "suppressed", "role_logits", "metric")
    changes = ("direct_without_movers", "copied_without_movers", "movers_attention_removed", "attention_changes")
    return {
        "heads": torch.tensor(measured.heads),
        **{name: getattr(measured, name) for name in (*measurements, "ablated_metric")},
        "attention_by_relation": measured.by_relation,
        **named.effects,
        **{name: getattr(ablations, name) for name in changes},
        "attention_to_answers_without_movers": ablations.to_right_without_movers,
    }


def blocks(
    named: "cm.heads.Explanation",
    mlps: "cm.heads.MlpExplanation",
    results: Mapping[str, Any],
    task: str,
    gap: Sequence[Figure],
) -> list[Block]:
    """The circuit in words, its classes of heads and MLPs, every one by role, where heads attend, and the evidence."""
    from circuitome.heads.roles.narrative import overview

    heads = [head for group in by_role(results["heads"]) for head in group]
    opening, _, rest = overview(named, task).removesuffix(".").partition(". ")
    rest = f"{rest}." if rest else ""
    evidence = "Every test of every head that was explained, in the order of the table."
    return [
        Lede(text=f"{opening}.\n{rest} {explained_mlps.sentence(results)}".strip()),
        Numbers(items=(*counts(results), *explained_mlps.counts(mlps), *gap)),
        *pictured(named, mlps),
        *explained_mlps.blocks(results),
        attended(results, heads[:MAPPED], attention_of(named)),
        Note(title="Evidence, head by head", text=evidence, where="page"),
        *(evidence_of(head, results["unit"]) for head in heads),
    ]


def by_role(heads: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Heads with an active role, grouped by it, and the others."""
    active = [head for head in heads if head["role"] not in RESTING]
    first = {head["role"]: i for i, head in reversed(list(enumerate(active)))}
    active.sort(key=lambda head: first[head["role"]])
    return active, [head for head in heads if head["role"] in RESTING]


def counts(results: Mapping[str, Any]) -> list[Figure]:
    """How many heads do something, rest, or are unclear."""
    roles = results["roles"]
    unclear, resting = len(roles.get("unclear", ())), sum(len(roles.get(role, ())) for role in RESTING[1:])
    every = len(results["heads"])
    words = (
        ("Active heads", every - unclear - resting, f"of {every} explained"),
        ("Resting", resting, "mostly attend to the first token or themselves"),
        ("Unclear", unclear, "no role fits well enough, or two do"),
    )
    return [Figure(name=name, value=value, style="count", about=about) for name, value, about in words]


def row(head: Mapping[str, Any], results: Mapping[str, Any], attention: Attention) -> tuple[Cell, ...]:
    """A head's row under `COLUMNS`."""
    unclear = head["role"] == "unclear"
    second, score = (head["best"], head["best_score"]) if unclear else (head["runner_up"], head["runner_up_score"])
    start, end, share = attends(head, results["token_roles"], attention[head["head"]])
    effects = (formats.finite(head["effects"][name]["value"]) for name in ("direct", "last_position", "all_positions"))
    return (
        head["head"],
        f"unclear ({second}?)" if unclear and score >= LIKELY else head["role"],
        head["best_score"],
        f"{start} \N{RIGHTWARDS ARROW} {end}" + ("" if share is None else f" {formats.rounded(share, 2)}"),
        copies(head["features"]),
        *(None if value is None else 100 * value / results["scale"] for value in effects),
        f"{second} {formats.rounded(score, 2)}" if score >= LIKELY else "",
        feeds(head["feeds"]),
    )


def copies(features: Mapping[str, Any]) -> float | None:
    """How often a head's output raises the token it attends to most; negative: lowers it most."""
    up, down = formats.finite(features.get("copies")), formats.finite(features.get("suppresses"))
    if up is None or down is None:
        return None
    value = up if up >= down else -down
    return value if abs(value) >= 0.01 else 0.0


def feeds(led: Mapping[str, Sequence[str]]) -> str:
    """Whose inputs the circuit's edges lead to from a head."""
    parts = [
        f"{kind}: {', '.join(names[:LISTED])}" + (f" +{len(names) - LISTED}" if len(names) > LISTED else "")
        for kind, names in led.items()
        if kind in ("q", "k", "v")
    ]
    return "; ".join([*parts, *(["logits"] if "logits" in led else [])])


def attended(results: Mapping[str, Any], heads: Sequence[Mapping[str, Any]], attention: Attention) -> HeatMap:
    """Attention from the last token to the token of each role."""
    names = tuple(head["head"] for head in heads)
    return HeatMap(
        title="Where they attend from the end",
        note=f"Mean attention from the last token to the token of each role; the first {len(names)} heads above.",
        rows=names,
        columns=tuple(results["token_roles"]),
        values=tuple(tuple(attention[name][-1]) for name in names),
        unit="share of attention",
        scale="positive",
        where="page",
    )


def evidence_of(head: Mapping[str, Any], unit: str) -> Table:
    """Everything about one head, folded."""
    role = head["role"] if head["role"] != "unclear" else f"unclear, nearest {head['best']}"
    scores = ", ".join(f"{head[name]} {head[name + '_score']:.2f}" for name in ("best", "runner_up"))
    fed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in head["feeds"].items()) or "none"
    tests = [*attention_tests(head["features"]), *writing(head), *effects(head, unit)]
    rows = (("roles by score", scores), *tests, ("feeds", fed))
    return table(f"{head['head']}: {role}", ("test", "result"), rows, folded=True)


def attention_tests(features: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
    """Where a head attends: along relations between tokens, and from the end."""
    names = {"first": "first", "itself": "self"} | {name: name for name in ("previous", "duplicate", "induction")}
    relations = [(f"attention: {names[name]}", _relation(value)) for name, value in features.items() if name in names]
    targets = {f"to_{name}": f"attention from the end to {name}" for name in ("right", "wrong", "role", "end", "first")}
    return [*relations, *_known(features, targets)]


def writing(head: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
    """What a head writes."""
    writes = [f"{name} {formats.fixed(value, 2)}" for name, value in head["role_logits"].items() if value is not None]
    return [
        *_known(head["features"], {name: f"{name} the token it attends to" for name in ("copies", "suppresses")}),
        ("adds to the logits of the roles' tokens", ", ".join(writes)),
        ("attention and what it writes agree (correlation)", formats.fixed(head["copying_correlation"], 2)),
    ]


def effects(head: Mapping[str, Any], unit: str) -> list[tuple[Cell, ...]]:
    """What a head's ablation does to the metric and to other heads."""
    names = {
        "direct": "direct effect",
        "last_position": "total effect: last position",
        "all_positions": "total effect: all positions",
    }
    steers = {
        "movers_attention_removed": "share of the movers' attention to their target that ablating it removes",
        "direct_change_without_movers": "change of the direct effect without movers",
    }
    moves = [f"{move['head']} to {move['to']} {formats.fixed(move['change'], 2)}" for move in head["attention_changes"]]
    every = [(f"{words}, {unit}", head["effects"][name]) for name, words in names.items()]
    changes = ((words, head["features"].get(name) or {}) for name, words in steers.items())
    every += [(words, change) for words, change in changes if formats.finite(change.get("value")) is not None]
    rows = ((words, rounded(effect)) for words, effect in every)
    return [*rows, ("changes the attention of", ", ".join(moves) or "none")]


def _known(features: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[Cell, ...]]:
    """The numbers among features that are known, under their names."""
    known = {words: formats.finite(features.get(name)) for name, words in names.items()}
    return [(words, formats.rounded(value, 2)) for words, value in known.items() if value is not None]


def _relation(value: Mapping[str, Any]) -> str:
    words = {
        "on_prompts": "on the prompts",
        "lost_when_broken": "goes when broken",
        "on_random_tokens": "on random tokens",
    }
    known = [f"{formats.rounded(value[key], 2)} {said}" for key, said in words.items() if key in value]
    return ", ".join(known) or formats.MISSING


STUDY = Study("explain", Explain, run, work)
