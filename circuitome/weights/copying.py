"""Which heads copy: the eigenvalues of what attending to a token does to the logits of all tokens."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.weights.folding import (
    behind,
    check_outputs_are_tokens,
    token_chunks,
    token_embeddings,
    unembedding_rows,
    value_weights,
)


def copying_scores(model: Model) -> Float[Tensor, "layer head"]:
    """How far every head raises the logit of the token that it attends to, by its weights alone; in [-1, 1].

    S = Re(sum of lambda) / sum of |lambda| over the eigenvalues lambda of W_E W_OV W_U: 1 where every direction raises
    itself (copying), -1 where every one lowers itself, about 0 for random weights; 0 for a head that writes nothing.
    Norms are folded in without their biases; their scales depend on the input and are positive, so S hardly needs them.

    >>> scores = cm.copying_scores(cm.load("known-ioi"))
    >>> scores.shape, [round(score, 2) for score in scores[2, :2].tolist()]
    (torch.Size([3, 3]), [1.0, -1.0])

    Raises `InputError` for a model whose outputs are not its input tokens.
    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", section on eigenvalue analysis;
    there W_E, W_U and norms are folded in the same way.
    """
    product = token_product(model)
    values = torch.stack([ov_eigenvalues(model, layer, product) for layer in range(model.graph.n_layers)])
    scale = values.abs().sum(-1)
    return torch.where(scale > 0, values.sum(-1).real / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0).float()


def ov_eigenvalues(
    model: Model, layer: int, product: Float[Tensor, "d_model d_model"] | None = None
) -> Complex[Tensor, "head d_head"]:
    """Eigenvalues of W_E W_OV W_U [vocab, vocab] of every head of a layer: all that can differ from 0, in no order.

    W_OV = W_V W_O with norms folded in: gain and centring of the norm in front of the attention and of the final norm,
    the gain of a post-norm. Under grouped-query attention a query head has the W_V of its key/value head.
    A B and B A have the same non-zero eigenvalues, so those of W_O W_U W_E W_V [d_head, d_head] do; float64.
    `product` is `token_product(model)`, for who asks about several layers. Unit: logits (times the final norm's scale)
    for a unit of the normed embedding.

    >>> cm.weights.ov_eigenvalues(cm.load("known-ioi"), layer=2).shape
    torch.Size([3, 28])

    Raises `InputError` as `token_product` does, and for a layer that does not exist.
    """
    if not 0 <= layer < model.graph.n_layers:
        raise InputError(f"There is no layer {layer} in {model.name}; it has layers 0 to {model.graph.n_layers - 1}.")
    product = token_product(model) if product is None else product
    written = model.blocks[layer].head_weights() @ product
    return torch.linalg.eigvals((written @ value_weights(model, layer).mT).double())


def token_product(model: Model) -> Float[Tensor, "d_model d_model"]:
    """W_U W_E, the sum over all tokens of what writes a token times what it embeds, the final norm folded in; float32.

    As a matrix on the stream: [what is written, what is read]. Raises `InputError` where outputs are not input tokens.
    """
    check_outputs_are_tokens(model)
    rows = unembedding_rows(model)
    product = torch.zeros(model.d_model, model.d_model, device=model.device)
    for ids in token_chunks(model):
        product += rows[ids].float().T @ token_embeddings(model, ids)
    return behind(model.final_norm, product.T).T
