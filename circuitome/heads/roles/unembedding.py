"""What a vector in the residual stream says about tokens: logits by the final norm's direction and the unembedding."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.models.model import Model
from circuitome.weights.extremes import TOP, among_extremes
from circuitome.weights.folding import outputs_are_tokens, unembedding_rows


class Unembedding:
    """The last step of a model, linear: final norm with its scale held fixed, then the unembedding without its bias."""

    def __init__(self, model: Model) -> None:
        """Takes the weights as they are; nothing is copied."""
        self.norm, self.weight = model.final_norm, unembedding_rows(model)
        self.top = max(1, min(TOP, len(self.weight) // 20))
        """Tokens that count as raised or lowered most: 5, fewer of a vocabulary of less than a hundred."""
        self.outputs_are_tokens = outputs_are_tokens(model)
        self.mean = self.weight.float().mean(0)

    @property
    def chance(self) -> float:
        """How often a random vector raises a given token as one of its most."""
        return self.top / len(self.weight)

    def direction(self, x: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
        """What the unembedding reads of a vector: centred and times the norm's gain, not divided by its scale."""
        return self.norm.centre(x) * self.norm.gain.to(x.device)

    def logits_of(
        self, x: Float[Tensor, "batch head d_model"], tokens: Int[Tensor, "batch role"]
    ) -> Float[Tensor, "batch head role"]:
        """Logits of some tokens above the mean over all tokens; `x` is divided by the norm's scale already.

        NaN for a model whose outputs are not its input tokens.
        """
        if not self.outputs_are_tokens:
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
    if not unembedding.outputs_are_tokens:
        nothing = torch.full(tokens.shape, torch.nan)
        return nothing, nothing
    rows = unembedding.direction(x).flatten(0, 1)
    flags = among_extremes(rows, unembedding.weight, tokens.to(x.device).flatten(), top=unembedding.top)
    raised, lowered = flags.float().cpu().unflatten(1, tokens.shape)
    return raised, lowered
