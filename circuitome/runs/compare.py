"""Several methods on the same prompts: how faithful their circuits are by size, here and on held-out prompts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from circuitome.discovery.patching.edge import exact
from circuitome.engine.ablation import check_ablation
from circuitome.engine.checkpoint import Checkpoint
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.model import Model
from circuitome.runs.find import circuit_size
from circuitome.runs.methods import METHODS, Found, Job
from circuitome.runs.prompts import PromptSpec
from circuitome.runs.store import Run
from circuitome.tasks import TASKS
from circuitome.tasks.pair_files import from_file
from circuitome.tasks.task import Task
from circuitome.validation.faithfulness.share import default_sizes, faithfulness_curve
from circuitome.validation.robustness.score_agreement import agreement, spread_edges

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

COMPARED = (
    *("eap", "eap-ig", "clean-corrupted", "atp", "routes"),
    *("edge-pruning", "subnetwork-probing", "acdc", "magnitude"),
)
"""What is compared by default; random circuits stand beside it."""
SETTINGS: dict[str, dict[str, Any]] = {"acdc": {"grouped": True}}
"""Settings of methods in a comparison."""
RANDOM_CIRCUITS = 3
"""Random circuits of each size."""
HELD_OUT = 64
"""AblatedOutputs-out prompts that are drawn where no file gives them."""


@dataclass(frozen=True, kw_only=True)
class CompareSpec(PromptSpec):
    """Everything that decides what `compare` computes."""

    methods: tuple[str, ...] = COMPARED
    """Names in `METHODS`."""
    edges: int | None = None
    """Size that methods which learn or search aim at; None for about one edge in seventy."""
    ablation: str = "corrupted"
    """What edges outside a circuit carry."""
    held_out: str | None = None
    """A file of prompts, or the name of a generator, for the held-out prompts; None: the task's own generator."""
    exact_edges: int = 200
    """Edges that are patched one by one, to compare scores with; 0 for none."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "compare", self.task, *self.prompt_words(), "--ablation", self.ablation]
        words += ["--edges", str(self.edges)] if self.edges is not None else []
        words += ["--methods", ",".join(self.methods), "--exact-edges", str(self.exact_edges)]
        return words + (["--held-out", self.held_out] if self.held_out else [])

    def check(self) -> None:
        """Raises for prompts, methods or numbers that cannot be."""
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("method", method, METHODS)
        if not self.methods:
            raise InputError("There is nothing to compare; give --methods.")
        if self.exact_edges < 0 or self.exact_edges in (1, 2):
            raise InputError(f"--exact-edges must be 0 or at least 3, got {self.exact_edges}.")
        check_ablation(self.ablation)
        known = self.held_out is None or self.held_out in TASKS or Path(self.held_out).is_file()
        if not known:
            raise unknown_name("task or file of held-out prompts", str(self.held_out), TASKS)
        super().check()


def run_compare(spec: CompareSpec, progress: Progress | None = None, partial: Path | None = None) -> Run:
    """Every method's circuits by size, their faithfulness here and on held-out prompts, and how far scores agree.

    Methods that learn a circuit of one size give that one point, ACDC one for each threshold; scores give circuits of
    every size. In `partial` finished methods are kept, so that a stopped run goes on.
    """
    start, tell = time.perf_counter(), progress or (lambda what, done, total: None)
    tell("loading", 0, 1)
    model, task = spec.prepare()
    other = held_out(spec, model, task)
    reference = _reference(spec, model, task, partial, tell)
    rows, tensors = [], dict[str, torch.Tensor]()
    for name in spec.methods:
        found, seconds = _found(spec, model, task, name, partial, tell)
        circuits = circuits_of(name, found, default_sizes(model.graph))
        tell(f"measuring {name}", 0, 1)
        here, there = (_shares(spec, model, found.scores, circuits, t) for t in (task, other))
        row: dict[str, Any] = {
            "name": name,
            "description": METHODS[name].what,
            "seconds": round(seconds, 1),
            "points": [
                {"edges": size, **one, "held_out": None if there is None else there[i]["value"]}
                for i, (size, one) in enumerate(zip(circuits, here or [], strict=True))
            ],
            "note": METHODS[name].note,
        }
        if reference is not None:
            near = agreement(found.scores, reference[0], reference[1])
            row |= {"pearson": near.pearson, "pearson_abs": near.pearson_abs, "spearman": near.spearman}
        rows.append(row)
        tensors[f"{name}.scores"] = found.scores.values
        tensors[f"{name}.circuit"] = found.circuit.mask
    manifest = {
        **spec.manifest("compare", model, task),
        "sign": (
            "Faithfulness is the share of the metric's gap between the ablated and the whole model that a circuit "
            "carries: 1 is the whole model, 0 nothing; circuits may overshoot."
        ),
        "ablation": spec.ablation,
        "held_out": None if other is None else {"name": other.name, "n": len(other), "source": other.source},
        "exact_edges": 0 if reference is None else len(reference[1]),
        "results": {"methods": rows, "random": _random(spec, model, task)},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Run(manifest, tensors)


def held_out(spec: CompareSpec, model: Model, task: Task) -> Task | None:
    """Prompts that no method sees: another draw of the task, without the prompts of `task`, or a file's."""
    source = spec.held_out or (spec.task if spec.data is None else None)
    if source is None:
        return None
    if source not in TASKS:
        return from_file(model, source)
    drawn = TASKS[source](model, n=HELD_OUT, seed=spec.seed + 1)
    seen = {pair.clean for pair in task.pairs}
    pairs = tuple(pair for pair in drawn.pairs if pair.clean not in seen)
    if not pairs:
        raise InputError(f"All held-out prompts of {source} are among the prompts themselves; take fewer (--n).")
    return replace(drawn, pairs=pairs)


def circuits_of(name: str, found: Found, sizes: Sequence[int]) -> dict[int, Circuit]:
    """By size, the circuits that a method means."""
    if METHODS[name].resumes and name != "exact":
        return dict(sorted({**found.others, len(found.circuit): found.circuit}.items()))
    return {size: found.scores.top(size) for size in sorted({*sizes, len(found.circuit)})}


def _found(
    spec: CompareSpec, model: Model, task: Task, name: str, partial: Path | None, tell: Progress
) -> tuple[Found, float]:
    """What a method finds, from the partial folder if it is there."""
    size = circuit_size(spec.edges, model)
    path = None if partial is None else partial / f"found-{name}.safetensors"
    kept = Checkpoint(path, name, spec.command(), task.data_hash(), repr(model.graph))
    if before := kept.read():
        tensors, state = before
        scores = EdgeScores(model.graph, tensors["scores"], state["unit"], state["method"])
        others = {int(k): Circuit(model.graph, tensors[k]) for k in tensors if k.isdigit()}
        return Found(scores, Circuit(model.graph, tensors["circuit"]), others), state["seconds"]
    start = time.perf_counter()
    job = Job(
        model,
        task,
        size,
        spec.seed,
        spec.ablation,
        spec.max_memory,
        SETTINGS.get(name, {}),
        lambda done, total: tell(name, done, total),
        partial,
    )
    found = METHODS[name].run(job)
    seconds = time.perf_counter() - start
    masks = {str(n): circuit.mask for n, circuit in found.others.items()}
    kept.write(
        {"scores": found.scores.values, "circuit": found.circuit.mask, **masks},
        {"unit": found.scores.unit, "method": found.scores.method, "seconds": seconds},
    )
    return found, seconds


def _reference(
    spec: CompareSpec, model: Model, task: Task, partial: Path | None, tell: Progress
) -> tuple[EdgeScores, Circuit] | None:
    """Exact scores of some edges, half of them the strongest by EAP-IG."""
    if not spec.exact_edges:
        return None
    scores = _found(spec, model, task, "eap-ig", partial, tell)[0].scores
    among = spread_edges(scores, spec.exact_edges, spec.seed)
    path = None if partial is None else partial / "reference.safetensors"
    found = exact(
        model,
        task,
        edges=among,
        ablation=spec.ablation,  # type: ignore[arg-type]  # `check` has seen it
        max_memory=spec.max_memory,
        progress=tell,
        checkpoint=path,
    )
    return found, among


def _shares(
    spec: CompareSpec, model: Model, scores: EdgeScores, circuits: dict[int, Circuit], task: Task | None
) -> list[dict[str, Any]] | None:
    """Faithfulness of each circuit: value, low, high."""
    if task is None:
        return None
    curve = faithfulness_curve(
        model,
        scores,
        task,
        sizes=list(circuits),
        draws=0,
        select=circuits.__getitem__,
        ablation=spec.ablation,  # type: ignore[arg-type]  # `check` has seen it
        seed=spec.seed,
        max_memory=spec.max_memory,
    )
    return [{key: one.share.to_dict()[key] for key in ("value", "low", "high")} for one in curve.circuits]


def _random(spec: CompareSpec, model: Model, task: Task) -> list[dict[str, Any]]:
    """Random circuits: mean faithfulness by size, and the range over circuits."""
    nothing = EdgeScores(model.graph, torch.zeros(model.graph.mask.shape))
    curve = faithfulness_curve(
        model,
        nothing,
        task,
        draws=RANDOM_CIRCUITS,
        ablation=spec.ablation,  # type: ignore[arg-type]  # `check` has seen it
        seed=spec.seed,
        max_memory=spec.max_memory,
    )
    ranges = zip(curve.sizes, curve.random, curve.random_range, strict=True)
    return [{"edges": size, "value": share.value, "low": low, "high": high} for size, share, (low, high) in ranges]
