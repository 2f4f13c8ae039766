"""How much each part of a sum brings it nearer to what it is: proximity and importance, without [T, T, H, d] tensors.

For y = sum of parts z, with |.| the L1 (default) or L2 norm,

    proximity(z, y) = max(0, |y| - |y - z|),    importance(z, y) = proximity(z, y) / sum over parts of it.

An attention part is z = A v W_O of one head and one key. Its L1 proximity splits coordinate by coordinate, with s the
sign of y and a = |y|, into what points along y and what overshoots it:

    |y| - |y - z| = sum (s z) - 2 sum max(0, s z - a).

The first sum is A (s W_O^T) . v: as cheap as attention itself, and nothing is lost to rounding where z is tiny. The
second is computed in pieces that fit the processor's cache. Under L2 all follows from y . z and |z|, without any
vector of a part.
Source: Ferrando and Voita 2024, arXiv:2403.00824, section 2. Departure: parts that bring y no nearer have importance
exactly 0 (facebookresearch/llm-transparency-tool clips proximities at 1e-5 instead); if none does, all are 0.
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import unknown_name

NormName = Literal["l1", "l2"]
"""How far apart two vectors are."""
NORMS: tuple[str, ...] = get_args(NormName)

PIECE = 600_000
"""Numbers of the parts that are held at once: about 2.4 MB."""
VECTOR_NUMBERS = 64_000_000
"""Numbers of heads' values in the stream that are held at once: 256 MB. Keys of longer prompts go piece by piece."""


def check_norm(name: str) -> None:
    """Raises `UnknownNameError` unless `name` is a norm."""
    if name not in NORMS:
        raise unknown_name("norm", name, NORMS)


def proximity(
    parts: Float[Tensor, "... d_model"], total: Float[Tensor, "... #d_model"], norm: str = "l1"
) -> Float[Tensor, "..."]:
    """Proximity of parts to their totals, shapes broadcast; float32 or wider."""
    parts, total = parts.to(_wide(parts)), total.to(_wide(total))
    if norm == "l1":
        return (total - parts).abs_().sub_(total.abs()).sum(-1).neg_().clamp_(min=0)
    rest = (total - parts).norm(dim=-1)
    whole = total.norm(dim=-1)
    # |y| - |y - z| without the difference of two nearly equal numbers
    return ((2 * total - parts) * parts).sum(-1).div((whole + rest).clamp(min=1e-30)).clamp(min=0)


def importances(*proximities: Float[Tensor, "node ..."]) -> list[Float[Tensor, "node ..."]]:
    """Proximities over their sum at each node: they sum to 1, or are all 0 where all proximities are."""
    sums = torch.stack([part.sum(list(range(1, part.ndim))) if part.ndim > 1 else part for part in proximities]).sum(0)
    scale = torch.where(sums > 0, 1 / sums.clamp(min=1e-38), 0)
    return [part * scale.view(-1, *[1] * (part.ndim - 1)) for part in proximities]


def renormalized(threshold: float, *shares: Float[Tensor, "node ..."]) -> list[Float[Tensor, "node ..."]]:
    """Importances below `threshold` set to 0, the others over their sum at each node."""
    return importances(*(torch.where(part >= threshold, part, 0) for part in shares))


def attention_proximity(
    pattern: Float[Tensor, "node head key"],
    values: Float[Tensor, "head key d_head"],
    weights: Float[Tensor, "head d_head d_model"],
    total: Float[Tensor, "node d_model"],
    norm: str = "l1",
) -> Float[Tensor, "node head key"]:
    """Proximity to `total` of every part pattern[n, h, k] * values[h, k] @ weights[h] at every node; float32.

    Time grows with nodes * heads * keys * d_model, memory with heads * keys * d_model, up to `VECTOR_NUMBERS`: the
    parts of all nodes are never held together. Keys that a node does not see cost nothing where they come after all
    those that it sees.
    """
    step = max(1, VECTOR_NUMBERS // (len(weights) * weights.shape[-1]))
    if values.shape[1] > step:
        some = zip(pattern.split(step, -1), values.split(step, 1), strict=True)
        return torch.cat([attention_proximity(seen, keys, weights, total, norm) for seen, keys in some], -1)
    vectors = torch.bmm(values, weights)
    if norm == "l2":
        return _l2(pattern, values, weights, total, vectors)
    sign = torch.where(total < 0, -1.0, 1.0)
    along = pattern * _projected(values, weights, sign)
    over = torch.zeros_like(along)
    size = total.abs()
    room = torch.empty(PIECE, device=total.device)
    n_heads, _, d_model = vectors.shape
    for nodes, keys in _pieces(pattern, d_model):
        shape = (len(nodes), n_heads, keys.stop - keys.start, d_model)
        need = shape[0] * shape[1] * shape[2] * d_model
        room = room if need <= len(room) else room.new_empty(need)
        piece = room[:need].view(shape)
        torch.mul(vectors[:, keys], sign[nodes][:, None, None], out=piece)
        torch.addcmul(-size[nodes][:, None, None], pattern[nodes][:, :, keys, None], piece, out=piece)
        over[nodes, :, keys] = piece.relu_().sum(-1)
    return (along - 2 * over).clamp_(min=0)


def attention_projection(
    pattern: Float[Tensor, "node head key"],
    values: Float[Tensor, "head key d_head"],
    weights: Float[Tensor, "head d_head d_model"],
    direction: Float[Tensor, "node d_model"],
) -> Float[Tensor, "node head key"]:
    """The dot product of every part with its node's `direction`; the same parts as in `attention_proximity`."""
    return pattern * _projected(values, weights, direction)


def _projected(values: Tensor, weights: Tensor, direction: Tensor) -> Float[Tensor, "node head key"]:
    """values[h, k] @ weights[h] . direction[n], without the vectors."""
    seen = torch.einsum("nd,hed->hne", direction, weights)
    return torch.bmm(seen, values.transpose(1, 2)).transpose(0, 1)


def _l2(pattern: Tensor, values: Tensor, weights: Tensor, total: Tensor, vectors: Tensor) -> Tensor:
    """From |y - z|^2 = |y|^2 - (2 y . z - |z|^2)."""
    gain = 2 * pattern * _projected(values, weights, total) - (pattern * vectors.norm(dim=-1)).square()
    whole = total.norm(dim=-1)[:, None, None]
    rest = (whole.square() - gain).clamp(min=0).sqrt()
    return (gain / (whole + rest).clamp(min=1e-30)).clamp_(min=0)


def _pieces(pattern: Tensor, d_model: int) -> Iterator[tuple[list[int], slice]]:
    """Nodes, and the keys they see, in pieces of about `PIECE` numbers; nodes that see alike go together."""
    n_heads, n_keys = pattern.shape[1:]
    seen = (pattern > 0).any(1)
    first = seen.float().argmax(1).tolist()
    last = (n_keys - seen.flip(1).float().argmax(1)).tolist()
    row = n_heads * d_model
    order = sorted(range(len(last)), key=lambda node: (last[node], first[node]))
    while order:
        count, low = 1, first[order[0]]
        while count < len(order):
            wider = min(low, first[order[count]])
            if (count + 1) * (last[order[count]] - wider) * row > PIECE:
                break
            count, low = count + 1, wider
        nodes, order = order[:count], order[count:]
        high, step = last[nodes[-1]], max(1, PIECE // (count * row))
        for start in range(low, high, step):
            yield nodes, slice(start, min(start + step, high))


def _wide(t: Tensor) -> torch.dtype:
    return t.dtype if t.dtype == torch.float64 else torch.float32
