"""The main job as data: find a circuit, measure it against random ones, and say exactly what was done."""

import hashlib
import json
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import circuitome
from circuitome.discovery import eap, eap_ig
from circuitome.errors import InputError, unknown_name
from circuitome.graph import Circuit, EdgeScores
from circuitome.interventions import check_ablation, group_rows, make_batch, tokens_within
from circuitome.models import DEFAULT_MODEL, Model, load, weights_hash
from circuitome.runs.store import Run
from circuitome.tasks import TASKS, Task, from_file
from circuitome.validation import Curve, default_sizes, faithfulness_curve

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

SIGN = (
    "A score is the change of the metric when the edge is corrupted, mean over prompts: negative means the edge helps."
)
RANDOM_CIRCUITS = 3
"""Random circuits of each size that stand beside the circuit."""

METHODS: dict[str, tuple[Callable[..., EdgeScores], str]] = {
    "eap": (eap, "edge attribution patching: one gradient, on the clean run"),
    "eap-ig": (eap_ig, "the gradient averaged along the path from ablated to clean embeddings"),
    "eap-ig-activations": (
        lambda *args, **options: eap_ig(*args, variant="activations", **options),
        "the gradient averaged along each part's own output; slow",
    ),
    "clean-corrupted": (
        lambda *args, **options: eap_ig(*args, variant="clean-corrupted", **options),
        "the gradient averaged over the clean and the ablated run",
    ),
}
"""What `find --method` can be: the function and one line about it."""
STEPPED = ("eap-ig", "eap-ig-activations")
"""Methods that take `steps`."""


@dataclass(frozen=True)
class FindSpec:
    """Everything that decides what `find` computes."""

    task: str = "ioi"
    """A name in `TASKS`; the name of the task when `data` is given."""
    model: str = DEFAULT_MODEL
    """Name, folder or file of the model."""
    method: str = "eap-ig"
    """A name in `METHODS`."""
    edges: int | None = None
    """Size of the circuit; None for about one edge in seventy."""
    n: int = 64
    """Number of prompt pairs."""
    seed: int = 0
    """Seed of the prompts, the bootstrap and the random circuits."""
    steps: int = 5
    """Points on the integration path."""
    ablation: str = "corrupted"
    """What edges outside the circuit carry."""
    data: str | None = None
    """A JSONL or CSV file of prompt pairs, in place of a generator."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights."""

    def command(self) -> str:
        """The command line that repeats this run."""
        parts = ["circuitome", "find", self.task, "--model", self.model, "--method", self.method]
        parts += ["--n", str(self.n), "--seed", str(self.seed), "--ablation", self.ablation]
        parts += ["--steps", str(self.steps)] if self.method in STEPPED else []
        parts += ["--edges", str(self.edges)] if self.edges is not None else []
        parts += ["--data", self.data] if self.data else []
        parts += ["--max-memory", str(self.max_memory)] if self.max_memory else []
        return shlex.join(parts)

    def check(self) -> None:
        """Raises for a method, ablation or task that does not exist, before anything is loaded."""
        if self.method not in METHODS:
            raise unknown_name("method", self.method, METHODS)
        check_ablation(self.ablation)
        if self.data is None and self.task not in TASKS:
            raise unknown_name("task", self.task, TASKS, "Or give a file of prompt pairs with --data.")
        if self.n < 1:
            raise InputError(f"--n is the number of prompt pairs and must be at least 1, got {self.n}.")
        if self.data is not None and not Path(self.data).is_file():
            raise InputError(f"There is no data file {self.data}.")

    def key(self, data_hash: str, model_hash: str) -> str:
        """Identifies what the run computes: this, and the very prompts and weights."""
        text = json.dumps([self.command(), data_hash, model_hash])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def folder_name(self) -> str:
        """A readable folder name for the run."""
        digest = hashlib.sha256(self.command().encode()).hexdigest()[:6]
        return f"{self.task}-{Path(self.model).stem}-{self.method}-{digest}"


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


def prepare(spec: FindSpec) -> tuple[Model, Task]:
    """Load the model and draw or read the prompts. Raises what `check`, `load` and the tasks raise."""
    spec.check()
    model = load(spec.model)
    task = from_file(model, spec.data) if spec.data else TASKS[spec.task](model, n=spec.n, seed=spec.seed)
    return model, task


def circuit_size(spec: FindSpec, model: Model) -> int:
    """The number of edges asked for, or about one in seventy. Raises `InputError` where the graph has fewer."""
    total = model.graph.n_edges
    if spec.edges is None:
        size = max(1, round(total / 70))
        unit = 10 ** (len(str(size)) - 1)
        return size // unit * unit
    if not 1 <= spec.edges <= total:
        raise InputError(f"--edges {spec.edges} is outside 1..{total}: {model.name} has {total:,} edges.")
    return spec.edges


def curve_sizes(spec: FindSpec, model: Model) -> list[int]:
    """Sizes of the faithfulness curve: the default ones and the circuit's own."""
    return sorted({*default_sizes(model.graph), circuit_size(spec, model)})


def plan(spec: FindSpec, model: Model, task: Task) -> Plan:
    """What `find` will cost: passes counted, seconds from one timed forward pass, bytes from the memory model."""
    sizes = curve_sizes(spec, model)
    points = {"eap": 1, "eap-ig": spec.steps, "clean-corrupted": 2}
    backward = points.get(spec.method, spec.steps * (2 * len(model.blocks) + 1))
    passes = {"forward": 4, "forward-backward": backward, "circuit": len(sizes) * (1 + RANDOM_CIRCUITS)}
    shared = spec.ablation == "corrupted"
    groups = group_rows(model, task, shared_prefix=shared, max_memory=spec.max_memory, gradients=True)
    first = groups[0][:8]
    batch = make_batch(model, task, first, shared_prefix=shared, corrupted=shared)
    start = time.perf_counter()
    with torch.no_grad():
        model.logits(batch.clean)
    one = (time.perf_counter() - start) * len(task) / len(first)
    tokens = min(tokens_within(model, spec.max_memory, gradients=True), max(1, backward) * batch.clean.ids.numel() * 4)
    weights = sum(p.numel() * p.itemsize for p in model.hf.parameters())
    return Plan(
        passes,
        one * (passes["forward"] + 2.2 * backward + 1.2 * passes["circuit"]),
        weights + tokens * model.bytes_per_token(gradients=True) + 600_000_000,
        circuit_size(spec, model),
    )


def find(spec: FindSpec, progress: Progress | None = None) -> Run:
    """Score every edge, select a circuit, and measure its faithfulness beside random circuits of the same size."""
    start = time.perf_counter()
    tell = progress or (lambda what, done, total: None)
    tell("loading", 0, 1)
    model, task = prepare(spec)
    size = circuit_size(spec, model)
    method = METHODS[spec.method][0]
    options: dict[str, Any] = {"ablation": spec.ablation, "max_memory": spec.max_memory}
    options |= {"steps": spec.steps} if spec.method in STEPPED else {}
    scores = method(model, task, **options, progress=lambda done, total: tell("scoring edges", done, total))
    circuit = scores.top(size)
    curve = faithfulness_curve(
        model,
        scores,
        task,
        sizes=curve_sizes(spec, model),
        draws=RANDOM_CIRCUITS,
        ablation=spec.ablation,  # type: ignore[arg-type]
        seed=spec.seed,
        max_memory=spec.max_memory,
        progress=lambda done, total: tell("measuring circuits", done, total),
    )
    tell("writing", 0, 1)
    manifest = _manifest(spec, model, task, scores, circuit, curve)
    manifest["seconds"] = round(time.perf_counter() - start, 2)
    own = curve.circuits[curve.sizes.index(size)]
    low, high = scores.intervals(circuit, seed=spec.seed)
    tensors = {
        "scores": scores.values,
        "circuit": circuit.mask,
        "score_low": low[circuit.mask],
        "score_high": high[circuit.mask],
        "metrics": own.samples.contiguous(),
    }
    return Run(manifest, tensors)


def _manifest(
    spec: FindSpec, model: Model, task: Task, scores: EdgeScores, circuit: Circuit, curve: Curve
) -> dict[str, Any]:
    model_hash = weights_hash(model)
    size = len(circuit)
    at = curve.sizes.index(size)
    own = curve.circuits[at]
    kept = circuit.without_dangling()
    return {
        "kind": "find",
        "key": spec.key(task.data_hash(), model_hash),
        "circuitome": circuitome.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": spec.command(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "model": _describe_model(model, spec.model, model_hash),
        "task": {
            "name": task.name,
            "n": len(task),
            "seed": task.seed,
            "source": task.source or spec.data,
            "metric": task.metric,
            "unit": task.unit,
            "data_hash": task.data_hash(),
        },
        "method": {"name": spec.method, "description": scores.method},
        "sign": SIGN,
        "ablation": spec.ablation,
        "seed": spec.seed,
        "peak_memory_bytes": peak_memory(),
        "edges": size,
        "results": {
            "edges": size,
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
        "prompts": [
            {
                "clean": pair.clean_text,
                "corrupted": pair.corrupted_text,
                "answers": [model.decode([i]) for i in pair.answers[:10]],
                "wrongs": [model.decode([i]) for i in pair.wrongs[:10]],
            }
            for pair in task.pairs[:20]
        ],
    }


def _describe_model(model: Model, asked: str, model_hash: str) -> dict[str, Any]:
    graph = model.graph
    return {
        "name": asked,
        "architecture": model.hf.config.model_type,
        "layers": graph.n_layers,
        "heads": graph.n_heads,
        "kv_heads": graph.n_kv_heads,
        "d_model": model.d_model,
        "parallel": graph.parallel,
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "weights_hash": model_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": model.hf.config._attn_implementation,
        "tokens_added_by_tokenizer": model.decode(model.encode("")) or "none",
    }


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
