"""Weights of heads and tokens with the norms around them folded in, as products of them mean something."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.models.block import weight_of
from circuitome.models.model import Model
from circuitome.models.norms import Norm

CHUNK = 8192
"""Tokens whose vectors are made at a time."""


def behind(norm: Norm | None, weight: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """Weights that read the stream through `norm`, as weights on the stream itself; float32.

    The norm's gain is multiplied in, and the mean over coordinates taken out where the norm takes out that of the
    stream. What stays is the norm's bias, which no product of weights sees, and its scale, which depends on the input.
    """
    return weight.float() if norm is None else norm.centre(weight.float() * norm.gain)


def normed(norm: Norm | None, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
    """What a norm makes of residuals x, float32; x itself without a norm."""
    if norm is None:
        return x.float()
    out = norm.gain * norm.centre(x) / norm.sigma(x)
    return out if norm.bias is None else out + norm.bias


def query_weights(model: Model, layer: int, heads: Sequence[int] | None = None) -> Float[Tensor, "head d_head d_model"]:
    """W_Q of every head (or of some), its norm folded in."""
    return _readers(model, layer, range(model.heads.q) if heads is None else heads)


def key_weights(model: Model, layer: int, heads: Sequence[int] | None = None) -> Float[Tensor, "head d_head d_model"]:
    """W_K of every query head (or of some), repeated where heads share it, its norm folded in."""
    return _shared(model, layer, heads, model.heads.q)


def value_weights(model: Model, layer: int, heads: Sequence[int] | None = None) -> Float[Tensor, "head d_head d_model"]:
    """W_V of every query head (or of some), repeated where heads share it, its norm folded in."""
    return _shared(model, layer, heads, model.heads.q + model.heads.kv)


def _shared(model: Model, layer: int, heads: Sequence[int] | None, first: int) -> Tensor:
    heads = range(model.heads.q) if heads is None else heads
    return _readers(model, layer, [first + model.graph.kv_head(head) for head in heads])


def _readers(model: Model, layer: int, readers: Sequence[int]) -> Tensor:
    model.check_sums("Following the stream by weights")
    block = model.blocks[layer]
    return behind(block.attention_norm, block.reader_weights(list(readers)))


def token_embeddings(model: Model, ids: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
    """What tokens put into the stream without their positions: W_E with the model's own scale, float32."""
    with torch.no_grad():
        return model.hf.get_input_embeddings()(ids.to(model.device)).float()


def token_chunks(model: Model) -> Iterator[Int[Tensor, " token"]]:
    """Ids of the whole vocabulary, some at a time."""
    ids = torch.arange(vocabulary(model), device=model.device)
    yield from ids.split(CHUNK)


def vocabulary(model: Model) -> int:
    """Number of tokens that can be read, rows of W_E."""
    return int(model.hf.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr, index]


def outputs_are_tokens(model: Model) -> bool:
    """Whether the model's outputs are its input tokens, so that a token can be copied to itself."""
    return not model.masked and len(unembedding_rows(model)) == vocabulary(model)


def check_outputs_are_tokens(model: Model) -> None:
    """Raises `InputError` for a model whose outputs are not its input tokens."""
    model.check_sums("Copying of tokens")
    if not outputs_are_tokens(model):
        raise InputError(
            f"{model.name} gives {len(unembedding_rows(model))} outputs for {vocabulary(model)} input tokens, so no "
            "token can be copied to itself. Copying scores need a model whose outputs are its tokens."
        )


def unembedding_rows(model: Model) -> Float[Tensor, "vocab d_model"]:
    """W_U as the model has it, one row a token; no norm folded in."""
    return weight_of(model.unembedding).detach()
