"""Which token a vector raises or lowers most, of a whole vocabulary."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOP = 5
"""A token counts as raised or lowered most among so many (Wang et al. 2022)."""
FIRST_PIECE, AT_ONCE = 512, 4_000_000
"""Smallest piece of the vocabulary, and logits that are held at once."""


def among_extremes(
    rows: Float[Tensor, "n d_model"],
    weight: Float[Tensor, "vocab d_model"],
    tokens: Int[Tensor, " n"],
    *,
    top: int = TOP,
    constant: Float[Tensor, " vocab"] | None = None,
) -> Bool[Tensor, "2 n"]:
    """Whether each row's token is one of the `top` that the row raises most, and whether it is one that it lowers most.

    Raised most: among the largest rows @ weight.T + constant. Lowered most: among the largest -rows @ weight.T +
    constant. Another token with the same logit counts as ahead, so a row of zeros raises no token. float32.
    Goes through the vocabulary in pieces, with only those rows whose token may still be among the `top`.
    """
    rows, added = rows.float(), torch.zeros(len(weight), device=rows.device) if constant is None else constant.float()
    own = torch.einsum("nd,nd->n", rows, weight[tokens].float())
    limits = torch.stack([own, -own]) + added[tokens]
    ahead = torch.zeros(2, len(rows), dtype=torch.long, device=rows.device)
    alive, start = torch.arange(len(rows), device=rows.device), 0
    while start < len(weight) and len(alive):
        piece = slice(start, start + max(FIRST_PIECE, AT_ONCE // len(alive)))
        logits = rows[alive] @ weight[piece].float().T
        place = tokens[alive] - start
        inside = ((place >= 0) & (place < logits.shape[1])).nonzero()[:, 0]
        logits[inside, place[inside]] = torch.nan  # a token is not ahead of itself
        ahead[0, alive] += (logits + added[piece] >= limits[0, alive, None]).sum(1)
        ahead[1, alive] += (added[piece] - logits >= limits[1, alive, None]).sum(1)
        alive = alive[(ahead[:, alive] < top).any(0)]
        start = piece.stop
    return ahead < top
