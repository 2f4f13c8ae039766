"""What every run on prompts has in common: model, prompts, and the part of the manifest that says which."""

import hashlib
import json
import platform
import resource
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import circuitome
from circuitome import known
from circuitome.errors import InputError, unknown_name
from circuitome.models import DEFAULT_MODEL, Model, load, weights_hash
from circuitome.models.known import KNOWN
from circuitome.tasks import TASKS, Task, from_file

PROMPTS = 20
"""Prompts that a manifest shows."""


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """Which model on which prompts."""

    task: str = "ioi"
    """A name in `TASKS`; the name of the task when `data` is given."""
    model: str = DEFAULT_MODEL
    """Name, folder or file of the model."""
    n: int = 64
    """Number of prompt pairs."""
    seed: int = 0
    """Seed of the prompts, and of everything else that is drawn."""
    data: str | None = None
    """A JSONL or CSV file of prompt pairs, in place of a generator."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        raise NotImplementedError

    def prompt_words(self) -> list[str]:
        """Its options for model and prompts."""
        words = ["--model", self.model, "--n", str(self.n), "--seed", str(self.seed)]
        words += ["--data", self.data] if self.data else []
        return words + (["--max-memory", str(self.max_memory)] if self.max_memory else [])

    def command(self) -> str:
        """The command line as one text, quoted for a shell."""
        return shlex.join(self.words)

    def check(self) -> None:
        """Raises for prompts that cannot be, before anything is loaded."""
        if self.data is None and self.task not in (*TASKS, *KNOWN):
            raise unknown_name("task", self.task, TASKS, "Or give a file of prompt pairs with --data.")
        if self.data is None and self.task in KNOWN and self.model != self.task:
            raise InputError(f"The prompts of {self.task} are made for that model; add --model {self.task}.")
        if self.n < 1:
            raise InputError(f"--n is the number of prompt pairs and must be at least 1, got {self.n}.")
        if self.data is not None and not Path(self.data).is_file():
            raise InputError(f"There is no data file {self.data}.")

    def prepare(self, *, aligned: bool = True) -> tuple[Model, Task]:
        """Load the model and draw or read the prompts. Raises what `check`, `load` and the tasks raise."""
        self.check()
        model = load(self.model)
        return model, self.draw(model, aligned=aligned)

    def draw(self, model: Model, *, aligned: bool = True) -> Task:
        """The prompts for `model`: read from the file, or drawn. Raises what tasks raise."""
        if self.data:
            return from_file(model, self.data, aligned=aligned)
        if self.task in KNOWN:
            return known.task(self.task, self.n, self.seed)
        return TASKS[self.task](model, n=self.n, seed=self.seed)

    def folder_name(self, kind: str) -> str:
        """A readable folder name for the run."""
        digest = hashlib.sha256(self.command().encode()).hexdigest()[:6]
        return f"{self.task}-{Path(self.model).stem}-{kind}-{digest}"

    def manifest(self, kind: str, model: Model, task: Task, command: str | None = None) -> dict[str, Any]:
        """What was run on what, as plain JSON; `key` identifies command, prompts and weights together.

        `command` is given where it is not that of this spec.
        """
        model_hash, data_hash = weights_hash(model), task.data_hash()
        command = self.command() if command is None else command
        text = json.dumps([command, data_hash, model_hash])
        return {
            "kind": kind,
            "key": hashlib.sha256(text.encode()).hexdigest()[:16],
            "circuitome": circuitome.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "model": _describe_model(model, self.model, model_hash),
            "task": {
                "name": task.name,
                "n": len(task),
                "seed": task.seed,
                "source": task.source or self.data,
                "metric": task.metric,
                "unit": task.unit,
                "data_hash": data_hash,
            },
            "prompts_from": {name: getattr(self, name) for name in ("task", "model", "n", "seed", "data")},
            "seed": self.seed,
            "peak_memory_bytes": peak_memory(),
            "prompts": [
                {
                    "clean": pair.clean_text,
                    "corrupted": pair.corrupted_text,
                    "answers": [model.decode([i]) for i in pair.answers[:10]],
                    "wrongs": [model.decode([i]) for i in pair.wrongs[:10]],
                }
                for pair in task.pairs[:PROMPTS]
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
