"""What every run on prompts has in common: model, prompts, and the part of the manifest that says which."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitome.errors import InputError, unknown_name
from circuitome.models.known import KNOWN
from circuitome.models.loading import load
from circuitome.models.model import Model
from circuitome.runs.spec import ModelSpec
from circuitome.tasks import TASKS
from circuitome.tasks.pair_files import from_file
from circuitome.tasks.task import Task
from circuitome.validation import ground_truth

PROMPTS = 20
"""Prompts that a manifest shows."""


@dataclass(frozen=True, kw_only=True)
class PromptSpec(ModelSpec):
    """Which model on which prompts."""

    task: str = "ioi"
    """A name in `TASKS`; the name of the task when `data` is given."""
    n: int = 64
    """Number of prompt pairs."""
    data: str | None = None
    """A JSONL or CSV file of prompt pairs, in place of a generator."""

    def prompt_words(self) -> list[str]:
        """Its options for model and prompts."""
        words = ["--model", self.model, "--n", str(self.n), "--seed", str(self.seed)]
        words += ["--data", self.data] if self.data else []
        return words + (["--max-memory", str(self.max_memory)] if self.max_memory else [])

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
            return ground_truth.task(self.task, self.n, self.seed)
        return TASKS[self.task](model, n=self.n, seed=self.seed)

    def folder_name(self, kind: str) -> str:
        """A readable folder name for the run."""
        return f"{self.task}-{super().folder_name(kind)}"

    def manifest(self, kind: str, model: Model, task: Task, command: str | None = None) -> dict[str, Any]:
        """What was run on what, as plain JSON; `key` identifies command, prompts and weights together.

        `command` is given where it is not that of this spec.
        """
        return {
            **self.model_manifest(kind, model, data=task.data_hash(), command=command),
            "task": {
                "name": task.name,
                "n": len(task),
                "seed": task.seed,
                "source": task.source or self.data,
                "metric": task.metric,
                "unit": task.unit,
                "data_hash": task.data_hash(),
            },
            "prompts_from": {name: getattr(self, name) for name in ("task", "model", "n", "seed", "data")},
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
