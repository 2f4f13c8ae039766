"""Sentences of the grammar as a stream to train on, whose arcs are known token by token."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from circuitome.dynamics.grammar import sentence
from circuitome.dynamics.trees import tokens_of_words
from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.training.streams import NOT_COUNTED, Rows, number

REMEMBERED = 4096
"""Sentences whose arcs are remembered: those of the last steps."""
TRIES = 1000
"""Sentences that are drawn for a row at most."""


@dataclass(eq=False)
class GrammarStream:
    """Sentences of the grammar, a row each, padded: new ones in every step.

    Source of the objective that marks arcs: Chen et al. 2024, arXiv:2309.07311.

    >>> model = cm.dynamics.small_model("decoder", cm.dynamics.grammar_tokenizer())
    >>> stream = cm.dynamics.GrammarStream(model)
    >>> tokens = stream.batch(0, rows=2, length=24, seed=0)
    >>> model.decode(tokens.ids[0][tokens.mask[0] == 1].tolist())[-1], int(stream.arcs(tokens).sum()) > 0
    ('.', True)
    """

    model: Model
    """Whose tokenizer it is for."""
    known: dict[tuple[int, ...], list[tuple[int, int]]] = field(default_factory=dict, repr=False)
    """By sentence: the pairs of positions that an arc joins, the later first."""

    def batch(self, step: int, rows: int, length: int, seed: int) -> Rows:
        """See `Stream`. Raises `InputError` where hardly any sentence is that short."""
        rng, sentences = Random(number(seed, step, "grammar")), list[list[int]]()
        while len(sentences) < rows:
            sentences.append(self._drawn(rng, length))
        while len(self.known) > max(REMEMBERED, rows):
            del self.known[next(iter(self.known))]
        pad = int(getattr(self.model.tokenizer, "pad_token_id", None) or 0)
        ids, mask = torch.full((rows, length), pad), torch.zeros(rows, length, dtype=torch.long)
        for row, some in enumerate(sentences):
            ids[row, : len(some)], mask[row, : len(some)] = torch.tensor(some), 1
        return Rows(ids, mask=mask, step=step, seed=seed)

    def _drawn(self, rng: Random, length: int) -> list[int]:
        for _ in range(TRIES):
            tree = sentence(rng)
            ids, shares = tokens_of_words(self.model, tree)
            if len(ids) <= length:
                tokens = [row.nonzero()[:, 0].tolist() for row in shares]
                pairs = ((a, b) for _, child, head in tree.arcs() for a in tokens[child] for b in tokens[head])
                self.known.pop(tuple(ids), None)  # what is drawn again is not the oldest
                self.known[tuple(ids)] = [(max(pair), min(pair)) for pair in pairs]
                return ids
        raise InputError(f"Hardly any sentence of the grammar has at most {length} tokens. Make rows longer.")

    def arcs(self, tokens: Rows) -> Bool[Tensor, "row query key"]:
        """Which pairs of positions an arc joins in rows that this stream gave.

        The later position is the query; the earlier one is too where the model sees both ways.
        """
        plain = tokens.ids if tokens.labels is None else _unmasked(tokens)
        marks = torch.zeros(*plain.shape, plain.shape[1], dtype=torch.bool)
        real = torch.ones_like(plain) if tokens.mask is None else tokens.mask
        for row, ids in enumerate(_sentences(plain, real)):
            for later, earlier in self.known[ids]:
                marks[row, later, earlier] = True
        marks = marks if self.model.causal else marks | marks.mT
        return marks.to(plain.device)


def _unmasked(tokens: Rows) -> Int[Tensor, "row pos"]:
    """The sentences before tokens were hidden."""
    assert tokens.labels is not None
    return torch.where(tokens.labels == NOT_COUNTED, tokens.ids, tokens.labels)


def _sentences(ids: Tensor, real: Tensor) -> Iterator[tuple[int, ...]]:
    for row, length in zip(ids.tolist(), real.sum(1).tolist(), strict=True):
        yield tuple(row[:length])
