"""Several methods on the same prompts: how faithful their circuits are by size, here and on held-out prompts."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    from circuitome.tasks.held_out import Split

COMPARED = (
    *("eap", "eap-ig", "clean-corrupted", "atp", "routes", "mattr", "smallest"),
    *("edge-pruning", "subnetwork-probing", "acdc", "magnitude"),
)
"""What is compared by default; random circuits are measured as well."""
OPTIONS: dict[str, dict[str, Any]] = {"acdc": {"grouped": True}}
"""Options of methods in a comparison."""
OWN_SIZES = ("smallest", "acdc", "edge-pruning", "subnetwork-probing")
"""Methods whose circuits have the sizes that they come to; all others rank edges and give every size."""
WITHOUT = 2.0
"""About what it costs to run the model without a circuit, in passes of circuits: nearly all edges are run."""
RANDOM_CIRCUITS = 3
"""Random circuits of each size."""
FORWARDS = 3
"""Bare forward passes that are timed."""
HELD_OUT = 64
"""Held-out prompts that are drawn where no file gives them."""
RANDOM = "random circuits"
SIGN = (
    "Faithfulness is the share of the metric's gap between the ablated and the whole model that a circuit recovers: "
    "1 is the whole model, 0 nothing; circuits may overshoot. Brackets are 95 % intervals over prompts."
)


@dataclass(frozen=True, kw_only=True)
class Compare(PromptSettings):
    """Run several methods on the same prompts: held-out faithfulness by size, necessity, cost and stability."""

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

    graph, held = context.model.graph, held_out(settings, context)
    costs = [METHODS[name].passes(OPTIONS.get(name, {}), graph, len(context.task)) for name in settings.methods]
    places = 1 + (0 if held is None else len(held) / len(context.task))
    sizes = [1 if name in OWN_SIZES else len(default_sizes(graph)) for name in settings.methods]
    circuits = places * (sum(sizes) + len(default_sizes(graph)) * RANDOM_CIRCUITS)
    without = WITHOUT * len(costs) * (places - 1 or 1)
    forward = sum(cost[0] for cost in costs) + 0.3 * settings.exact_edges
    backward = sum(cost[1] for cost in costs)
    return Work.over(context.task, forward=forward, backward=backward, circuit=circuits + without)


def run(settings: Compare, context: Context) -> Findings:
    """Every method's circuits by size, their faithfulness here and on held-out prompts, and how far scores agree.

    Methods that learn a circuit of one size give that one point, ACDC one for each threshold; scores give circuits of
    every size. Finished methods are kept, so that a stopped run goes on.
    """
    from circuitome.validation.robustness.score_agreement import agreement

    held, reference, forward = held_out(settings, context), exact_scores(settings, context), forward_seconds(context)
    rows, tensors = list[dict[str, Any]](), dict[str, Any]()
    for name in settings.methods:
        result, took = searched(settings, context, name)
        row = measured(context, name, result, held) | took | {"forwards": round(took["processor_seconds"] / forward, 1)}
        if reference is not None:
            near = agreement(result.scores, reference[0], reference[1])
            row |= {"pearson": near.pearson, "pearson_abs": near.pearson_abs, "spearman": near.spearman}
        rows.append(row)
        tensors |= {f"{name}.scores": result.scores.values, f"{name}.circuit": result.circuit.mask}
    results = {"methods": rows, "random": random_shares(context, held), "seconds_of_a_forward": forward}
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


def measured(context: Context, name: str, result: "Result", held: "cm.Task | None") -> dict[str, Any]:
    """A method's circuits with their faithfulness here and on held-out prompts, and the necessity of its own."""
    from circuitome.studies.methods import METHODS
    from circuitome.validation.faithfulness.share import default_sizes

    circuits = circuits_of(name, result, default_sizes(context.model.graph))
    here = shares(context, result.scores, circuits, context.task)
    there = None if held is None else shares(context, result.scores, circuits, held)
    points = [
        {"edges": size, **share, **_held_out(None if there is None else there[i])}
        for i, (size, share) in enumerate(zip(circuits, here, strict=True))
    ]
    return {
        "name": name,
        "description": METHODS[name].what,
        "edges": len(result.circuit),
        "points": points,
        "necessity": necessity(context, result.circuit, held or context.task),
        "note": METHODS[name].note,
    }


def _held_out(share: Mapping[str, Any] | None) -> dict[str, Any]:
    """A share on held-out prompts as part of a point; None where there are none."""
    ends_of = {"held_out": "value", "held_out_low": "low", "held_out_high": "high"}
    return {name: None if share is None else share[end] for name, end in ends_of.items()}


def necessity(context: Context, circuit: "cm.Circuit", task: "cm.Task") -> dict[str, Any]:
    """The share of the gap that is lost without the circuit: (F(M) - F(rest)) / (F(M) - F(0)); value, low, high."""
    rest = cm.faithfulness(context.setting.but(prompts=task), ~circuit).share
    return {"value": 1 - rest.value, "low": 1 - rest.high, "high": 1 - rest.low}


def forward_seconds(context: Context) -> float:
    """Processor seconds of a bare forward pass over the prompts: the least of a few."""
    import torch

    times, setting = list[float](), context.setting
    with torch.no_grad():
        for _ in range(FORWARDS):
            start = time.process_time()
            for batch in setting.clean_batches():
                setting.model.logits(batch.clean)
            times.append(time.process_time() - start)
    return min(times)


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
    if name in OWN_SIZES:
        return dict(sorted({**result.others, len(result.circuit): result.circuit}.items()))
    return {size: result.scores.top(size) for size in sorted({*sizes, len(result.circuit)})}


def searched(settings: Compare, context: Context, name: str) -> tuple["Result", dict[str, Any]]:
    """What a method gives, its seconds and its stability, from the file of a stopped run if it is there."""
    from circuitome.studies.find import circuit_size
    from circuitome.studies.methods import METHODS, Result, Search

    setting, graph = context.setting, context.model.graph
    kept = setting.but(checkpoint=context.file(f"found-{name}.safetensors")).kept(name, settings.edges, settings.seed)
    if before := kept.read():
        tensors, state = before
        scores = cm.EdgeScores(graph, tensors["scores"], state["unit"], state["method"])
        others = {int(k): cm.Circuit(graph, tensors[k]) for k in tensors if k.isdigit()}
        return Result(scores, cm.Circuit(graph, tensors["circuit"]), others), state["took"]
    size, apart = circuit_size(settings.edges, context.model), prompts_apart(settings, context)
    here = setting.but(progress=lambda what, done, total: setting.progress(f"{name}: {what}", done, total))
    folder = context.file(f"search-{name}")  # of its own: mattr and smallest would go on from each other's steps
    if folder is not None and METHODS[name].resumes:
        folder.mkdir(exist_ok=True)
    start, started = time.perf_counter(), time.process_time()
    result = METHODS[name].run(Search(here, size, OPTIONS.get(name, {}), folder, prompts=apart))
    took = {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": time.process_time() - started,
        "stability": stability(result, settings.seed),
    }
    masks = {str(n): circuit.mask for n, circuit in result.others.items()}
    kept.write(
        {"scores": result.scores.values, "circuit": result.circuit.mask, **masks},
        {"unit": result.scores.unit, "method": result.scores.method, "took": took},
    )
    return result, took


def prompts_apart(settings: Compare, context: Context) -> "Split | None":
    """Prompts on which smallest chooses its size, and the held-out ones; None where it has to split those at hand."""
    from circuitome.tasks.held_out import Split

    held = held_out(settings, context)
    sizing = (
        None
        if held is None
        else replace(settings.origin(), held_out=None).others(context.model, 2, [context.task, held])
    )
    return None if sizing is None else Split(context.task, sizing, held)


def stability(result: "Result", seed: int) -> dict[str, float] | None:
    """Jaccard of circuits of two draws of prompts, and of what resamples agree on; None for scores without samples."""
    from circuitome.validation.robustness.stability import FEWEST_PROMPTS, shared_edges

    samples = result.scores.samples
    if samples is None or len(samples) < FEWEST_PROMPTS:
        return None
    plain, agreed = shared_edges(result.scores, len(result.circuit), seed=seed)
    return {"draws": plain, "agreed": agreed}


def exact_scores(settings: Compare, context: Context) -> tuple["cm.EdgeScores", "cm.Circuit"] | None:
    """Exact scores of some edges, half of them the strongest by EAP-IG."""
    from circuitome.validation.robustness.score_agreement import spread_edges

    if not settings.exact_edges:
        return None
    scores = searched(settings, context, "eap-ig")[0].scores
    among = spread_edges(scores, settings.exact_edges, settings.seed)
    return cm.exact(context.setting.but(checkpoint=context.file("reference.safetensors")), edges=among), among


def shares(
    context: Context, scores: "cm.EdgeScores", circuits: dict[int, "cm.Circuit"], task: "cm.Task"
) -> list[dict[str, Any]]:
    """Faithfulness of each circuit: value, low, high."""
    here = context.setting.but(prompts=task)
    curve = cm.faithfulness_curve(here, scores, sizes=list(circuits), draws=0, select=circuits.__getitem__)
    return [dict(zip(("value", "low", "high"), ends(point.share), strict=True)) for point in curve.circuits]


def random_shares(context: Context, held: "cm.Task | None") -> list[dict[str, Any]]:
    """Random circuits here and on held-out prompts: mean faithfulness by size, and the range over circuits."""
    import torch

    graph = context.model.graph
    nothing, rows = cm.EdgeScores(graph, torch.zeros(graph.mask.shape)), list[list[dict[str, Any]]]()
    for task in (context.task, *([] if held is None else [held])):
        curve = cm.faithfulness_curve(context.setting.but(prompts=task), nothing, draws=RANDOM_CIRCUITS)
        ranges = zip(curve.sizes, curve.random, curve.random_range, strict=True)
        rows.append([{"edges": n, "value": share.value, "low": low, "high": high} for n, share, (low, high) in ranges])
    there = rows[1] if held is not None else [None] * len(rows[0])
    return [{**point, **_held_out(other)} for point, other in zip(rows[0], there, strict=True)]


def blocks(context: Context, results: Mapping[str, Any], held: Mapping[str, Any] | None, exact: int) -> list[Block]:
    """The best method, each method's own circuit, faithfulness by size as figure and tables, what each method is."""
    rows = results["methods"]
    every = [*rows, {"name": RANDOM, "points": results["random"]}]
    counts = Counter(point["edges"] for row in rows for point in row["points"])
    sizes = sorted(size for size, count in counts.items() if count > 1) or sorted(counts)
    parts: list[Block] = [
        Lede(text=best(rows, results["random"], held, str(context.task.measure))),
        own_circuits(rows, held),
        *(
            [lines(every, "held_out", "Faithfulness by size, held out", f"{held['n']} held-out prompts")]
            if held
            else []
        ),
        of_scores(rows, exact),
        lines(every, "value", "Faithfulness by size", context.setting.over),
        by_size("Faithfulness by number of edges", "value", every, sizes),
    ]
    if held:
        parts.append(by_size(f"On {held['n']} held-out prompts of {held['name']}", "held_out", every, sizes))
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


def lines(rows: Sequence[Mapping[str, Any]], key: str, title: str, over: str) -> Block:
    """Faithfulness of every method's circuits by size, here or on held-out prompts."""
    low, high = ("low", "high") if key == "value" else (f"{key}_low", f"{key}_high")
    return size_lines(
        (
            series_of(
                row["name"],
                [point["edges"] for point in row["points"]],
                [{"value": point[key], "low": point[low], "high": point[high]} for point in row["points"]],
                faint=row["name"] == RANDOM,
            )
            for row in rows
            if row["points"]
        ),
        title=title,
        note="Faithfulness of each method's circuits: 0 is the ablated run, 1 the whole model. Bands are 95 % "
        f"intervals over {over}, that of random circuits the range over circuits.",
        where="page",
    )


def own_circuits(rows: Sequence[Mapping[str, Any]], held: Mapping[str, Any] | None) -> Table:
    """Each method's own circuit: what it suffices for, what is lost without it, and what it took to find it."""
    columns = (
        *("method", ("edges", "count"), ("here", "number", 2)),
        *(("sufficiency", "estimate", 2), ("necessity", "estimate", 2), ("passes", "number", 1)),
    )
    rows_of_table = []
    for row in rows:
        point = own_point(row)
        sufficiency = [point[name] for name in ("held_out", "held_out_low", "held_out_high")]
        enough = tuple(sufficiency) if held else cell(point)
        line = (row["name"], point["edges"], _rounded(point["value"]), enough, cell(row["necessity"]), row["forwards"])
        rows_of_table.append(line)
    where = f"on {held['n']} held-out prompts" if held else "on these same prompts"
    note = (
        "here: faithfulness on the prompts of the search. Sufficiency: share of the gap that the circuit alone keeps; "
        f"necessity: share that the model without it loses; both {where}. passes: processor time of the search in bare "
        "forward passes over its prompts."
    )
    return table("The circuit of each method", columns, rows_of_table, note=note)


def of_scores(rows: Sequence[Mapping[str, Any]], exact: int) -> Table:
    """How far each method's scores agree over draws of prompts, and with exact ones."""
    words = {"spearman": "Spearman", "pearson": "Pearson", "pearson_abs": "Pearson of sizes"} if exact else {}
    columns = (
        *("method", ("two draws", "number", 2), ("resamples agree", "number", 2)),
        *(Column(name, "number", 2, narrow=key == "spearman") for key, name in words.items()),
    )
    known = [(row, row["stability"] or {}) for row in rows]
    lines_of_table = [
        (row["name"], shared.get("draws"), shared.get("agreed"), *(row[key] for key in words)) for row, shared in known
    ]
    note = (
        "two draws: share of edges (Jaccard) that the circuits of two disjoint halves of the prompts have in common; "
        "resamples agree: the same of the edges that most bootstrap resamples of each half choose. Methods that keep "
        "no scores of single prompts have neither."
    )
    correlations = (
        f" Correlations are with the exact scores of {exact} edges, half of them the strongest by EAP-IG; Spearman's "
        "is of sizes."
    )
    note += correlations if exact else ""
    return table("The scores of each method", columns, lines_of_table, note=note)


def by_size(title: str, key: str, rows: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Table:
    """One number of the circuits of every size that several methods have, a row for each method."""
    points = [(row["name"], {point["edges"]: _rounded(point.get(key)) for point in row["points"]}) for row in rows]
    shown = (line for line in points if any(size in line[1] for size in sizes))
    numbers = ((name, *(values.get(size, "") for size in sizes)) for name, values in shown)
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
