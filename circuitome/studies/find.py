"""Find the circuit of a task, measure it on new prompts against random circuits, and say exactly what was done."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Block, EdgeSet, Figure, Lede, Lines, MeasuredSize, Numbers
from circuitome.studies.context import Context
from circuitome.studies.neuron_nodes import (
    check_nodes,
    error_results,
    error_table,
    neuron_record,
    neuron_table,
    neuron_work,
    with_nodes,
)
from circuitome.studies.pieces import (
    circuit_map,
    ends,
    example_pairs,
    figure,
    percent,
    scored_edges,
    series_of,
    size_lines,
)
from circuitome.studies.settings import Flag, PromptSettings, WholeNumbers
from circuitome.studies.settings import Numbers as SeveralNumbers
from circuitome.studies.stable_edges import check_stable, stable_blocks, stable_results, stable_sentence
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.validate import criteria

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.engine.setting import Setting
    from circuitome.present.blocks import Edge
    from circuitome.studies.methods import Result
    from circuitome.validation.smallest import Smallest

RANDOM_CIRCUITS = 3
"""Random circuits of each size that are measured as well."""
QUICK_VERDICT = 25.0
"""Forward passes of the quick verdict on a small circuit; measured on SmolLM2."""
RANKED = 3000
"""Edges of the ranking that the page can show, at most."""
PARTS = ("neuron", "feature", "stream_feature")
"""Kinds of nodes that a table describes."""
SMALLEST_SCORE = "the change of the metric when the edge leaves the circuit, mean over prompts: negative means it helps"


@dataclass(frozen=True, kw_only=True)
class Find(PromptSettings):
    """Find the smallest circuit that does a task, measure it on prompts that the search did not see, and test it."""

    method: str = "smallest"
    """How to look: smallest, as few edges as keep --faithful; or a method that `circuitome methods` lists."""
    faithful: float = 0.9
    """Of smallest: the share of the gap between ablated and whole model that the circuit keeps on new prompts."""
    edges: int | None = None
    """A circuit of that size instead, by mattr or --method; about one edge in seventy by default."""
    stable: float | None = None
    """Keep only edges that come back in that share of draws of the prompts, e.g. 0.9."""
    draws: int | None = None
    """Of --stable: 100 by default, 5 where the method has to run on each."""
    held_out: str | None = None
    """Prompts to measure on: a file, or a task; by default another draw. Rows of --data are split for smallest."""
    nodes: str = "mlps"
    """What is a node beside the heads: mlps; neurons, the strongest of the MLPs taken apart; or the folder of a
    dictionary (several with commas between), whose strongest features stand in the place of what they describe."""
    neurons: int | None = None
    """Of --nodes: how many neurons can be nodes, 300 by default, or features of each dictionary, 50 by default."""
    layers: WholeNumbers = ()
    """Of --nodes neurons: blocks whose MLPs are taken apart, with commas between; all by default."""
    ablation: str = "corrupted"
    """What edges outside the circuit carry: corrupted, zero, mean, mean-position or by-role."""
    steps: int | None = None
    """Points on the integration path of eap-ig, or steps of learning of smallest, mattr and the learned masks."""
    rules: str | None = None
    """Of eap, eap-ig and atp, what gradients are: plain, norm, relp or gim; see docs/exact-methods.md."""
    path: str | None = None
    """Of eap-ig: inputs, the mean gradient times the whole change, or conductance, both step by step."""
    threshold: SeveralNumbers = ()
    """Of acdc, in units of the loss; several for a sweep, from which the size nearest to --edges is taken."""
    loss: str | None = None
    """What counts as a change: metric, kl or l2; for learned masks also both."""
    order: str | None = None
    """Of acdc's senders: reverse (latest first) or normal."""
    absolute: Flag = False
    """Let acdc test the size of a change, not its sign."""
    grouped: Flag = False
    """Let acdc ask about edges that surely go in groups: several times faster, nearly always the same circuit."""

    def options(self) -> dict[str, Any]:
        """The options of the method that were given."""
        names = ("steps", "rules", "path", "threshold", "loss", "order", "absolute", "grouped")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if not (value is None or value is False or value == ())}

    def asked(self) -> str:
        """The method: a size that is given asks for the ranking behind the smallest circuit, not for the smallest."""
        return "mattr" if self.method == "smallest" and self.edges is not None else self.method

    @override
    def apart(self) -> tuple[str, ...]:
        return ("held_out", "sizing") if self.asked() == "smallest" else ("held_out",)

    @override
    def check(self) -> None:
        from circuitome.discovery.attribution.edges import check_path
        from circuitome.engine.ablation import check_ablation
        from circuitome.engine.backward_rules import rules_of
        from circuitome.studies.methods import named

        named(self.asked()).refuse(self.asked(), self.options())
        if not 0 < self.faithful < 1:
            raise InputError(f"--faithful is the share of the gap to keep, between 0 and 1; got {self.faithful}.")
        check_stable(self.stable, self.draws, self.asked(), named(self.asked()))
        check_ablation(self.ablation)
        check_nodes(self.nodes, self.neurons, self.layers, self.asked(), self.ablation, self.stable)
        rules_of(self.rules or "plain")
        check_path(self.path or "inputs", self.ablation)
        super().check()


def circuit_size(edges: int | None, model: "cm.Model") -> int:
    """The number of edges asked for, or about one in seventy. Raises `InputError` where the graph has fewer."""
    total = model.graph.n_edges
    if edges is None:
        size = max(1, round(total / 70))
        unit = 10 ** (len(str(size)) - 1)
        return size // unit * unit
    if not 1 <= edges <= total:
        raise InputError(f"--edges {edges} is outside 1..{total}: {model.name} has {total:,} edges.")
    return edges


def work(settings: Find, context: Context) -> Work:
    """Passes of the method, and of all circuits that are measured."""
    from circuitome.studies.methods import named
    from circuitome.validation.faithfulness.share import default_sizes

    graph, asked = context.model.graph, settings.asked()
    size = circuit_size(settings.edges, context.model)
    search = named(asked).passes(settings.options(), graph, len(context.task))
    apart = neuron_work(settings.nodes, settings.neurons)
    searches = 1 if settings.stable is None else named(asked).searches(settings.draws)
    return Work.over(
        context.task,
        settings.ablation,
        forward=searches * search.forward + QUICK_VERDICT * (asked == "smallest") + 2.0 + apart,  # clean and corrupted
        backward=searches * search.backward + bool(apart),
        products=searches * search.products,
        attention=searches * search.attention,
        rest=searches * search.rest,
        circuit=len({*default_sizes(graph), size}) * (1 + RANDOM_CIRCUITS),
        path=asked != "eap",
        notes=({} if asked == "smallest" else {"edges": size}) | ({} if searches == 1 else {"searches": searches}),
    )


def run(settings: Find, context: Context) -> Findings:
    """Search, then measure the circuit beside random ones: on held-out prompts, or where there are none on its own."""
    from circuitome.studies.methods import Search, named, stabilised

    asked, prompts = settings.asked(), context.prompts
    setting = with_nodes(context.setting, settings.nodes, settings.neurons, settings.layers)
    size = circuit_size(settings.edges, setting.model)
    method = named(asked)
    search = Search(setting, size, settings.options(), context.folder, settings.faithful, prompts)
    stable = settings.stable
    result = method.run(search) if stable is None else stabilised(asked, search, stable, settings.draws)
    judged = setting.but(prompts=prompts.held_out or prompts.search)
    curve = curve_of(judged, result)
    scores, intervals = result.scores, None
    effects = None if result.smallest is None else result.smallest.edges
    if effects is not None:
        scores, intervals = effects.scores, effects.intervals(settings.seed)
    elif scores.samples is not None:
        intervals = scores.intervals(result.circuit, seed=settings.seed, groups=context.task.groups)
    measured = Measured(
        result=result,
        curve=curve,
        own=None if prompts.held_out is None else cm.faithfulness(setting, result.circuit),
        verdict=None if effects is None else quick_verdict(judged, result, context),
        edges=scored_edges(scores, result.circuit, intervals),
        unit=scores.unit,
        neurons=described_neurons(judged, result),
        errors=error_results(judged, result.circuit),
        stable=stable_results(judged, result.stable),
    )
    about = {
        "name": asked,
        "description": result.scores.method,
        "unit": result.scores.unit,
        "settings": settings.options(),
        **result.notes,
    }
    score = SMALLEST_SCORE if effects else named("mattr" if result.smallest else asked).score
    return Findings(
        title=f"{context.task.name} in {settings.model}",
        sign=f"A score is {score}. Brackets are 95 % intervals over {judged.over}.",
        results=results(settings, context, measured),
        blocks=blocks(settings, context, measured),
        tensors=tensors(measured, intervals),
        more={
            "method": about,
            "edges": len(result.circuit),
            **neuron_record(result.circuit.graph, settings.nodes),
            **held_out_record(context),
        },
    )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found, and everything that was measured of it."""

    result: "Result"
    """What the method gave."""
    curve: "cm.Curve"
    """Faithfulness by size on held-out prompts, or, where there are none, on those of the search."""
    own: "cm.Faithfulness | None"
    """Faithfulness on the prompts of the search, where others are held out."""
    verdict: "cm.Verdict | None"
    """The quick verdict on held-out prompts, for the smallest circuit unless it is large."""
    edges: "list[Edge]"
    """The circuit's edges, each with its score."""
    unit: str
    """Unit of these scores."""
    neurons: "tuple[cm.neurons.DescribedNeuron, ...]"
    """The circuit's neurons, where neurons are nodes."""
    errors: list[dict[str, Any]] | None
    """Faithfulness with and without errors of dictionaries, where features are nodes."""
    stable: dict[str, Any] | None
    """How many edges come back in which share of draws of prompts, where these chose the circuit."""

    @property
    def at(self) -> int:
        """Place of the circuit on the curve."""
        return self.curve.sizes.index(len(self.result.circuit))

    @property
    def circuit(self) -> "cm.Faithfulness":
        """Faithfulness of the circuit."""
        return self.curve.circuits[self.at]


def curve_of(judged: "Setting", result: "Result") -> "cm.Curve":
    """Faithfulness of the result's circuits and of the strongest edges by size, beside random circuits."""
    from circuitome.validation.faithfulness.share import default_sizes

    circuits = {**result.others, len(result.circuit): result.circuit}
    return cm.faithfulness_curve(
        judged,
        result.scores,
        sizes=sorted({*default_sizes(result.scores.graph), *circuits}),
        draws=RANDOM_CIRCUITS,
        select=lambda size: circuits.get(size) or result.scores.top(size),
    )


def quick_verdict(judged: "Setting", result: "Result", context: Context) -> "cm.Verdict":
    """The quick verdict on held-out prompts; what it measures is kept for `--resume`."""
    return cm.validate(judged.but(checkpoint=context.folder), result.circuit, quick=True)


def described_neurons(judged: "Setting", result: "Result") -> "tuple[cm.neurons.DescribedNeuron, ...]":
    """What the circuit's neurons do on the prompts that it is measured on."""
    names = [name for name in result.circuit.without_dangling().nodes if cm.Node.parse(name).kind in PARTS]
    return cm.neurons.describe(judged, names) if names else ()


def held_out_record(context: Context) -> dict[str, Any]:
    """The held-out prompts as an entry of the manifest."""
    from circuitome.runs.record import described_task

    held_out = context.prompts.held_out
    return {} if held_out is None else {"held_out": described_task(context.model, held_out)["task"]}


def tensors(measured: Measured, intervals: "Tensor | None") -> dict[str, "Tensor"]:
    """Scores with their intervals and samples, the circuit, and the metrics of its runs on every prompt."""
    import torch

    scores, circuit, smallest = measured.result.scores, measured.result.circuit, measured.result.smallest
    low, high = torch.full((2, *scores.values.shape), torch.nan) if intervals is None else intervals
    return {
        "scores": scores.values,
        "circuit": circuit.mask,
        "score_low": low[circuit.mask],
        "score_high": high[circuit.mask],
        "metrics": measured.circuit.samples.contiguous(),
        **({} if scores.samples is None else {"samples": scores.samples}),
        **({} if smallest is None or smallest.edges is None else {"edge_effects": smallest.edges.samples}),
        **({} if measured.result.stable is None else {"kept": measured.result.stable.kept}),
    }


def results(settings: Find, context: Context, measured: Measured) -> dict[str, Any]:
    """The numbers, as plain JSON values."""
    share, curve, kept = measured.circuit, measured.curve, measured.result.circuit.without_dangling()
    found: dict[str, Any] = {
        "edges": len(measured.result.circuit),
        "edges_on_a_path": len(kept),
        "all_edges": measured.result.circuit.graph.n_edges,
        "nodes": len(kept.nodes),
        "clean": share.model.to_dict(),
        "ablated": share.empty.to_dict(),
        "circuit": share.circuit.to_dict(),
        "faithfulness": share.share.to_dict(),
        "on_own_prompts": None if measured.own is None else measured.own.share.to_dict(),
        "random": curve.random[measured.at].to_dict(),
        "curve": {
            "sizes": list(curve.sizes),
            "circuit": [point.share.to_dict() for point in curve.circuits],
            "random": [point.to_dict() for point in curve.random],
            "random_range": [list(ends) for ends in curve.random_range],
            "random_circuits": curve.draws,
        },
        "stable": measured.stable,
        **({} if measured.errors is None else {"errors": measured.errors}),
    }
    if (smallest := measured.result.smallest) is not None:
        assert measured.verdict is not None
        found |= {
            "asked": settings.faithful,
            "reached": smallest.reached,
            "front": [{"edges": len(circuit), **shown.to_dict()} for circuit, shown in smallest.front],
            "verdict": measured.verdict.to_dict(),
        }
    return found


def blocks(settings: Find, context: Context, measured: Measured) -> list[Block]:
    """Headline, the circuit on the model's grid, the verdict, faithfulness by size, prompts."""
    share, smallest = measured.circuit, measured.result.smallest
    held_out = context.prompts.held_out
    metrics = dict(zip(("circuit", "clean", "ablated"), share.samples.T, strict=True))
    parts: list[Block] = [
        Lede(text=lede(settings, context, measured)),
        Numbers(items=tuple(cards(settings, context, measured))),
        circuit_map(
            measured.result.circuit.graph,
            measured.edges,
            unit=measured.unit,
            title="The circuit",
            note=f"Method: {measured.result.scores.method}.",
            measured=(point_of(measured.curve, measured.at),),
            others=ranking(settings, measured),
        ),
        *neuron_table(measured.neurons, measured.edges, measured.unit),
        *error_table(measured.errors),
    ]
    if measured.verdict is not None:
        parts.append(criteria(measured.verdict.to_dict()["criteria"]))
    if smallest is not None:
        parts.append(front_of(smallest))
    where = "on the prompts that chose them" if held_out is None else "on held-out prompts"
    parts += stable_blocks(measured.stable, where)
    return [*parts, by_size(measured.curve, where), example_pairs(context.model, held_out or context.task, metrics)]


def lede(settings: Find, context: Context, measured: Measured) -> str:
    """How few edges do how much, on which prompts, and what the quick verdict says."""
    circuit, share, held_out = measured.result.circuit, measured.circuit, context.prompts.held_out
    kept, smallest, total = circuit.without_dangling(), measured.result.smallest, circuit.graph.n_edges
    text = (
        f"{len(circuit):,} of {total:,} edges recover {percent(share.share)} of the {context.task.measure} "
        f"between the {settings.ablation} and the clean model; random circuits of that size recover "
        f"{percent(measured.curve.random[measured.at])}.\n"
    )
    text += stable_sentence(measured.stable)
    if smallest is not None and not smallest.reached:
        text += f"No circuit kept {settings.faithful:.0%} on the prompts that choose the size; this came nearest"
        text += "; more of them as nodes (--neurons) may help.\n" if circuit.graph.has_parts else ".\n"
    dangling = len(circuit) - len(kept)
    text += f"{len(kept.nodes)} nodes"
    kind = "features" if circuit.graph.dictionaries else "neurons"
    text += f", {len(measured.neurons)} of them {kind}" if circuit.graph.has_parts else ""
    text += f"; {dangling:,} of the edges lie on no path from input to logits. " if dangling else ". "
    if held_out is None:
        return text + "The circuit was chosen on these same prompts; circuitome validate tests it."
    text += f"All of this is measured on {len(held_out)} held-out prompts, which the search did not see"
    if measured.verdict is None:
        return text + "; circuitome validate tests it."
    return (
        f"{text}.\nQuick verdict on them: {measured.verdict.answer}. {measured.verdict.reason} "
        "circuitome validate tests it in full."
    )


def cards(settings: Find, context: Context, measured: Measured) -> list[Figure]:
    """The headline numbers."""
    circuit, share, total = measured.result.circuit, measured.circuit, measured.result.circuit.graph.n_edges
    items = [
        figure("Faithfulness", share.share, "share of the gap that the circuit keeps; 1 is the whole model"),
        figure(
            "Random circuits", measured.curve.random[measured.at], "the same share for random circuits of that size"
        ),
        figure("Clean", share.model, "metric of the whole model on clean prompts"),
        figure("Circuit", share.circuit, "metric with only the circuit running clean"),
        figure("Ablated", share.empty, f"metric with every edge ablated ({settings.ablation})"),
    ]
    nodes = len(circuit.without_dangling().nodes)
    items.append(Figure(name="Edges", value=len(circuit), style="count", about=f"of {total:,}; {nodes} nodes"))
    if measured.own is not None:
        items.insert(1, figure("On its own prompts", measured.own.share, "the same on the prompts that chose it"))
    return items


def point_of(curve: "cm.Curve", at: int) -> MeasuredSize:
    """What a curve says of one size."""
    random = (curve.random[at].value, *curve.random_range[at])
    return MeasuredSize(edges=curve.sizes[at], share=ends(curve.circuits[at].share), random=random)


def ranking(settings: Find, measured: Measured) -> tuple[EdgeSet, ...]:
    """The strongest edges of the whole ranking, with what was measured by size; nothing where a method ranks none."""
    from circuitome.studies.methods import named

    result, curve = measured.result, measured.curve
    if result.others:  # thresholds, not scores, decide on these circuits
        return ()
    at_top = [i for i, n in enumerate(curve.sizes) if i != measured.at or result.scores.top(n) == result.circuit]
    points = [point_of(curve, i) for i in at_top if curve.sizes[i] <= RANKED]
    if not points:
        return ()
    largest = max(point.edges for point in points)
    known = {} if result.smallest else {(edge.source, edge.reader): edge for edge in measured.edges}
    edges = scored_edges(result.scores, result.scores.top(largest), None)
    told = named("mattr" if result.smallest else settings.asked()).score
    return (
        EdgeSet(
            name="the ranking",
            about=f"The first {largest:,} edges of the ranking from which circuits of each size are taken. "
            f"A score is {told}.",
            edges=tuple(known.get((edge.source, edge.reader), edge) for edge in edges),
            unit=result.scores.unit,
            measured=tuple(points),
        ),
    )


def front_of(smallest: "Smallest") -> Lines:
    """The walk along sizes on the sizing prompts."""
    sizes, shares = zip(*((len(circuit), share) for circuit, share in smallest.front), strict=True)
    note = (
        "Circuits of the strongest edges on the prompts that choose the size. The smallest within "
        f"{1 - smallest.asked:.0%} of the whole model is taken, and what is useless in it goes."
    )
    return size_lines([series_of("circuit", sizes, shares)], title="The walk along sizes", note=note)


def by_size(curve: "cm.Curve", where: str) -> Lines:
    """Faithfulness over circuit size, with random circuits of the same sizes."""
    shares = series_of("circuit", curve.sizes, [point.share for point in curve.circuits])
    random = series_of("random circuits", curve.sizes, curve.random, faint=True)
    note = f"Share of the clean-ablated gap that circuits of each size recover, {where}."
    return size_lines([shares, random], note=note)


STUDY = Study("find", Find, run, work)
