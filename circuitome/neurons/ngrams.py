"""Which n-grams a neuron fires on, counted in one pass: coverage numbers and detectors.

The coverage number of a neuron for n = 1, 2, 3 is the smallest number of n-grams that together end at 95 % of the
tokens on which it is active. A detector has at most five n-grams, on each of which it fires in at least 95 % of their
occurrences, and which explain at least 95 % of its activations (Voita et al. 2023, arXiv:2309.04827, section 4).

A table of neurons by n-grams would grow with the texts. What is kept: for every neuron and n, activations by a hash of
the n-gram; and exact counters for the neurons whose activations fill few hash cells. k n-grams lie in at most k cells,
so a neuron that needs more than `MOST` cells for 95 % of its activations needs more than `MOST` n-grams: that is proof,
and no exact count of it is wanted. Exact counters are shortened to the largest `KEPT` of a neuron and n; by how much
any count may be too small from then on is kept beside them.

Texts are counted in segments, each from nothing, and the segments' counters are merged in a tree that depends on the
number of segments alone: whoever counted which of them, the result is the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ORDERS = (1, 2, 3)
"""Lengths of the n-grams that are counted."""
COVERED = 0.95
"""Share of a neuron's activations that n-grams must explain, and of an n-gram's occurrences on which it must fire."""
MOST = 50
"""Largest coverage number that is told; beyond it a neuron is said to need more."""
FEW = 5
"""n-grams of a detector at most."""
EVENTS = 10
"""Activations that a neuron must have before it can be called a detector."""
CELLS, WATCHED = 256, 2 * MOST
"""Hash cells by neuron and n, and cells up to which a neuron's n-grams are counted exactly."""
KEPT, PENDING = 1024, 16_384
"""Exact counters of a neuron and n, and new counts after which they are shortened to so many, or as there are old."""
NAMES = ("neuron", "gram", "count")
"""What lists of counts hold."""
Parts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Neurons, n-grams, and counts."""
MIX = -7046029254386353131
"""Odd multiplier whose product has well-mixed upper bits (Fibonacci hashing, 2^64 / golden ratio)."""


def gram_ids(tokens: Int[Tensor, "window pos"], vocabulary: int) -> Int[Tensor, "n window pos"]:
    """A number for the n-gram that ends at each token, n = 1, 2, 3; -1 where the window has not n tokens yet."""
    grams = [tokens.long()]
    for n in ORDERS[1:]:
        longer = torch.full_like(grams[0], -1)
        longer[:, n - 1 :] = grams[-1][:, :-1][:, n - 2 :] * vocabulary + tokens[:, n - 1 :]
        grams.append(longer)
    return torch.stack(grams)


def spelled(gram: int, n: int, vocabulary: int) -> tuple[int, ...]:
    """The tokens of an n-gram, first to last."""
    tokens = list[int]()
    for _ in range(n):
        gram, token = divmod(gram, vocabulary)
        tokens.append(token)
    return tuple(reversed(tokens))


@dataclass(frozen=True)
class BlockGrams:
    """The n-grams of the counted tokens of one block, for one n."""

    rows: Int[Tensor, " row"] | None
    """Which counted tokens end an n-gram; None for all of them."""
    cells: Int[Tensor, " row"]
    """Hash cell of each."""
    distinct: Int[Tensor, " distinct"]
    """The different n-grams of the block, ascending."""
    inverse: Int[Tensor, " row"]
    """Place of each among these."""

    @classmethod
    def of(cls, grams: Int[Tensor, " token"]) -> "BlockGrams":
        """From the n-gram ids of the counted tokens."""
        rows = (grams >= 0).nonzero()[:, 0]
        kept = grams[rows]
        distinct, inverse = kept.unique(return_inverse=True)
        return cls(None if len(rows) == len(grams) else rows, cells_of(kept), distinct, inverse)


def cells_of(grams: Int[Tensor, " gram"]) -> Int[Tensor, " gram"]:
    """Hash cell of n-grams."""
    return (grams * MIX >> 40) % CELLS


def needed(counts: Int[Tensor, "item column"], totals: Int[Tensor, " column"]) -> Int[Tensor, " column"]:
    """How many of a column's largest counts reach 95 % of its total; 0 for an empty column, items + 1 if all do not."""
    ascending = np.sort(counts.T.contiguous().numpy(), -1)  # several times faster than torch's on short rows
    reached = torch.from_numpy(ascending[:, ::-1].cumsum(-1, dtype=np.int64))
    short = (reached < (COVERED * totals.double() - 1e-6)[:, None]).sum(-1) + 1
    return torch.where(totals > 0, short, 0)


class Counters:
    """Exact counts of one layer and n: a list of (neuron, n-gram, count).

    What comes is written into room that is taken once: small arrays that live long, between large ones that do not,
    would keep the memory of these from being used again.
    """

    def __init__(self) -> None:
        self.held = empty_counts(0)
        """Neurons, n-grams and counts, sorted and without repeats."""
        self.room = empty_counts(PENDING)
        """The same for what came since, as far as it is filled."""
        self.filled = 0
        """How much of the room is."""

    def add(self, neuron: np.ndarray, gram: np.ndarray, count: np.ndarray) -> None:
        """Take new counts, for which there is room."""
        end = self.filled + len(neuron)
        for room, part in zip(self.room, (neuron, gram, count), strict=True):
            room[self.filled : end] = part
        self.filled = end

    def reserve(self, size: int) -> None:
        """Make room for `size` new counts, where there is none pending."""
        if size > len(self.room[0]):
            self.room = empty_counts(size)

    @property
    def pending(self) -> Parts:
        """What came since the last time it was summed."""
        neuron, gram, count = (part[: self.filled] for part in self.room)
        return neuron, gram, count

    def merged(self) -> Parts:
        """Neuron, n-gram and count of each pair, summed; by neuron, the largest count first, then by n-gram."""
        return summed(*(np.concatenate(parts) for parts in zip(self.held, self.pending, strict=True)))

    def shorten(self, watched: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum all counts and keep, of watched neurons, the largest; gives neurons and counts of what is left out."""
        neuron, gram, count = self.merged()
        keep = watched[neuron]
        neuron, gram, count = neuron[keep], gram[keep], count[keep]
        keep = rank_in_group(neuron) < KEPT
        self.held, self.filled = (neuron[keep], gram[keep], count[keep]), 0
        return neuron[~keep], count[~keep]


def summed(neuron: np.ndarray, gram: np.ndarray, count: np.ndarray) -> Parts:
    """Counts of each neuron and n-gram, summed; by neuron, the largest count first, then by n-gram."""
    order = np.lexsort((gram, neuron))
    neuron, gram, count = neuron[order], gram[order], count[order]
    new = np.ones(len(neuron), bool)
    new[1:] = (neuron[1:] != neuron[:-1]) | (gram[1:] != gram[:-1])
    starts = new.nonzero()[0]
    sums = np.add.reduceat(count, starts) if len(starts) else count
    neuron, gram = neuron[starts], gram[starts]
    order = np.lexsort((gram, -sums, neuron))
    return neuron[order], gram[order], sums[order]


def empty_counts(size: int) -> Parts:
    """Room for so many neurons, n-grams and counts."""
    return np.zeros(size, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int64)


def rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Place of each element in its run of equal elements, from 0."""
    new = np.ones(len(groups), bool)
    new[1:] = groups[1:] != groups[:-1]
    starts = np.maximum.accumulate(np.where(new, np.arange(len(groups)), 0))
    return np.arange(len(groups)) - starts


class GramCounts:
    """What the neurons of one layer fire on in one segment of the texts."""

    def __init__(self, neurons: int) -> None:
        orders = len(ORDERS)
        self.cells = torch.zeros(orders, CELLS, neurons, dtype=torch.int32)
        self.watched = torch.ones(orders, neurons, dtype=torch.bool)
        self.short = torch.zeros(orders, neurons, dtype=torch.long)
        """By how much any exact count may be too small."""
        self.counters = [Counters() for _ in ORDERS]

    def add(self, block: tuple[BlockGrams, ...], fires: Float[Tensor, "token neuron"], check: bool) -> None:
        """Count a block's activations; with `check`, decide again which neurons are counted exactly."""
        for i, grams in enumerate(block):
            ends = fires if grams.rows is None else fires[grams.rows]
            cells = torch.zeros(CELLS, fires.shape[1]).index_add_(0, grams.cells, ends)
            if check:
                self._choose(i, self.cells[i] + cells.int())
            self._count(i, grams, ends)
            self.cells[i] += cells.int()

    def _choose(self, i: int, cells: Int[Tensor, "cell neuron"]) -> None:
        """Watch the neurons that fill few cells. What one that was not watched has fired on is missing."""
        few = needed(cells, cells.sum(0)) <= WATCHED
        come = few & ~self.watched[i]
        self.short[i][come] += self.cells[i][:, come].sum(0)
        self.watched[i] = few

    def _count(self, i: int, grams: BlockGrams, ends: Float[Tensor, "row neuron"]) -> None:
        """Count the n-grams of the watched neurons."""
        columns = (self.watched[i] & (ends.sum(0) > 0)).nonzero()[:, 0]
        if not len(columns):
            return
        table = torch.zeros(len(grams.distinct), len(columns)).index_add_(0, grams.inverse, ends[:, columns])
        row, column = table.nonzero().T
        counters = self.counters[i]
        if counters.filled + len(row) > len(counters.room[0]):
            self._shorten(i)
            counters.reserve(max(len(row), len(counters.held[0])))
        counters.add(columns[column].numpy(), grams.distinct[row].numpy(), table[row, column].numpy())

    def _shorten(self, i: int) -> None:
        neuron, count = self.counters[i].shorten(self.watched[i].numpy())
        lost = np.zeros(self.short.shape[1], np.int64)
        np.maximum.at(lost, neuron, count)
        self.short[i] += torch.from_numpy(lost)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is held, by name: what `restore` goes on from."""
        yield from (("cells", self.cells), ("watched", self.watched), ("short", self.short))
        for i, counters in enumerate(self.counters):
            for name, held, new in zip(NAMES, counters.held, counters.pending, strict=True):
                yield f"{name}{i}", torch.from_numpy(held)
                yield f"new_{name}{i}", torch.from_numpy(new)

    def restore(self, held: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.cells, self.watched, self.short = held["cells"], held["watched"], held["short"]
        for i, counters in enumerate(self.counters):
            neuron, gram, count = (held[f"{name}{i}"].numpy() for name in NAMES)
            counters.held = neuron, gram, count
            new = [held[f"new_{name}{i}"].numpy() for name in NAMES]
            counters.reserve(len(new[0]))
            counters.add(*new)

    def ended(self, number: int) -> "GramNode":
        """What is left of them when segment `number` ends: the counters of watched neurons."""
        short = torch.where(self.watched, self.short, self.cells.sum(1))
        parts = []
        for i, counters in enumerate(self.counters):
            neuron, gram, count = counters.merged()
            keep = self.watched[i].numpy()[neuron]
            parts.append((neuron[keep], gram[keep], count[keep]))
        return GramNode(number, 1, short, tuple(parts)).shortened()


@dataclass(frozen=True)
class GramNode:
    """Counters of a run of segments, a node of the tree in which they are merged."""

    start: int
    """The first segment."""
    size: int
    """How many there are."""
    short: Int[Tensor, "n neuron"]
    """By how much any count may be too small."""
    parts: tuple[Parts, ...]
    """By n: neurons, n-grams and counts, sorted by neuron, the largest count first."""

    def shortened(self) -> "GramNode":
        """With the largest counts of each neuron and n alone."""
        short, parts = self.short.clone(), []
        for i, (neuron, gram, count) in enumerate(self.parts):
            keep = rank_in_group(neuron) < KEPT
            lost = np.zeros(short.shape[1], np.int64)
            np.maximum.at(lost, neuron[~keep], count[~keep])
            short[i] += torch.from_numpy(lost)
            parts.append((neuron[keep], gram[keep], count[keep]))
        return GramNode(self.start, self.size, short, tuple(parts))

    def with_next(self, other: "GramNode") -> "GramNode":
        """Merged with the node behind it."""
        parts = tuple(
            summed(*map(np.concatenate, zip(*both, strict=True))) for both in zip(self.parts, other.parts, strict=True)
        )
        return GramNode(self.start, self.size + other.size, self.short + other.short, parts).shortened()

    def is_sibling(self, other: "GramNode") -> bool:
        """Whether the node behind it has the same parent in the binary tree of all segments."""
        return self.size == other.size and self.start % (2 * self.size) == 0 and other.start == self.start + self.size


class GramTotals:
    """What the neurons of one layer fire on, in all segments that ended; as many nodes are held as the tree is deep."""

    def __init__(self, neurons: int) -> None:
        self.cells = torch.zeros(len(ORDERS), CELLS, neurons, dtype=torch.int32)
        self.nodes = list[GramNode]()

    def end(self, number: int, counts: GramCounts) -> None:
        """Take a segment that ended."""
        self.cells += counts.cells
        self.push(counts.ended(number))

    def push(self, node: GramNode) -> None:
        """Take the node behind the last one, and merge all siblings that are complete."""
        self.nodes.append(node)
        while len(self.nodes) > 1 and self.nodes[-2].is_sibling(self.nodes[-1]):
            last = self.nodes.pop()
            self.nodes[-1] = self.nodes[-1].with_next(last)

    def add(self, other: "GramTotals") -> None:
        """Take the segments behind its own."""
        self.cells += other.cells
        for node in other.nodes:
            self.push(node)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is held, by name: what `restore` goes on from."""
        yield "all_cells", self.cells
        for place, node in enumerate(self.nodes):
            yield f"node{place}", torch.tensor([node.start, node.size])
            yield f"node{place}_short", node.short
            for i, parts in enumerate(node.parts):
                yield from (
                    (f"node{place}_{name}{i}", torch.from_numpy(x)) for name, x in zip(NAMES, parts, strict=True)
                )

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.cells, self.nodes = held["all_cells"], []
        while (name := f"node{len(self.nodes)}") in held:
            parts = tuple(tuple(held[f"{name}_{x}{i}"].numpy() for x in NAMES) for i in range(len(ORDERS)))
            start, size = held[name].tolist()
            self.nodes.append(GramNode(start, size, held[f"{name}_short"], parts))  # type: ignore[arg-type]

    def result(self) -> "Coverage":
        """Coverage numbers and the n-grams that each neuron fires on most."""
        whole = reduce(lambda right, left: left.with_next(right), reversed(self.nodes))
        parts = [self._covered(i, whole) for i in range(len(ORDERS))]
        return Coverage(*(torch.stack(column) for column in zip(*parts, strict=True)))

    def _covered(self, i: int, whole: GramNode) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Events, coverage number, whether it is certain, and the largest n-grams of one n."""
        events, (neuron, gram, count) = self.cells[i].sum(0), whole.parts[i]
        watched = needed(self.cells[i], events) <= WATCHED
        rank = rank_in_group(neuron)
        table = torch.zeros(MOST, len(events), dtype=torch.long)
        grams = torch.full((FEW, len(events)), -1, dtype=torch.long)
        at = rank < MOST
        table[torch.from_numpy(rank[at]), torch.from_numpy(neuron[at]).long()] = torch.from_numpy(count[at])
        at = rank < FEW
        grams[torch.from_numpy(rank[at]), torch.from_numpy(neuron[at]).long()] = torch.from_numpy(gram[at])
        most = needed(table, events)
        least = torch.minimum(most, needed(table + whole.short[i], events))
        proven = needed(self.cells[i], events) > MOST
        number = torch.where(watched, most, MOST + 1)
        certain = proven | (watched & (least == most))
        shown = torch.where(watched, grams, -1)
        return events, number, certain, shown, torch.where(shown >= 0, table[:FEW], 0)


@dataclass(frozen=True)
class Coverage:
    """What the neurons of one layer fire on."""

    events: Int[Tensor, "n neuron"]
    """Activations at tokens that end an n-gram."""
    number: Int[Tensor, "n neuron"]
    """Coverage number; 0 for a neuron that is never active, `MOST` + 1 for more than `MOST`."""
    certain: Bool[Tensor, "n neuron"]
    """Whether the number is exact; else it may be too large."""
    grams: Int[Tensor, "n few neuron"]
    """The n-grams it fires on most; -1 where there are fewer, or where they were not counted."""
    counts: Int[Tensor, "n few neuron"]
    """How often it fired on each."""


def detectors(
    coverage: Coverage, occurrences: Int[Tensor, "n few neuron"]
) -> tuple[Int[Tensor, " neuron"], Bool[Tensor, "n few neuron"]]:
    """The smallest n for which a neuron is a detector, 0 for none, and the n-grams that it detects for each n."""
    counts = coverage.counts
    reliable = (counts > 0) & (counts >= COVERED * occurrences)
    explained = (counts * reliable).sum(1)
    detects = (explained >= COVERED * coverage.events) & (coverage.events >= EVENTS)
    order = torch.where(detects.any(0), detects.int().argmax(0) + 1, 0)
    return order, reliable & detects[:, None]


class Occurrences:
    """How often some n-grams end at counted tokens, in a pass over the tokens alone."""

    def __init__(self, wanted: Int[Tensor, "..."]) -> None:
        self.grams = wanted[wanted >= 0].unique()
        self.counts = torch.zeros(len(self.grams) + 1, dtype=torch.long)

    def add(self, grams: Int[Tensor, " token"]) -> None:
        """Count a block's n-grams."""
        at = torch.searchsorted(self.grams, grams).clamp(max=max(0, len(self.grams) - 1))
        known = self.grams[at] == grams if len(self.grams) else torch.zeros_like(grams, dtype=torch.bool)
        self.counts += torch.bincount(torch.where(known, at, len(self.grams)), minlength=len(self.counts))

    def of(self, grams: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Occurrences of n-grams that were wanted; 0 for -1."""
        if not len(self.grams):
            return torch.zeros_like(grams)
        at = torch.searchsorted(self.grams, grams.contiguous()).clamp(max=len(self.grams) - 1)
        return torch.where(grams >= 0, self.counts[at], 0)
