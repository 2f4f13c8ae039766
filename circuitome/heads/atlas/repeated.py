"""Sequences of random tokens that start again: what a head does with them is not what it knows about words.

Each sequence is what the tokenizer puts in front of a text (nothing or BOS), then `period` different random tokens,
then the same again. Source: Olsson et al. 2022, arXiv:2209.11895; they repeat 25 tokens four times.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model

SHORTEST = 3
"""Of shorter periods the token before, the duplicate and the token after the duplicate are not three places."""
PERIOD = 32
"""Length of a period where nobody asks for another and the model is not too small for it."""

_WORD = re.compile("[\u0120\u2581][a-z]{3,}")
"""A whole word with its leading space, as byte-level (Ġ) and sentencepiece (▁) vocabularies write it."""
_COMMON, _RARE = 0.05, 0.5
"""Share of words left out as too common, and beyond which share words are too rare: ids go from common to rare."""
_FEWEST = 100
"""A vocabulary with fewer words than that in between is too small to choose from."""


@dataclass(frozen=True, eq=False)
class Repeated:
    """Repeated random tokens, ready to run."""

    inputs: Inputs
    """The sequences, equally long, nothing padded."""
    front: int
    """Tokens that the tokenizer puts in front of each."""
    period: int
    """Different tokens in a sequence."""
    repeats: int
    """How often they come."""

    @property
    def length(self) -> int:
        """Positions of a sequence."""
        return self.front + self.period * self.repeats

    @cached_property
    def late(self) -> Bool[Tensor, " pos"]:
        """Positions in the second and later repeats."""
        return torch.arange(self.length) >= self.front + self.period

    @cached_property
    def layout(self) -> Int[Tensor, " pos"]:
        """A number for each position of a sequence, the same where the same token stands."""
        tokens = torch.arange(self.period).repeat(self.repeats)
        return torch.cat([torch.arange(self.front) + self.period, tokens])


def repeated_tokens(
    model: Model, *, n: int, period: int, repeats: int = 2, seed: int = 0, tokens: Sequence[int] | None = None
) -> Repeated:
    """`n` sequences of `period` different random tokens, each repeated `repeats` times in all.

    Tokens are whole words of middling frequency with a leading space where the vocabulary has many, else any that are
    not special; all ids where there is no tokenizer; or those of `tokens`. In front stands what the
    tokenizer puts there by default.
    Raises `InputError` where the model has too few positions or tokens, or a number is too small.

    >>> cm.heads.repeated_tokens(cm.load("known-induction"), n=2, period=4).inputs.ids[0].tolist()  # BOS first
    [0, 13, 11, 10, 7, 13, 11, 10, 7]
    """
    _check(n, period, repeats)
    front = tokens_in_front(model)
    ids = ordinary_ids(model) if tokens is None else list(tokens)
    limit = _positions(model)
    length = len(front) + period * repeats
    if limit is not None and length > limit:
        raise InputError(
            f"{repeats} repeats of {period} tokens with {len(front)} in front are {length} positions; {model.name} has "
            f"{limit}. Use a period of at most {(limit - len(front)) // repeats}."
        )
    if len(ids) < period:
        raise InputError(
            f"A period of {period} needs as many different tokens; {model.name} has {len(ids)} ordinary ones. Use a "
            "shorter period."
        )
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(len(ids), generator=generator)[:period].repeat(repeats) for _ in range(n)]
    drawn = torch.tensor(ids)[torch.stack(draws)]
    whole = torch.cat([torch.tensor(front, dtype=torch.long).expand(n, -1), drawn], 1).to(model.device)
    return Repeated(Inputs.whole(whole), len(front), period, repeats)


def usual_period(model: Model, repeats: int = 2) -> int:
    """The usual period, or the longest that the model's positions and vocabulary allow."""
    limit = _positions(model)
    fits = PERIOD if limit is None else (limit - len(tokens_in_front(model))) // repeats
    return max(SHORTEST, min(PERIOD, fits, len(ordinary_ids(model))))


def tokens_in_front(model: Model) -> list[int]:
    """What the tokenizer puts in front of every text by default; nothing where there is no tokenizer."""
    if model.tokenizer is None:
        return []
    text = model.decode(ordinary_ids(model)[:1]).strip() or "a"
    whole, bare = model.encode(text), model.encode_answer(text)
    return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])


def ordinary_ids(model: Model) -> list[int]:
    """Ids that random sequences are made of, in order."""
    size = int(model.hf.config.vocab_size)
    tokenizer = model.tokenizer
    if tokenizer is None:
        return list(range(size))
    special = set(tokenizer.all_special_ids)
    kept = [i for i in range(min(size, len(tokenizer))) if i not in special]
    words = [i for i, token in zip(kept, tokenizer.convert_ids_to_tokens(kept), strict=True) if _is_word(token)]
    middling = words[int(_COMMON * len(words)) : int(_RARE * len(words))]
    return middling if len(middling) >= _FEWEST else kept


def reads_text(model: Model) -> bool:
    """Whether the model's tokenizer knows words, so that ordinary text can be given to it."""
    tokenizer = model.tokenizer
    return tokenizer is not None and any(_is_word(token) for token in tokenizer.get_vocab())


def _is_word(token: str | None) -> bool:
    return token is not None and _WORD.fullmatch(token) is not None


def _positions(model: Model) -> int | None:
    return model.positions


def _check(n: int, period: int, repeats: int) -> None:
    for name, value, least in (("n", n, 1), ("period", period, SHORTEST), ("repeats", repeats, 2)):
        if value < least:
            raise InputError(f"{name} must be at least {least} for repeated tokens, got {value}.")
