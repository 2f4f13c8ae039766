"""Heads whose weights stay as they are from a step of a training on, chosen by name or by what they do then."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.heads.atlas.all_heads import one_pass
from circuitome.heads.atlas.repeated import Repeated
from circuitome.models.model import Model
from circuitome.models.slices import slices

FROZEN_KINDS = ("previous", "induction")
"""Kinds of heads that can be frozen: those that attend most to the token before, or behind earlier copies."""
FROZEN = "frozen"
"""Name under which a training's metrics hold the frozen heads."""


@dataclass(eq=False)
class Freezing:
    """Heads that learn nothing more from a step on: their part of q, k, v and of the output stays, byte by byte.

    Given to `cm.training.train` as `before_step=[freezing.before]` and `after_step=[freezing.after]`: gradients of the
    frozen slices are 0, so that they count in no norm, and what decay and running means of the optimiser would still
    do to them is taken back. A key/value head that is shared is frozen with each of its query heads. Gains of norms
    and the bias of the output projection belong to all heads and go on learning.

    >>> model = cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer())
    >>> stream, schedule = cm.dynamics.GrammarStream(model), cm.training.Schedule(steps=4, batch=4, length=24)
    >>> frozen = cm.dynamics.Freezing(("a0.h1",), at=2)
    >>> done = cm.training.train(model, stream, schedule, before_step=[frozen.before], after_step=[frozen.after])
    >>> [row["frozen"] for row in done.history if "frozen" in row]
    [['a0.h1']]
    """

    what: tuple[str, ...]
    """Heads by name, or kinds in `FROZEN_KINDS`, of which the head with the largest score at that step is meant."""
    at: int
    """How many steps are done when their weights are frozen."""
    above: float | None = None
    """In place of the first head of a kind, all whose score, a share of attention, is at least that."""
    repeated: Repeated | None = None
    """Repeated sequences on which heads are scored; those of the measures where `cm.dynamics.recipe` is given this."""
    held: list[tuple[nn.Parameter, int, Tensor, Tensor]] = field(default_factory=list, repr=False)
    """Frozen slices: parameter, axis, places on it, and their values."""

    def __post_init__(self) -> None:
        for name in self.what:
            if name not in FROZEN_KINDS and not re.fullmatch(r"a\d+\.h\d+", name):
                raise unknown_name("head or kind of head", name, FROZEN_KINDS, "Heads are named like a0.h1.")
        if self.at < 0 or not self.what:
            raise InputError(f"Heads are frozen after a number of steps from 0 on, got {self.at} for {self.what}.")

    def before(self, model: Model, step: int, history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Zero the gradients of the frozen heads; at the step itself choose them, and say which they are.

        A training that goes on after a stop finds in its history which were chosen. Raises `InputError` for heads that
        the model has not, and where no head of a kind reaches `above`.
        """
        if step < self.at:
            return None
        chosen = None
        if not self.held:
            before = next((row[FROZEN] for row in history if FROZEN in row), None)
            heads = before or [str(Node.head(*head)) for head in self.chosen(model)]
            self.held = [
                (parameter, axis, places, parameter.detach().index_select(axis, places).clone())
                for parameter, axis, places in _slices(model, [Node.parse(name) for name in heads])
            ]
            chosen = None if before else {FROZEN: heads}
        for parameter, axis, places, _ in self.held:
            if parameter.grad is not None:
                parameter.grad.index_fill_(axis, places, 0.0)
        return chosen

    def after(self, model: Model, step: int) -> None:
        """Put the weights of the frozen heads back."""
        with torch.no_grad():
            for parameter, axis, places, values in self.held:
                parameter.index_copy_(axis, places, values)

    def chosen(self, model: Model) -> list[tuple[int, int]]:
        """The heads that are frozen, as layer and head, by what the model does now."""
        heads = set[tuple[int, int]]()
        for name in self.what:
            if name in FROZEN_KINDS:
                heads |= self._of_kind(model, name)
            else:
                node = Node.parse(name)
                if node.layer >= len(model.blocks) or node.index >= model.heads.q:
                    raise InputError(f"{model.name} has no head {name}: {len(model.blocks)} blocks of {model.heads.q}.")
                heads.add((node.layer, node.index))
        return sorted(heads)

    def _of_kind(self, model: Model, kind: str) -> set[tuple[int, int]]:
        assert self.repeated is not None, "kinds of heads are scored on repeated sequences"
        with model.reserved(), torch.no_grad():
            scores = one_pass(model, self.repeated)[kind].mean(0)
        best = divmod(int(scores.argmax()), scores.shape[1])
        if self.above is None:
            return {best}
        if not bool((scores >= self.above).any()):
            raise InputError(
                f"No head has a score of {self.above} for {kind} after {self.at} steps; the highest is "
                f"{Node.head(*best)} with {float(scores[best]):.2f}. Freeze later, or above less."
            )
        return {(layer, head) for layer, head in (scores >= self.above).nonzero().tolist()}


def _slices(model: Model, heads: Sequence[Node]) -> Iterator[tuple[nn.Parameter, int, Int[Tensor, " some"]]]:
    """Parameters, axes and places of everything that belongs to single heads."""
    for node in heads:
        block = model.blocks[node.layer]
        group = node.index // (block.heads.q // block.heads.kv)
        for part in slices(block, [node.index], [group], []):
            if not len(part.index):
                continue
            parameters = dict(part.module.named_parameters(recurse=False))
            places = part.index.to(parameters["weight"].device)
            linear = isinstance(part.module, nn.Linear)  # GPT-2's Conv1D stores the transpose
            yield parameters["weight"], int(part.rows != linear), places
            if part.rows and "bias" in parameters:
                yield parameters["bias"], 0, places
