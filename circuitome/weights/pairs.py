"""The largest entries of a token-by-token matrix, found block by block without ever holding it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.weights.circuits import token_ov, token_qk
from circuitome.weights.factored import Factored
from circuitome.weights.folding import vocabulary

ROWS = 2048
"""Rows that are searched by default."""
BLOCK = 16_000_000
"""Entries that are held at a time."""


@dataclass(frozen=True)
class TokenPairs:
    """The strongest entries of a head's token circuit."""

    head: str
    """The head."""
    rows: Int[Tensor, " k"]
    """Token ids: the query token, or the token attended to."""
    columns: Int[Tensor, " k"]
    """Token ids: the key token, or the token whose logit changes."""
    values: Float[Tensor, " k"]
    """The entries, strongest first, in `unit`."""
    names: tuple[tuple[str, str], ...]
    """The same tokens as text."""
    searched: int
    """Rows that were looked at, those with the largest norm first."""
    out_of: int
    """Rows there are."""
    proven: bool
    """True where no row left out can hold a stronger entry."""
    unit: str
    """What one of `values` is."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        pairs = zip(self.names, self.rows.tolist(), self.columns.tolist(), self.values.tolist(), strict=True)
        return {
            "unit": self.unit,
            "rows_searched": self.searched,
            "rows": self.out_of,
            "proven": self.proven,
            "pairs": [{"from": a, "to": b, "ids": [i, j], "value": value} for (a, b), i, j, value in pairs],
        }


@method
def qk_pairs(
    setting: Setting,
    head: str,
    *,
    k: int = 10,
    offset: int = 0,
    rows: int | None = ROWS,
    tokens: Sequence[int] = (),
) -> TokenPairs:
    """Query and key tokens with the highest attention scores of a head, by `token_qk`.

    The `rows` query tokens with the longest query vectors are searched (None: all until no better pair is possible),
    or those of `tokens`. Unit: attention score. Raises what `qk_circuit` raises, and `InputError` for unknown tokens.

    >>> model = cm.load("known-ioi")
    >>> pairs = cm.weights.qk_pairs(model, "a0.h0", k=5).names
    >>> all(query == key for query, key in pairs)  # it looks for the same name
    True
    """
    matrix = token_qk(setting.model, head, offset=offset)
    return _pairs(setting, head, matrix, k, rows, tokens, "attention score")


@method
def ov_pairs(
    setting: Setting,
    head: str,
    *,
    k: int = 10,
    suppressed: bool = False,
    rows: int | None = ROWS,
    tokens: Sequence[int] = (),
) -> TokenPairs:
    """Tokens attended to and tokens whose logits that raises most (or lowers most, if `suppressed`), by `token_ov`.

    `rows` and `tokens` choose the tokens attended to, as in `qk_pairs`. Unit: logits times the final norm's scale.

    >>> model = cm.load("known-ioi")
    >>> pairs = cm.weights.ov_pairs(model, "a2.h0", k=5).names
    >>> all(token == raised for token, raised in pairs)  # it copies
    True
    """
    matrix = token_ov(setting.model, head)
    unit = "logits times the final norm's scale"
    if not suppressed:
        return _pairs(setting, head, matrix, k, rows, tokens, unit)
    found = _pairs(setting, head, Factored(-matrix.left, matrix.right), k, rows, tokens, unit)
    return TokenPairs(**{**vars(found), "values": -found.values})


def _pairs(
    setting: Setting, head: str, matrix: Factored, k: int, rows: int | None, tokens: Sequence[int], unit: str
) -> TokenPairs:
    model, tell = setting.model, setting.tell(f"searching token pairs of {head}")
    total = vocabulary(model)
    if unknown := [token for token in tokens if not 0 <= token < total]:
        raise InputError(f"{model.name} has tokens 0 to {total - 1}, not {unknown[0]}.")
    for name, number in (("k", k), ("rows", 1 if rows is None else rows)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, got {number}.")
    chosen = torch.tensor(list(tokens), device=matrix.left.device) if tokens else None
    values, places, searched, proven = strongest(matrix, k, rows, chosen, tell)
    ids = [i.tolist() for i in places]
    names = tuple((token_name(model, i), token_name(model, j)) for i, j in zip(*ids, strict=True))
    return TokenPairs(head, *places, values, names, searched, len(tokens) or total, proven, unit)


def token_name(model: Model, token: int) -> str:
    """A token as text, its id where there is no tokenizer."""
    return f"#{token}" if model.tokenizer is None else model.decode([token])


def strongest(
    matrix: Factored,
    k: int,
    rows: int | None = None,
    chosen: Int[Tensor, " n"] | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float[Tensor, " k"], tuple[Int[Tensor, " k"], Int[Tensor, " k"]], int, bool]:
    """The k largest entries, their rows and columns, how many rows were searched, and whether that proves them.

    Rows (all, or those of `chosen`) are taken in the order of their length, at most `rows` of them. No entry is larger
    than the lengths of its row's and its column's factor multiplied, so the search ends where no later row can matter.

    >>> model = cm.load("known-ioi")
    >>> values, (rows, columns), *_ = cm.weights.strongest(cm.weights.token_ov(model, "a2.h0"), k=3)
    >>> rows.tolist() == columns.tolist()
    True
    """
    lengths = matrix.left.norm(dim=1)
    widest = float(matrix.right.norm(dim=0).max())
    order = lengths.argsort(descending=True) if chosen is None else chosen[lengths[chosen].argsort(descending=True)]
    budget = len(order) if rows is None else min(rows, len(order))
    columns = matrix.shape[1]
    best = matrix.left.new_zeros(0)
    places = order.new_zeros(0)
    step, done = max(1, BLOCK // columns), 0

    def enough() -> bool:
        return done >= len(order) or (len(best) >= k and float(lengths[order[done]]) * widest <= float(best[-1]))

    while done < budget and not enough():
        some = order[done : min(done + step, budget)]
        block = matrix.left[some] @ matrix.right
        largest, where = block.amax(1).topk(min(k, len(some)))  # the k largest entries lie in these k rows
        where = where[largest > best[-1]] if len(best) >= k else where
        some, block = some[where], block[where]
        if len(some):
            found = block.flatten().topk(min(k, block.numel()))
            index = some[found.indices // columns] * columns + found.indices % columns
            both = torch.cat([best, found.values])
            best, kept = both.topk(min(k, len(both)))
            places = torch.cat([places, index])[kept]
        done = min(done + step, budget)
        tell(done, budget)
    return best, (places // columns, places % columns), done, enough()
