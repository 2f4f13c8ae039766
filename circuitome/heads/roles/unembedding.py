"""What a vector in the residual stream says about tokens: logits by the final norm's direction and the unembedding."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.models.model import Model

TOP = 5
"""Tokens that count as raised or lowered most, as in Wang et al. 2022; fewer of a vocabulary of less than a hundred."""
CHUNK_NUMBERS = 50_000_000
"""Logits that are held at once."""


class Unembedding:
    """The last step of a model, linear: final norm with its scale held fixed, then the unembedding without its bias."""

    def __init__(self, model: Model) -> None:
        """Takes the weights as they are; nothing is copied."""
        self.norm = model.final_norm
        weight: Any = model.unembedding.weight
        self.weight: Tensor = weight.detach()
        self.top = max(1, min(TOP, len(self.weight) // 20))
        self.fits = len(self.weight) >= int(model.hf.config.vocab_size)
        self.mean = self.weight.float().mean(0)

    @property
    def chance(self) -> float:
        """How often a random vector raises a given token as one of its most."""
        return self.top / len(self.weight)

    def direction(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What of a vector the unembedding sees, but for the norm's scale."""
        return self.norm.centre(x) * self.norm.gain.to(x.device)

    def logits_of(
        self, x: Float[Tensor, "batch head d_model"], tokens: Int[Tensor, "batch role"]
    ) -> Float[Tensor, "batch head role"]:
        """Logits of some tokens above the mean over all tokens; `x` is divided by the norm's scale already."""
        if not self.fits:
            return torch.full((*x.shape[:2], tokens.shape[1]), torch.nan)
        rows = self.weight[tokens.to(self.weight.device)].float() - self.mean
        return torch.einsum("bhd,brd->bhr", self.direction(x), rows)


def copied(
    unembedding: Unembedding, x: Float[Tensor, "batch head d_model"], tokens: Int[Tensor, "batch head"]
) -> tuple[Float[Tensor, "batch head"], Float[Tensor, "batch head"]]:
    """Whether each vector raises, and whether it lowers, its token as one of the `top` most; 1.0 or 0.0.

    NaN where outputs are not input tokens; 0 for a vector that moves no token apart from others.
    Source: Wang et al. 2022, arXiv:2211.00593, section 3.1 and appendix (copy score); they take the token's embedding
    behind block 0 for the head's input, we what stands there in the prompt.
    """
    if not unembedding.fits:
        nothing = torch.full(tokens.shape, torch.nan)
        return nothing, nothing
    flat, wanted = unembedding.direction(x).flatten(0, 1), tokens.to(x.device).flatten()
    up, down = torch.zeros(len(flat)), torch.zeros(len(flat))
    weight = unembedding.weight.float()
    for some in torch.arange(len(flat)).split(max(1, CHUNK_NUMBERS // len(weight))):
        logits = flat[some] @ weight.T
        own = logits.gather(1, wanted[some, None])
        varied = logits.amax(1) > logits.amin(1)
        up[some] = ((logits >= own).sum(1) <= unembedding.top).logical_and(varied).float().cpu()
        down[some] = ((logits <= own).sum(1) <= unembedding.top).logical_and(varied).float().cpu()
    return up.view(tokens.shape), down.view(tokens.shape)
