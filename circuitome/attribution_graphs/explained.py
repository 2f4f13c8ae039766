"""What a graph explains: the likeliest next tokens' logits less the mean of all, or the difference of two."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.attribution_graphs.frozen_model import FrozenModel
from circuitome.attribution_graphs.units import Reads
from circuitome.discovery.routes.tracing import contrast_tokens
from circuitome.models.model import Model
from circuitome.models.placement import parameter
from circuitome.weights.folding import behind, unembedding_rows
from circuitome.weights.pairs import token_name

PROBABILITY, MOST = 0.95, 10
"""Logits are explained until their tokens have this probability together, and at most so many."""


@dataclass(frozen=True, eq=False)
class Explained:
    """The logits that a graph explains, behind the last token of its prompt."""

    model: Model
    """The model."""
    tokens: tuple[int, ...]
    """Ids of their tokens."""
    labels: tuple[str, ...]
    """What each is called."""
    words: str
    """All of them in words."""
    weights: Float[Tensor, " logit"]
    """Their probabilities, or 1: what their influence weighs."""
    contrast: tuple[str, str] | None
    """The contrast that was asked for."""
    less: int | None
    """The token whose logit is taken off each, or None for the mean of all logits."""

    @classmethod
    def of(cls, frozen: FrozenModel, contrast: tuple[str, str] | None) -> "Explained":
        """The likeliest tokens, or a contrast. Raises `InputError` where one of that is not one token."""
        model = frozen.model
        if contrast is not None:
            token, other = contrast_tokens(model, contrast)
            words = " less ".join(f'"{text}"' for text in contrast)
            return cls(model, (token,), (words,), words, torch.ones(1), contrast, other)
        likely = frozen.logits.softmax(-1).sort(descending=True)
        count = min(MOST, int((likely.values.cumsum(0) < PROBABILITY).sum()) + 1, len(likely.values))
        tokens, weights = likely.indices[:count].tolist(), likely.values[:count].cpu()
        names = [f'"{token_name(model, token)}"' for token in tokens]
        labels = tuple(f"{name} (p={p:.3f})" for name, p in zip(names, weights.tolist(), strict=True))
        return cls(model, tuple(tokens), labels, ", ".join(names), weights, None, None)

    def reads(self, frozen: FrozenModel) -> Reads:
        """How they read what the final norm reads at the last token."""
        norm, rows = self.model.final_norm, unembedding_rows(self.model)
        vectors = self._relative(rows.float())
        constants = vectors.new_zeros(len(vectors)) if norm.bias is None else vectors @ norm.bias
        if (bias := parameter(self.model.unembedding, "bias")) is not None:
            constants = constants + self._relative(bias.detach().float())
        return Reads(behind(norm, vectors) * frozen.final_scale[-1], constants)

    def _relative(self, values: Float[Tensor, "vocab ..."]) -> Float[Tensor, "logit ..."]:
        """The explained entries of something that every token has, less another's or the mean."""
        return values[list(self.tokens)] - (values.mean(0) if self.less is None else values[self.less])

    def values(self, logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows logit"]:
        """What is explained of some runs' logits, without a soft cap."""
        cap = getattr(self.model.hf.config, "final_logit_softcapping", None)
        plain = logits.float() if cap is None else torch.atanh(logits.float() / cap) * cap
        return self._relative(plain.T).T

    def mean(self, values: Float[Tensor, "... logit"]) -> Float[Tensor, "..."]:
        """The mean over explained logits by their weights: the metric that effects are about."""
        return values @ self.weights.to(values) / self.weights.sum()
