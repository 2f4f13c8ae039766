"""Shuffled labels: what a search finds where answer and wrong answer are exchanged at random.

Every prompt keeps its tokens; whether its answer or its wrong answer counts as right is drawn by coin. What is left of
an edge's mean score is chance. A metric that changes its sign when the two are exchanged makes every score of that
prompt change its sign too, so that scores of shuffled tasks are sign flips of the ones at hand: no pass of the model.
Sources: sign-flip tests, Fisher 1935; the largest of all as the null, Westfall & Young 1993; for circuits, after the
random-label controls of Adebayo et al. 2018, arXiv:1810.03292.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError, TaskError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.results import plain_fields
from circuitome.tasks.task import Pair, Task
from circuitome.validation.robustness.score_agreement import check_size, jaccard, strongest
from circuitome.validation.robustness.stability import Spread, samples_of
from circuitome.validation.tests.hypotheses import ALPHA


@dataclass(frozen=True, eq=False)
class ShuffledLabels:
    """The scores at hand beside those of tasks with shuffled labels."""

    size: int
    """Edges of every circuit."""
    scores: EdgeScores
    """The scores at hand."""
    largest: Spread
    """Largest |score| of any edge under shuffled labels."""
    steadiest: Spread
    """Largest |mean| / root mean square over prompts of any edge under shuffled labels: 1 is the same on every prompt.
    Edges that vary much do not hide the others here."""
    strength: Spread
    """Sum of |score| over the `size` strongest edges under shuffled labels."""
    own_strength: float
    """The same of the scores at hand."""
    overlap: Spread
    """Jaccard of edges of the shuffled circuits with the one at hand."""

    @property
    def p_value(self) -> float:
        """Chance of a circuit this strong when labels mean nothing: (1 + draws at least as strong) / (1 + draws)."""
        draws = self.strength.draws
        return (1 + int((draws >= self.own_strength).sum())) / (1 + len(draws))

    def significant(self, alpha: float = ALPHA) -> Circuit:
        """Edges steadier over prompts than the steadiest of all is under shuffled labels, in all but `alpha` of draws.

        So the chance of one false edge among them is at most `alpha`. Empty where the draws are too few to tell.
        """
        draws = self.steadiest.draws.sort(descending=True).values
        allowed = int(alpha * (1 + len(draws))) - 1  # draws that may reach the threshold, the one at hand counted
        if allowed < 0:
            return Circuit.empty(self.scores.graph)
        samples, above = samples_of(self.scores), torch.zeros_like(self.scores.graph.mask)
        above[self.scores.graph.mask] = (samples.mean(0) / _size(samples)).abs() > draws[allowed]
        return Circuit(self.scores.graph, above)

    def to_dict(self) -> dict[str, Any]:
        """Spreads, p and the number of significant edges, as plain JSON values."""
        significant = self.significant()
        return {
            **plain_fields(self, "size", "largest", "steadiest", "strength", "own_strength", "overlap", "p_value"),
            "significant_edges": len(significant),
            "significant_in_circuit": len(significant & self.scores.top(self.size)),
        }


def shuffled_labels(task: Task, seed: int = 0) -> Task:
    """`task` with answers and wrong answers exchanged on prompts drawn by coin, the same for the same `seed`.

    Prompts, corrupted prompts and tokens stay. Raises `TaskError` where that is no exchange: a prompt without wrong
    answers, or a metric that treats the two differently (logit_diff_max).
    """
    if not task.measure.odd:
        raise TaskError(
            f"Labels of {task.name} cannot be shuffled by exchanging answers: {task.measure} treats right and wrong "
            f"ones differently. Use logit_diff or prob_diff."
        )
    for row, pair in enumerate(task.pairs):
        if not pair.wrongs:
            raise TaskError(f"Labels of {task.name} cannot be shuffled: prompt {row} has no wrong answer.")

    def exchanged(pair: Pair, sign: float) -> Pair:
        return pair if sign > 0 else replace(pair, answers=pair.wrongs, wrongs=pair.answers)

    pairs = map(exchanged, task.pairs, _signs(len(task), 1, seed)[0].tolist())
    return replace(task, name=f"{task.name}, shuffled labels", pairs=tuple(pairs))


def shuffled_scores(scores: EdgeScores, seed: int = 0) -> EdgeScores:
    """The scores that the same method gives on `shuffled_labels(task, seed)`, without running it.

    For EAP and EAP-IG by the metric, if that is logit_diff or prob_diff. Raises `InputError` for scores without
    samples.
    """
    samples = samples_of(scores)
    flipped = samples * _signs(len(samples), 1, seed)[0][:, None]
    values = torch.zeros_like(scores.values)
    values[scores.graph.mask] = flipped.mean(0)
    return replace(scores, values=values, samples=flipped, method=f"{scores.method}, shuffled labels")


def shuffled_null(scores: EdgeScores, size: int, *, draws: int = 200, seed: int = 0) -> ShuffledLabels:
    """The null distribution of scores and circuits under shuffled labels, `draws` times. Costs no pass of the model.

    Raises `InputError` for scores without samples or by another loss than the metric, and for no draw.
    """
    samples = samples_of(scores)
    if "loss" in scores.method:
        raise InputError(
            f"The scores by {scores.method} do not change their sign with the labels, since a distance from the clean "
            "model has none. Use scores by the metric."
        )
    if draws < 1:
        raise InputError(f"A null distribution needs at least one draw, got {draws}.")
    circuit = scores.top(size)
    check_size(circuit)
    edges, size_of = circuit.mask[scores.graph.mask][None], _size(samples)
    parts = []
    for signs in _signs(len(samples), draws, seed).split(50):
        means = signs / len(samples) @ samples
        sizes = means.abs().topk(size, 1).values
        overlap = jaccard(strongest(means, size), edges)[:, 0]
        parts.append((sizes[:, 0], (means / size_of).abs().amax(1), sizes.sum(1), overlap))
    spreads = [Spread(torch.cat(values)) for values in zip(*parts, strict=True)]
    names = ("largest", "steadiest", "strength", "overlap")
    own_strength = float(scores.values.abs()[circuit.mask].sum())
    return ShuffledLabels(size, scores, own_strength=own_strength, **dict(zip(names, spreads, strict=True)))


def _size(samples: Float[Tensor, "prompts edges"]) -> Float[Tensor, " edges"]:
    """Root mean square over prompts, which no change of signs changes."""
    return samples.square().mean(0).sqrt().clamp(min=1e-30)


def _signs(prompts: int, draws: int, seed: int) -> Float[Tensor, "draws prompts"]:
    """Coins: 1 or -1. The first draw of a seed is the same whatever `draws` is."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(2, (prompts,), generator=generator) * 2.0 - 1 for _ in range(draws)])
