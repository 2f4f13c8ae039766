"""A census of every MLP neuron: one pass over texts, in memory that does not grow with them, in one part or several.

Windows are read in blocks, blocks in segments of `SEGMENT`. A shard is a run of whole segments. Sums do not depend on
the order in which they are made, and n-grams are merged in a tree of segments: shards give what one pass gives.
"""

import time
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from circuitome.engine.batches import tokens_within
from circuitome.engine.setting import Setting, method
from circuitome.engine.shards import WHOLE, Shard, shard_of
from circuitome.errors import InputError, MemoryBudgetError, memory_option
from circuitome.models.model import Model
from circuitome.neurons.activity import Rule, check_mlps, rule_of, watching_activity
from circuitome.neurons.layer_counts import Batch, LayerCounts, block_grams, of_units
from circuitome.neurons.neuron_census import Census
from circuitome.neurons.ngrams import ORDERS, Coverage, Occurrences, detectors
from circuitome.neurons.positional import INFORMED, WINDOWS, binned, information, kinds
from circuitome.neurons.text_windows import LENGTH, Windows, windows
from circuitome.weights.folding import vocabulary

SEGMENT = 16
"""Blocks whose n-grams are counted from nothing; a shard holds whole segments."""
KEEP = 10
"""Largest activations of a neuron that are kept."""
SECONDS = 60.0
"""How long work may go on before what is counted so far is written down."""
SAMPLED, THINNEST = 2048, 8
"""Tokens above which histograms take only some, and of how many they take one at most."""


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
    check_mlps(model := setting.model)
    chosen = checked_layers(model, layers)
    cut = (
        texts if isinstance(texts, Windows) else windows(model, texts, length=length, tokens=tokens, seed=setting.seed)
    )
    counting = Counting(setting, cut, quantile=quantile, keep=keep, layers=chosen)
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
            f"One window of {length} tokens takes about {need / 1e6:,.0f} MB beside the weights. Raise "
            f"{memory_option(need)}, or shorten the windows."
        )
    return fits


class Counting:
    """A census while it is made: of all segments, or of one shard of them.

    >>> model = cm.load("known-ioi")
    >>> cut = cm.neurons.windows(model, ["Ann and Bob met then Bob gave to"] * 9, length=8)
    >>> from circuitome.engine.setting import Setting
    >>> first, second = (cm.neurons.Counting(Setting(model), cut, shard=(i, 2)) for i in range(2))
    >>> first.run(), second.run(), first.add(second), first.census().tokens
    (None, None, None, 72)

    Raises `InputError` for a model without MLPs, layers that do not exist and shards that cannot be.
    """

    def __init__(
        self,
        setting: Setting,
        cut: Windows,
        *,
        quantile: float | None = None,
        keep: int = KEEP,
        layers: Sequence[int] | None = None,
        shard: Shard = WHOLE,
    ) -> None:
        """`shard` is the number of a shard, from 0, and how many there are."""
        check_mlps(setting.model)
        if keep < 1:
            raise InputError(f"keep must be at least 1, got {keep}.")
        self.setting, self.model, self.cut = setting, setting.model, cut
        self.layers = checked_layers(self.model, layers)
        self.special, self.vocabulary = special_tokens(self.model), vocabulary(self.model)
        self.at_once = windows_at_once(setting, cut.length)
        self.every = max(1, min(THINNEST, cut.tokens // SAMPLED))
        self.blocks = list(cut.blocks())
        segments = shard_of(-(-len(self.blocks) // SEGMENT), shard)
        self.part = range(segments.start * SEGMENT, min(segments.stop * SEGMENT, len(self.blocks)))
        first = self.blocks[0]
        sample = range(first.start, min(first.stop, first.start + self.at_once))
        self.rule: Rule = rule_of(self.model, quantile, cut.inputs(self.model, sample))
        neurons = self.model.blocks[self.layers[0]].n_neurons
        self.counts = {layer: LayerCounts(neurons, cut.length, keep) for layer in self.layers}
        self.occurrences = torch.zeros(self.vocabulary, dtype=torch.long)
        self.counted = torch.zeros(cut.length, dtype=torch.long)
        self.kept = setting.kept(
            "census", cut.data_hash(), quantile, keep, list(self.layers), list(shard), len(first), SEGMENT
        )

    def run(self) -> None:
        """Read its windows, from where an earlier run stopped; what is counted is written every minute and at last."""
        start, tell = max(self.part.start, self._restored()), self.setting.tell("reading texts")
        last, behind = time.monotonic(), self.part.stop
        before, end = (sum(map(len, self.blocks[:number])) for number in (self.part.start, behind))
        for number in range(start, behind):
            at = number % SEGMENT
            self._read(self.blocks[number], check=at & (at + 1) == 0)
            if (number + 1) % SEGMENT == 0 or number + 1 == len(self.blocks):
                for counts in self.counts.values():
                    counts.end_segment(number // SEGMENT)
            tell(self.blocks[number].stop - before, end - before)
            if time.monotonic() - last > SECONDS or (number + 1 == behind and len(self.part) < len(self.blocks)):
                self._write(number + 1)
                last = time.monotonic()

    def add(self, other: "Counting") -> None:
        """Take what the shard behind it has counted. Raises `InputError` for any other shard."""
        if other.part.start != self.part.stop or other.cut.data_hash() != self.cut.data_hash():
            raise InputError("Only the shard of the same texts that comes behind can be added.")
        self.part = range(self.part.start, other.part.stop)
        self.occurrences += other.occurrences
        self.counted += other.counted
        for layer, counts in self.counts.items():
            counts.add_counts(other.counts[layer])

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
        sums = of_units(torch.stack([counts.sums for counts in parts], 2))
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
