"""An atlas of the heads of a model: one row a head, with every score, its interval and its chance level."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.heads.atlas.capture import watching_heads
from circuitome.heads.atlas.copying import COPYING, TOKEN_COPYING, Copying, token_copying
from circuitome.heads.atlas.head_score import HeadScore, named
from circuitome.heads.atlas.patterns import PATTERNS, beside_noise, chance_levels, in_chunks, measure
from circuitome.heads.atlas.repeated import Repeated, repeated_tokens, usual_period
from circuitome.models.model import Model
from circuitome.results import Estimate
from circuitome.weights.copying import copying_scores
from circuitome.weights.extremes import TOP
from circuitome.weights.folding import outputs_are_tokens

TOKENS = 64
"""Tokens that are put through every head by themselves."""
EIGENVALUES = ("eigenvalue_copying", "how far W_E W_OV W_U has positive eigenvalues: copying by weights alone", "ratio")
WHAT = {**PATTERNS, **COPYING, **TOKEN_COPYING, EIGENVALUES[0]: EIGENVALUES[1:]}
"""By name of score: what it says, and its unit."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """What every head of a model does, in named scores."""

    scores: dict[str, HeadScore]
    """By name."""
    model: str
    """The model's name."""
    repeated: Repeated
    """The sequences that patterns and copying were measured on."""
    in_front: str
    """What the tokenizer puts in front of them, "" for nothing."""

    def __getitem__(self, name: str) -> HeadScore:
        """A score. Raises `UnknownNameError` for a name that the atlas has not."""
        if name not in self.scores:
            raise unknown_name("score of the atlas", name, self.scores)
        return self.scores[name]

    def top(self, score: str, n: int = 10) -> list[tuple[str, Estimate]]:
        """The heads with the largest values of a score, largest first."""
        return self[score].top(n)

    def table(self) -> list[dict[str, str | float]]:
        """One row a head, first layer first: `head`, then the mean of every score by its name."""
        first = next(iter(self.scores.values()))
        return [
            {"head": first.label(*head), **{name: float(score.mean[head]) for name, score in self.scores.items()}}
            for head in product(*map(range, first.mean.shape))
        ]

    def joined(self, *others: HeadScore) -> "Atlas":
        """The same atlas with more scores. Raises `InputError` for scores of another number of heads."""
        shape = next(iter(self.scores.values())).mean.shape
        for other in others:
            if other.mean.shape != shape:
                raise InputError(
                    f"The score {other.name} has {tuple(other.mean.shape)} layers and heads, the atlas of {self.model} "
                    f"{tuple(shape)}. Join scores of the same model."
                )
        return replace(self, scores={**self.scores, **named(others)})

    def to_dict(self) -> dict[str, Any]:
        """Everything but the samples, as plain JSON values."""
        return {
            "model": self.model,
            "sequences": len(self.repeated.inputs.ids),
            "period": self.repeated.period,
            "repeats": self.repeated.repeats,
            "in_front": self.in_front,
            "scores": {name: score.to_dict() for name, score in self.scores.items()},
        }


@method
def head_atlas(
    setting: Setting,
    *,
    n: int = 16,
    period: int | None = None,
    random: Sequence[int] = (0,),
    more: Sequence[HeadScore] = (),
) -> Atlas:
    """Every score of every head: patterns and copying on `n` repeated random sequences, and copying by weights.

    Scores by name: those of `pattern_scores` and `Copying` from one pass over the sequences, `token_copying` of 64
    random tokens at places where they stand in them, and `eigenvalue_copying` (`circuitome.weights.copying_scores`).
    A model whose outputs are not its tokens has no scores of copying. `period` is 32 tokens by default, less in a
    small model; `random` are seeds of `random_model`, whose heads show what is no news (`HeadScore.random`); `more`
    are scores from elsewhere on the same heads, e.g. of retrieval.
    Raises `InputError` for numbers that cannot be or do not fit the model, `UnsupportedModelError` for a model that
    shows no attention probabilities.

    >>> cm.heads.head_atlas(cm.load("known-induction"), n=4).top("induction", 1)[0][0]
    'a1.h0'
    """
    model = setting.model
    repeated = repeated_tokens(model, n=n, period=usual_period(model) if period is None else period, seed=setting.seed)
    scores = beside_noise(setting, random, lambda setting: measured(setting, repeated), WHAT, _chance(model, repeated))
    front = repeated.inputs.ids[0, : repeated.front].tolist()
    return Atlas(scores, model.name, repeated, model.decode(front) if front else "").joined(*more)


def measured(setting: Setting, repeated: Repeated) -> dict[str, Float[Tensor, "_ layer head"]]:
    """Samples of every score by name: a row a sequence, a row a token put through the heads, or a single row."""
    model = setting.model
    whole = in_chunks(setting, repeated, one_pass)
    if not outputs_are_tokens(model):
        return {name: whole[name] for name in PATTERNS}
    places = [whole.pop(name) for name in ("embedded", "first", "tokens")]
    spread = torch.linspace(0, len(places[0]) - 1, min(TOKENS, len(places[0]))).round().long().to(model.device)
    return {
        **whole,
        **token_copying(model, *(place[spread] for place in places)),
        EIGENVALUES[0]: copying_scores(model)[None].cpu(),
    }


def one_pass(model: Model, repeated: Repeated) -> dict[str, Tensor]:
    """Scores on each sequence by name, and the stream where tokens stand for the first time, in one forward pass."""
    patterns: list[dict[str, Tensor]] = []
    copying = Copying(model, repeated) if outputs_are_tokens(model) else None

    def watch(layer: int, pattern: Tensor, z: Tensor) -> None:
        patterns.append(measure(pattern, repeated))
        if copying:
            copying.add(layer, pattern, z)

    with watching_heads(model, watch) as stream:
        model.logits(repeated.inputs)
    scores = {name: torch.stack([layer[name] for layer in patterns], 1).cpu() for name in PATTERNS}
    if copying is None:
        return scores
    once = slice(repeated.front, repeated.front + repeated.period)
    places = {"embedded": stream["embedded"], "first": stream["first"], "tokens": repeated.inputs.ids}
    at_places = {name: values[:, once].flatten(0, 1) for name, values in places.items()}
    return {**scores, **copying.scores(stream["final"]), **at_places}


def _chance(model: Model, repeated: Repeated) -> dict[str, float]:
    """What a head scores that knows nothing, by score."""
    return {
        **dict.fromkeys((*COPYING, EIGENVALUES[0]), 0.0),
        **dict.fromkeys(TOKEN_COPYING, TOP / int(model.hf.config.vocab_size)),
        **chance_levels(repeated, model.causal),
    }
