"""Several methods on the same prompts: how faithful their circuits are by size, here and on held-out prompts."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present import formats
from circuitome.present.blocks import Block, Column, Lede, Note, Table, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell, ends, series_of, size_lines
from circuitome.studies.settings import Names, PromptSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.studies.methods import Result

COMPARED = (
    *("eap", "eap-ig", "clean-corrupted", "atp", "routes"),
    *("edge-pruning", "subnetwork-probing", "acdc", "magnitude"),
)
"""What is compared by default; random circuits are measured as well."""
OPTIONS: dict[str, dict[str, Any]] = {"acdc": {"grouped": True}}
"""Options of methods in a comparison."""
RANDOM_CIRCUITS = 3
"""Random circuits of each size."""
HELD_OUT = 64
"""Held-out prompts that are drawn where no file gives them."""
RANDOM = "random circuits"
SIGN = (
    "Faithfulness is the share of the metric's gap between the ablated and the whole model that a circuit recovers: "
    "1 is the whole model, 0 nothing; circuits may overshoot."
)


@dataclass(frozen=True, kw_only=True)
class Compare(PromptSettings):
    """Run several methods on the same prompts: faithfulness by circuit size, here and on held-out prompts."""

    methods: Names = COMPARED
    """Names that `circuitome methods` lists, with commas between; all but exact and random by default."""
    edges: int | None = None
    """Size that methods which learn or search aim at; about one edge in seventy by default."""
    ablation: str = "corrupted"
    """What edges outside a circuit carry: corrupted, zero, mean, mean-position or by-role."""
    held_out: str | None = None
    """A file, or the name of a generator, for held-out prompts; by default another draw of the task."""
    exact_edges: int = 200
    """Edges to patch one by one, with which scores are correlated; 0 for none."""

    @override
    def check(self) -> None:
        from circuitome.engine.ablation import check_ablation
        from circuitome.studies.methods import named

        for method in self.methods:
            named(method)
        if not self.methods:
            raise InputError("There is nothing to compare; give --methods.")
        if self.exact_edges < 0 or self.exact_edges in (1, 2):
            raise InputError(f"--exact-edges must be 0 or at least 3, got {self.exact_edges}.")
        check_ablation(self.ablation)
        super().check()


def work(settings: Compare, context: Context) -> Work:
    """The passes of every method, of its circuits here and on held-out prompts, and of exact patching."""
    from circuitome.studies.methods import METHODS
    from circuitome.validation.faithfulness.share import default_sizes

    graph = context.model.graph
    costs = [METHODS[name].work(OPTIONS.get(name, {}), graph) for name in settings.methods]
    circuits = len(default_sizes(graph)) * (2 * len(costs) + RANDOM_CIRCUITS)
    forward = sum(cost[0] for cost in costs) + 0.3 * settings.exact_edges
    return Work.over(context.task, forward=forward, backward=sum(cost[1] for cost in costs), circuit=circuits)


def run(settings: Compare, context: Context) -> Findings:
    """Every method's circuits by size, their faithfulness here and on held-out prompts, and how far scores agree.

    Methods that learn a circuit of one size give that one point, ACDC one for each threshold; scores give circuits of
    every size. Finished methods are kept, so that a stopped run goes on.
    """
    from circuitome.studies.methods import METHODS
    from circuitome.validation.faithfulness.share import default_sizes
    from circuitome.validation.robustness.score_agreement import agreement

    held, reference = held_out(settings, context), exact_scores(settings, context)
    rows, tensors = list[dict[str, Any]](), dict[str, Any]()
    for name in settings.methods:
        result, seconds = searched(settings, context, name)
        circuits = circuits_of(name, result, default_sizes(context.model.graph))
        here, there = (shares(context, result.scores, circuits, task) for task in (context.task, held))
        row: dict[str, Any] = {
            "name": name,
            "description": METHODS[name].what,
            "seconds": round(seconds, 1),
            "edges": len(result.circuit),
            "points": [
                {"edges": size, **share, "held_out": None if there is None else there[i]["value"]}
                for i, (size, share) in enumerate(zip(circuits, here or [], strict=True))
            ],
            "note": METHODS[name].note,
        }
        if reference is not None:
            near = agreement(result.scores, reference[0], reference[1])
            row |= {"pearson": near.pearson, "pearson_abs": near.pearson_abs, "spearman": near.spearman}
        rows.append(row)
        tensors |= {f"{name}.scores": result.scores.values, f"{name}.circuit": result.circuit.mask}
    results = {"methods": rows, "random": random_shares(context)}
    about = None if held is None else {"name": held.name, "n": len(held), "source": held.source}
    exact_edges = 0 if reference is None else len(reference[1])
    return Findings(
        title=f"Methods compared: {context.task.name} in {settings.model}",
        sign=SIGN,
        results=results,
        blocks=blocks(context, results, about, exact_edges),
        tensors=tensors,
        more={"held_out": about, "exact_edges": exact_edges},
    )


def held_out(settings: Compare, context: Context) -> "cm.Task | None":
    """Prompts that no method sees: another draw of the task, without the prompts of `task`, or a file's."""
    origin = settings.origin()
    held = origin.others(context.model, 1, [context.task], n=HELD_OUT)
    if held is None and origin.data is None:
        raise InputError(
            f"Nearly all held-out prompts are among the prompts of {origin.task} themselves; take fewer (--n)."
        )
    return held


def circuits_of(name: str, result: "Result", sizes: Sequence[int]) -> dict[int, "cm.Circuit"]:
    """By size, the circuits that a method means."""
    from circuitome.studies.methods import METHODS

    if METHODS[name].resumes and name != "exact":
        return dict(sorted({**result.others, len(result.circuit): result.circuit}.items()))
    return {size: result.scores.top(size) for size in sorted({*sizes, len(result.circuit)})}


def searched(settings: Compare, context: Context, name: str) -> tuple["Result", float]:
    """What a method gives and the seconds it took, from the file of a stopped run if it is there."""
    from circuitome.studies.find import circuit_size
    from circuitome.studies.methods import METHODS, Result, Search

    setting, graph = context.setting, context.model.graph
    kept = setting.but(checkpoint=context.file(f"found-{name}.safetensors")).kept(name, settings.edges, settings.seed)
    if before := kept.read():
        tensors, state = before
        scores = cm.EdgeScores(graph, tensors["scores"], state["unit"], state["method"])
        others = {int(k): cm.Circuit(graph, tensors[k]) for k in tensors if k.isdigit()}
        return Result(scores, cm.Circuit(graph, tensors["circuit"]), others), state["seconds"]
    start = time.perf_counter()
    size = circuit_size(settings.edges, context.model)
    here = setting.but(progress=lambda what, done, total: setting.progress(f"{name}: {what}", done, total))
    result = METHODS[name].run(Search(here, size, OPTIONS.get(name, {}), context.folder))
    seconds = time.perf_counter() - start
    masks = {str(n): circuit.mask for n, circuit in result.others.items()}
    kept.write(
        {"scores": result.scores.values, "circuit": result.circuit.mask, **masks},
        {"unit": result.scores.unit, "method": result.scores.method, "seconds": seconds},
    )
    return result, seconds


def exact_scores(settings: Compare, context: Context) -> tuple["cm.EdgeScores", "cm.Circuit"] | None:
    """Exact scores of some edges, half of them the strongest by EAP-IG."""
    from circuitome.validation.robustness.score_agreement import spread_edges

    if not settings.exact_edges:
        return None
    scores = searched(settings, context, "eap-ig")[0].scores
    among = spread_edges(scores, settings.exact_edges, settings.seed)
    return cm.exact(context.setting.but(checkpoint=context.file("reference.safetensors")), edges=among), among


def shares(
    context: Context, scores: "cm.EdgeScores", circuits: dict[int, "cm.Circuit"], task: "cm.Task | None"
) -> list[dict[str, Any]] | None:
    """Faithfulness of each circuit: value, low, high."""
    if task is None:
        return None
    here = context.setting.but(prompts=task)
    curve = cm.faithfulness_curve(here, scores, sizes=list(circuits), draws=0, select=circuits.__getitem__)
    return [dict(zip(("value", "low", "high"), ends(point.share), strict=True)) for point in curve.circuits]


def random_shares(context: Context) -> list[dict[str, Any]]:
    """Random circuits: mean faithfulness by size, and the range over circuits."""
    import torch

    graph = context.model.graph
    nothing = cm.EdgeScores(graph, torch.zeros(graph.mask.shape))
    curve = cm.faithfulness_curve(context.setting, nothing, draws=RANDOM_CIRCUITS)
    ranges = zip(curve.sizes, curve.random, curve.random_range, strict=True)
    return [{"edges": size, "value": share.value, "low": low, "high": high} for size, share, (low, high) in ranges]


def blocks(context: Context, results: Mapping[str, Any], held: Mapping[str, Any] | None, exact: int) -> list[Block]:
    """The best method, each method's own circuit, faithfulness by size as figure and tables, what each method is."""
    rows = results["methods"]
    every = [*rows, {"name": RANDOM, "points": results["random"]}]
    counts = Counter(point["edges"] for row in rows for point in row["points"])
    sizes = sorted(size for size, count in counts.items() if count > 1) or sorted(counts)
    parts: list[Block] = [
        Lede(text=best(rows, results["random"], held, str(context.task.measure))),
        own_circuits(rows, held, exact),
        size_lines(
            (
                series_of(row["name"], [p["edges"] for p in row["points"]], row["points"], faint=row["name"] == RANDOM)
                for row in every
                if row["points"]
            ),
            note="Faithfulness of each method's circuits: 0 is the ablated run, 1 the whole model. Bands are 95 % "
            f"intervals over {context.setting.over}, that of random circuits the range over circuits.",
            where="page",
        ),
        by_size("Faithfulness by number of edges", "value", every, sizes),
    ]
    if held:
        parts.append(by_size(f"On {held['n']} held-out prompts of {held['name']}", "held_out", rows, sizes))
    notes = [Note(text=f"{row['name']}: {row['note']}", where="terminal") for row in rows if row["note"]]
    return [*parts, every_circuit(every), what_methods_are(rows), *notes]


def own_point(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The circuit that a method found at the size asked for, or nearest to it."""
    return next(point for point in row["points"] if point["edges"] == row["edges"])


def best(
    rows: Sequence[Mapping[str, Any]], chance: Sequence[Mapping[str, Any]], held: Mapping[str, Any] | None, metric: str
) -> str:
    """The method whose circuit comes nearest to the whole model, by held-out prompts where there are any."""
    key = "held_out" if held else "value"
    row = min(rows, key=lambda row: abs(1 - own_point(row)[key]))
    point = own_point(row)
    null = min(chance, key=lambda random: abs(math.log(random["edges"] / point["edges"])))
    there = f" ({formats.percent(point['held_out'])} on {held['n']} held-out prompts)" if held else ""
    return (
        f"Of {len(rows)} methods {row['name']} comes nearest to the whole model: its circuit of {point['edges']:,} "
        f"edges recovers {formats.percent(point['value'])} of the {metric}{there}; random circuits of "
        f"{null['edges']:,} edges recover {formats.percent(null['value'])}."
    )


def own_circuits(rows: Sequence[Mapping[str, Any]], held: Mapping[str, Any] | None, exact: int) -> Table:
    """Each method's own circuit, what it took, and how far its scores agree with exact ones."""
    words = {"spearman": "Spearman", "pearson": "Pearson", "pearson_abs": "Pearson of sizes"} if exact else {}
    columns = (
        *("method", ("edges", "count"), ("faithfulness", "estimate", 3)),
        *([("held out", "number", 3)] if held else []),
        ("seconds", "number", 1),
        *(Column(name, "number", 2, narrow=key == "spearman") for key, name in words.items()),
    )
    rows_of_table = []
    for row in rows:
        point = own_point(row)
        there = [point["held_out"]] if held else []
        agreements = (row[key] for key in words)
        rows_of_table.append((row["name"], point["edges"], cell(point), *there, row["seconds"], *agreements))
    note = (
        f"Correlations are with the exact scores of {exact} edges, half of them the strongest by EAP-IG; Spearman's is "
        "of sizes."
    )
    return table("The circuit of each method", columns, rows_of_table, note=note if exact else "")


def by_size(title: str, key: str, rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Table:
    """One number of the circuits of every size that several methods have, a row for each method."""
    points = [(row["name"], {point["edges"]: _rounded(point.get(key)) for point in row["points"]}) for row in rows]
    numbers = ((name, *(values.get(size, "") for size in sizes)) for name, values in points)
    return table(title, ("method", *((f"{size:,}", "number", 2) for size in sizes)), numbers)


def _rounded(value: Any) -> float | None:
    """To two digits, so that what is nearly nothing is 0.00; the table of every circuit has the number itself."""
    known = formats.finite(value)
    return None if known is None else round(known, 2)


def every_circuit(rows: Sequence[Mapping[str, Any]]) -> Table:
    """All circuits that were measured, with intervals."""
    columns = ("method", ("edges", "count"), ("faithfulness", "estimate", 3), ("held out", "number", 3))
    circuits = ((row["name"], p["edges"], cell(p), p.get("held_out")) for row in rows for p in row["points"])
    return table("Every circuit with its interval", columns, circuits, folded=True)


def what_methods_are(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line about each method."""
    lines = ((row["name"], " ".join(row[key] for key in ("description", "note") if row[key])) for row in rows)
    return table("Methods", ("method", "what it is"), lines, where="page")


STUDY = Study("compare", Compare, run, work)
