"""A finished run's circuit put to the test, on the very prompts, weights and ablation that it was found with."""

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from circuitome.engine.setting import Setting
from circuitome.errors import InputError, RunError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.models.known import KNOWN
from circuitome.models.loading import load, weights_hash
from circuitome.models.model import Model
from circuitome.runs.prompts import PromptSpec
from circuitome.runs.store import Run, load_run
from circuitome.tasks.generators.ioi import ioi
from circuitome.tasks.task import Task
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.ground_truth.truth import true_circuit
from circuitome.validation.tests.completeness_minimality import shrink
from circuitome.validation.verdict import validate

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class ValidateSpec:
    """Everything that decides what `validate` computes."""

    run: str
    """Folder of a run that holds a circuit."""
    quick: bool = False
    """Fewer subsets: about a tenth of the work, some verdicts stay unclear."""
    shrink: bool = False
    """Whether to leave out what the circuit can do without."""
    roles: str | None = None
    """Folder of an `explain` run whose roles are knocked out together for completeness; None: thirds of the layers."""
    seed: int = 0
    """Seed of subsets and random circuits."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights."""

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["circuitome", "validate", self.run, "--seed", str(self.seed)]
        words += ["--quick"] if self.quick else []
        words += ["--shrink"] if self.shrink else []
        words += ["--roles", self.roles] if self.roles else []
        return shlex.join(words + (["--max-memory", str(self.max_memory)] if self.max_memory else []))


def run_validate(spec: ValidateSpec, progress: Progress | None = None, partial: Path | None = None) -> Run:
    """The verdict on a run's circuit. In `partial` measurements are kept, so that a stopped run goes on.

    Raises `RunError` if its data file or model changed since, or it has no circuit.
    """
    start, tell = time.perf_counter(), progress or (lambda what, done, total: None)
    tell("loading", 0, 1)
    found = load_run(Path(spec.run))
    model, task, circuit = reopened(found, spec.run)
    ablation = found.manifest.get("ablation", "corrupted")
    verdict = validate(
        model,
        circuit,
        task,
        ablation=ablation,
        scores=_scores(found, circuit),
        others=_other_corruptions(found, model),
        groups=None if spec.roles is None else _roles(spec.roles, circuit),
        truth=true_circuit(model, task, ablation) if _knows(model, ablation) else None,
        quick=spec.quick,
        seed=spec.seed,
        max_memory=spec.max_memory,
        checkpoint=partial,
        progress=tell,
    )
    smaller, left_out = circuit, tuple[str, ...]()
    if spec.shrink:
        path = None if partial is None else partial / "measured.safetensors"
        evaluator = Evaluator(Setting(model, task, ablation, spec.max_memory, checkpoint=path))
        smaller, left_out = shrink(evaluator, circuit, verdict.minimality)
    again = PromptSpec(**found.manifest["prompts_from"])
    manifest = {
        **again.manifest("validate", model, task, spec.command()),
        "ablation": ablation,
        "run": {"folder": spec.run, "key": found.manifest["key"], "command": found.manifest["command"]},
        "sign": "A circuit holds where no criterion failed; unclear means that the data do not tell.",
        "holds": verdict.holds,
        "edges": len(circuit),
        "edges_after_shrinking": len(smaller),
        "left_out": list(left_out),
        "results": verdict.to_dict(),
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Run(manifest, {"circuit": smaller.mask})


def _scores(run: Run, circuit: Circuit) -> EdgeScores | None:
    """The scores of a `find` run."""
    if "scores" not in run.tensors:
        return None
    method = run.manifest["method"]
    return EdgeScores(circuit.graph, run.tensors["scores"], method.get("unit", ""), method.get("description", ""))


def _roles(folder: str, circuit: Circuit) -> dict[str, list[str]]:
    """The circuit's heads of each role that an `explain` run named. Raises `RunError` for another run."""
    manifest = load_run(Path(folder)).manifest
    if manifest["kind"] != "explain":
        raise RunError(f"{folder} is a {manifest['kind']} run and names no roles. Give a run of `circuitome explain`.")
    nodes = set(circuit.nodes)
    groups: dict[str, list[str]] = {}
    for head in manifest["results"]["heads"]:
        if head["head"] in nodes and head["role"] != "unclear":
            groups.setdefault(head["role"], []).append(head["head"])
    return groups


def _other_corruptions(run: Run, model: Model) -> dict[str, Task]:
    """The same clean prompts with the ABC distribution, for a run on IOI's generator."""
    origin = run.manifest["prompts_from"]
    if origin["data"] is not None or origin["task"] != "ioi":
        return {}
    return {"ABC": ioi(model, n=origin["n"], seed=origin["seed"], corruption="abc")}


def _knows(model: Model, ablation: str) -> bool:
    return model.name in KNOWN and ablation in ("corrupted", "zero")


def reopened(run: Run, folder: str) -> tuple[Model, Task, Circuit]:
    """Model, prompts and circuit of a finished run. Raises `RunError` where they are no longer what they were."""
    manifest = run.manifest
    if "circuit" not in run.tensors or "prompts_from" not in manifest:
        raise RunError(
            f"{folder} is a {manifest.get('kind')} run and holds no circuit. Give a run of `circuitome find`."
        )
    origin = manifest["prompts_from"]
    if origin["data"] is not None and not Path(origin["data"]).is_file():
        raise RunError(f"The prompts of {folder} came from {origin['data']}, which is not there any more.")
    model = load(origin["model"])
    task = PromptSpec(**origin).draw(model, aligned=manifest.get("ablation") not in ("zero", "mean"))
    if task.data_hash() != manifest["task"]["data_hash"]:
        raise RunError(
            f"The prompts of {folder} have changed since ({origin['data'] or origin['task']}). Run it again: "
            f"{manifest['command']}"
        )
    if weights_hash(model) != manifest["model"]["weights_hash"]:
        raise RunError(
            f"The weights of {origin['model']} are not those of {folder}. Run it again: {manifest['command']}"
        )
    shape = manifest["model"]
    graph = Graph(shape["layers"], shape["heads"], shape["kv_heads"], parallel=shape["parallel"])
    if graph != model.graph:
        raise InputError(f"The circuit of {folder} belongs to another model: {graph}; {model.name} has {model.graph}.")
    return model, task, Circuit(graph, run.tensors["circuit"].bool())
