"""Which prompts lend which others the value of a variable, and what the causal model then answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitome.causal.causal_model import CausalModel
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.tasks.task import continuation

TRIED = 65
"""Prompts that are looked at as sources of one base."""


def gives_number(model: Model) -> bool:
    """Whether a model gives one number in place of logits, as programs do that compute one."""
    return len(model.unembedding.weight) == 1


class Answers:
    """Token ids of what a causal model answers."""

    def __init__(self, setting: Setting, causal: CausalModel, inputs: Sequence[dict[str, Any]]) -> None:
        self.setting, self.causal = setting, causal
        model, task = setting.model, setting.task
        # A text that stands in a prompt is the token that stands there, however the tokenizer would spell it alone.
        spelled = {token for pair in task.pairs for token in (*pair.clean, *pair.answers, *pair.wrongs)}
        self.known = {model.decode([token]): token for token in sorted(spelled, reverse=True)}

    def ids(self, value: Any, inputs: dict[str, Any]) -> frozenset[float]:
        """The tokens that a value of the answer allows; none for None, the number where the model gives one.

        Raises `InputError` where it is not of one token each.
        """
        if value is None:
            return frozenset()
        if gives_number(self.setting.model) and isinstance(value, int | float):
            return frozenset([round(float(value), 4)])
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, tuple | list | set) else None
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"The variable {self.causal.output!r} must be a text, or several of which each is right; it is "
                f"{value!r} for {_shown(inputs)}."
            )
        return frozenset(self._id(text, inputs) for text in texts)

    def _id(self, text: str, inputs: dict[str, Any]) -> int:
        if text not in self.known:
            spelled = continuation(self.setting.model, text)
            if len(spelled) != 1:
                raise InputError(
                    f"The model cannot say {text!r}, the value of {self.causal.output!r} for {_shown(inputs)}, in one "
                    f"token: its tokenizer makes {len(spelled)} tokens of it. Let the causal model give a text of one."
                )
            self.known[text] = spelled[0]
        return self.known[text]


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws sources for bases, and knows what the causal model answers on one prompt with a value from another."""

    setting: Setting
    """The prompts."""
    causal: CausalModel
    """The causal model."""
    variables: tuple[str, ...]
    """The variables whose value is interchanged."""
    inputs: tuple[dict[str, Any], ...]
    """Inputs of each prompt."""
    alone: tuple[dict[str, Any], ...]
    """All values on each prompt."""
    says: Answers
    """Token ids of answers."""
    share: float
    """Share of pairs in which the answer of the causal model is to change."""
    kinds: tuple[tuple[Any, ...], ...]
    """By prompt its template and the number of tokens of each role, which base and source must have in common."""
    said: tuple[float, ...]
    """What the model answers on each prompt when nothing is interchanged."""
    kept: dict[tuple[str, int, Any], frozenset[float]] = field(default_factory=dict)
    """Answers that were worked out before."""
    compared: dict[tuple[int, int], list[bool]] = field(default_factory=dict)
    """Pairs that were compared before."""

    def ids(self, variable: str, base: int, source: int) -> frozenset[float]:
        """The tokens that the causal model allows on `base` with the variable's value from `source`."""
        value = self.alone[source][variable]
        key = (variable, base, value if isinstance(value, str | int | float | bool | tuple) else source)
        if key not in self.kept:
            answer = self.causal.run(self.inputs[base], set={variable: value})[self.causal.output]
            self.kept[key] = self.says.ids(answer, self.inputs[base])
        return self.kept[key]

    def changes(self, base: int, source: int) -> list[bool]:
        """By variable: whether what the model answers on the base alone is no longer right."""
        if (base, source) not in self.compared:
            said = self.said[base]
            self.compared[base, source] = [said not in self.ids(name, base, source) for name in self.variables]
        return self.compared[base, source]

    def possible(self, base: int, source: int) -> bool:
        """Whether a prompt can lend its values to another: roles have as many tokens, and the algorithm an answer."""
        return (
            base != source
            and self.kinds[base][1:] == self.kinds[source][1:]
            and all(self.ids(name, base, source) for name in self.variables)
        )

    def with_sources(self, rows: Sequence[int]) -> list[int]:
        """Those prompts that have a possible source among them."""
        kept = [row for row in rows if any(self.possible(row, other) for other in rows)]
        return kept if len(kept) == len(rows) else self.with_sources(kept)

    def drawn(self, base: Sequence[int], seed: int, tokens: Sequence[float]) -> dict[str, Any]:
        """Fields of `Trials` that follow from the sources that are drawn for these bases."""
        source = self.sources(base, seed)
        allowed = [self.allowed(base, which) for which in (source, self.others(base, source, seed))]
        answers = tuple(sorted({*tokens}.union(*(ids for table in allowed for rows in table for ids in rows))))
        expected, shuffled = (torch.stack([_table(rows, answers) for rows in table]) for table in allowed)
        before = _table([frozenset([self.said[row]]) for row in base], answers)
        found = {"source": torch.tensor(source), "tokens": answers, "before": before}
        return {**found, "expected": expected, "shuffled": shuffled}

    def allowed(self, base: Sequence[int], source: Sequence[int]) -> list[list[frozenset[float]]]:
        """By variable and pair: the tokens that the causal model allows after the interchange."""
        return [[self.ids(v, b, s) for b, s in zip(base, source, strict=True)] for v in self.variables]

    def others(self, base: Sequence[int], source: Sequence[int], seed: int) -> list[int]:
        """The sources dealt out anew among the bases of each template."""
        rng, others = Random(seed + 1), list(source)
        for kind in sorted({self.kinds[row] for row in base}):
            places = [place for place, row in enumerate(base) if self.kinds[row] == kind]
            dealt = rng.sample(places, len(places))
            for place, other in zip(places, dealt, strict=True):
                others[place] = source[other]
        return others

    def sources(self, base: Sequence[int], seed: int) -> list[int]:
        """A source for each base, so that each variable's answer changes in nearly the asked share of pairs.

        Of each base's sources, in random order, the first that brings the shares nearest, in all and within the base's
        template. Raises `InputError` for a variable that changes no answer.
        """
        rng, source = Random(seed), list[int]()
        counts: dict[Any, list[int]] = {kind: [0] * (len(self.variables) + 1) for kind in (None, *self.kinds)}
        for row in base:
            tried = rng.sample(list(base), len(base))
            others = list(islice((other for other in tried if self.possible(row, other)), TRIED))
            near = [counts[None], counts[self.kinds[row]]]
            ranked = [(_off(near, self.changes(row, other), self.share), place) for place, other in enumerate(others)]
            source.append(others[min(ranked)[1]])
            for count in near:
                for number, change in enumerate([*self.changes(row, source[-1]), 1]):
                    count[number] += change
        for variable, changed in zip(self.variables, counts[None], strict=False):
            if not changed:
                raise InputError(
                    f"The value of {variable!r} from another prompt changes the answer of the causal model on none of "
                    f"the {len(base)} prompts, so that no place could be told from any other. Give prompts that differ "
                    "in it."
                )
        return source


def _off(counts: Sequence[Sequence[int]], new: Sequence[bool], share: float) -> float:
    """How far shares are from `share` with one pair more; `counts` are those of changes by variable, and of pairs."""
    return sum(
        abs(count + change - share * (pairs + 1))
        for *changes, pairs in counts
        for count, change in zip(changes, new, strict=True)
    )


def _table(rows: Sequence[frozenset[float]], tokens: Sequence[float]) -> Bool[Tensor, "pairs tokens"]:
    return torch.tensor([[token in allowed for token in tokens] for allowed in rows])


def _shown(inputs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in inputs.items())
