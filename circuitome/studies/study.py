"""What a study is: its settings, its run, what it costs, and what it found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from circuitome.present.blocks import Block
from circuitome.studies.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

    from circuitome.studies.context import Context
    from circuitome.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a study found."""

    title: str
    """What was asked, in a line."""
    sign: str
    """What signs and intervals mean, in a sentence or two."""
    results: Mapping[str, Any]
    """Its numbers, as plain JSON values."""
    blocks: Sequence[Block]
    """What it says, for every view."""
    tensors: Mapping[str, "Tensor"] = field(default_factory=dict)
    """Scores, circuits and per-prompt values."""
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    """Further files of the run's folder, names with / for folders in it, and what they hold."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the manifest: method, ablation, sequences ..., as plain JSON values."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a study will cost, in passes over texts of one length."""

    texts: int
    """Number of prompts or pieces of text."""
    tokens: int
    """Tokens of each, the longest counts."""
    forward: float = 0.0
    """Forward passes over all of them."""
    backward: float = 0.0
    """Forward and backward passes over all of them."""
    circuit: float = 0.0
    """Passes of circuits over all of them."""
    products: float = 0.0
    """Products of all writers with all readers over all of them, as edge attribution takes."""
    attention: float = 0.0
    """Calls of all blocks' attention alone."""
    rest: float = 0.0
    """What takes time and is no pass, in forward passes."""
    varied: float = 1.0
    """Share of the tokens behind those that clean and corrupted prompts begin with alike: gradients, products and
    circuits run over these alone."""
    path: bool = True
    """Whether gradients may be those of a path, of which several points are held."""
    copies: float = 0
    """Copies of the model's weights that are there beside it."""
    bytes: int | None = None
    """Memory beside weights and program where recorded batches are not what decides; beside the program alone where no
    passes are counted."""
    seconds: float = 1.0
    """About how long it takes where no passes are counted."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What else is known beforehand, such as the size of the circuit."""

    @classmethod
    def over(cls, task: "Task", ablation: str = "corrupted", **passes: Any) -> "Work":
        """Passes over all prompts of a task; under corrupted ablation what both of a pair begin with runs once."""
        from circuitome.engine.batches import shared_length

        lengths = [len(pair.clean) for pair in task.pairs]
        shared = sum(map(shared_length, task.pairs)) if ablation == "corrupted" else 0
        return cls(texts=len(task), tokens=max(lengths), varied=1 - shared / sum(lengths), **passes)


@dataclass(frozen=True)
class Study:
    """One question that circuitome answers: a command, a page, and entries of a run folder."""

    name: str
    """Its command."""
    settings: type[Settings]
    """What it is asked: a frozen dataclass, whose first docstring line is the command's help."""
    run: Callable[[Any, "Context"], Findings]
    """Does the work: settings and context to findings."""
    work: Callable[[Any, "Context"], Work]
    """What it will cost, without doing it."""
    holds: Callable[[Any, Mapping[str, Any]], bool] = lambda settings, manifest: True
    """Whether a finished run, by its manifest, is what the settings insist on: else its command exits with 3."""
    shard: Callable[[Any, "Context", int], Any] | None = None
    """Does one of the parts into which its work is split, by number, and keeps what came out in the run's folder."""
