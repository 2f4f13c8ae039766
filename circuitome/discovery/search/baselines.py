"""Edge scores that look at no prompt: what every method must beat."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.block import weight_of
from circuitome.models.norms import Norm


@method
def magnitude(setting: Setting) -> EdgeScores:
    """Weights alone: score(u -> v) = |output weights of u| |input weights of v|, Frobenius norms, norm gains folded in.

    The prompts do not count. Positive, without the metric's sign or unit. Weights: of `embed` the embedding matrix,
    of a head its rows of the output projection, of an MLP its last matrix; of a q, k or v reader its rows of the
    projection, of an MLP the matrices that read the stream, of the logits the unembedding. A norm is divided by the
    root of the number of vectors in its matrix, so that wide parts are not strong for that alone. Of an MLP under a
    post-norm the norm's gain counts as its only vector.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> list(cm.magnitude(model, task).top(1))
    ['embed->a0.h0.q']
    """
    model, graph = setting.model, setting.model.graph
    out, into = torch.zeros(len(graph.writers)), torch.zeros(len(graph.readers))
    out[0] = _size(weight_of(model.hf.get_input_embeddings()).detach().float())
    into[-1] = _size(_gained(weight_of(model.unembedding).detach().float(), model.final_norm))
    for layer, block in enumerate(model.blocks):
        reading, writing = _mlp_matrices(block.mlp, model.d_model)
        out[graph.head_rows(layer)] = _sizes(block.head_weights())
        out[graph.mlp_row(layer)] = _size(block.mlp_post.gain[None] if block.mlp_post else writing.T)
        into[graph.attention_columns(layer)] = _sizes(_gained(block.reader_weights().float(), block.attention_norm))
        into[graph.mlp_column(layer)] = _size(_gained(reading, block.mlp_norm))
    scores = out[:, None] * into * graph.mask
    check_numbers(scores, "size of the weights")
    return EdgeScores(graph, scores, "product of weight norms", "magnitude")


@method
@on_neurons
def random_scores(setting: Setting) -> EdgeScores:
    """Scores drawn evenly from [0, 1), so that `top(n)` is a random circuit; the same for the setting's seed.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> cm.random_scores(model, task, seed=1).top(12) == cm.random_scores(model, task, seed=1).top(12)
    True
    """
    graph, generator = setting.model.graph, torch.Generator().manual_seed(setting.seed)
    values = torch.rand(graph.mask.shape, generator=generator) * graph.mask
    return EdgeScores(graph, values, "random number", f"random, seed {setting.seed}")


def _sizes(matrices: Float[Tensor, "node vector d_model"]) -> Float[Tensor, " node"]:
    """Root mean square length of the vectors of each matrix."""
    return matrices.square().sum(-1).mean(-1).sqrt().cpu()


def _size(matrix: Float[Tensor, "vector d_model"]) -> float:
    return float(_sizes(matrix[None]))


def _gained(weights: Float[Tensor, "... d_model"], norm: Norm | None) -> Float[Tensor, "... d_model"]:
    """Weights that read a normed stream, with the norm's gain folded in."""
    return weights if norm is None else weights * norm.gain


def _mlp_matrices(modules: Iterable[nn.Module], d_model: int) -> tuple[Tensor, Tensor]:
    """What reads the stream [vector, d_model], all matrices one above the other, and what writes it [d_model, vector].

    The last matrix of an MLP is the one that writes.
    """
    parts: list[Any] = [part for module in modules for part in module.modules()]
    matrices = [part for part in parts if getattr(getattr(part, "weight", None), "ndim", 0) == 2]
    *first, last = (weight_of(part).detach().float() for part in matrices)
    return torch.cat([weight for weight in first if weight.shape[1] == d_model]), last
