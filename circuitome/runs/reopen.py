"""A finished run with its model, prompts and circuit as they were when it was made."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from circuitome.engine.ablation import UNALIGNED
from circuitome.errors import InputError, RunError
from circuitome.features.feature_nodes import fingerprint
from circuitome.features.loading import load as load_dictionary
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import Node
from circuitome.models.loading import load, weights_hash
from circuitome.models.model import Model
from circuitome.runs.draw import Origin
from circuitome.runs.store import Run, load_run
from circuitome.tasks.held_out import Split
from circuitome.tasks.task import Task


@dataclass(frozen=True, repr=False)
class Reopened:
    """A finished run. Its parts are read, loaded or drawn again when they are first asked for.

    Each part raises `RunError` where the run holds none, or where it is no longer what it was: other weights, other
    prompts.
    """

    folder: Path
    """Where the run lies."""
    run: Run
    """Its manifest and tensors."""
    device: str | None = None
    """Where its model is loaded; None: the default of `load`."""
    activations: str = "device"
    """Where what its model's passes record waits; see `Model.with_activations_on`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.manifest['command']!r}, {len(self.run.tensors)} tensors)"

    @property
    def manifest(self) -> dict[str, Any]:
        """What was done and what came out, as plain JSON values."""
        return self.run.manifest

    @property
    def kind(self) -> str:
        """Name of the study that made it."""
        return str(self.manifest.get("kind"))

    @property
    def ablation(self) -> str:
        """What edges outside its circuit carry."""
        return str(self.manifest.get("ablation", "corrupted"))

    @cached_property
    def origin(self) -> Origin:
        """Where its model and prompts came from."""
        if "prompts_from" not in self.manifest:
            raise self._without("prompts", "find, patch, path or measure")
        try:
            known = self.manifest["prompts_from"]
            origin = Origin(**{**known, "apart": tuple(known.get("apart", ()))})
        except TypeError:  # other fields
            version = self.manifest.get("circuitome", "of another version")
            raise RunError(
                f"{self.folder} was made by circuitome {version}, which wrote down its prompts in another way. Its "
                f"results and tensors can be read. {self._again()}"
            ) from None
        if origin.data is not None and not Path(origin.data).is_file():
            raise RunError(f"The prompts of {self.folder} came from {origin.data}, which is not there any more.")
        return origin

    @cached_property
    def model(self) -> Model:
        """Its model, with the same weights."""
        if "model" not in self.manifest:
            raise self._without("model", "find")
        asked = self.manifest["model"]["name"] if "prompts_from" not in self.manifest else self.origin.model
        model = load(asked, dtype=getattr(torch, self.manifest["model"]["dtype"]), device=self.device)
        if weights_hash(model) != self.manifest["model"]["weights_hash"]:
            raise RunError(f"The weights of {asked} are not those of {self.folder}. {self._again()}")
        if nodes := self.manifest.get("neuron_nodes"):
            model = model.with_neurons(nodes["neurons"], apart=nodes["apart"])
        for record in self.manifest.get("feature_nodes", ()):
            model = self._with_features(model, record)
        return model.with_activations_on(self.activations)

    def _with_features(self, model: Model, record: dict[str, Any]) -> Model:
        """The model with features of a dictionary as nodes. Raises `RunError` for another dictionary."""
        path = record["dictionary"]
        if not Path(path).exists():
            raise RunError(f"The dictionary of {self.folder} was at {path}, which is not there any more.")
        dictionary = load_dictionary(path, model=model, check=False)
        if fingerprint(dictionary) != record["fingerprint"]:
            raise RunError(f"The dictionary {path} is not that of {self.folder} any more. {self._again()}")
        return model.with_described(dictionary.to(model.device), record["features"], record["fingerprint"])

    @cached_property
    def prompts(self) -> Split:
        """Its prompts, and those that were held apart from them."""
        prompts = self.origin.parts(self.model, aligned=self.ablation not in UNALIGNED)
        for task, name in ((prompts.search, "task"), (prompts.held_out, "held_out")):
            known = self.manifest.get(name)
            if task is not None and known and known.get("data_hash", task.data_hash()) != task.data_hash():
                source = self.origin.data or self.origin.task
                raise RunError(f"The prompts of {self.folder} have changed since ({source}). {self._again()}")
        return prompts

    @property
    def task(self) -> Task:
        """Its prompts, with their metric: those that its circuit was chosen on."""
        return self.prompts.search

    @property
    def held_out(self) -> Task:
        """The prompts that nothing of the search saw."""
        if self.prompts.held_out is None:
            raise self._without("held-out prompts", "find with --held-out")
        return self.prompts.held_out

    @cached_property
    def graph(self) -> Graph:
        """The graph of its model, which need not be loaded for it."""
        if "model" not in self.manifest:
            raise self._without("model", "find")
        shape = self.manifest["model"]
        graph = Graph(shape["layers"], shape["heads"], shape["kv_heads"], parallel=shape["parallel"])
        if nodes := self.manifest.get("neuron_nodes"):
            graph = graph.with_neurons(nodes["neurons"], nodes["apart"])
        for record in self.manifest.get("feature_nodes", ()):
            graph = graph.with_features(Node.parse(record["node"]), record["features"], record["fingerprint"])
        return graph

    @cached_property
    def circuit(self) -> Circuit:
        """Its circuit; no model is loaded for it."""
        if "circuit" not in self.run.tensors:
            raise self._without("circuit", "find")
        return Circuit(self.graph, self.run.tensors["circuit"].bool())

    @cached_property
    def scores(self) -> EdgeScores | None:
        """The scores that its circuit comes from, with those of every prompt where they were kept; None without any."""
        tensors, method = self.run.tensors, self.manifest.get("method", {})
        if "scores" not in tensors:
            return None
        unit = method.get("unit") or self.manifest["task"]["unit"]
        return EdgeScores(self.graph, tensors["scores"], unit, method.get("description", ""), tensors.get("samples"))

    def _without(self, part: str, studies: str) -> RunError:
        return RunError(
            f"{self.folder} is a {self.kind} run and holds no {part}. Give a run of `circuitome {studies}`."
        )

    def _again(self) -> str:
        return f"Run it again: {self.manifest['command']}"


def reopened(folder: Path, device: str | None = None, activations: str = "device") -> Reopened:
    """The run in `folder`: model loaded onto `device` in its precision, prompts drawn again, circuit read.

    What the model's passes record waits where `activations` says (see `Model.with_activations_on`).

    Raises `RunError` where there is no run or it holds no circuit, or where its prompts, weights or graph are no longer
    what they were.
    """
    found = Reopened(folder, load_run(folder), device, activations)
    circuit, _ = found.circuit, found.task  # drawn now, so that changed prompts are noticed before the work
    if circuit.graph != found.model.graph:
        raise InputError(
            f"The circuit of {folder} belongs to another model: {circuit.graph}; {found.model.name} has "
            f"{found.model.graph}."
        )
    return found
