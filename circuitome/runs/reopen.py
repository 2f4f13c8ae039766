"""A finished run with its model, prompts and circuit as they were when it was made."""

from dataclasses import dataclass
from pathlib import Path

from circuitome.errors import InputError, RunError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.models.loading import load, weights_hash
from circuitome.models.model import Model
from circuitome.runs.draw import Origin
from circuitome.runs.store import Run, load_run
from circuitome.tasks.task import Task


@dataclass(frozen=True)
class Reopened:
    """A finished run, and what it was made on."""

    run: Run
    """The run."""
    origin: Origin
    """Where its model and prompts came from."""
    model: Model
    """Its model, with the same weights."""
    task: Task
    """Its prompts."""
    circuit: Circuit
    """Its circuit."""

    @property
    def ablation(self) -> str:
        """What edges outside its circuit carry."""
        return str(self.run.manifest.get("ablation", "corrupted"))

    @property
    def scores(self) -> EdgeScores | None:
        """The scores that its circuit comes from, with those of every prompt where they were kept."""
        tensors, method = self.run.tensors, self.run.manifest.get("method", {})
        if "scores" not in tensors:
            return None
        unit, name = method.get("unit", self.task.unit), method.get("description", "")
        return EdgeScores(self.circuit.graph, tensors["scores"], unit, name, tensors.get("samples"))


def reopened(folder: Path) -> Reopened:
    """The run in `folder`, its model loaded and its prompts drawn again.

    Raises `RunError` where there is no run or it holds no circuit, or where its prompts, weights or graph are no longer
    what they were.
    """
    run = load_run(folder)
    manifest = run.manifest
    if "circuit" not in run.tensors or "prompts_from" not in manifest:
        raise RunError(
            f"{folder} is a {manifest.get('kind')} run and holds no circuit. Give a run of `circuitome find`."
        )
    origin = Origin(**manifest["prompts_from"])
    if origin.data is not None and not Path(origin.data).is_file():
        raise RunError(f"The prompts of {folder} came from {origin.data}, which is not there any more.")
    model = load(origin.model)
    task = origin.draw(model, aligned=manifest.get("ablation") not in ("zero", "mean"))
    if task.data_hash() != manifest["task"]["data_hash"]:
        raise RunError(
            f"The prompts of {folder} have changed since ({origin.data or origin.task}). Run it again: "
            f"{manifest['command']}"
        )
    if weights_hash(model) != manifest["model"]["weights_hash"]:
        raise RunError(f"The weights of {origin.model} are not those of {folder}. Run it again: {manifest['command']}")
    shape = manifest["model"]
    graph = Graph(shape["layers"], shape["heads"], shape["kv_heads"], parallel=shape["parallel"])
    if graph != model.graph:
        raise InputError(f"The circuit of {folder} belongs to another model: {graph}; {model.name} has {model.graph}.")
    return Reopened(run, origin, model, task, Circuit(graph, run.tensors["circuit"].bool()))
