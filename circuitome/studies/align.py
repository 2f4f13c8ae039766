"""Causal abstraction: where in the model the variables of an algorithm are, and whether they are there at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError, unknown_name
from circuitome.present import blocks
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell, figure, percent
from circuitome.studies.settings import Names, PromptSettings, WholeNumbers
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.causal import AccuracyMap, CausalModel, Located
    from circuitome.engine.setting import Setting
    from circuitome.tasks.task import Task

BUILTIN = "builtin"
SIGN = (
    "Interchange accuracy (IIA): a base prompt runs with the value that a place has on a source prompt; the share of "
    "pairs in which the model then answers what the causal model does with the variable's value from the source."
)
LEARNING = 0.5
"""Part of the blocks that a step of learning runs where it is not known where the place will be."""


@dataclass(frozen=True, kw_only=True)
class Align(PromptSettings):
    """Find the places in the model that play the variables of an algorithm of your own, with controls beside them."""

    model_of: str = BUILTIN
    """The causal model as file.py:NAME, made by cm.causal.model(...), or builtin: the one that the task comes with."""
    variables: Names = ()
    """Variables to look for; by default all that are not the answer."""
    sites: str = "resid"
    """resid (the stream in front of each block), mid (between attention and MLP), heads, mlps, or q, k, v of heads."""
    run: str | None = None
    """A run of find or explain: only heads or MLPs of its circuit are looked at, of explain those with active roles."""
    at: Names = ()
    """Roles of tokens to look at; by default all that every prompt has."""
    place: str | None = None
    """Place to judge in place of each variable's best one: x14@end, a5.h1@S2, m4.n3,n17@end, several joined by +."""
    search: str = "das"
    """das (directions of the sizes --k), boundless (how many is learned too), mask (coordinates or heads), pca."""
    k: WholeNumbers = (1, 4, 16)
    """Sizes of subspaces to learn at that place, the smallest good enough is judged; 0 alone: its whole value."""
    least: float = 0.5
    """Share of the prompts that model and causal model must agree on; the others are left out and counted."""
    held_out: str | None = None
    """File or task of the prompts to judge on; by default other prompts of the same task."""

    @override
    def check(self) -> None:
        from circuitome.causal.searches import SEARCHES
        from circuitome.causal.sites import KINDS

        if self.search not in SEARCHES:
            raise unknown_name("search", self.search, SEARCHES)
        if self.run is not None and self.sites in ("resid", "mid"):
            raise InputError(
                f"--run names heads and MLPs, and --sites {self.sites} has none. Take heads, mlps, q, k or v."
            )
        if self.sites not in KINDS:
            raise unknown_name("kind of sites", self.sites, KINDS)
        if min(self.k, default=0) < 0 or (0 in self.k and len(self.k) > 1):
            raise InputError(f"--k takes sizes of subspaces from 1 on, or 0 alone; got {', '.join(map(str, self.k))}.")
        if not 0 < self.least <= 1:
            raise InputError(f"--least is a share of the prompts, above 0 and at most 1; got {self.least}.")
        if self.model_of == BUILTIN:
            cm.causal.ready(self.task)
        super().check()

    @override
    def apart(self) -> tuple[str, ...]:
        return "held_out", "sizing"


def causal_model(settings: Align) -> "CausalModel":
    """The causal model that the settings name. Raises `InputError` for something else."""
    from circuitome.user_code import named_object

    if settings.model_of == BUILTIN:
        return cm.causal.ready(settings.task)
    found = named_object(settings.model_of, "causal model")
    if not isinstance(found, cm.causal.CausalModel):
        raise InputError(
            f"{settings.model_of} is a {type(found).__name__}. A causal model is made by cm.causal.model(...), each "
            "variable a function of others."
        )
    return found


def candidates(settings: Align, model: "cm.Model") -> tuple[str, ...]:
    """Heads and MLPs of the run's circuit; of a run of explain, those with an active role. All where there is no run.

    Raises `RunError` for a run without circuit, `InputError` for one of another model.
    """
    if settings.run is None:
        return ()
    from circuitome.studies.explain import RESTING

    opened = cm.open(settings.run)
    nodes = opened.circuit.nodes
    if opened.graph.with_neurons([]) != model.graph:
        raise InputError(f"The circuit of {settings.run} belongs to {opened.manifest['model']['name']}.")
    resting = {head["head"] for head in opened.results.get("heads", ()) if head["role"] in RESTING}
    return tuple(dict.fromkeys(str(_whole(name)) for name in nodes if name not in resting))


def _whole(name: str) -> "cm.Node":
    """A head or MLP; of a neuron, its MLP."""
    node = cm.Node.parse(name)
    return cm.Node.mlp(node.layer) if node.kind == "neuron" else node


def check_possible(settings: Align, model: "cm.Model") -> None:
    """Raises `InputError` for a place or a size of subspaces that the model has not, before the work."""
    from circuitome.causal.sites import Place
    from circuitome.causal.subspaces import check_size

    if settings.place is not None:
        Place.parse(settings.place, model)
        return
    width = model.d_model if settings.sites in ("resid", "mid", "mlps") else model.heads.width
    for k in filter(None, settings.k):
        check_size(k, width)


def work(settings: Align, context: Context) -> Work:
    """Passes that record prompts, a part of a pass for every site and position, and what learning takes."""
    from circuitome.causal.located import RANDOM
    from circuitome.causal.searches import EPOCHS, LEARNED, SIZED, TRIED
    from circuitome.causal.sites import sites, units

    causal, graph, task = causal_model(settings), context.model.graph, context.task
    positions = settings.at or _possible(settings, causal, context)
    share = _behind(causal, task, positions)
    only = units(graph, candidates(settings, context.model))
    count = len([site for site in sites(graph, settings.sites) if not only or site.unit in only])
    variables = len(settings.variables or causal.variables or (causal.output,))
    sizes = [k for k in settings.k if k][: None if settings.search in SIZED else 1]
    # A place: three sets of prompts drawn, recorded and run on; with directions, for each size and control again.
    judged = 8 + (len(sizes) + 8 + RANDOM) * bool(sizes)
    starts = {"mask": 1.0}.get(settings.search, 1 + TRIED) * (settings.search in LEARNED)
    rest = _learned_part(settings, causal, context, share / max(1, len(positions)))
    learned = variables * (len(sizes) + 2 * bool(sizes)) * EPOCHS * starts * rest
    together = (2 + variables + 2 ** min(variables, 4)) * (variables > 1)
    forward = 3 + variables * judged + together + count * share / 2
    return Work.over(task, forward=forward, backward=learned, copies=1)  # one with random weights is a control


def _learned_part(settings: Align, causal: "CausalModel", context: Context, share: float) -> float:
    """The part of a pass that runs behind the place: of its tokens and blocks, half of these where it is not known."""
    from circuitome.causal.sites import Place

    if settings.place is None:
        return share * LEARNING
    place, layers = Place.parse(settings.place, context.model), context.model.graph.n_layers
    return _behind(causal, context.task, place.roles[:1]) * (1 - place.first / layers)


def _possible(settings: Align, causal: "CausalModel", context: Context) -> list[str]:
    """Roles of the first prompt at which a variable can be: at or behind the last token that it is computed from."""
    from circuitome.causal.trials import at_of

    last = {role: max(at_of(at)) for role, at in causal.roles_of(context.task.pairs[0]).items()}
    variables = settings.variables or causal.variables or (causal.output,)
    for name in variables:
        causal.check_name(name)
    needed = min(max((last.get(name, 0) for name in causal.sources_of(v)), default=0) for v in variables)
    return [role for role, at in last.items() if at >= needed or not context.model.causal]


def _behind(causal: "CausalModel", task: "Task", positions: Sequence[str]) -> float:
    """Shares of the first prompt that lie behind each position, summed."""
    from circuitome.causal.trials import at_of

    roles, size = causal.roles_of(task.pairs[0]), task.pairs[0].answer_position + 1
    return sum(max(0, size - min(at_of(roles.get(role, 0)))) / size for role in positions)


def run(settings: Align, context: Context) -> Findings:
    """The map of every variable on the prompts, and the verdict on its best place from held-out ones."""
    causal, setting, prompts = causal_model(settings), context.setting, context.prompts
    assert prompts.held_out is not None, "held-out prompts are drawn or split off"
    sizes = tuple(k for k in settings.k if k)
    check_possible(settings, context.model)
    only = candidates(settings, context.model)
    found = cm.causal.align(
        setting,
        causal,
        variables=settings.variables,
        kind=settings.sites,
        at=settings.at,
        only=only,
        least=settings.least,
    )
    verdicts = [
        cm.causal.locate(
            setting,
            causal,
            settings.place or place,
            prompts.held_out,
            variable=name,
            sizing=prompts.sizing,
            sizes=sizes,
            search=settings.search,
            least=settings.least,
        )
        for name, (place, _) in found.best.items()
    ]
    joint = together(setting.but(prompts=prompts.held_out), causal, verdicts, settings.least)
    return Findings(
        title=f"Does {settings.model} compute it so? {context.task.name}",
        sign=f"{SIGN} Brackets are 95 % intervals over {setting.over}.",
        results={
            "alignment": found.to_dict(),
            "verdicts": [verdict.to_dict() for verdict in verdicts],
            "joint": None if joint is None else joint.to_dict(),
        },
        blocks=[
            blocks.Lede(text=" ".join([*map(_sentence, verdicts), *_of_all(joint)])),
            *_warned(found),
            blocks.Numbers(items=_headlines(found, verdicts)),
            _causal_map(causal, verdicts, next(iter(found.maps.values())).axes[1], context.model),
            *(_map(accuracy, i) for i, accuracy in enumerate(found.maps.values())),
            _controls(verdicts),
            *_sets(joint),
            *_wrong(verdicts),
        ],
        tensors={
            **{f"right.{name}": accuracy.samples for name, accuracy in found.maps.items()},
            **{name: basis for verdict in verdicts for name, basis in _bases(verdict)},
        },
        more={"model_of": settings.model_of, "variables": list(found.maps)},
    )


def together(
    setting: "Setting", causal: "CausalModel", verdicts: Sequence["Located"], least: float
) -> "cm.causal.Joint | None":
    """All variables set at once at the places that were judged, on held-out prompts; None for a single variable."""
    if len(verdicts) < 2:
        return None
    return cm.causal.joint(setting, causal, {v.variable: v.subspace or v.place for v in verdicts}, least=least)


def _bases(verdict: "Located") -> list[tuple[str, "Tensor"]]:
    """The directions of each part of a place, by name: basis.position, basis.position.1 ..."""
    bases = () if verdict.subspace is None else verdict.subspace.bases
    return [(f"basis.{verdict.variable}" + (f".{i}" if i else ""), basis) for i, basis in enumerate(bases)]


def _of_all(joint: "cm.causal.Joint | None") -> list[str]:
    """The verdict over the whole alignment, in words."""
    if joint is None:
        return []
    better = "more often" if joint.holds else "not surely more often"
    return [
        f"Set together, each from a prompt of its own, they give what the causal model says in "
        f"{percent(joint.accuracy)} of pairs, {better} than no interchange ({percent(joint.unchanged)}) and one answer "
        f"for all ({joint.majority:.0%})."
    ]


def _sets(joint: "cm.causal.Joint | None") -> list[blocks.Table]:
    """Accuracy by set of variables that are set at once."""
    if joint is None:
        return []
    rows = [(names.replace("+", ", "), cell(estimate)) for names, estimate in joint.sets.items()]
    note = (
        f"On held-out prompts, at the places judged above. Without any interchange: {percent(joint.unchanged)}; "
        f"with one answer for all pairs: {joint.majority:.0%}."
    )
    return [blocks.table("Variables set together", ("variables", ("IIA", "estimate", 2)), rows, note=note)]


def _where(verdict: "Located") -> str:
    directions = f"{verdict.k} direction{'s' * (verdict.k > 1)} of " if verdict.k else ""
    return directions + verdict.place


def _sentence(verdict: "Located") -> str:
    """The verdict on a variable."""
    strongest, value = max(verdict.controls.items(), key=lambda item: item[1].value)
    share = f"{percent(verdict.accuracy)} of held-out pairs come out as the causal model says"
    if verdict.holds:
        return f"{verdict.variable} has a place: in {_where(verdict)}, {share} ({strongest}: {percent(value)})."
    weak = [name for name, difference in verdict.above.items() if not difference.low > 0]
    return (
        f"{verdict.variable} has no place that stands out: in {_where(verdict)}, {share}, not surely more than "
        f"with {' or '.join(weak)} ({percent(verdict.controls[weak[0]])})."
    )


def _warned(found: "cm.causal.Alignment") -> list[blocks.Note]:
    """A warning where the model does less than half of the prompts, which was asked for."""
    if found.base_accuracy.value >= 0.5:
        return []
    words = (
        f"Model and causal model agree on {found.pairs} of {found.prompts} prompts only, and only these are looked at. "
        "On the others the model computes something else, so what is found here is no account of the task."
    )
    return [blocks.Note(text=words, level="warning")]


def _headlines(found: "cm.causal.Alignment", verdicts: Sequence["Located"]) -> tuple[blocks.Figure, ...]:
    agree = f"model and causal model agree on {found.pairs} of {found.prompts} prompts; the others are left out"
    return (
        figure("Base accuracy", found.base_accuracy, agree, "percent"),
        *(figure(v.variable, v.accuracy, f"IIA on held-out prompts in {_where(v)}", "percent") for v in verdicts),
    )


def _map(accuracy: "AccuracyMap", number: int) -> blocks.HeatMap:
    """One variable's accuracy at every place, layers upwards."""
    low, high = accuracy.interval
    values, lows, highs = (tuple(map(tuple, part.tolist())) for part in (accuracy.mean, low, high))
    return blocks.HeatMap(
        title=f"Where {accuracy.variable} is",
        note=f"In {accuracy.changed:.0%} of pairs another answer is right than the model gives by itself; chance is "
        f"{accuracy.chance:.0%}.",
        rows=accuracy.axes[0],
        columns=accuracy.axes[1],
        values=values,
        low=lows,
        high=highs,
        unit=accuracy.unit,
        scale="positive",
        chance=accuracy.chance,
        labels=tuple(
            tuple(accuracy.label(i, j) for j in range(len(accuracy.axes[1]))) for i in range(len(accuracy.axes[0]))
        ),
        upwards=True,
        top=3,
        folded=number > 3,
    )


def _controls(verdicts: Sequence["Located"]) -> blocks.Table:
    """By variable: held-out accuracy, and that of each control at the same place and size."""
    rows: list[tuple[Any, ...]] = []
    marks: list[str] = []
    for verdict in verdicts:
        holds = "good" if verdict.holds else "unclear"
        rows.append((verdict.variable, f"the place: {_where(verdict)}", cell(verdict.accuracy), None))
        marks.append(holds)
        if verdict.k:
            rows.append((verdict.variable, f"the whole of {verdict.place}", cell(verdict.whole), None))
            marks.append("")
        for name, control in verdict.controls.items():
            rows.append((verdict.variable, f"control: {name}", cell(control), cell(verdict.above[name])))
            marks.append("")
    columns = ("variable", "what is interchanged", ("IIA", "estimate", 2), ("place minus control", "estimate", 2))
    note = "On held-out prompts. A variable has a place where every interval of the last column lies above 0."
    return blocks.table("Held-out accuracy and controls", columns, rows, note=note, marks=tuple(marks))


def _causal_map(
    causal: "CausalModel", verdicts: Sequence["Located"], positions: Sequence[str], model: "cm.Model"
) -> blocks.CausalMap:
    """The causal model beside the network, each variable that was looked for with its place."""
    judged = {verdict.variable: verdict for verdict in verdicts}
    roles = {role: None for verdict in verdicts for _, role in _spots(verdict, model)}
    columns = list(dict.fromkeys([*positions, *roles]))
    drawn = [
        blocks.CausalVariable(
            name=name,
            parents=causal.parents.get(name, ()),
            place=judged[name].place if name in judged else "",
            sites=tuple((height, columns.index(role)) for height, role in _spots(judged.get(name), model)),
            accuracy=_ends(judged[name].accuracy) if name in judged else None,
            holds=name in judged and judged[name].holds,
        )
        for name in (*causal.inputs, *causal.order)
    ]
    note = "Lines lead from a variable to the place at which it was judged; broken ones where it does not stand out."
    return blocks.CausalMap(
        title="The causal model and its places",
        note=note,
        variables=tuple(drawn),
        layers=model.graph.n_layers,
        positions=tuple(columns),
        where="page",
    )


def _ends(estimate: "cm.Estimate") -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _spots(verdict: "Located | None", model: "cm.Model") -> list[tuple[float, str]]:
    """By site of a verdict's place: how many blocks up it is, and its role."""
    from circuitome.causal.sites import Place

    if verdict is None:
        return []
    return [(part.site.height, part.role) for part in Place.parse(verdict.place, model).parts]


def _wrong(verdicts: Sequence["Located"]) -> list[blocks.Table]:
    """By variable: the pairs that did not come out as the causal model says, with their prompts."""
    tables = []
    for verdict in verdicts:
        rows = [(pair.base, pair.source, " or ".join(pair.expected), pair.said) for pair in verdict.wrong]
        columns = ("base", f"source of {verdict.variable}", "expected", "said")
        note = f"Held-out pairs that did not come out as the causal model says, in {_where(verdict)}."
        title = f"Pairs that went wrong: {verdict.variable}"
        if rows:
            tables.append(blocks.table(title, columns, rows, note=note, top=8, where="page"))
    return tables


STUDY = Study("align", Align, run, work)
