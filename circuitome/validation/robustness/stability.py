"""Would other prompts have given the same circuit? Overlap of circuits found on resampled prompts.

Scores are means over prompts, so resampling the prompts' own scores gives what another draw of prompts would have
found: no pass of the model. Source: Efron 1979 (bootstrap).
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.results import LEVEL, middle, plain_fields
from circuitome.validation.faithfulness.share import random_circuit
from circuitome.validation.robustness.score_agreement import chance_jaccard, check_size, jaccard, nodes_of, strongest

FEWEST_PROMPTS = 4
"""Prompts that resampling needs: two in each half."""
BAGGED = 20
"""Resamples of each half of the prompts whose circuits are held against each other."""
NULL_DRAWS = 20
"""Random circuits that the chance overlap of nodes is taken from."""


@dataclass(frozen=True, eq=False)
class Spread:
    """A number over draws."""

    draws: Float[Tensor, " draws"]
    """Its value in every draw."""

    @property
    def mean(self) -> float:
        """Mean over draws."""
        return float(self.draws.mean())

    @property
    def range(self) -> tuple[float, float]:
        """Between these lie 95 % of the draws."""
        low, high = middle(self.draws.double())
        return float(low), float(high)

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.range[0]:.3f}, {self.range[1]:.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """Mean and range."""
        return {"mean": self.mean, "low": self.range[0], "high": self.range[1], "draws": len(self.draws)}


@dataclass(frozen=True, eq=False)
class Stability:
    """How the circuit of the `size` strongest edges changes with the prompts. Jaccard: shared / in either."""

    size: int
    """Edges of every circuit."""
    n: int
    """Prompts."""
    edges: Spread
    """Jaccard of edges, each resample's circuit with that of all prompts."""
    nodes: Spread
    """Jaccard of nodes, likewise."""
    ranks: Spread
    """Spearman's correlation of |score| over all edges, likewise."""
    node_ranks: Spread
    """Spearman's correlation of what |score| leaves each writer, summed over its edges, likewise."""
    edges_between: Spread
    """Jaccard of edges between resamples."""
    nodes_between: Spread
    """Jaccard of nodes between resamples."""
    edges_halves: Spread
    """Jaccard of edges between two halves of the prompts that share none."""
    nodes_halves: Spread
    """Jaccard of nodes, likewise."""
    chance_edges: float
    """Expected Jaccard of edges of two random circuits of this size."""
    chance_nodes: float
    """Mean Jaccard of nodes of random circuits of this size with the circuit of all prompts."""
    kept: Float[Tensor, "writers readers"]
    """Share of the resamples whose circuit has the edge."""
    graph: Graph
    """Labels of `kept`."""

    def core(self, share: float = LEVEL) -> Circuit:
        """The edges that at least `share` of the resamples agree on."""
        return Circuit(self.graph, (self.kept >= share) & self.graph.mask)

    def to_dict(self) -> dict[str, Any]:
        """All but `kept`, and the size of the core, as plain JSON values."""
        names = [field.name for field in fields(self) if field.name not in ("kept", "graph")]
        return {**plain_fields(self, *names), "core": len(self.core())}


def bootstrap_stability(scores: EdgeScores, size: int, *, draws: int = 100, seed: int = 0) -> Stability:
    """What becomes of the circuit of the `size` strongest edges when the prompts are drawn anew, `draws` times.

    Each draw takes as many prompts with replacement, and their scores' mean. A resample shares 63 % of its prompts with
    the whole, so its overlap flatters; halves that share no prompt say what half as many other prompts would find.
    Costs no pass of the model. Raises `InputError` for scores without samples, fewer than 4 prompts, no draw, or a size
    that cannot be.
    """
    samples, graph = samples_of(scores), scores.graph
    if len(samples) < FEWEST_PROMPTS:
        raise InputError(
            f"Resampling prompts needs at least {FEWEST_PROMPTS} of them, these scores are of {len(samples)}. Score "
            "more prompts (--n)."
        )
    if draws < 2:
        raise InputError(f"Resampling needs at least 2 draws, got {draws}.")
    whole, generator = scores.top(size), torch.Generator().manual_seed(seed)
    check_size(whole)
    resampled, *halves = (weights @ samples for weights in _weights(len(samples), draws, generator))
    circuits, first, second = (strongest(means, size) for means in (resampled, *halves))
    values, reference = scores.values[graph.mask], whole.mask[graph.mask][None]
    nodes, reference_nodes = nodes_of(graph, circuits), nodes_of(graph, reference)
    i, j = torch.triu_indices(draws, draws, 1)
    chance = [random_circuit(graph, size, generator).mask[graph.mask] for _ in range(NULL_DRAWS)]
    kept = torch.zeros(scores.values.shape)
    kept[graph.mask] = circuits.float().mean(0)
    return Stability(
        size,
        len(samples),
        Spread(jaccard(circuits, reference)[:, 0]),
        Spread(jaccard(nodes, reference_nodes)[:, 0]),
        Spread(_ranks(resampled) @ _ranks(values)),
        Spread(_ranks(_leaving(graph, resampled)) @ _ranks(_leaving(graph, values))),
        Spread(jaccard(circuits, circuits)[i, j]),
        Spread(jaccard(nodes, nodes)[i, j]),
        Spread(jaccard(first, second).diagonal()),
        Spread(jaccard(nodes_of(graph, first), nodes_of(graph, second)).diagonal()),
        chance_jaccard(size, graph.n_edges),
        float(jaccard(nodes_of(graph, torch.stack(chance)), reference_nodes).mean()),
        kept,
        graph,
    )


def shared_edges(scores: EdgeScores, size: int, *, draws: int = 10, seed: int = 0) -> tuple[float, float]:
    """Jaccard of the circuits of two draws of prompts: of the strongest edges, and of those that resamples agree on.

    The draws are halves of the prompts that share none, `draws` times; the values are means. For the second, each half
    is resampled (`BAGGED` times): first come the edges in the most of the resamples' circuits, ties by |score|. Costs
    no pass of the model. Raises as `bootstrap_stability`.
    """
    samples = samples_of(scores)
    check_size(scores.top(size))
    if len(samples) < FEWEST_PROMPTS:
        raise InputError(f"Two draws of prompts take at least {FEWEST_PROMPTS}, these scores are of {len(samples)}.")
    generator, half = torch.Generator().manual_seed(seed), len(samples) // 2
    plain, agreed = list[float](), list[float]()
    for _ in range(draws):
        order = torch.randperm(len(samples), generator=generator)
        sides = [samples[order[:half]], samples[order[half : 2 * half]]]
        for circuits, choose in ((plain, _means), (agreed, partial(_agreed, size=size, generator=generator))):
            first, second = (strongest(choose(side), size)[None] for side in sides)
            circuits.append(float(jaccard(first, second)))
    return sum(plain) / draws, sum(agreed) / draws


def _means(samples: Float[Tensor, "prompts edges"]) -> Float[Tensor, " edges"]:
    return samples.mean(0)


def _agreed(samples: Float[Tensor, "prompts edges"], size: int, generator: torch.Generator) -> Float[Tensor, " edges"]:
    """In how many resamples an edge is among the strongest, and below 1 its |mean| as a share of the largest."""
    n = len(samples)
    weights = torch.zeros(BAGGED, n)
    drawn = torch.randint(n, (BAGGED, n), generator=generator)
    means = weights.scatter_add_(1, drawn, torch.full(drawn.shape, 1 / n)) @ samples
    sizes = samples.mean(0).abs()
    return strongest(means, size).float().sum(0) + 0.5 * sizes / sizes.max().clamp(min=1e-30)


def samples_of(scores: EdgeScores) -> Float[Tensor, "prompts edges"]:
    """The scores of every prompt. Raises `InputError` where they were not kept."""
    if scores.samples is None:
        raise InputError(
            f"The scores by {scores.method or 'this method'} hold no per-prompt samples, so nothing can be said over "
            "prompts. EAP and EAP-IG keep them."
        )
    return scores.samples


def _weights(n: int, draws: int, generator: torch.Generator) -> Float[Tensor, "3 draws prompts"]:
    """Weights of the prompts in means over resamples, and over two halves that share no prompt."""
    weights, half = torch.zeros(3, draws, n), n // 2
    for draw in range(draws):
        weights[0, draw].index_add_(0, torch.randint(n, (n,), generator=generator), torch.full((n,), 1 / n))
        order = torch.randperm(n, generator=generator)
        weights[1, draw, order[:half]] = weights[2, draw, order[half : 2 * half]] = 1 / half
    return weights


def _leaving(graph: Graph, values: Float[Tensor, "... edges"]) -> Float[Tensor, "... writers"]:
    """Sum of |score| over the edges that leave each writer."""
    rows = graph.mask.nonzero()[:, 0]
    return torch.zeros(*values.shape[:-1], len(graph.writers)).index_add_(-1, rows, values.abs())


def _ranks(values: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Ranks of |value|, ties averaged, with mean 0 and length 1: their products are Spearman's correlations."""
    ranks = torch.from_numpy(rankdata(values.abs().numpy(), axis=-1))
    ranks = ranks - ranks.mean(-1, keepdim=True)
    return ranks / ranks.norm(dim=-1, keepdim=True).clamp(min=1e-300)
