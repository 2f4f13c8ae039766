"""What `find --method` can be: how each method is called, what it takes, and which circuit it means."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitome.discovery.attribution.edges import eap, eap_ig
from circuitome.discovery.attribution.nodes import atp
from circuitome.discovery.patching.edge import exact
from circuitome.discovery.routes.scores import route_scores
from circuitome.discovery.search.baselines import magnitude, random_scores
from circuitome.discovery.search.learned_masks import edge_pruning, subnetwork_probing
from circuitome.discovery.search.pruning import acdc, loss_gap
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.models.model import Model
from circuitome.tasks.losses import LOSSES
from circuitome.tasks.task import Task

Progress = Callable[[int, int], None]
"""Called with the work done and the work in all."""

THRESHOLD_SHARE = 1 / 500
"""ACDC's threshold where none is given, as a share of the loss between the clean and the ablated model."""


@dataclass(frozen=True)
class Job:
    """A method's call: model, task and everything that decides the result."""

    model: Model
    """The model."""
    task: Task
    """The prompts."""
    edges: int
    """Size of the circuit that is wanted."""
    seed: int
    """Seed of methods that draw."""
    ablation: str
    """What ablated edges carry."""
    max_memory: int | None
    """Bytes that a batch may take beside the weights."""
    settings: Mapping[str, Any]
    """Settings of this method that were given."""
    progress: Progress
    """Told how far the work is."""
    folder: Path | None
    """Where long methods keep what is done so far."""

    def common(self) -> dict[str, Any]:
        """What every method that runs the model takes."""
        return {
            "ablation": self.ablation,
            "max_memory": self.max_memory,
            "progress": lambda what, done, total: self.progress(done, total),
        }

    def checkpoint(self, name: str) -> Path | None:
        """A file of that name for what is done so far."""
        return None if self.folder is None else self.folder / name


@dataclass(frozen=True)
class Found:
    """What a method found."""

    scores: EdgeScores
    """One number an edge."""
    circuit: Circuit
    """The circuit."""
    others: Mapping[int, Circuit] = field(default_factory=dict)
    """Other circuits of the same search by their size, where the method finds more than one."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else there is to say; plain JSON."""


@dataclass(frozen=True)
class Method:
    """One way to find circuits."""

    run: Callable[[Job], Found]
    """The call."""
    what: str
    """One line about it."""
    takes: tuple[str, ...] = ()
    """Settings it takes beside a loss: steps, threshold, order, absolute, grouped."""
    losses: tuple[str, ...] = ("metric",)
    """Losses it can be asked for; the first is the default."""
    work: Callable[[Mapping[str, Any], Graph], tuple[float, float]] = lambda settings, graph: (4.0, 1.0)
    """About how many forward passes, and forward and backward ones, over all prompts it takes with some settings."""
    resumes: bool = False
    """Whether it keeps what is done so far, so that a stopped run can go on."""
    score: str = "the change of the metric when the edge is corrupted, mean over prompts: negative means the edge helps"
    """What a score is."""
    note: str | None = None
    """What sets it apart in a comparison with the others."""

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
        reason = ""
        if name in ("eap", "atp"):
            reason = " Its gradient is taken at the clean model, where that of a distance to the clean model is zero."
        raise InputError(f"{name} cannot score by the loss {loss}.{reason} Use {users} for it, or --loss metric.")


def _scored(function: Callable[..., EdgeScores], **fixed: Any) -> Callable[[Job], Found]:
    """A method whose circuit is the edges with the largest scores."""

    def run(job: Job) -> Found:
        scores = function(job.model, job.task, **job.common(), **job.settings, **fixed)
        return Found(scores, scores.top(job.edges))

    return run


def _exact(job: Job) -> Found:
    path = job.checkpoint("exact.safetensors")
    scores = exact(job.model, job.task, **job.common(), **job.settings, checkpoint=path)
    return Found(scores, scores.top(job.edges))


def _atp(job: Job) -> Found:
    nodes = atp(job.model, job.task, **job.common())
    scores = nodes.edges()
    strongest = [{"node": node, "score": score} for node, score in nodes.ranked()[:20]]
    return Found(scores, scores.top(job.edges), notes={"nodes": strongest})


def _learned(function: Callable[..., EdgeScores], size: str) -> Callable[[Job], Found]:
    """A method that trains masks: its circuit is what it trained for."""

    def run(job: Job) -> Found:
        wanted = {size: job.edges if size == "edges" else max(1, len(job.model.graph.writers) // 3)}
        path = job.checkpoint(f"{function.__name__}.safetensors")
        scores = function(job.model, job.task, **job.common(), **job.settings, **wanted, seed=job.seed, checkpoint=path)
        return Found(scores, scores.top(job.edges))

    return run


def _acdc(job: Job) -> Found:
    """ACDC at every threshold; the circuit is the one whose size is nearest to what was asked for."""
    settings = dict(job.settings)
    thresholds = sorted(set(settings.pop("threshold", ()))) or [default_threshold(job)]
    found = {}
    for index, threshold in enumerate(thresholds):

        def tell(what: str, done: int, total: int, before: int = index) -> None:
            job.progress(before * total + done, len(thresholds) * total)

        path = job.checkpoint(f"acdc-{threshold:g}.safetensors")
        options = {**job.common(), **settings, "progress": tell, "checkpoint": path}
        found[threshold] = acdc(job.model, job.task, threshold=threshold, **options)
    kept = {threshold: one for threshold, one in found.items() if len(one.circuit)}
    if not kept:
        raise InputError(
            f"ACDC keeps no edge at {' or '.join(f'{t:g}' for t in thresholds)}: no single edge matters that much. "
            f"Choose a --threshold below {thresholds[0]:g}; the loss of the whole model is "
            f"{found[thresholds[0]].full_loss:.4g}."
        )
    best = min(kept, key=lambda threshold: abs(len(kept[threshold].circuit) - job.edges))
    sweep = [
        {"threshold": t, "edges": len(one.circuit), "loss": one.loss, "evaluations": one.evaluations}
        for t, one in found.items()
    ]
    unit = job.task.unit if settings.get("loss", "metric") == "metric" else settings["loss"]
    return Found(
        kept[best].scores(unit),
        kept[best].circuit,
        {len(one.circuit): one.circuit for one in kept.values()},
        {"threshold": best, "sweep": sweep},
    )


def default_threshold(job: Job) -> float:
    """A small part of what the loss changes when everything is ablated, to one digit."""
    loss = job.settings.get("loss", "metric")
    gap = loss_gap(job.model, job.task, loss, ablation=job.ablation, max_memory=job.max_memory)
    if not gap > 0:
        raise InputError(
            f"{job.model.name} does not do the task {job.task.name}: its loss is no lower than with everything ablated."
        )
    return float(f"{THRESHOLD_SHARE * gap:.0e}")


def _random(job: Job) -> Found:
    scores = random_scores(job.model, job.task, seed=job.seed)
    return Found(scores, scores.top(job.edges))


def _magnitude(job: Job) -> Found:
    scores = magnitude(job.model, job.task)
    return Found(scores, scores.top(job.edges))


def _routes(job: Job) -> Found:
    scores = route_scores(job.model, job.task, max_memory=job.max_memory, progress=job.common()["progress"])
    return Found(scores, scores.top(job.edges))


METHODS: dict[str, Method] = {
    "eap": Method(_scored(eap), "edge attribution patching: one gradient, on the clean run"),
    "eap-ig": Method(
        _scored(eap_ig),
        "the gradient averaged along the path from ablated to clean embeddings",
        ("steps",),
        LOSSES,
        lambda settings, graph: (4.0, settings.get("steps", 5)),
    ),
    "eap-ig-activations": Method(
        _scored(eap_ig, variant="activations"),
        "the gradient averaged along each part's own output; slow",
        ("steps",),
        LOSSES,
        lambda settings, graph: (4.0, settings.get("steps", 5) * (2 * graph.n_layers + 1)),
    ),
    "clean-corrupted": Method(
        _scored(eap_ig, variant="clean-corrupted"),
        "the gradient averaged over the clean and the ablated run",
        (),
        LOSSES,
        lambda settings, graph: (4.0, 2.0),
    ),
    "exact": Method(
        _exact,
        "every edge patched by itself, the rest of the model reacting: the referee; hours",
        losses=LOSSES,
        work=lambda settings, graph: (0.3 * graph.n_edges, 0.0),
        resumes=True,
    ),
    "acdc": Method(
        _acdc,
        "edge after edge from the logits back, dropped where the loss hardly rises; minutes",
        ("threshold", "order", "absolute", "grouped"),
        LOSSES,
        lambda settings, graph: (graph.n_edges / 15 * len(settings.get("threshold", (1,))), 0.0),
        True,
        "minus the change of the loss on the edge's turn, dropped edges scaled below kept ones: "
        "negative means the edge helps",
    ),
    "edge-pruning": Method(
        _learned(edge_pruning, "edges"),
        "a mask on every edge, learned by gradient descent for circuits of the given size; minutes",
        ("steps",),
        ("both", "kl", "metric"),
        lambda settings, graph: (4.0, 0.6 * settings.get("steps", 240)),
        True,
        "minus the chance that the edge's mask is open after learning: -1 is surely open",
    ),
    "subnetwork-probing": Method(
        _learned(subnetwork_probing, "nodes"),
        "a mask on every head and MLP, learned by gradient descent; minutes",
        ("steps",),
        ("both", "kl", "metric"),
        lambda settings, graph: (4.0, 0.6 * settings.get("steps", 240)),
        True,
        "minus the smaller chance of being open of the edge's two nodes: -1 is surely open",
    ),
    "atp": Method(
        _atp,
        "attribution patching of nodes, queries and keys by their attention pattern (QK fix of AtP*)",
        work=lambda settings, graph: (6.0, 2.0),
        score="the smaller change of the metric when either end of the edge is corrupted: negative means it helps",
    ),
    "routes": Method(
        _routes,
        "information flow routes of the clean prompts: one forward pass, no corrupted prompt",
        work=lambda settings, graph: (3.0, 0.0),
        score="the share of the route to the prediction that the edge carries, mean over prompts: never negative",
        note=(
            "Sees the clean prompts alone: also generic parts that every prediction needs, which no corrupted prompt "
            "changes; not which edges tell the right answer from the wrong one, which is what patching methods see."
        ),
    ),
    "random": Method(_random, "edges drawn at random: what any method must beat", score="a random number"),
    "magnitude": Method(
        _magnitude,
        "size of the weights at both ends, no prompt looked at: what any method must beat",
        score="the product of the sizes of the output and the input weights",
    ),
}
"""By name."""
