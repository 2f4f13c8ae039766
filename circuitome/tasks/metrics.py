"""Metrics of one prompt: pure functions of the logits after its last token. All are larger when the model does better.

Each takes logits [batch, vocab] (float32) and, per prompt, the ids of the right and of the wrong answers,
and gives [batch].
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Ids = Sequence[Sequence[int]]


def logit_diff(logits: Float[Tensor, "batch vocab"], answers: Ids, wrongs: Ids) -> Float[Tensor, " batch"]:
    """Mean logit of the right answers minus mean logit of the wrong ones (0 for an empty list). Unit: logits."""
    return _mean(logits, answers) - _mean(logits, wrongs)


def logit_diff_max(logits: Float[Tensor, "batch vocab"], answers: Ids, wrongs: Ids) -> Float[Tensor, " batch"]:
    """Mean logit of the right answers minus the largest logit of a wrong one (docstring task). Unit: logits."""
    best = torch.stack([row[list(ids)].max() for row, ids in zip(logits, wrongs, strict=True)])
    return _mean(logits, answers) - best


def prob_diff(logits: Float[Tensor, "batch vocab"], answers: Ids, wrongs: Ids) -> Float[Tensor, " batch"]:
    """Probability of all right answers minus probability of all wrong ones (Greater-Than). Unit: probability."""
    weights = torch.zeros_like(logits)
    for row, (right, wrong) in enumerate(zip(answers, wrongs, strict=True)):
        weights[row, list(right)] = 1.0
        weights[row, list(wrong)] = -1.0
    return (logits.softmax(-1) * weights).sum(-1)


def _mean(logits: Float[Tensor, "batch vocab"], ids: Ids) -> Float[Tensor, " batch"]:
    """Mean over each row's own ids, 0 where it has none: one gather, since a loop over rows is slow in big batches."""
    longest = max(1, max(map(len, ids)))
    where = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=logits.device)
    weights = torch.tensor([[1 / max(1, len(row))] * len(row) + [0.0] * (longest - len(row)) for row in ids])
    return (logits.gather(1, where) * weights.to(logits)).sum(1)


METRICS: dict[str, Callable[[Tensor, Ids, Ids], Tensor]] = {
    "logit_diff": logit_diff,
    "logit_diff_max": logit_diff_max,
    "prob_diff": prob_diff,
}


ON_ANSWERS = ("logit_diff", "logit_diff_max")
"""Metrics that see no logit but those of the answers."""


def metric_unit(name: str) -> str:
    """Unit of the metric called `name`."""
    return "probability" if name == "prob_diff" else "logits"
