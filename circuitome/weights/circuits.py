"""QK and OV circuits of one head in factored form: on the stream, and between tokens of the vocabulary."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.errors import InputError
from circuitome.models.attention import rotary_tables, rotation
from circuitome.models.model import Model
from circuitome.models.norms import Norm
from circuitome.weights.factored import Factored
from circuitome.weights.folding import (
    key_weights,
    normed,
    query_weights,
    token_chunks,
    token_embeddings,
    unembedding_rows,
    value_weights,
)


def qk_circuit(model: Model, head: str, *, offset: int = 0) -> Factored:
    """W_QK [d_model, d_model] of a head: x W_QK y^T is how much a query at x looks at a key at y. No biases.

    Norms are folded in: gain and centring of the norm in front of the attention, gains of norms on q and k (Qwen 3,
    Gemma 3, OLMo 2; such norms also divide by scales that depend on the input, which no product of weights holds).
    Unit: attention score before the softmax, for unit vectors behind the norm; any scaling is in it.
    Rotary models turn queries and keys by their positions. `offset` says how many tokens the key lies before the
    query; the model's own rotation for that distance is in the middle, W_Q R W_K^T, part of the width for a model
    that turns only a part (NeoX). 0, the default, leaves it out.

    >>> model = cm.load("known-ioi")
    >>> qk = cm.weights.qk_circuit(model, "a2.h0")
    >>> qk.shape, round(float(qk.norm()), 1)
    ((64, 64), 126.5)

    Raises `UnknownNameError` for a head that does not exist, `InputError` for an offset that no rotation belongs to.
    Source: Elhage et al. 2021.
    """
    layer, index = model.graph.head(head)
    query, key = query_weights(model, layer, [index])[0], key_weights(model, layer, [index])[0]
    turn_q, turn_k = rotations(model, layer, offset)
    query = _gain(model, layer, index, "q_norm")[:, None] * query
    key = _gain(model, layer, model.graph.kv_head(index), "k_norm")[:, None] * key
    return Factored(query.T @ turn_q * _scaling(model, layer), (key.T @ turn_k).T)


def ov_circuit(model: Model, head: str) -> Factored:
    """W_OV = W_V W_O [d_model, d_model] of a head: x W_OV is what it writes when it attends to x alone. No biases.

    Gain and centring of the norm in front and the gain of a post-norm are folded in.
    Raises `UnknownNameError` for a head that does not exist. Source: Elhage et al. 2021.

    >>> model = cm.load("known-ioi")
    >>> ov = cm.weights.ov_circuit(model, "a2.h0")
    >>> ov.shape, len(ov.singular_values())
    ((64, 64), 28)
    """
    layer, index = model.graph.head(head)
    return Factored(value_weights(model, layer, [index])[0].T, model.blocks[layer].head_weights([index])[0])


def token_qk(model: Model, head: str, *, offset: int = 0) -> Factored:
    """Attention score [vocab, vocab] of a head for every query and key token, if it read their embeddings alone.

    Exact, before the softmax and any soft cap: each embedding is divided by its own norm, biases and norms on q and k
    are in. For heads of layer 0 of rotary models these are the model's scores; for later heads, what the tokens'
    own directions contribute. Positions that are embedded are left out. `offset` and what it raises as in `qk_circuit`.

    >>> model = cm.load("known-ioi")
    >>> cm.weights.token_qk(model, "a0.h0").shape
    (14, 14)
    """
    layer, index = model.graph.head(head)
    first, group = model.heads.q, model.graph.kv_head(index)
    turn_q, turn_k = rotations(model, layer, offset)
    queries, keys = [], []
    for ids in token_chunks(model):
        x = normed(model.blocks[layer].attention_norm, token_embeddings(model, ids))
        queries.append(_read(model, layer, x, range(first), index, "q_norm"))
        keys.append(_read(model, layer, x, range(first, first + model.heads.kv), group, "k_norm"))
    return Factored(torch.cat(queries) @ turn_q * _scaling(model, layer), (torch.cat(keys) @ turn_k).T)


def token_ov(model: Model, head: str) -> Factored:
    """Change of the logit [vocab attended to, vocab] of every token if a head attends to one token's embedding alone.

    The embedding is divided by its own norm; biases, the same for every token attended to, are left out; columns are
    relative to the mean over the vocabulary, which a softmax does not see. Unit: logits times the scale of the final
    norm (and of a post-norm), which depends on the input. Raises `UnknownNameError` for a head that does not exist.

    >>> model = cm.load("known-ioi")
    >>> logits = cm.weights.token_ov(model, "a2.h0")
    >>> logits.shape
    (14, 14)
    """
    layer, index = model.graph.head(head)
    norm, weight = model.blocks[layer].attention_norm, value_weights(model, layer, [index])[0]
    values = []
    for ids in token_chunks(model):
        x = token_embeddings(model, ids)
        values.append((x if norm is None else norm.centre(x) / norm.sigma(x)) @ weight.T)
    # W_V has the gain and the centring already, and centring twice changes nothing.
    written = model.final_norm.centre(model.blocks[layer].head_weights([index])[0]) * model.final_norm.gain
    promoted = torch.cat([written @ rows.float().T for rows in unembedding_rows(model).split(8192)], 1)
    return Factored(torch.cat(values), promoted - promoted.mean(1, keepdim=True))


def rotations(
    model: Model, layer: int, offset: int
) -> tuple[Float[Tensor, "d_head d_head"], Float[Tensor, "d_head d_head"]]:
    """What the model's rotary embedding makes of a query `offset` tokens behind the start, and of a key at the start.

    As matrices on row vectors; identities for models without rotary embedding. Made by the model's own code.
    Raises `InputError` for a negative offset, and for one that is not 0 where positions are embedded.

    >>> model = cm.load("smollm2-135m")
    >>> query, key = cm.weights.rotations(model, 0, 3)
    >>> query.shape, bool((key == torch.eye(len(key))).all())
    (torch.Size([64, 64]), True)
    """
    same = torch.eye(model.heads.width, device=model.device)
    if offset < 0:
        raise InputError(f"The offset is how many tokens the key lies before the query; it cannot be {offset}.")
    tables = rotary_tables(model, torch.tensor([0, offset]))[layer]
    if tables is None:
        if offset:
            raise InputError(
                f"{model.name} ({model.hf.config.model_type}) has no rotary embedding: its positions are embedded, and "
                "its weights look at tokens in the same way at every offset. Leave the offset at 0."
            )
        return same, same
    basis = same[None, :, None]  # each basis vector as a head of its own, at one position
    cos, sin = (table.float() for table in tables)
    turned = [rotation(model)(basis, basis, cos[:, at : at + 1], sin[:, at : at + 1])[0][0, :, 0] for at in (1, 0)]
    return turned[0], turned[1]


def _scaling(model: Model, layer: int) -> float:
    """What the attention multiplies q . k by."""
    attention: Any = model.blocks[layer].attention
    return float(attention.scaling if hasattr(attention, "scaling") else attention.scale)


def _norm_on(model: Model, layer: int, name: str) -> nn.Module | None:
    """The norm on queries (q_norm) or keys (k_norm), if there is one."""
    found: nn.Module | None = getattr(model.blocks[layer].attention, name, None)
    return found


def _gain(model: Model, layer: int, index: int, name: str) -> Float[Tensor, " d_head"]:
    """Gain of the norm on one head's queries or keys; ones without. OLMo 2 has one norm over all heads."""
    module, width = _norm_on(model, layer, name), model.heads.width
    if module is None:
        return torch.ones(width, device=model.device)
    gain = Norm(module, model.family.gain_offset).gain
    return gain if len(gain) == width else gain[index * width : (index + 1) * width]


def _read(
    model: Model, layer: int, x: Float[Tensor, "token d_model"], readers: range, index: int, norm_name: str
) -> Float[Tensor, "token d_head"]:
    """What one query or key head, the `index`-th of `readers`, makes of normed inputs; its norm behind it."""
    block, norm = model.blocks[layer], _norm_on(model, layer, norm_name)
    whole = norm is not None and len(norm.weight) != model.heads.width  # type: ignore[arg-type]
    wanted = list(readers) if whole else [readers[index]]
    out = torch.einsum("td,red->tre", x, block.reader_weights(wanted).float()) + block.reader_biases()[wanted].float()
    if norm is None:
        return out[:, 0]
    with torch.no_grad():
        out = norm(out.flatten(1).to(model.dtype)).float().unflatten(1, (len(wanted), -1))
    return out[:, index if whole else 0]
