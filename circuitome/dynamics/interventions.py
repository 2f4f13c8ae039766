"""Interventions on training: attention that is suppressed or encouraged, and weights that are kept sparse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.training.objectives import Objective, next_token, summed
from circuitome.training.streams import Rows

Marks = Callable[[Rows], Bool[Tensor, "row query key"]]
"""Which pairs of query and key an objective is about."""


@dataclass(frozen=True)
class AttentionPenalty:
    """A training loss plus a term on the attention between marked pairs of positions.

        loss + strength * mean over marked (i, j) of max over layers and heads of A[i, j]

    Strength above 0 suppresses such attention, below 0 encourages it; after step `until` (None: never) it is released.
    Marks: `previous_token` and `behind_copies` (what previous-token and induction heads attend to), or the arcs of a
    `GrammarStream`. Source: Chen et al. 2024, arXiv:2309.07311, section 4.2, where it is a sum over the pairs of a
    batch; the mean does not depend on how many there are.

    >>> model = cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer())
    >>> stream = cm.dynamics.GrammarStream(model)
    >>> loss = cm.dynamics.AttentionPenalty(stream.arcs, strength=1.0)(model, stream.batch(0, 4, 32, 0))
    >>> sorted(loss), 0 < loss["attention"].item() < 1
    (['attention', 'prediction'], True)
    """

    marks: Marks
    """Pairs of positions."""
    strength: float
    """Weight of the term, in nats for full attention."""
    until: int | None = None
    """The step after which it is released."""
    prediction: Objective = next_token
    """The loss beside it."""

    def __call__(self, model: Model, tokens: Rows) -> Mapping[str, Tensor]:
        """The two parts of the loss."""
        if self.until is not None and tokens.step >= self.until:
            loss = summed(self.prediction(model, tokens))
            return {"prediction": loss, "attention": torch.zeros_like(loss)}
        patterns: list[Tensor] = []
        with model.watching_attention(lambda layer, pattern: patterns.append(pattern.float().amax(1))):
            loss = summed(self.prediction(model, tokens))
        strongest, marks = torch.stack(patterns).amax(0), self.marks(tokens)
        mean = (strongest * marks).sum() / marks.sum().clamp(min=1)
        return {"prediction": loss, "attention": self.strength * mean}


def previous_token(tokens: Rows) -> Bool[Tensor, "row query key"]:
    """Marks the token before each token.

    >>> cm.dynamics.previous_token(cm.training.Rows(torch.tensor([[5, 6, 5]])))[0].int().tolist()
    [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    """
    rows, length = tokens.ids.shape
    before = torch.ones(length - 1, dtype=torch.bool, device=tokens.ids.device).diag(-1)
    return before.expand(rows, -1, -1)


def behind_copies(tokens: Rows) -> Bool[Tensor, "row query key"]:
    """Marks what stands behind earlier copies of each token: where induction heads attend.

    >>> cm.dynamics.behind_copies(cm.training.Rows(torch.tensor([[5, 6, 5]])))[0].int().tolist()
    [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    """
    same = (tokens.ids[:, :, None] == tokens.ids[:, None]).tril(-1)
    behind = torch.zeros_like(same)
    behind[:, :, 1:] = same[:, :, :-1]
    return behind.tril(-1)


def keeping_largest(share: float) -> Callable[[Model, int], None]:
    """A change after every step of a training that sets all but the largest weights of each matrix to 0.

    Of each weight matrix that learns, embeddings included, the `share` of largest size stays.

    >>> model = cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer())
    >>> cm.dynamics.keeping_largest(0.25)(model, 1)
    >>> round(float((model.blocks[0].output.weight != 0).float().mean()), 2)
    0.25

    Raises `InputError` for a share outside of 0 to 1.
    """
    if not 0 < share <= 1:
        raise InputError(f"The share of weights that are kept must be above 0 and at most 1, got {share}.")
    return partial(_keep_largest, share=share)


def _keep_largest(model: Model, step: int, *, share: float) -> None:
    with torch.no_grad():
        for weight in model.hf.parameters():
            if weight.ndim > 1 and weight.requires_grad:
                weight.masked_fill_(weight.abs() < _threshold(weight, share), 0.0)


def _threshold(weight: Tensor, share: float) -> Float[Tensor, ""]:
    """The size of the smallest weight that is kept."""
    kept = max(1, round(share * weight.numel()))
    return weight.abs().flatten().kthvalue(weight.numel() - kept + 1).values
