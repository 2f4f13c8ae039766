"""What a census of MLP neurons found."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.neurons.layer_counts import AFTER, BEFORE
from circuitome.neurons.ngrams import ORDERS, spelled
from circuitome.neurons.positional import KINDS
from circuitome.neurons.text_windows import Windows
from circuitome.results import Shown, plain


@dataclass(frozen=True)
class Example:
    """A context in which a neuron's activation is large."""

    value: float
    """The activation."""
    ids: list[int]
    """Tokens around the one at which it is, from 20 before to 6 behind."""
    values: list[float]
    """Activations at these, in 16 bits; NaN where a token is not counted."""
    at: int
    """Which of them it is."""
    context: list[int]
    """The whole window up to it."""


@dataclass(frozen=True, eq=False)
class Census(Shown):
    """What every neuron of some layers did on texts."""

    model: str
    """Name of the model."""
    layers: tuple[int, ...]
    """The layers, in the order of all axes that are called layer."""
    windows: Windows
    """The texts, as they were read; places are window times length plus position."""
    rule: str
    """When a neuron counts as active, in words."""
    tokens: int
    """Tokens that were counted: all but the first of a window and special ones."""
    full: int
    """Full windows, in which positions were counted."""
    vocabulary: int
    """Base of the numbers of n-grams."""
    occurrences: Int[Tensor, " vocab"]
    """How often each token was counted."""
    active: Int[Tensor, "layer neuron"]
    """Tokens on which each neuron was active."""
    mean: Float[Tensor, "layer neuron"]
    """Mean of a, what the neuron writes with, over all tokens."""
    deviation: Float[Tensor, "layer neuron"]
    """Its standard deviation."""
    mean_active: Float[Tensor, "layer neuron"]
    """Mean of a over the tokens on which the neuron was active; 0 for a dead one."""
    histogram: Int[Tensor, "layer bin neuron"]
    """Sampled tokens by size of a, from very negative over 0 to very positive, by powers of two."""
    top: Float[Tensor, "layer keep neuron"]
    """Largest |a| with their signs, at most one a window; 0 where there are fewer."""
    places: Int[Tensor, "layer keep neuron"]
    """Where they are; -1 where there are fewer."""
    contexts: Float[Tensor, "layer keep neuron offset"]
    """a at the tokens around them, from 20 before to 6 behind, in 16 bits; NaN where no token is counted."""
    information: Float[Tensor, "layer neuron"]
    """Nats that activity says about position, bias taken off; NaN with fewer than 20 full windows."""
    shuffled: Float[Tensor, "layer neuron"]
    """The same with the positions of each window turned round at random: what chance gives."""
    kind: Int[Tensor, "layer neuron"]
    """Type of positional neuron by number in `KINDS`, 0 for none."""
    strong: Bool[Tensor, "layer neuron"]
    """Whether a positional neuron's extremes are exactly 0 and 1."""
    curve: Float[Tensor, "layer stretch neuron"]
    """Share of windows in which the neuron was active, by stretch of positions; the first position is left out."""
    events: Int[Tensor, "layer n neuron"]
    """Activations at tokens that end an n-gram, n = 1, 2, 3."""
    coverage: Int[Tensor, "layer n neuron"]
    """n-grams that explain 95 % of them at least; 0 for a dead neuron, 51 for more than 50."""
    certain: Bool[Tensor, "layer n neuron"]
    """Whether that number is exact; else it may be too large."""
    grams: Int[Tensor, "layer n few neuron"]
    """The n-grams that it fires on most, as numbers (`gram`); -1 for none."""
    gram_counts: Int[Tensor, "layer n few neuron"]
    """How often it fired on each."""
    gram_occurrences: Int[Tensor, "layer n few neuron"]
    """How often each stands in the texts."""
    detector: Int[Tensor, "layer neuron"]
    """Smallest n for which it is a detector of n-grams; 0 for none."""
    detects: Bool[Tensor, "layer n few neuron"]
    """Which of `grams` it detects."""

    def __repr__(self) -> str:
        layers, neurons = self.active.shape
        return f"Census({self.model}, {layers} layers of {neurons} neurons, {self.tokens:,} tokens)"

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name: what `Census.of` makes it again from."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        texts = {"ids": self.windows.ids, "lengths": self.windows.lengths}
        return {**{name: value for name, value in own.items() if isinstance(value, Tensor)}, **texts}

    def facts(self) -> dict[str, Any]:
        """Everything else, as plain JSON values."""
        names = ("model", "layers", "rule", "tokens", "full", "vocabulary")
        return {name: plain(getattr(self, name)) for name in names}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> "Census":
        """The census whose `tensors` and `facts` these are."""
        own: dict[str, Any] = {name: value for name, value in tensors.items() if name not in ("ids", "lengths")}
        given = {**facts, "layers": tuple(facts["layers"])}
        return cls(windows=Windows(tensors["ids"], tensors["lengths"]), **own, **given)

    def at(self, neuron: str) -> tuple[int, int]:
        """Row and column of a neuron such as m5.n123. Raises `InputError` for one that was not counted."""
        node = Node.parse(neuron)
        if node.kind != "neuron" or node.layer not in self.layers or node.index >= self.active.shape[1]:
            raise InputError(
                f"There is no neuron {neuron!r} in this census; it has layers {self.layers[0]} to {self.layers[-1]} "
                f"with neurons 0 to {self.active.shape[1] - 1}, written as m{self.layers[0]}.n0."
            )
        return self.layers.index(node.layer), node.index

    def names(self, where: Bool[Tensor, "layer neuron"]) -> list[str]:
        """Names of the neurons at which `where` is true, layer by layer."""
        return [str(Node("neuron", self.layers[row], column)) for row, column in where.nonzero().tolist()]

    @property
    def dead(self) -> Bool[Tensor, "layer neuron"]:
        """Neurons that were never active."""
        return self.active == 0

    @property
    def positional(self) -> Bool[Tensor, "layer neuron"]:
        """Neurons that know where a token stands."""
        return self.kind > 0

    def gram(self, n: int, number: int) -> tuple[int, ...]:
        """The tokens of an n-gram in `grams`."""
        return spelled(number, n, self.vocabulary)

    def detected(self, neuron: str) -> list[tuple[int, ...]]:
        """The n-grams that a neuron detects, the one it fires on most first; empty where it is no detector."""
        row, column = self.at(neuron)
        n = int(self.detector[row, column])
        numbers = (
            self.grams[row, n - 1, :, column][self.detects[row, n - 1, :, column]] if n else self.grams[:0, 0, 0, 0]
        )
        return [self.gram(n, number) for number in numbers.tolist()]

    def fires_on(self, neuron: str, n: int = 1) -> list[tuple[tuple[int, ...], int, int]]:
        """The n-grams that a neuron fires on most: the n-gram, how often it fired there, how often it stands there."""
        row, column = self.at(neuron)
        parts = (part[row, n - 1, :, column].tolist() for part in (self.grams, self.gram_counts, self.gram_occurrences))
        return [(self.gram(n, gram), fired, often) for gram, fired, often in zip(*parts, strict=True) if gram >= 0]

    def examples(self, neuron: str) -> list[Example]:
        """The tokens around a neuron's largest activations, largest first, with its activations there."""
        row, column = self.at(neuron)
        found = list[Example]()
        columns = (part[row, :, column] for part in (self.places, self.top, self.contexts))
        for place, value, values in zip(*(part.tolist() for part in columns), strict=True):
            if place >= 0:
                window, at = divmod(place, self.windows.length)
                start, end = max(0, at - BEFORE), min(int(self.windows.lengths[window]), at + AFTER + 1)
                ids = self.windows.ids[window, :end].tolist()
                around = values[start - at + BEFORE : end - at + BEFORE]
                found.append(Example(value, ids[start:], around, at - start, ids[: at + 1]))
        return found

    def row(self, neuron: str) -> dict[str, Any]:
        """All numbers of one neuron, as plain JSON values; n-grams as token ids."""
        at = self.at(neuron)
        return {
            "neuron": neuron,
            "active": int(self.active[at]) / self.tokens,
            "tokens": self.tokens,
            **{name: float(getattr(self, name)[at]) for name in ("mean", "deviation", "mean_active")},
            "information": plain(float(self.information[at])),
            "shuffled": plain(float(self.shuffled[at])),
            "position": KINDS[int(self.kind[at])],
            "coverage": self.coverage[at[0], :, at[1]].tolist(),
            "certain": self.certain[at[0], :, at[1]].tolist(),
            "detector": int(self.detector[at]),
            "fires_on": {str(n): [[list(gram), *counts] for gram, *counts in self.fires_on(neuron, n)] for n in ORDERS},
            "largest": [value for value in self.top[at[0], :, at[1]].tolist() if value],
        }

    def looks_dead(self, rate: float) -> float:
        """Chance that a neuron with this share of active tokens shows none here, were tokens independent."""
        return float((1 - rate) ** self.tokens)
