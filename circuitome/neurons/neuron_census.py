"""A census of every MLP neuron: one pass over texts, in memory that does not grow with them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.engine.batches import tokens_within
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, MemoryBudgetError
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.neurons.activity import Rule, check_mlps, rule_of, watching_activity
from circuitome.neurons.layer_counts import AFTER, BEFORE, Batch, LayerCounts, block_grams
from circuitome.neurons.ngrams import ORDERS, Coverage, Occurrences, detectors, spelled
from circuitome.neurons.positional import INFORMED, KINDS, WINDOWS, binned, information, kinds
from circuitome.neurons.text_windows import LENGTH, Windows, windows
from circuitome.results import Shown, plain
from circuitome.weights.folding import vocabulary

KEEP = 10
"""Largest activations of a neuron that are kept."""
SECONDS = 60.0
"""How long work may go on before what is counted so far is written down."""
SAMPLED, THINNEST = 2048, 8
"""Tokens above which histograms take only some, and of how many they take one at most."""


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


@method
def census(
    setting: Setting,
    texts: str | Sequence[str] | Windows,
    *,
    length: int = LENGTH,
    tokens: int | None = None,
    quantile: float | None = None,
    keep: int = KEEP,
    layers: Sequence[int] | None = None,
) -> Census:
    """What every neuron (or those of `layers`) does on `texts`: how often it is active, on what, where, how strongly.

    Texts are cut into windows of `length` tokens, until there are `tokens` (see `windows`). A neuron is active where
    the input of its activation function, the gate of a gated MLP, is above 0; or with `quantile`, where |a| is above
    that quantile of its MLP on the first windows. First positions of windows and special tokens are not counted.
    With a checkpoint, what is counted is written every minute, and a later call goes on from there to the same result.
    Definitions: Voita et al. 2023, arXiv:2309.04827; see `ngrams` and `positional`.

    >>> found = cm.neurons.census(cm.load("known-ioi"), "Ann and Bob met then Bob gave to", length=8)
    >>> found.tokens, tuple(found.active.shape)
    (8, (3, 4))

    Raises `InputError` for a model without MLPs, for layers that do not exist, texts without two tokens and a quantile
    outside of 0 to 1; `MemoryBudgetError` where not even one window fits.
    """
    model = setting.model
    check_mlps(model)
    chosen = checked_layers(model, layers)
    cut = (
        texts if isinstance(texts, Windows) else windows(model, texts, length=length, tokens=tokens, seed=setting.seed)
    )
    if keep < 1:
        raise InputError(f"keep must be at least 1, got {keep}.")
    counting = Counting(setting, cut, quantile, keep, chosen)
    counting.run()
    return counting.census()


def checked_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers in order. Raises `InputError` for one that does not exist."""
    n_layers = model.graph.n_layers
    if missing := [layer for layer in layers or () if not 0 <= layer < n_layers]:
        raise InputError(f"There is no MLP in layer {missing[0]}; {model.name} has layers 0 to {n_layers - 1}.")
    return tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))


def special_tokens(model: Model) -> Int[Tensor, " special"]:
    """Ids of the tokenizer's special tokens; none without one."""
    return torch.tensor([] if model.tokenizer is None else sorted(model.tokenizer.all_special_ids), dtype=torch.long)


def windows_at_once(setting: Setting, length: int) -> int:
    """Windows that run at once. Raises `MemoryBudgetError` where not even one fits."""
    fits = tokens_within(setting.model, setting.max_memory, gradients=False) // length
    if fits < 1:
        need = length * setting.model.bytes_per_token(gradients=False)
        raise MemoryBudgetError(
            f"One window of {length} tokens takes about {need / 1e6:,.0f} MB beside the weights. Raise --max-memory to "
            f"{need / 1e9:.1f}GB, or shorten the windows."
        )
    return fits


class Counting:
    """A census while it is made."""

    def __init__(
        self, setting: Setting, cut: Windows, quantile: float | None, keep: int, layers: tuple[int, ...]
    ) -> None:
        self.setting, self.model, self.cut, self.layers = setting, setting.model, cut, layers
        self.special, self.vocabulary = special_tokens(self.model), vocabulary(self.model)
        self.at_once = windows_at_once(setting, cut.length)
        self.every = max(1, min(THINNEST, cut.tokens // SAMPLED))
        first = next(cut.blocks())
        sample = range(first.start, min(first.stop, first.start + self.at_once))
        self.rule: Rule = rule_of(self.model, quantile, cut.inputs(self.model, sample))
        neurons = self.model.blocks[layers[0]].n_neurons
        self.counts = {layer: LayerCounts(neurons, cut.length, keep) for layer in layers}
        self.occurrences = torch.zeros(self.vocabulary, dtype=torch.long)
        self.counted = torch.zeros(cut.length, dtype=torch.long)
        self.kept = setting.kept("census", cut.data_hash(), quantile, keep, list(layers))

    def run(self) -> None:
        """Read all windows, from where an earlier run stopped."""
        start, tell = self._restored(), self.setting.tell("reading texts")
        last = time.monotonic()
        for number, rows in enumerate(self.cut.blocks()):
            if number < start:
                continue
            self._read(rows, check=number & (number + 1) == 0)
            tell(rows.stop, len(self.cut))
            if time.monotonic() - last > SECONDS:
                self._write(number + 1)
                last = time.monotonic()

    def _read(self, rows: range, *, check: bool) -> None:
        """Count a block of windows, as many at once as fit."""
        parts = [rows[i : i + self.at_once] for i in range(0, len(rows), self.at_once)]
        batches = [Batch.of(self.cut, part, self.special, self.vocabulary, self.every) for part in parts]
        grams = block_grams(torch.cat([batch.grams for batch in batches], 1))
        for part, batch in zip(parts, batches, strict=True):
            last = part is parts[-1]

            def look(layer: int, given: Tensor, written: Tensor, batch: Batch = batch, last: bool = last) -> None:
                at = batch.rows.to(written.device)
                shown = written[at]
                counts = self.counts[layer]
                counts.add(batch, self.rule.fires(layer, given[at], shown).cpu(), shown.cpu())
                if last:
                    counts.end_block(grams, check)

            with watching_activity(self.model, look, self.layers):
                self.model.logits(self.cut.inputs(self.model, part))
            self.occurrences += torch.bincount(batch.ids, minlength=self.vocabulary)
            self.counted += torch.bincount(batch.positions, minlength=self.cut.length)

    def _write(self, blocks: int) -> None:
        """Write down what is counted so far."""
        held = {f"{layer}.{name}": t for layer, counts in self.counts.items() for name, t in counts.tensors()}
        self.kept.write({**held, "occurrences": self.occurrences, "counted": self.counted}, {"blocks": blocks})

    def _restored(self) -> int:
        """How many blocks an earlier run has counted."""
        if (before := self.kept.read()) is None:
            return 0
        held, state = before
        self.occurrences, self.counted = held["occurrences"], held["counted"]
        for layer, counts in self.counts.items():
            prefix = f"{layer}."
            counts.restore({name.removeprefix(prefix): t for name, t in held.items() if name.startswith(prefix)})
        return int(state["blocks"])

    def census(self) -> Census:
        """The result."""
        parts = [self.counts[layer] for layer in self.layers]
        tokens = int(self.occurrences.sum())
        if not tokens:
            raise InputError(
                "The texts hold only first and special tokens, so nothing was counted. Give texts with words."
            )
        sums = torch.stack([counts.sums for counts in parts], 1)
        mean = sums[1] / tokens
        largest = zip(*(counts.largest() for counts in parts), strict=True)
        top, places, contexts = (torch.stack(part) for part in largest)
        return Census(
            model=self.model.name,
            layers=self.layers,
            windows=self.cut,
            rule=self.rule.words(self.model),
            tokens=tokens,
            full=int((self.cut.lengths == self.cut.length).sum()),
            vocabulary=self.vocabulary,
            occurrences=self.occurrences,
            active=sums[0].long(),
            mean=mean.float(),
            deviation=(sums[2] / tokens - mean.square()).clamp(min=0).sqrt().float(),
            mean_active=(sums[3] / sums[0].clamp(min=1)).float(),
            histogram=torch.stack([counts.histogram for counts in parts]),
            top=top,
            places=places,
            contexts=contexts,
            **self._by_position(parts),
            **self._by_gram([counts.grams.result() for counts in parts]),
        )

    def _by_position(self, parts: Sequence[LayerCounts]) -> dict[str, Tensor]:
        """Information about positions, types and curves."""
        judged = int((self.cut.lengths == self.cut.length).sum()) >= WINDOWS
        seen = (self.counted > 0).nonzero()[:, 0]
        rows = list[dict[str, Tensor]]()
        for counts in parts:
            known, chance = (information(table, self.counted) for table in counts.positions)
            rate = counts.positions[0][seen].float() / self.counted[seen][:, None]
            kind, strong = kinds(rate, (known - chance.clamp(min=0) > INFORMED) & judged)
            if not judged:
                known, chance = torch.full_like(known, torch.nan), torch.full_like(chance, torch.nan)
            curve = binned(rate)
            rows.append({"information": known, "shuffled": chance, "kind": kind, "strong": strong, "curve": curve})
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    def _by_gram(self, parts: Sequence[Coverage]) -> dict[str, Tensor]:
        """Coverage numbers and detectors; occurrences of the n-grams come from a pass over the tokens alone."""
        grams = torch.stack([part.grams for part in parts])
        tables = [Occurrences(grams[:, i]) for i in range(len(ORDERS))]
        for rows in self.cut.blocks():
            batch = Batch.of(self.cut, rows, self.special, self.vocabulary, 1)
            for table, ids in zip(tables, batch.grams, strict=True):
                table.add(ids)
        often = torch.stack([table.of(grams[:, i]) for i, table in enumerate(tables)], 1)
        order, detects = zip(*(detectors(part, often[i]) for i, part in enumerate(parts)), strict=True)
        return {
            "events": torch.stack([part.events for part in parts]),
            "coverage": torch.stack([part.number for part in parts]),
            "certain": torch.stack([part.certain for part in parts]),
            "grams": grams,
            "gram_counts": torch.stack([part.counts for part in parts]),
            "gram_occurrences": often,
            "detector": torch.stack(order),
            "detects": torch.stack(detects),
        }
