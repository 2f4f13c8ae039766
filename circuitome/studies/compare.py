"""Several methods on the same prompts: how faithful their circuits are by size, here and on held-out prompts."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.studies.compared import blocks
from circuitome.studies.context import Context
from circuitome.studies.neuron_nodes import METHODS as ON_PARTS
from circuitome.studies.neuron_nodes import check_nodes, neuron_record, neuron_work, with_nodes
from circuitome.studies.pieces import ends
from circuitome.studies.settings import Names, PromptSettings
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting
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
    nodes: str = "mlps"
    """neurons, or folders of dictionaries with commas between: a second row of each method with these as nodes."""
    neurons: int | None = None
    """How many neurons, or features of each dictionary, are nodes in that row; alone it means --nodes neurons."""

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
        for method in self.with_parts() or self.methods:
            check_nodes(self.parts(), self.neurons, (), method, self.ablation, None)
        super().check()

    def parts(self) -> str:
        """What is nodes in the second rows: mlps where there are no such rows."""
        return "neurons" if self.nodes == "mlps" and self.neurons is not None else self.nodes

    def with_parts(self) -> tuple[str, ...]:
        """The methods that have a second row."""
        return tuple(name for name in self.methods if name in ON_PARTS) if self.parts() != "mlps" else ()


def work(settings: Compare, context: Context) -> Work:
    """The passes of every method, of its circuits here and on held-out prompts, and of exact patching."""
    from circuitome.studies.methods import METHODS
    from circuitome.studies.operations import passes_behind
    from circuitome.validation.faithfulness.share import default_sizes

    graph, held = context.model.graph, held_out(settings, context)
    searches = (*settings.methods, *settings.with_parts())
    costs = [METHODS[name].passes(OPTIONS.get(name, {}), graph, len(context.task)) for name in searches]
    places = 1 + (0 if held is None else len(held) / len(context.task))
    sizes = [1 if name in OWN_SIZES else len(default_sizes(graph)) for name in searches]
    circuits = places * (sum(sizes) + len(default_sizes(graph)) * RANDOM_CIRCUITS)
    without = WITHOUT * len(costs) * (places - 1 or 1)
    exact = passes_behind(graph) / graph.n_edges * settings.exact_edges
    forward = sum(cost.forward for cost in costs) + exact + 2.0 * places
    forward += len(settings.with_parts()) * neuron_work(settings.parts(), settings.neurons)
    summed = {
        name: sum(getattr(cost, name) for cost in costs) for name in ("backward", "products", "attention", "rest")
    }
    return Work.over(context.task, settings.ablation, forward=forward, circuit=circuits + without, **summed)


def run(settings: Compare, context: Context) -> Findings:
    """Every method's circuits by size, their faithfulness here and on held-out prompts, and how far scores agree.

    Methods that learn a circuit of one size give that one point, ACDC one for each threshold; scores give circuits of
    every size. Finished methods are kept, so that a stopped run goes on.
    """
    from circuitome.validation.robustness.score_agreement import agreement

    held, reference, forward = held_out(settings, context), exact_scores(settings, context), forward_seconds(context)
    rows, tensors, nodes = list[dict[str, Any]](), dict[str, Any](), dict[str, Any]()
    for name, method, setting in searches(settings, context):
        result, took = searched(settings, context, name, method, setting)
        row = {"name": name, **measured(setting, method, result, held), **took}
        row["forwards"] = round(took["processor_seconds"] / forward, 1)
        if reference is not None and setting.model is context.model:
            near = agreement(result.scores, reference[0], reference[1])
            row |= {"pearson": near.pearson, "pearson_abs": near.pearson_abs, "spearman": near.spearman}
        rows.append(row)
        tensors |= {f"{name}.scores": result.scores.values, f"{name}.circuit": result.circuit.mask}
        nodes |= neuron_record(setting.model.graph, settings.nodes)
    results = {"methods": rows, "random": random_shares(context, held), "seconds_of_a_forward": forward}
    about = None if held is None else {"name": held.name, "n": len(held), "source": held.source}
    exact_edges = 0 if reference is None else len(reference[1])
    return Findings(
        title=f"Methods compared: {context.task.name} in {settings.model}",
        sign=SIGN,
        results=results,
        blocks=blocks(context, results, about, exact_edges),
        tensors=tensors,
        more={"held_out": about, "exact_edges": exact_edges, **nodes},
    )


def searches(settings: Compare, context: Context) -> "Iterator[tuple[str, str, Setting]]":
    """Name of the row, method and setting of every search: first with whole MLPs, then with their parts as nodes."""
    for method in settings.methods:
        yield method, method, context.setting
    if names := settings.with_parts():
        view = with_nodes(context.setting, settings.parts(), settings.neurons, ())
        kind = "neurons" if settings.parts() == "neurons" else "features"
        for method in names:
            yield f"{method}, {kind}", method, view


def measured(setting: "Setting", method: str, result: "Result", held: "cm.Task | None") -> dict[str, Any]:
    """A method's circuits with their faithfulness here and on held-out prompts, and the necessity of its own."""
    from circuitome.studies.methods import METHODS
    from circuitome.validation.faithfulness.share import default_sizes

    circuits = circuits_of(method, result, default_sizes(setting.model.graph))
    here = shares(setting, result.scores, circuits)
    judged = setting if held is None else setting.but(prompts=held)
    there = None if held is None else shares(judged, result.scores, circuits)
    points = [
        {"edges": size, **share, **_held_out(None if there is None else there[i])}
        for i, (size, share) in enumerate(zip(circuits, here, strict=True))
    ]
    return {
        "description": METHODS[method].what,
        "edges": len(result.circuit),
        "points": points,
        "necessity": necessity(judged, result.circuit),
        "note": METHODS[method].note,
    }


def _held_out(share: Mapping[str, Any] | None) -> dict[str, Any]:
    """A share on held-out prompts as part of a point; None where there are none."""
    ends_of = {"held_out": "value", "held_out_low": "low", "held_out_high": "high"}
    return {name: None if share is None else share[end] for name, end in ends_of.items()}


def necessity(setting: "Setting", circuit: "cm.Circuit") -> dict[str, Any]:
    """The share of the gap that is lost without the circuit: (F(M) - F(rest)) / (F(M) - F(0)); value, low, high."""
    rest = cm.faithfulness(setting, ~circuit).share
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


def circuits_of(method: str, result: "Result", sizes: Sequence[int]) -> dict[int, "cm.Circuit"]:
    """By size, the circuits that a method means."""
    if method in OWN_SIZES:
        return dict(sorted({**result.others, len(result.circuit): result.circuit}.items()))
    return {size: result.scores.top(size) for size in sorted({*sizes, len(result.circuit)})}


def searched(
    settings: Compare, context: Context, name: str, method: str, setting: "Setting"
) -> tuple["Result", dict[str, Any]]:
    """What a method gives, its seconds and its stability, from the file of a stopped run if it is there."""
    from circuitome.studies.find import circuit_size
    from circuitome.studies.methods import METHODS, Result, Search

    graph = setting.model.graph
    kept = setting.but(checkpoint=context.file(f"found-{name}.safetensors")).kept(name, settings.edges, settings.seed)
    if before := kept.read():
        tensors, state = before
        scores = cm.EdgeScores(graph, tensors["scores"], state["unit"], state["method"])
        others = {int(k): cm.Circuit(graph, tensors[k]) for k in tensors if k.isdigit()}
        return Result(scores, cm.Circuit(graph, tensors["circuit"]), others), state["took"]
    size, apart = circuit_size(settings.edges, setting.model), prompts_apart(settings, context)
    here = setting.but(progress=lambda what, done, total: setting.progress(f"{name}: {what}", done, total))
    folder = context.file(f"search-{name}")  # of its own: mattr and smallest would go on from each other's steps
    if folder is not None and METHODS[method].resumes:
        folder.mkdir(exist_ok=True)
    start, started = time.perf_counter(), time.process_time()
    result = METHODS[method].run(Search(here, size, OPTIONS.get(method, {}), folder, prompts=apart))
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
    scores = searched(settings, context, "eap-ig", "eap-ig", context.setting)[0].scores
    among = spread_edges(scores, settings.exact_edges, settings.seed)
    return cm.exact(context.setting.but(checkpoint=context.file("reference.safetensors")), edges=among), among


def shares(setting: "Setting", scores: "cm.EdgeScores", circuits: dict[int, "cm.Circuit"]) -> list[dict[str, Any]]:
    """Faithfulness of each circuit: value, low, high."""
    curve = cm.faithfulness_curve(setting, scores, sizes=list(circuits), draws=0, select=circuits.__getitem__)
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


STUDY = Study("compare", Compare, run, work)
