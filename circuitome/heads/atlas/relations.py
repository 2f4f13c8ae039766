"""Relations that hold between the tokens of a prompt, and how much of a head's attention follows them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

RELATIONS = ("previous", "duplicate", "induction", "first", "self")
"""The token before; an earlier copy of the token; what stands behind an earlier copy; the first position; itself."""


def relations(ids: Int[Tensor, " pos"]) -> Float[Tensor, "relation query key"]:
    """1 where a key stands in a relation to a query, in the order of `RELATIONS`.

    The first query has only itself to attend to, so nothing holds for it.
    """
    size = len(ids)
    same = (ids[:, None] == ids).tril(-1)
    behind = torch.zeros(size, size, dtype=torch.bool)
    behind[:, 1:] = same[:, :-1]
    first = torch.zeros(size, size, dtype=torch.bool)
    first[1:, 0] = True
    itself = torch.eye(size, dtype=torch.bool)
    itself[0] = False
    before = torch.diag(torch.ones(size - 1, dtype=torch.bool), -1)
    return torch.stack([before, same, behind.tril(-1), first, itself]).float()


def broken(clean: Int[Tensor, " pos"], corrupted: Int[Tensor, " others"]) -> Float[Tensor, "relation query key"]:
    """Those relations of the clean prompt that do not hold in the corrupted one; none where lengths differ."""
    of_clean = relations(clean)
    return of_clean * (1 - relations(corrupted)) if len(clean) == len(corrupted) else torch.zeros_like(of_clean)


def per_query(marks: Float[Tensor, "*any query key"]) -> Float[Tensor, "*any query key"]:
    """Weights that sum a pattern over the marked keys and average over the queries that have any; NaN for none."""
    queries = marks.any(-1).sum(-1)[..., None, None].float()
    return marks / torch.where(queries > 0, queries, torch.nan)


def even(size: int, causal: bool = True) -> Float[Tensor, "query key"]:
    """The pattern that spreads each query's attention evenly over the keys that it may see."""
    visible = torch.ones(size, size)
    visible = visible.tril() if causal else visible
    return visible / visible.sum(-1, keepdim=True)
