"""Prompts by name: read from a file, drawn by a generator, or those of a model whose circuit is known."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from circuitome.errors import InputError, unknown_name
from circuitome.models.known import KNOWN
from circuitome.models.model import Model
from circuitome.tasks import TASKS, from_file
from circuitome.tasks.task import Task
from circuitome.validation import ground_truth


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a run's model and prompts come from."""

    task: str
    """A name in `TASKS` or `KNOWN`; with `data`, the task's own name."""
    model: str
    """Name, folder or file of the model."""
    n: int
    """Number of prompt pairs that are drawn."""
    seed: int
    """Seed that they are drawn with."""
    data: str | None
    """A JSONL or CSV file of prompt pairs, in place of a generator."""

    def check(self) -> None:
        """Raises `InputError` for prompts that cannot be, before anything is loaded."""
        if self.data is None and self.task not in (*TASKS, *KNOWN):
            raise unknown_name("task", self.task, TASKS, "Or give a file of prompt pairs with --data.")
        if self.data is None and self.task in KNOWN and self.model != self.task:
            raise InputError(f"The prompts of {self.task} are made for that model; add --model {self.task}.")
        if self.n < 1:
            raise InputError(f"--n is the number of prompt pairs and must be at least 1, got {self.n}.")
        if self.data is not None and not Path(self.data).is_file():
            raise InputError(f"There is no data file {self.data}.")

    def draw(self, model: Model, *, aligned: bool = True) -> Task:
        """The prompts for `model`. Raises what tasks raise; without `aligned`, lengths within a pair may differ."""
        if self.data:
            return from_file(model, self.data, aligned=aligned)
        if self.task in KNOWN:
            return ground_truth.task(self.task, self.n, self.seed)
        return TASKS[self.task](model, n=self.n, seed=self.seed)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)
