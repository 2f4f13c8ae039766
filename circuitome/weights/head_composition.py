"""Composition of heads by their weights: how much of what an earlier head writes a later one reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.weights.factored import Factored
from circuitome.weights.folding import key_weights, query_weights, value_weights

Kind = Literal["q", "k", "v"]
"""Through which input the later head reads."""
KINDS: tuple[str, ...] = get_args(Kind)
HELD = 500_000_000
"""Bytes that matrices of earlier heads may take: those of as many layers are held while later ones pass by."""


@dataclass(frozen=True)
class Composition:
    """Composition scores between all pairs of an earlier and a later head, in [0, 1]; 0 for pairs that do not exist.

    score(A, B) = |A B| / (|A| |B|) in Frobenius norms, A = W_OV of the earlier head; B = W_QK of the later one for q,
    its transpose for k, its W_OV for v. Norms folded in, rotary embeddings left out (a relative position of 0).
    """

    graph: Graph
    """Shape of the model."""
    q: Float[Tensor, "layer head later later_head"]
    """Through the later head's query."""
    k: Float[Tensor, "layer head later later_head"]
    """Through its key."""
    v: Float[Tensor, "layer head later later_head"]
    """Through its value."""
    d_model: int
    """Width of the stream."""

    @property
    def baseline(self) -> float:
        """Score of matrices turned at random against each other, 1/sqrt(d_model): exact for the mean of its square.

        For independent isotropic A and B of any rank E|AB|^2 = |A|^2 |B|^2 / d_model.
        """
        return self.d_model**-0.5

    @cached_property
    def exists(self) -> Bool[Tensor, "layer 1 later 1"]:
        """Where the one head comes before the other."""
        layers = torch.arange(self.graph.n_layers)
        return (layers[:, None] < layers)[:, None, :, None]

    def of(self, kind: str, *, above: float = 0.0) -> Float[Tensor, "layer head later later_head"]:
        """Scores of one kind, minus `above` (such as `baseline`) where the pair exists. Raises `UnknownNameError`."""
        if kind not in KINDS:
            raise unknown_name("kind of composition", kind, KINDS)
        scores: Tensor = getattr(self, kind)
        return (scores - above) * self.exists.to(scores.device)

    def top(self, kind: str, n: int = 10) -> list[tuple[str, str, float]]:
        """The pairs with the highest scores: earlier head, later head, score. Raises `UnknownNameError`."""
        scores = self.of(kind).flatten()
        values, places = scores.topk(min(n, len(scores)))
        heads, layers = self.graph.n_heads, self.graph.n_layers
        pairs = []
        for value, place in zip(values.tolist(), places.tolist(), strict=True):
            earlier, later = divmod(place, layers * heads)
            pairs.append((_name(earlier, heads), _name(later, heads), value))
        return [pair for pair in pairs if pair[2] > 0]

    def with_head(self, head: str, kind: str, n: int = 5) -> dict[str, list[tuple[str, float]]]:
        """For one head, its strongest `earlier` heads (it reads them) and `later` heads (they read it), with scores.

        Raises `UnknownNameError` for a head that does not exist.
        """
        layer, index = self.graph.head(head)
        scores, heads = self.of(kind), self.graph.n_heads
        lists = {"earlier": scores[:layer, :, layer, index], "later": scores[layer, index, layer + 1 :]}
        starts = {"earlier": 0, "later": (layer + 1) * heads}
        found = {}
        for side, values in lists.items():
            best = values.flatten().topk(min(n, values.numel()))
            names = [_name(starts[side] + place, heads) for place in best.indices.tolist()]
            found[side] = list(zip(names, best.values.tolist(), strict=True))
        return found


def _name(place: int, heads: int) -> str:
    return str(Node.head(*divmod(place, heads)))


def composition(model: Model) -> Composition:
    """Q-, K- and V-composition between all earlier and later heads, from weights alone; float32.

    |A B|^2 is the inner product of A^T A and B B^T [d_model, d_model], so that all pairs of two layers are one matrix
    product; no pair's A B is formed. Source: Elhage et al. 2021, section on composition.

    >>> found = cm.composition(cm.load("known-ioi"))
    >>> found.top("q", 1)[0][:2]  # the later head reads the earlier one through its query
    ('a1.h0', 'a2.h0')
    """
    graph = model.graph
    shape = (graph.n_layers, graph.n_heads, graph.n_layers, graph.n_heads)
    scores = {kind: torch.zeros(shape, device=model.device) for kind in KINDS}
    held = max(1, HELD // (2 * graph.n_heads * model.d_model * (model.d_model + 1)))
    for start in range(0, graph.n_layers - 1, held):
        earlier = range(start, min(start + held, graph.n_layers - 1))
        written = torch.cat([_gram(circuit(model, layer, "v")) for layer in earlier])
        for layer in range(start + 1, graph.n_layers):
            before = slice(start, min(layer, earlier.stop))
            rows = written[: (before.stop - start) * graph.n_heads]
            for kind in KINDS:
                found = rows @ _gram(circuit(model, layer, kind).mT).T
                scores[kind][before, :, layer] = found.clamp(min=0).sqrt().unflatten(0, (-1, graph.n_heads))
    return Composition(graph, scores["q"], scores["k"], scores["v"], model.d_model)


def circuit(model: Model, layer: int, kind: str, heads: Sequence[int] | None = None) -> Factored:
    """The matrices B [head, d_model, d_model] of a layer's heads that `kind` reads through; "v" is W_OV, also A.

    On row vectors: W_QK = W_Q W_K^T for q, its transpose for k, W_OV = W_V W_O for v.
    """
    if kind == "v":
        return Factored(value_weights(model, layer, heads).mT, model.blocks[layer].head_weights(heads))
    qk = Factored(query_weights(model, layer, heads).mT, key_weights(model, layer, heads))
    return qk if kind == "q" else qk.mT


def _gram(matrix: Factored) -> Float[Tensor, "head entries"]:
    """M^T M of each head over |M|^2, as its upper triangle: inner products of rows are those of the whole matrices."""
    gram = matrix.right.mT @ ((matrix.left.mT @ matrix.left) @ matrix.right)
    total = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    row, column = torch.triu_indices(*gram.shape[1:], device=gram.device)
    twice = torch.where(row == column, 1.0, 2**0.5)  # an entry off the diagonal stands for two
    return gram[:, row, column] * twice / total.clamp(min=torch.finfo(gram.dtype).tiny)[:, None]


@method
def chance(setting: Setting, kind: str, *, draws: int = 100) -> Float[Tensor, " draws"]:
    """Scores of random pairs of an earlier and a later head after a random rotation of what the earlier one writes.

    Singular values stay, directions are lost: the spread shows which scores the `baseline` alone would let pass.
    Raises `UnknownNameError` for another kind, `InputError` for a model of one layer.

    >>> cm.weights.chance(cm.load("known-ioi"), "q", draws=5).shape
    torch.Size([5])
    """
    if kind not in KINDS:
        raise unknown_name("kind of composition", kind, KINDS)
    model, graph = setting.model, setting.model.graph
    if graph.n_layers < 2:
        raise InputError(f"{model.name} has one layer, so no head comes before another.")
    generator = torch.Generator().manual_seed(setting.seed)
    scores = []
    for _ in range(draws):
        earlier, later = sorted(torch.randperm(graph.n_layers, generator=generator)[:2].tolist())
        head, other = torch.randint(graph.n_heads, (2,), generator=generator).tolist()
        frame = _random_frame(model.d_model, min(model.d_model, model.heads.width), generator).to(model.device)
        scores.append(_turned(circuit(model, earlier, "v", [head])[0], circuit(model, later, kind, [other])[0], frame))
    return torch.stack(scores)


def _turned(a: Factored, b: Factored, frame: Float[Tensor, "d_model rank"]) -> Float[Tensor, ""]:
    """Composition score of A and B once A's outputs are turned into the span of `frame`, with its singular values."""
    values, vectors = torch.linalg.eigh(a.left.T @ a.left)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    strengths = torch.linalg.eigvalsh(root @ (a.right @ a.right.T) @ root)[-frame.shape[1] :]  # of A A^T
    seen, core = frame.T @ b.left, b.right @ b.right.T
    read = (seen @ core @ seen.T).diagonal()
    total = strengths.sum() * ((b.left.T @ b.left) * core).sum()
    return ((strengths * read).sum().clamp(min=0) / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt()


def _random_frame(width: int, rank: int, generator: torch.Generator) -> Float[Tensor, "width rank"]:
    """Orthonormal columns in a uniformly random direction."""
    normal = torch.randn(width, rank, generator=generator)
    lower = torch.linalg.cholesky(normal.T @ normal)
    return torch.linalg.solve_triangular(lower, normal.T, upper=False).T
