"""The main job as data: find a circuit, measure it against random ones, and say exactly what was done."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuitome.engine.ablation import check_ablation
from circuitome.engine.batches import group_rows, make_batch, tokens_within
from circuitome.errors import InputError, unknown_name
from circuitome.models.model import Model
from circuitome.runs.methods import METHODS, Found, Job
from circuitome.runs.prompts import PromptSpec
from circuitome.runs.store import Run
from circuitome.tasks.task import Task
from circuitome.validation.faithfulness.share import Curve, default_sizes, faithfulness_curve

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

RANDOM_CIRCUITS = 3
"""Random circuits of each size that stand beside the circuit."""


@dataclass(frozen=True, kw_only=True)
class FindSpec(PromptSpec):
    """Everything that decides what `find` computes."""

    method: str = "eap-ig"
    """A name in `METHODS`."""
    edges: int | None = None
    """Size of the circuit; None for about one edge in seventy."""
    ablation: str = "corrupted"
    """What edges outside the circuit carry."""
    steps: int | None = None
    """Points on the integration path, or steps of learning."""
    threshold: tuple[float, ...] = ()
    """ACDC's thresholds, in units of the loss."""
    loss: str | None = None
    """What is measured of a changed model: a name in the method's `losses`; None for its first."""
    order: str | None = None
    """ACDC's order of senders: reverse or normal."""
    absolute: bool = False
    """Whether ACDC looks at the size of a change, not its sign."""
    grouped: bool = False
    """Whether ACDC asks about edges that surely go in groups."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "find", self.task, "--method", self.method, *self.prompt_words()]
        words += ["--ablation", self.ablation]
        words += ["--edges", str(self.edges)] if self.edges is not None else []
        for name, value in self.settings().items():
            given = value if isinstance(value, tuple) else (value,)
            words += [f"--{name}"] if value is True else [text for one in given for text in (f"--{name}", f"{one}")]
        return words

    def settings(self) -> dict[str, Any]:
        """The settings of the method that were given."""
        names = ("steps", "threshold", "loss", "order", "absolute", "grouped")
        given = {name: getattr(self, name) for name in names}
        return {
            name: value for name, value in given.items() if value is not None and value is not False and value != ()
        }

    def check(self) -> None:
        """Raises for a method, setting, ablation or task that cannot be, before anything is loaded."""
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        METHODS[self.method].refuse(self.method, self.settings())
        check_ablation(self.ablation)
        super().check()

    def prepare(self, *, aligned: bool = True) -> tuple[Model, Task]:
        """As in every run; pairs need not be aligned where the ablation swaps nothing by position."""
        return super().prepare(aligned=aligned and self.ablation not in ("zero", "mean"))


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    passes: dict[str, int]
    """Passes by kind, over all prompts: forward, forward and backward, circuit."""
    seconds: float
    """Estimate from one timed pass on this machine."""
    bytes: int
    """Estimate of the peak memory: weights, one batch, and the program itself."""
    edges: int
    """Size of the circuit."""


def circuit_size(edges: int | None, model: Model) -> int:
    """The number of edges asked for, or about one in seventy. Raises `InputError` where the graph has fewer."""
    total = model.graph.n_edges
    if edges is None:
        size = max(1, round(total / 70))
        unit = 10 ** (len(str(size)) - 1)
        return size // unit * unit
    if not 1 <= edges <= total:
        raise InputError(f"--edges {edges} is outside 1..{total}: {model.name} has {total:,} edges.")
    return edges


def plan(spec: FindSpec, model: Model, task: Task) -> Plan:
    """What `find` will cost: passes counted, seconds from one timed forward pass, bytes from the memory model."""
    size = circuit_size(spec.edges, model)
    sizes = {*default_sizes(model.graph), size}
    forward, backward = METHODS[spec.method].work(spec.settings(), model.graph)
    passes = {
        "forward": round(forward),
        "forward-backward": round(backward),
        "circuit": len(sizes) * (1 + RANDOM_CIRCUITS),
    }
    shared = spec.ablation == "corrupted"
    groups = group_rows(model, task, shared_prefix=shared, max_memory=spec.max_memory, gradients=True)
    first = groups[0][:8]
    batch = make_batch(model, task, first, shared_prefix=shared, corrupted=shared)
    start = time.perf_counter()
    with torch.no_grad():
        model.logits(batch.clean)
    one = (time.perf_counter() - start) * len(task) / len(first)
    tokens = min(
        tokens_within(model, spec.max_memory, gradients=True), max(1, round(backward)) * batch.clean.ids.numel() * 4
    )
    weights = sum(p.numel() * p.itemsize for p in model.hf.parameters())
    return Plan(
        passes,
        one * (forward + 2.2 * backward + 1.2 * passes["circuit"]),
        weights + tokens * model.bytes_per_token(gradients=True) + 600_000_000,
        size,
    )


def find(spec: FindSpec, progress: Progress | None = None, partial: Path | None = None) -> Run:
    """Score every edge, select a circuit, and measure its faithfulness beside random circuits of the same size.

    `partial` is a folder in which long methods keep what is done so far, and from which the same call goes on.
    """
    start = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    tell("loading", 0, 1)
    model, task = spec.prepare()
    job = Job(
        model,
        task,
        circuit_size(spec.edges, model),
        spec.seed,
        spec.ablation,
        spec.max_memory,
        spec.settings(),
        lambda done, total: tell("scoring edges", done, total),
        partial,
    )
    found = METHODS[spec.method].run(job)
    scores, circuit = found.scores, found.circuit
    circuits = {**found.others, len(circuit): circuit}
    curve = faithfulness_curve(
        model,
        scores,
        task,
        sizes=sorted({*default_sizes(model.graph), *circuits}),
        draws=RANDOM_CIRCUITS,
        select=lambda size: circuits.get(size) or scores.top(size),
        ablation=spec.ablation,  # type: ignore[arg-type]  # `check` has seen it
        seed=spec.seed,
        max_memory=spec.max_memory,
        progress=tell,
    )
    tell("writing", 0, 1)
    manifest = _manifest(spec, model, task, found, curve)
    manifest["seconds"] = round(time.perf_counter() - start, 2)
    own = curve.circuits[curve.sizes.index(len(circuit))]
    nothing = torch.full_like(scores.values, torch.nan)
    low, high = (nothing, nothing) if scores.samples is None else scores.intervals(circuit, seed=spec.seed)
    tensors = {
        "scores": scores.values,
        "circuit": circuit.mask,
        "score_low": low[circuit.mask],
        "score_high": high[circuit.mask],
        "metrics": own.samples.contiguous(),
    }
    return Run(manifest, tensors)


def _manifest(spec: FindSpec, model: Model, task: Task, found: Found, curve: Curve) -> dict[str, Any]:
    circuit = found.circuit
    at = curve.sizes.index(len(circuit))
    own = curve.circuits[at]
    kept = circuit.without_dangling()
    return {
        **spec.manifest("find", model, task),
        "method": {
            "name": spec.method,
            "description": found.scores.method,
            "unit": found.scores.unit,
            "settings": spec.settings(),
            **found.notes,
        },
        "sign": f"A score is {METHODS[spec.method].score}.",
        "ablation": spec.ablation,
        "edges": len(circuit),
        "results": {
            "edges": len(circuit),
            "edges_on_a_path": len(kept),
            "all_edges": model.graph.n_edges,
            "nodes": len(kept.nodes),
            "clean": own.model.to_dict(),
            "ablated": own.empty.to_dict(),
            "circuit": own.circuit.to_dict(),
            "faithfulness": own.share.to_dict(),
            "random": curve.random[at].to_dict(),
            "curve": {
                "sizes": list(curve.sizes),
                "circuit": [c.share.to_dict() for c in curve.circuits],
                "random": [r.to_dict() for r in curve.random],
                "random_range": [list(r) for r in curve.random_range],
                "random_circuits": curve.draws,
            },
        },
    }
