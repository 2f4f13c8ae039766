"""What of a training a page can show step by step: scores of heads, attention on an example, circuits, numbers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepNumbers:
    """A curve of the training."""

    name: str
    """What it shows."""
    values: tuple[float | None, ...]
    """Its value at each step; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class StepHeads:
    """A score of every head."""

    name: str
    """What it shows."""
    values: tuple[tuple[tuple[float | None, ...], ...] | None, ...]
    """By step, layer and head."""
    best: str = ""
    """The head with the largest score at the end."""


@dataclass(frozen=True, kw_only=True)
class StepAttention:
    """Where a head attends in the example."""

    head: str
    """Its name."""
    values: tuple[tuple[tuple[float | None, ...], ...] | None, ...]
    """By step, query and key; behind the last key of a query there is no attention."""


@dataclass(frozen=True, kw_only=True)
class StepCircuit:
    """The circuit of a task."""

    task: str
    """The task."""
    values: tuple[dict[str, Any] | None, ...]
    """By step: `edges`, strongest first, as (edge, score), and numbers by name, such as its size."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A training at each of its watched steps."""

    name: str
    """What a reader calls it."""
    steps: tuple[int, ...]
    """The steps."""
    layers: int
    """Blocks of the model."""
    heads: int
    """Heads of a block."""
    numbers: tuple[StepNumbers, ...] = ()
    """Curves."""
    scores: tuple[StepHeads, ...] = ()
    """Scores of heads."""
    tokens: tuple[str, ...] = ()
    """Tokens of the example."""
    attention: tuple[StepAttention, ...] = ()
    """Attention of heads in the example."""
    circuits: tuple[StepCircuit, ...] = ()
    """Circuits by task."""
