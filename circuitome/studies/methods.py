"""What `--method` can be: how each method is called, what it takes, and which circuit it means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from circuitome.discovery.attribution.edges import eap, eap_ig
from circuitome.discovery.attribution.nodes import atp
from circuitome.discovery.patching.edge import exact
from circuitome.discovery.routes.scores import route_scores
from circuitome.discovery.search.baselines import magnitude, random_scores
from circuitome.discovery.search.learned_masks import edge_pruning, subnetwork_probing
from circuitome.discovery.search.mask_objective import MASK_LOSSES
from circuitome.discovery.search.matryoshka import STEPS, mattr
from circuitome.discovery.search.pruning import acdc, loss_gap
from circuitome.engine.backward_rules import rules_of
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.neurons.node_graph import graph_scores
from circuitome.studies.operations import Passes, passes_behind
from circuitome.tasks.held_out import Split
from circuitome.tasks.losses import LOSSES
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.share import evaluate
from circuitome.validation.robustness.consensus import RERUNS, StableCircuit, stable
from circuitome.validation.smallest import LARGE, Smallest, edge_effects, smallest

THRESHOLD_SHARE = 1 / 500
"""ACDC's threshold where none is given, as a share of the loss between the clean and the ablated model."""


@dataclass(frozen=True)
class Search:
    """What a method is asked: everything that decides its circuit."""

    setting: Setting
    """Model, prompts, ablation, budget, seed and progress."""
    edges: int
    """Size of the circuit that is wanted."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of this method that were given."""
    folder: Path | None = None
    """Where long methods keep what is done so far."""
    faithful: float = 0.9
    """The share of the gap that the smallest circuit has to keep."""
    prompts: Split | None = None
    """Prompts to choose a size on and to measure on; None: the setting's are split where a method needs them."""

    def kept(self, name: str) -> Setting:
        """The setting with a file of that name for what is done so far."""
        return self.setting.but(checkpoint=None if self.folder is None else self.folder / f"{name}.safetensors")


@dataclass(frozen=True)
class Result:
    """What a method gives."""

    scores: EdgeScores
    """One number an edge."""
    circuit: Circuit
    """The circuit."""
    others: Mapping[int, Circuit] = field(default_factory=dict)
    """Other circuits of the same search by their size, where the method finds more than one."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else there is to say; plain JSON."""
    smallest: Smallest | None = None
    """The search for the smallest circuit that the circuit comes from."""
    stable: StableCircuit | None = None
    """The draws of prompts that the circuit's edges come back in, where these chose it."""


@dataclass(frozen=True)
class Method:
    """One way to find circuits."""

    run: Callable[[Search], Result]
    """The call."""
    what: str
    """One line about it."""
    takes: tuple[str, ...] = ()
    """Settings it takes beside a loss: steps, rules, path, threshold, order, absolute, grouped."""
    losses: tuple[str, ...] = ("metric",)
    """Losses it can be asked for; the first is the default."""
    work: Callable[[Mapping[str, Any], Graph], Passes] = lambda settings, graph: Passes()
    """What it takes over all prompts with some settings; but for steps of `learning`."""
    resumes: bool = False
    """Whether it keeps what is done so far, so that a stopped run can go on."""
    score: str = "the change of the metric when the edge is corrupted, mean over prompts: negative means the edge helps"
    """What a score is."""
    note: str | None = None
    """What sets it apart in a comparison with the others."""
    samples: bool = False
    """Whether its scores are means over prompts that it keeps: other draws of prompts then cost nothing."""
    sees_prompts: bool = True
    """Whether its circuit depends on the prompts at all."""
    learning: tuple[Passes, int] = (Passes(), 0)
    """Of one that learns in steps: what a step takes over 64 prompts, and how many steps there are by default."""

    def passes(self, settings: Mapping[str, Any], graph: Graph, prompts: int) -> Passes:
        """What it takes over so many prompts; a step of learning runs few, however many there are."""
        step, steps = self.learning
        return self.work(settings, graph).and_times(step, settings.get("steps", steps) * 64 / prompts if steps else 0.0)

    def refuse_draws(self, name: str) -> None:
        """Raises `InputError` where other prompts would not change the circuit of this method, called `name`."""
        if not self.sees_prompts:
            raise InputError(
                f"--stable draws the prompts anew, and {name} looks at none of them: its circuit would be the same in "
                "every draw. Take another --method."
            )

    def searches(self, draws: int | None) -> int:
        """How many times it runs for so many draws of prompts (None: as many as by default), the first included."""
        return 1 if self.samples else 1 + (draws or RERUNS)

    def refuse(self, name: str, settings: Mapping[str, Any]) -> None:
        """Raises `InputError` for a setting that this method, called `name`, does not take."""
        for setting in settings:
            if setting not in self.takes and setting != "loss":
                users = ", ".join(other for other, method in METHODS.items() if setting in method.takes)
                raise InputError(f"--{setting} means nothing to {name}; it belongs to {users}.")
        loss = settings.get("loss", self.losses[0])
        if loss in self.losses:
            return
        users = ", ".join(other for other, method in METHODS.items() if loss in method.losses)
        reason = f" It takes {listed(self.losses)}."
        if name in ("eap", "atp", "atp-star"):
            reason = " Its gradient is taken at the clean model, where that of a distance to the clean model is zero."
        advice = f" Use {users} for it." if users else ""
        raise InputError(f"{name} cannot score by the loss {loss}.{reason}{advice}")


def listed(names: Sequence[str]) -> str:
    """Names with commas between, and "or" before the last."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def stabilised(name: str, search: Search, share: float, draws: int | None) -> Result:
    """The circuit of a method's edges that come back in that share of draws of prompts."""
    run, result = METHODS[name].run, METHODS[name].run(search)
    again = stable(
        search.kept("stable"),
        method=lambda setting: run(replace(search, setting=setting, folder=None)),
        size=search.edges if METHODS[name].samples else None,
        draws=draws,
        share=share,
        whole=result,
    )
    result = replace(result, circuit=again.circuit, stable=again)
    if result.smallest is None or result.smallest.prompts.held_out is None:
        return result
    measured = Evaluator(search.setting.but(prompts=result.smallest.prompts.held_out))
    edges = edge_effects(measured, again.circuit) if len(again.circuit) <= LARGE else None
    shown = evaluate(measured, [again.circuit])[0]
    return replace(result, smallest=replace(result.smallest, circuit=again.circuit, edges=edges, faithfulness=shown))


def _scored(function: Callable[..., EdgeScores], **fixed: Any) -> Callable[[Search], Result]:
    """A method whose circuit is the edges with the largest scores."""

    def run(search: Search) -> Result:
        scores = function(search.kept(function.__name__), **search.options, **fixed)
        return Result(scores, scores.top(search.edges))

    return run


def _attributed(function: Callable[..., EdgeScores]) -> Callable[[Search], Result]:
    """EAP or EAP-IG; where neurons are nodes, their form for such graphs."""

    def run(search: Search) -> Result:
        if not search.setting.model.graph.has_parts:
            return _scored(function)(search)
        for name in ("path", "loss"):
            if name in search.options:
                raise InputError(
                    f"--{name} is not for graphs with neurons or features; they are scored by the metric along inputs."
                )
        return _scored(graph_scores, **({"steps": 1} if function is eap else {}))(search)

    return run


def _ranked(search: Search) -> Result:
    """Matryoshka attribution, from the scores that suit the graph."""
    start = graph_scores(search.setting) if search.setting.model.graph.has_parts else None
    return _scored(mattr, start=start)(search)


def _atp(*, grad_drop: bool = False) -> Callable[[Search], Result]:
    """Attribution of nodes: its circuit is the edges between the strongest."""

    def run(search: Search) -> Result:
        rules = rules_of(search.options.get("rules", "plain"))
        nodes = atp(search.setting, grad_drop=grad_drop, qk_fix=not rules.attention, rules=rules)
        scores = nodes.edges()
        strongest = [{"node": node, "score": score} for node, score in nodes.ranked()[:20]]
        return Result(scores, scores.top(search.edges), notes={"nodes": strongest})

    return run


def _smallest(search: Search) -> Result:
    """As few edges as keep enough of the gap; what is wanted is a share, not a size."""
    apart = {} if search.prompts is None else {name: getattr(search.prompts, name) for name in ("sizing", "held_out")}
    setting = search.setting.but(checkpoint=search.folder)
    options = {name: value for name, value in search.options.items() if name == "steps"}
    result = smallest(setting, faithful=search.faithful, **apart, **options)
    return Result(result.scores, result.circuit, smallest=result)


def _learned(function: Callable[..., EdgeScores], size: str) -> Callable[[Search], Result]:
    """A method that trains masks: its circuit is what it trained for."""

    def run(search: Search) -> Result:
        nodes = max(1, len(search.setting.model.graph.writers) // 3)
        return _scored(function, **{size: search.edges if size == "edges" else nodes})(search)

    return run


def _acdc(search: Search) -> Result:
    """ACDC at every threshold; the circuit is the one whose size is nearest to what was asked for."""
    options = dict(search.options)
    thresholds = sorted(set(options.pop("threshold", ()))) or [default_threshold(search)]
    searches = {}
    for index, threshold in enumerate(thresholds):

        def tell(what: str, done: int, total: int, before: int = index) -> None:
            search.setting.progress(what, before * total + done, len(thresholds) * total)

        kept = search.kept(f"acdc-{threshold:g}").but(progress=tell)
        searches[threshold] = acdc(kept, threshold=threshold, **options)
    circuits = {threshold: result for threshold, result in searches.items() if len(result.circuit)}
    if not circuits:
        raise InputError(
            f"ACDC keeps no edge at {' or '.join(f'{t:g}' for t in thresholds)}: no single edge matters that much. "
            f"Choose a --threshold below {thresholds[0]:g}; the loss of the whole model is "
            f"{searches[thresholds[0]].full_loss:.4g}."
        )
    best = min(circuits, key=lambda threshold: abs(len(circuits[threshold].circuit) - search.edges))
    sweep = [
        {"threshold": t, "edges": len(result.circuit), "loss": result.loss, "evaluations": result.evaluations}
        for t, result in searches.items()
    ]
    unit = search.setting.task.unit if options.get("loss", "metric") == "metric" else options["loss"]
    return Result(
        circuits[best].scores(unit),
        circuits[best].circuit,
        {len(result.circuit): result.circuit for result in circuits.values()},
        {"threshold": best, "sweep": sweep},
    )


def default_threshold(search: Search) -> float:
    """A small part of what the loss changes when everything is ablated, to one digit."""
    gap = loss_gap(search.setting, search.options.get("loss", "metric"))
    if not gap > 0:
        raise InputError(
            f"{search.setting.model.name} does not do the task {search.setting.task.name}: its loss is no lower than "
            "with everything ablated."
        )
    return float(f"{THRESHOLD_SHARE * gap:.0e}")


def _ig(steps: int, path: str = "inputs") -> Passes:
    """What EAP-IG takes: both ends of the path, the gradient at so many points, and, of conductance, values between."""
    between = steps - 1 if path == "conductance" else 0
    return Passes(forward=2.0 + between, backward=steps, products=1.0 + between)


def _ig_of_outputs(steps: int, layers: int) -> Passes:
    """What it takes along each part's own output: backwards there end where the part is, halfway on average."""
    return Passes(forward=2.0 + steps * layers, backward=steps * (layers + 1), products=2 * layers + 1)


WALK_COST = 35.0
"""What it costs to walk along sizes and to leave out what is useless, in forward passes; measured on SmolLM2."""
MATTR_STEPS = Passes(forward=0.083, rest=0.037), STEPS
MASK_STEPS = Passes(forward=0.09, rest=0.16), 240
"""What a step of mattr and one of learned masks take, and how many there are; counted and measured on SmolLM2, since
how much of a circuit runs depends on its masks."""
SMALLER_END = "the smaller change of the metric when either end of the edge is corrupted: negative means it helps"
"""What a score of an edge is where nodes were attributed."""

SMALLEST = "smallest"
"""The method that looks for a share of the gap in place of a size."""
METHODS: dict[str, Method] = {
    SMALLEST: Method(
        _smallest,
        "the smallest circuit that keeps a share of the gap on prompts that the search did not see, by mattr's ranking",
        ("steps",),
        ("both",),
        lambda settings, graph: _ig(5).and_times(Passes(forward=WALK_COST), 1),
        True,
        "minus one over the rank that the edge has come to: -1 matters most",
        learning=MATTR_STEPS,
    ),
    "eap": Method(
        _attributed(eap),
        "edge attribution patching: one gradient, on the clean run",
        ("rules",),
        work=lambda settings, graph: Passes(forward=1.0, backward=1.0, products=1.0),
        samples=True,
    ),
    "eap-ig": Method(
        _attributed(eap_ig),
        "the gradient averaged along the path from ablated to clean embeddings",
        ("steps", "rules", "path"),
        LOSSES,
        lambda settings, graph: _ig(settings.get("steps", 5), settings.get("path", "inputs")),
        samples=True,
    ),
    "eap-ig-activations": Method(
        _scored(eap_ig, variant="activations"),
        "the gradient averaged along each part's own output; slow",
        ("steps", "rules"),
        LOSSES,
        lambda settings, graph: _ig_of_outputs(settings.get("steps", 5), graph.n_layers),
        samples=True,
    ),
    "clean-corrupted": Method(
        _scored(eap_ig, variant="clean-corrupted"),
        "the gradient averaged over the clean and the ablated run",
        ("rules",),
        LOSSES,
        lambda settings, graph: _ig(2),
        samples=True,
    ),
    "exact": Method(
        _scored(exact),
        "every edge patched by itself, the rest of the model reacting: ground truth; takes hours",
        losses=LOSSES,
        work=lambda settings, graph: Passes(forward=2.0 + passes_behind(graph)),
        resumes=True,
        samples=True,
    ),
    "acdc": Method(
        _acdc,
        "edge after edge from the logits back, dropped where the loss hardly rises; minutes",
        ("threshold", "order", "absolute", "grouped"),
        LOSSES,
        lambda settings, graph: Passes(forward=graph.n_edges / 15 * len(settings.get("threshold", (1,)))),
        True,
        "minus the change of the loss on the edge's turn, dropped edges scaled below kept ones: "
        "negative means the edge helps",
    ),
    "mattr": Method(
        _ranked,
        "Matryoshka attribution: one ranking of edges, learned by running circuits of all sizes",
        ("steps",),
        MASK_LOSSES,
        lambda settings, graph: _ig(5),
        True,
        "minus one over the rank that the edge has come to: -1 matters most",
        learning=MATTR_STEPS,
    ),
    "edge-pruning": Method(
        _learned(edge_pruning, "edges"),
        "a mask on every edge, learned by gradient descent for circuits of the given size; minutes",
        ("steps",),
        MASK_LOSSES,
        lambda settings, graph: _ig(5),
        True,
        "minus the chance that the edge's mask is open after learning: -1 is surely open",
        learning=MASK_STEPS,
    ),
    "subnetwork-probing": Method(
        _learned(subnetwork_probing, "nodes"),
        "a mask on every head and MLP, learned by gradient descent; minutes",
        ("steps",),
        MASK_LOSSES,
        lambda settings, graph: Passes(forward=2.0),
        True,
        "minus the smaller chance of being open of the edge's two nodes: -1 is surely open",
        learning=MASK_STEPS,
    ),
    "atp": Method(
        _atp(),
        "attribution patching of nodes, queries and keys by their attention pattern (QK fix of AtP*)",
        ("rules",),
        work=lambda settings, graph: Passes(forward=1.0, backward=1.05, attention=3.0, rest=1.0),
        score=SMALLER_END,
    ),
    "atp-star": Method(
        _atp(grad_drop=True),
        "AtP*: as atp, and one more gradient a block without that block's share of it, so that none cancels",
        ("rules",),
        work=lambda settings, graph: Passes(forward=1.0 + 1.1 * graph.n_layers, backward=1.05, attention=3.0, rest=1.0),
        score=SMALLER_END,
    ),
    "routes": Method(
        _scored(route_scores),
        "information flow routes of the clean prompts: one forward pass, no corrupted prompt",
        work=lambda settings, graph: Passes(forward=1.1, attention=1.0, rest=1.9),
        score="the share of the route to the prediction that the edge carries, mean over prompts: never negative",
        note=(
            "Sees the clean prompts alone: also generic parts that every prediction needs, which no corrupted prompt "
            "changes; not which edges tell the right answer from the wrong one, which is what patching methods see."
        ),
        samples=True,
    ),
    "random": Method(
        _scored(random_scores),
        "edges drawn at random: what any method must beat",
        score="a random number",
        sees_prompts=False,
    ),
    "magnitude": Method(
        _scored(magnitude),
        "size of the weights at both ends, no prompt looked at: what any method must beat",
        score="the product of the sizes of the output and the input weights",
        sees_prompts=False,
    ),
}
"""By name."""


def named(name: str) -> Method:
    """The method called `name`. Raises `UnknownNameError`."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
