"""Find the circuit of a task, measure it against random circuits of the same size, and say exactly what was done."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Block, Figure, Lede, Lines, Numbers
from circuitome.studies.context import Context
from circuitome.studies.pieces import circuit_map, example_pairs, figure, percent, scored_edges, series_of, size_lines
from circuitome.studies.settings import Flag, PromptSettings
from circuitome.studies.settings import Numbers as SeveralNumbers
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.studies.methods import Result

RANDOM_CIRCUITS = 3
"""Random circuits of each size that are measured as well."""


@dataclass(frozen=True, kw_only=True)
class Find(PromptSettings):
    """Find the circuit of a task, measure it against random ones, and write a run folder with a report."""

    method: str = "eap-ig"
    """A name that `circuitome methods` lists."""
    edges: int | None = None
    """Size of the circuit; about one edge in seventy by default."""
    ablation: str = "corrupted"
    """What edges outside the circuit carry: corrupted, zero, mean or mean-position."""
    steps: int | None = None
    """Points on the integration path of eap-ig, or steps of learning of edge-pruning and subnetwork-probing."""
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
        names = ("steps", "threshold", "loss", "order", "absolute", "grouped")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if not (value is None or value is False or value == ())}

    @override
    def check(self) -> None:
        from circuitome.engine.ablation import check_ablation
        from circuitome.studies.methods import named

        named(self.method).refuse(self.method, self.options())
        check_ablation(self.ablation)
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

    graph = context.model.graph
    size = circuit_size(settings.edges, context.model)
    forward, backward = named(settings.method).work(settings.options(), graph)
    return Work.over(
        context.task,
        forward=forward,
        backward=backward,
        circuit=len({*default_sizes(graph), size}) * (1 + RANDOM_CIRCUITS),
        notes={"edges": size},
    )


def run(settings: Find, context: Context) -> Findings:
    """Score every edge, select a circuit, and measure its faithfulness beside random circuits of the same size."""
    from circuitome.studies.methods import Search, named
    from circuitome.validation.faithfulness.share import default_sizes

    size = circuit_size(settings.edges, context.model)
    method = named(settings.method)
    result = method.run(Search(context.setting, size, settings.options(), context.folder))
    circuits = {**result.others, len(result.circuit): result.circuit}
    curve = cm.faithfulness_curve(
        context.setting,
        result.scores,
        sizes=sorted({*default_sizes(context.model.graph), *circuits}),
        draws=RANDOM_CIRCUITS,
        select=lambda size: circuits.get(size) or result.scores.top(size),
    )
    scores, intervals = result.scores, None
    if scores.samples is not None:
        intervals = scores.intervals(result.circuit, seed=settings.seed, groups=context.task.groups)
    about = {
        "name": settings.method,
        "description": scores.method,
        "unit": scores.unit,
        "settings": settings.options(),
        **result.notes,
    }
    return Findings(
        title=f"{context.task.name} in {settings.model}",
        sign=f"A score is {method.score}. Brackets are 95 % intervals over {context.setting.over}.",
        results=results(context, result, curve),
        blocks=blocks(settings, context, result, curve, intervals),
        tensors=tensors(result, curve, intervals),
        more={"method": about, "edges": len(result.circuit)},
    )


def tensors(result: "Result", curve: "cm.Curve", intervals: "Tensor | None") -> dict[str, "Tensor"]:
    """Scores with their intervals and samples, the circuit, and the metrics of its runs on every prompt."""
    import torch

    scores, circuit = result.scores, result.circuit
    low, high = torch.full((2, *scores.values.shape), torch.nan) if intervals is None else intervals
    return {
        "scores": scores.values,
        "circuit": circuit.mask,
        "score_low": low[circuit.mask],
        "score_high": high[circuit.mask],
        "metrics": curve.circuits[curve.sizes.index(len(circuit))].samples.contiguous(),
        **({} if scores.samples is None else {"samples": scores.samples}),
    }


def results(context: Context, result: "Result", curve: "cm.Curve") -> dict[str, Any]:
    """The numbers, as plain JSON values."""
    at = curve.sizes.index(len(result.circuit))
    measured, kept = curve.circuits[at], result.circuit.without_dangling()
    return {
        "edges": len(result.circuit),
        "edges_on_a_path": len(kept),
        "all_edges": context.model.graph.n_edges,
        "nodes": len(kept.nodes),
        "clean": measured.model.to_dict(),
        "ablated": measured.empty.to_dict(),
        "circuit": measured.circuit.to_dict(),
        "faithfulness": measured.share.to_dict(),
        "random": curve.random[at].to_dict(),
        "curve": {
            "sizes": list(curve.sizes),
            "circuit": [point.share.to_dict() for point in curve.circuits],
            "random": [point.to_dict() for point in curve.random],
            "random_range": [list(ends) for ends in curve.random_range],
            "random_circuits": curve.draws,
        },
    }


def blocks(
    settings: Find, context: Context, result: "Result", curve: "cm.Curve", intervals: "Tensor | None"
) -> list[Block]:
    """Headline, the circuit on the model's grid, its faithfulness by size, prompts."""
    scores, circuit, task = result.scores, result.circuit, context.task
    at = curve.sizes.index(len(circuit))
    measured, kept = curve.circuits[at], circuit.without_dangling()
    total = context.model.graph.n_edges
    text = (
        f"{len(circuit):,} of {total:,} edges recover {percent(measured.share)} of the {task.measure} "
        f"between the {settings.ablation} and the clean model; random circuits of that size recover "
        f"{percent(curve.random[at])}.\n"
        f"{len(kept.nodes)} nodes; {len(circuit) - len(kept):,} of the edges lie on no path from input to logits. The "
        "circuit was chosen on these same prompts; circuitome validate tests it."
    )
    cards = (
        figure("Faithfulness", measured.share, "share of the gap that the circuit keeps; 1 is the whole model"),
        figure("Random circuits", curve.random[at], "the same share for random circuits of that size"),
        figure("Clean", measured.model, "metric of the whole model on clean prompts"),
        figure("Circuit", measured.circuit, "metric with only the circuit running clean"),
        figure("Ablated", measured.empty, f"metric with every edge ablated ({settings.ablation})"),
        Figure(name="Edges", value=len(circuit), style="count", about=f"of {total:,}; {len(kept.nodes)} nodes"),
    )
    metrics = dict(zip(("circuit", "clean", "ablated"), measured.samples.T, strict=True))
    return [
        Lede(text=text),
        Numbers(items=cards),
        circuit_map(
            scores.graph,
            scored_edges(scores, circuit, intervals),
            unit=scores.unit,
            title="The circuit",
            note=f"Method: {scores.method}.",
        ),
        by_size(curve),
        example_pairs(context.model, task, metrics),
    ]


def by_size(curve: "cm.Curve") -> Lines:
    """Faithfulness over circuit size, with random circuits of the same sizes."""
    shares = series_of("circuit", curve.sizes, [point.share for point in curve.circuits])
    random = series_of("random circuits", curve.sizes, curve.random, faint=True)
    note = "Share of the clean-ablated gap that circuits of each size recover, on the prompts that chose them."
    return size_lines([shares, random], note=note)


STUDY = Study("find", Find, run, work)
