"""Prompts by name: read from a file, drawn by a generator, or those of a model whose circuit is known."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from circuitome.engine.divergence import kl_metric
from circuitome.errors import InputError, unknown_name
from circuitome.models.known import KNOWN
from circuitome.models.model import Model
from circuitome.tasks import METRICS, TASKS, from_file
from circuitome.tasks.held_out import Split, fresh, joined, split
from circuitome.tasks.pair_files import WHOLE
from circuitome.tasks.task import Task
from circuitome.user_code import named_object
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
    metric: str | None = None
    """A metric in place of the task's own: a name in `METRICS`, kl, or file.py:NAME of one's own."""
    apart: tuple[str, ...] = ()
    """What else is drawn: "held_out" prompts, also "sizing" ones."""
    held_out: str | None = None
    """A file of held-out prompts, or the name of a generator for them; by default another draw of the task."""

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
        if self.held_out is not None and self.held_out not in TASKS and not Path(self.held_out).is_file():
            raise unknown_name("task or file of held-out prompts", self.held_out, TASKS)
        if self.metric is not None and ":" not in self.metric and self.metric not in (*METRICS, "kl"):
            raise unknown_name("metric", self.metric, [*METRICS, "kl"], "Or give one of your own as file.py:NAME.")

    def draw(self, model: Model, *, aligned: bool = True, max_memory: int | None = None) -> Task:
        """The prompts for `model`. Raises what tasks raise; without `aligned`, lengths within a pair may differ.

        The metric kl runs the model on them, in batches of at most `max_memory` bytes.
        """
        if self.data:
            whole = {"metric": self.metric} if self.metric == WHOLE else {}
            task = from_file(model, self.data, name=self.task, aligned=aligned, **whole)
        elif self.task in KNOWN:
            task = ground_truth.task(self.task, self.n, self.seed)
        else:
            task = TASKS[self.task](model, n=self.n, seed=self.seed)
        return self._measured(model, task, max_memory)

    def parts(self, model: Model, **options: Any) -> Split:
        """The prompts, and those that are held apart from them; `options` are those of `draw`.

        Held-out prompts come from their file or generator, else from a draw of the task with the next seed, sizing ones
        from a draw with the seed after that. Where a file gives all prompts, or draws repeat each other, and sizing
        prompts are wanted, the prompts are split.
        """
        task = self.draw(model, **options)
        held_out = self.others(model, 1, [task], **options) if self.apart else None
        if "sizing" not in self.apart:
            return Split(task, None, held_out)
        seen = [task, *([held_out] if held_out else [])]
        sizing = replace(self, held_out=None).others(model, 2, seen, **options) if held_out else None
        if held_out and sizing:
            return Split(task, sizing, held_out)
        parts = split(task, seed=self.seed)
        assert parts.sizing is not None and parts.held_out is not None
        return replace(parts, sizing=joined(parts.sizing, parts.held_out), held_out=held_out) if held_out else parts

    def others(
        self, model: Model, ahead: int, seen: Sequence[Task], *, n: int | None = None, **options: Any
    ) -> Task | None:
        """Prompts from the file or generator of held-out ones, or a draw with a seed so far ahead, none of them seen.

        None where there is neither, or where too few prompts are new. A file is taken as it is.
        """
        source = self.held_out or (self.task if self.data is None else None)
        if source is None:
            return None
        if source not in (*TASKS, *KNOWN):
            return replace(self, task=Path(source).stem, data=source).draw(model, **options)
        again = replace(self, task=source, data=None, n=n or self.n, seed=self.seed + ahead)
        return fresh(again.draw(model, **options), seen)

    def _measured(self, model: Model, task: Task, max_memory: int | None) -> Task:
        """The task with the metric that was asked for."""
        if self.metric is None or self.metric == task.measure.name:
            return task
        if self.metric == "kl":
            return task.measured_by(kl_metric(model, task, max_memory=max_memory))
        return task.measured_by(named_object(self.metric, "metric") if ":" in self.metric else self.metric)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)
