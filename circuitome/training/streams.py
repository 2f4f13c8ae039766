"""What a training reads: streams of token batches, each a function of the step and the seed alone.

So the place in a stream is the number of the step, and a training that was stopped reads what it would have read.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.models.model import Model

NOT_COUNTED = -100
"""Label of a token that no loss counts, as in transformers."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of tokens that one step reads."""

    ids: Int[Tensor, "row pos"]
    """Token ids."""
    labels: Int[Tensor, "row pos"] | None = None
    """What is to be predicted: for the next-token loss the same tokens (None), and -100 where none is counted."""
    mask: Int[Tensor, "row pos"] | None = None
    """1 at real tokens, 0 at padding; None where all are real."""
    step: int = 0
    """The step that reads them, counted from 0: objectives that change with it, or draw, ask here."""
    seed: int = 0
    """The seed of the training."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> Int[Tensor, "row pos"]:
        """The labels, or the tokens themselves but for padding."""
        if self.labels is not None:
            return self.labels
        return self.ids if self.mask is None else self.ids.masked_fill(self.mask == 0, NOT_COUNTED)

    @property
    def counted(self) -> Bool[Tensor, "row pos"]:
        """Which tokens a loss counts."""
        return self.targets != NOT_COUNTED

    @property
    def predicted(self) -> int:
        """How many tokens that is; the first of a row is predicted by no loss."""
        return int(self.counted[:, 1:].sum())

    def generator(self, purpose: str = "") -> torch.Generator:
        """A generator for what is drawn in this step."""
        return generator(self.seed, self.step, purpose)

    def rows(self, start: int, stop: int) -> "Rows":
        """Some of the rows."""
        parts = {name: getattr(self, name) for name in ("ids", "labels", "mask")}
        return replace(self, **{name: part[start:stop] for name, part in parts.items() if part is not None})

    def to(self, device: torch.device) -> "Rows":
        """The same on a device."""
        parts = {name: getattr(self, name) for name in ("ids", "labels", "mask")}
        return replace(self, **{name: part.to(device).long() for name, part in parts.items() if part is not None})


@runtime_checkable
class Stream(Protocol):
    """Batches of tokens by step."""

    def batch(self, step: int, rows: int, length: int, seed: int) -> Rows:
        """The rows that a step reads: the same for the same arguments, whatever was read before."""
        ...


@dataclass(frozen=True, eq=False)
class TextStream:
    """Texts as one row of tokens, cut into windows, which each pass over them reads in an order of its own."""

    ids: Int[Tensor, " token"]
    """All tokens."""

    def batch(self, step: int, rows: int, length: int, seed: int) -> Rows:
        """See `Stream`. Raises `InputError` where the texts do not fill one window."""
        count = len(self.ids) // length
        if not count:
            raise InputError(f"The texts hold {len(self.ids)} tokens, fewer than one window of {length}. Give more.")
        at = range(step * rows, (step + 1) * rows)
        chosen = torch.tensor([_order(count, seed, i // count)[i % count] for i in at])
        return Rows(self.ids[: count * length].view(count, length)[chosen], step=step, seed=seed)


@dataclass(frozen=True, eq=False)
class RepeatedStream:
    """Random tokens and the same tokens again: what only induction predicts (Olsson et al. 2022)."""

    tokens: Int[Tensor, " token"]
    """The tokens that are drawn from, each as often as any other."""
    begin: tuple[int, ...] = ()
    """What stands at the beginning of each row."""
    shortest: int | None = None
    """The length of what is repeated is drawn from here to half of the row; None: always half."""

    def batch(self, step: int, rows: int, length: int, seed: int) -> Rows:
        """See `Stream`."""
        drawn, half = generator(seed, step, "repeated"), (length - len(self.begin)) // 2
        least = half if self.shortest is None else min(half, self.shortest)
        periods = torch.randint(least, half + 1, (rows, 1), generator=drawn)
        values = self.tokens[torch.randint(len(self.tokens), (rows, length), generator=drawn)]
        repeated = values.gather(1, torch.arange(length - len(self.begin)) % periods)
        begin = torch.tensor(self.begin, dtype=values.dtype).expand(rows, -1)
        return Rows(torch.cat([begin, repeated], 1), step=step, seed=seed)


@dataclass(frozen=True, eq=False)
class DrawnStream:
    """Rows that a function makes."""

    draw: Callable[[int, torch.Generator], Tensor | Rows]
    """From the number of the step and a generator to token ids [row, pos], or `Rows`."""

    def batch(self, step: int, rows: int, length: int, seed: int) -> Rows:
        """See `Stream`; how many rows there are, and how long, is the function's affair."""
        drawn = self.draw(step, generator(seed, step, "drawn"))
        return replace(drawn if isinstance(drawn, Rows) else Rows(drawn), step=step, seed=seed)


@dataclass(frozen=True, eq=False)
class MixedStream:
    """Rows of several streams in fixed shares of each batch, without labels or masks of their own."""

    parts: Sequence[tuple[Stream, float]]
    """The streams and their shares."""

    def batch(self, step: int, rows: int, length: int, seed: int) -> Rows:
        """See `Stream`. Raises `InputError` for a share that is less than one row of the batch."""
        total = sum(share for _, share in self.parts)
        ends = [round(rows * sum(share for _, share in self.parts[:i]) / total) for i in range(len(self.parts) + 1)]
        drawn = []
        for (stream, share), start, stop in zip(self.parts, ends, ends[1:], strict=False):
            if share > 0 and start == stop:
                raise InputError(f"A share of {share / total:.1%} of {rows} rows is less than one row. Raise either.")
            if stop > start:
                drawn.append(stream.batch(step, stop - start, length, seed).ids)
        return Rows(torch.cat(drawn), step=step, seed=seed)


@dataclass(frozen=True, eq=False)
class MaskedStream:
    """A stream for masked language models: some tokens are to be predicted, of which most are hidden.

    Of a share of the tokens, 80 % become `token`, 10 % a random one, 10 % stay (Devlin et al. 2019, arXiv:1810.04805).
    The first token of a row is left as it is.
    """

    stream: Stream
    """Whose rows they are."""
    token: int
    """The mask token."""
    vocabulary: int
    """Random tokens are drawn below this."""
    share: float = 0.15
    """Share of the tokens that are to be predicted."""
    kept: tuple[int, ...] = ()
    """Tokens that are never predicted: special ones."""

    def batch(self, step: int, rows: int, length: int, seed: int) -> Rows:
        """See `Stream`."""
        plain = self.stream.batch(step, rows, length, seed)
        drawn, ids = plain.generator("masked"), plain.ids
        free = plain.counted & ~torch.isin(ids, torch.tensor(self.kept, dtype=ids.dtype))
        chosen = (torch.rand(ids.shape, generator=drawn) < self.share) & free
        chosen[:, 0] = False
        kind, other = torch.rand(ids.shape, generator=drawn), torch.randint(self.vocabulary, ids.shape, generator=drawn)
        seen = torch.where(chosen & (kind < 0.8), self.token, ids)
        seen = torch.where(chosen & (kind >= 0.9), other.to(ids.dtype), seen)
        return replace(plain, ids=seen, labels=ids.masked_fill(~chosen, NOT_COUNTED))


def text_stream(model: Model, texts: str | Iterable[str]) -> TextStream:
    """Texts one behind the other, for training: no window is padded, and one may hold the end of a text and the next.

    Each text begins and ends as the tokenizer has it: with what it puts in front, and with its end-of-text token. Texts
    are read one after another; their tokens lie in a file without a name that is mapped, not read, into memory.

    >>> stream = cm.training.text_stream(cm.load("known-ioi"), ["Ann and Bob met", "then Bob gave to"])
    >>> stream.batch(0, rows=2, length=4, seed=0).ids.shape
    torch.Size([2, 4])

    Raises `InputError` where there is nothing to read.
    """
    end = getattr(model.tokenizer, "eos_token_id", None)
    behind = [] if end is None else [end]
    return token_stream(_document(model, text, behind) for text in ([texts] if isinstance(texts, str) else texts))


def token_stream(pieces: Iterable[Sequence[int]]) -> TextStream:
    """Tokens, piece by piece, as one stream; raises as `text_stream` does where there are none.

    >>> from circuitome.training.streams import token_stream
    >>> token_stream([[1, 2], [3]]).ids.tolist()
    [1, 2, 3]
    """
    with tempfile.NamedTemporaryFile() as file:
        for ids in pieces:
            file.write(torch.tensor(ids, dtype=torch.int32).numpy().tobytes())
        if not (size := file.tell() // 4):
            raise InputError("The texts hold no tokens, so there is nothing to train on. Give texts.")
        file.flush()
        return TextStream(torch.from_file(file.name, shared=False, size=size, dtype=torch.int32))


def _document(model: Model, text: str, behind: Sequence[int]) -> list[int]:
    ids = model.encode(text)
    return ids if ids[-len(behind) :] == behind else [*ids, *behind]


def generator(seed: int, step: int, purpose: str = "") -> torch.Generator:
    """A generator whose numbers have nothing to do with those of another seed, step or purpose."""
    return torch.Generator().manual_seed(number(seed, step, purpose))


def number(*parts: object) -> int:
    """A seed made of several things."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest())


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    """In which order a pass over the texts reads their windows."""
    return torch.randperm(count, generator=generator(seed, epoch, "order")).tolist()


def as_stream(data: "Stream | Callable[[int, torch.Generator], Tensor | Rows]") -> Stream:
    """`data` as a stream: itself, or one of the rows that a function makes."""
    return data if isinstance(data, Stream) else DrawnStream(data)


def split(tokens: Rows, rows: int) -> Iterator[Rows]:
    """The rows of a batch, so many at a time."""
    for start in range(0, len(tokens), rows):
        yield tokens.rows(start, start + rows)
