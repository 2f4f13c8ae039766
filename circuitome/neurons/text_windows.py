"""Texts cut into windows of one length, which a model reads one by one."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.heads.long_context.streaming import check_positions
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model

LENGTH = 512
"""Tokens of a window where nobody says."""
BLOCK = 2048
"""Tokens of the windows that are counted together; fixed, so that no result depends on what runs at once."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Stretches of texts as token ids; those of short texts are shorter."""

    ids: Int[Tensor, "window pos"]
    """Token ids, padded with 0 on the right."""
    lengths: Int[Tensor, " window"]
    """How many of each row are tokens."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Tokens of all windows, the first of each included."""
        return int(self.lengths.sum())

    @property
    def length(self) -> int:
        """Tokens of a full window."""
        return self.ids.shape[1]

    def data_hash(self) -> str:
        """BLAKE2 over all tokens."""
        digest = hashlib.blake2b(digest_size=16)
        for rows in self.blocks():
            digest.update(self.ids[rows.start : rows.stop].numpy().tobytes())
        digest.update(self.lengths.numpy().tobytes())
        return digest.hexdigest()

    def chosen(self, rows: Sequence[int] | Tensor) -> "Windows":
        """Some of the windows."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return Windows(self.ids[index], self.lengths[index])

    def blocks(self) -> Iterator[range]:
        """Windows that are counted together."""
        size = max(1, BLOCK // self.length)
        for start in range(0, len(self), size):
            yield range(start, min(start + size, len(self)))

    def inputs(self, model: Model, rows: range) -> Inputs:
        """Some of the windows as the model's inputs."""
        lengths = self.lengths[rows.start : rows.stop].long()
        longest = int(lengths.max())
        at, last = torch.arange(longest), lengths[:, None] - 1
        ids, mask = self.ids[rows.start : rows.stop, :longest].long(), (at <= last).long()
        positions, device = torch.minimum(at.expand_as(ids), last), model.device
        return Inputs(ids.to(device), mask.to(device), positions.to(device), (lengths - 1).to(device))


def windows(
    model: Model, texts: str | Sequence[str], *, length: int = LENGTH, tokens: int | None = None, seed: int = 0
) -> Windows:
    """`texts` cut into windows of `length` tokens, in random order, until there are `tokens` (None: all of them).

    Each window starts with what the tokenizer puts in front of a text. A text that is shorter gives a window of its
    own, as does the rest of a text where it has at least two tokens. The order is random so that counts do not
    depend on which text comes first; `seed` decides it.

    >>> cut = cm.neurons.windows(cm.load("known-ioi"), "Ann and Bob met then Bob gave to", length=5)
    >>> cut.lengths.tolist(), cut.length
    ([5, 5], 5)

    Raises `InputError` where the texts hold fewer than two tokens, for a length below 2 or beyond the model's positions
    and for tokens < 1.
    """
    check_sizes(model, length, len(model.encode("")), tokens)
    rows = window_rows(model, [texts] if isinstance(texts, str) else texts, length, seed)
    if not rows:
        raise InputError("The texts hold fewer than two tokens, so nothing can be counted. Give texts with words.")
    return packed(rows, tokens)


def window_rows(model: Model, texts: Sequence[str], length: int, seed: int) -> list[Int[Tensor, " pos"]]:
    """The windows of `texts` in random order, as 32-bit token ids."""
    begin, rows = torch.tensor(model.encode(""), dtype=torch.int32), list[Tensor]()
    for text in texts:
        ids, step = torch.tensor(model.encode_answer(text), dtype=torch.int32), length - len(begin)
        parts = ids.split(step) if len(ids) else ()
        rows += [torch.cat([begin, part]) for part in parts if len(part) + len(begin) > 1]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in order]


def packed(rows: Sequence[Sequence[int] | Tensor], tokens: int | None = None) -> Windows:
    """Rows of token ids as windows, until there are `tokens`.

    A full window is as long as the longest row.

    >>> cm.neurons.packed([[1, 2, 3], [4, 5]]).lengths.tolist()
    [3, 2]

    Raises `InputError` where there are no rows, or one is empty.
    """
    if not len(rows) or not all(map(len, rows)):
        raise InputError("There are no windows, or one is empty. Give rows of token ids.")
    kept, total = list[Sequence[int] | Tensor](), 0
    for row in rows:
        if tokens is not None and total >= tokens:
            break
        kept.append(row)
        total += len(row)
    longest = max(map(len, kept))
    ids = torch.zeros(len(kept), longest, dtype=torch.int32)
    for i, row in enumerate(kept):
        ids[i, : len(row)] = torch.as_tensor(row, dtype=torch.int32)
    return Windows(ids, torch.tensor([len(row) for row in kept], dtype=torch.int32))


def check_sizes(model: Model, length: int, begin: int, tokens: int | None) -> None:
    """Raises `InputError` for sizes that cannot be."""
    if length < begin + 2:
        raise InputError(f"A window needs at least {begin + 2} tokens, got {length}.")
    if tokens is not None and tokens < 1:
        raise InputError(f"tokens must be at least 1, got {tokens}.")
    check_positions(model, length, f"windows have {length}", "Give windows of at most {}.", length)
