"""What one pass over texts leaves of the neurons of a layer: sums, positions, n-grams, largest activations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitome.errors import NumericsError
from circuitome.neurons.ngrams import CELLS, MIX, ORDERS, BlockGrams, GramCounts, GramTotals, gram_ids
from circuitome.neurons.text_windows import Windows

LEVELS, SMALLEST = 16, -8
"""Powers of two of a histogram's bins, and the exponent below which activations are not told apart."""
BEFORE, AFTER = 20, 6
"""Tokens before and behind a largest activation whose activations are kept, too."""
LARGEST = 65_504.0
"""Largest number of 16 bits; activations around the largest ones are kept in these."""


@dataclass(frozen=True)
class Batch:
    """Where the counted tokens of some windows are: no padding, no first position, no special token."""

    rows: Int[Tensor, " token"]
    """Their places among batch and position as one axis."""
    ids: Int[Tensor, " token"]
    """Token ids."""
    places: Int[Tensor, " token"]
    """Window times length plus position."""
    ends: tuple[int, ...]
    """By window, one past its last counted token."""
    full: Int[Tensor, " full"]
    """Which counted tokens stand in full windows."""
    positions: Int[Tensor, " full"]
    """Their positions."""
    shifted: Int[Tensor, " full"]
    """The same, turned round by a random number of positions for each window."""
    sample: Int[Tensor, " sample"]
    """Which counted tokens go into the histograms."""
    grams: Int[Tensor, "n token"]
    """Ids of the n-grams that end there."""
    around: Int[Tensor, "token offset"]
    """Which counted tokens stand around each, `BEFORE` of them before and `AFTER` behind; -1 where none is counted."""

    @classmethod
    def of(
        cls, windows: Windows, rows: range, special: Int[Tensor, " special"], vocabulary: int, every: int
    ) -> "Batch":
        """The counted tokens of the windows `rows`; one of `every` goes into the histograms."""
        lengths = windows.lengths[rows.start : rows.stop].long()
        longest = int(lengths.max())
        ids = windows.ids[rows.start : rows.stop, :longest].long()
        at = torch.arange(longest).expand_as(ids)
        counted = (at > 0) & (at < lengths[:, None]) & ~torch.isin(ids, special)
        number = torch.arange(rows.start, rows.stop)
        window, position = (x.expand_as(ids)[counted] for x in (number[:, None], at))
        places = window * windows.length + position
        full = (lengths == windows.length)[window - rows.start].nonzero()[:, 0]
        turned = _hash(window[full]) % (windows.length - 1)
        grams = gram_ids(ids, vocabulary)
        return cls(
            counted.flatten().nonzero()[:, 0],
            ids[counted],
            places,
            tuple(counted.sum(1).cumsum(0).tolist()),
            full,
            position[full],
            1 + (position[full] - 1 + turned) % (windows.length - 1),
            (_hash(places) % every == 0).nonzero()[:, 0],
            grams[:, counted],
            _around(counted)[counted],
        )


def _around(counted: Bool[Tensor, "window pos"]) -> Int[Tensor, "window pos offset"]:
    """By token, the numbers of the counted tokens of its window around it; -1 for others."""
    number = torch.where(counted, counted.flatten().cumsum(0).view_as(counted) - 1, -1)
    return nn.functional.pad(number, (BEFORE, AFTER), value=-1).unfold(1, BEFORE + 1 + AFTER, 1)


def _hash(numbers: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A number of 24 bits that looks random."""
    return (numbers + 1) * MIX >> 40 & 0xFFFFFF


def _bins() -> Int[Tensor, "512"]:
    """The bin of a number by the sign and exponent of its 32 bits, counted from the smallest negative."""
    level = (torch.arange(256) - 126 - SMALLEST).clamp(0, LEVELS - 1)
    bins = torch.cat([LEVELS - 1 - level, LEVELS + level])
    bins[0] = LEVELS  # -0.0
    return bins


BINS = _bins()
UNITS = (2.0**20, 2.0**-20, 2.0**-60)
"""Sums of numbers are held as whole multiples of these, so that the order of the numbers does not matter."""
KEPT = ("sums", "positions", "histogram", "top", "places", "contexts")
"""Sums of a layer beside its n-grams."""


def block_grams(grams: Int[Tensor, "n token"]) -> tuple[BlockGrams, ...]:
    """The n-grams of a block for every n."""
    return tuple(BlockGrams.of(grams[i]) for i in range(len(ORDERS)))


def in_units(values: Float[Tensor, "..."]) -> Int[Tensor, "unit ..."]:
    """Numbers as whole multiples of `UNITS`, to 2^-61; whole numbers add up to the same in any order.

    Raises `NumericsError` for NaN, infinity and numbers from 2^80 on.
    """
    left, parts = values.double(), list[Tensor]()
    if not bool((left.abs() < 2.0**80).all()):
        raise NumericsError("The activations of MLP neurons are NaN, infinite or beyond all bounds.")
    for unit in UNITS:
        parts.append((left / unit).round())
        left = left - parts[-1] * unit
    return torch.stack(parts).long()


def of_units(parts: Int[Tensor, "unit ..."]) -> Float[Tensor, "..."]:
    """The numbers that `in_units` took apart, or sums of them."""
    return sum((part.double() * unit for part, unit in zip(parts, UNITS, strict=True)), torch.zeros(()).double())


def bytes_a_neuron(length: int, keep: int) -> int:
    """What the counts of a neuron take, without the n-grams of single neurons: 8 length + 6,600 bytes with 10 kept."""
    grams = 2 * len(ORDERS) * CELLS * 4
    return len(UNITS) * 4 * 8 + 2 * length * 4 + 2 * LEVELS * 4 + keep * (4 + 8 + 2 * (BEFORE + 1 + AFTER)) + grams


class LayerCounts:
    """The sums of one layer, on the CPU."""

    def __init__(self, neurons: int, length: int, keep: int) -> None:
        self.sums = torch.zeros(len(UNITS), 4, neurons, dtype=torch.long)
        """Active tokens; sums of a, of its square, and of a where active: in `UNITS`."""
        self.positions = torch.zeros(2, length, neurons, dtype=torch.int32)
        """Active tokens by position in full windows, and by position turned round."""
        self.histogram = torch.zeros(2 * LEVELS, neurons, dtype=torch.int32)
        """Sampled tokens by sign and size of a."""
        self.top = torch.zeros(keep, neurons)
        """Largest |a| with their signs, at most one a window; 0 where there are fewer."""
        self.places = torch.full((keep, neurons), -1)
        """Where they are."""
        self.contexts = torch.full((keep, neurons, BEFORE + 1 + AFTER), torch.nan, dtype=torch.half)
        """Activations at the tokens around them; NaN where no token is counted."""
        self.segment, self.grams = GramCounts(neurons), GramTotals(neurons)
        """What fired in the segment so far, and in those that ended."""
        self.waiting = list[Tensor]()
        """What fired in the batches of the block so far."""

    def add(self, batch: Batch, fires: Float[Tensor, "token neuron"], written: Float[Tensor, "token neuron"]) -> None:
        """Count what fired, and what was written, at a batch's counted tokens; n-grams wait for the block's end."""
        active = fires.sum(0)
        self.sums += in_units(torch.stack([active, written.sum(0), written.square().sum(0), (fires * written).sum(0)]))
        if len(batch.full):
            some = fires if len(batch.full) == len(fires) else fires[batch.full]
            for table, positions in zip(self.positions, (batch.positions, batch.shifted), strict=True):
                table += torch.zeros(table.shape).index_add_(0, positions, some).int()
        self._add_histogram(written[batch.sample])
        start = 0
        for end in batch.ends:
            if end > start:
                self._add_largest(written, range(start, end), batch)
            start = end
        self.waiting.append(fires.bool())

    def end_block(self, block: tuple[BlockGrams, ...], check: bool) -> None:
        """Count the n-grams of the block's batches."""
        fires = self.waiting[0] if len(self.waiting) == 1 else torch.cat(self.waiting)
        self.waiting = []
        self.segment.add(block, fires.float(), check)

    def end_segment(self, number: int) -> None:
        """Begin to count the next segment's n-grams."""
        self.grams.end(number, self.segment)
        self.segment = GramCounts(self.sums.shape[-1])

    def add_counts(self, other: "LayerCounts") -> None:
        """Take what was counted in the segments behind its own."""
        self.sums += other.sums
        self.positions += other.positions
        self.histogram += other.histogram
        self.grams.add(other.grams)
        keep = len(self.top)
        for name in ("top", "places", "contexts"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.top, self.places, self.contexts = (part[:keep] for part in self.largest())

    def _add_histogram(self, written: Float[Tensor, "sample neuron"]) -> None:
        bins = BINS[(written.contiguous().view(torch.int32) >> 23) + 256]
        self.histogram.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.int32))

    def _add_largest(self, written: Float[Tensor, "token neuron"], rows: range, batch: Batch) -> None:
        """Let the largest |a| of a window take the place of the smallest kept; of equal ones the earlier stays."""
        window, size = written[rows.start : rows.stop], self.top.abs()
        least = size.amin(0)
        columns = (torch.maximum(window.amax(0), -window.amin(0)) > least).nonzero()[:, 0]
        if not len(columns):
            return
        at = rows.start + window[:, columns].abs().argmax(0)
        smallest = size[:, columns] == least[columns]
        row = torch.where(smallest, self.places[:, columns], -2).argmax(0)
        around = batch.around[at]
        values = written[around.clamp(min=0), columns[:, None]].clamp(-LARGEST, LARGEST)
        self.top[row, columns] = written[at, columns]
        self.places[row, columns] = batch.places[at]
        self.contexts[row, columns] = torch.where(around < 0, torch.nan, values).half()

    def largest(
        self,
    ) -> tuple[Float[Tensor, "keep neuron"], Int[Tensor, "keep neuron"], Float[Tensor, "keep neuron o"]]:
        """The largest activations, largest first, their places, and the activations around them."""
        order = self.places.argsort(dim=0, stable=True)
        order = order.gather(0, self.top.gather(0, order).abs().argsort(dim=0, descending=True, stable=True))
        around = order[..., None].expand_as(self.contexts)
        return self.top.gather(0, order), self.places.gather(0, order), self.contexts.gather(0, around)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All that is held, by name."""
        yield from ((name, getattr(self, name)) for name in KEPT)
        yield from self.segment.tensors()
        yield from self.grams.tensors()

    def restore(self, held: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        for name in KEPT:
            setattr(self, name, held[name])
        self.segment.restore(dict(held))
        self.grams.restore(held)
