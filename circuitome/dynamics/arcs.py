"""Syntactic attention structure: how well the attention of single heads finds the arcs of dependency trees."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.dynamics.trees import Tree, tokens_of_words
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.neurons.text_windows import packed
from circuitome.results import Estimate, Shown, bootstrap

DIRECTIONS = ("child attends to head", "head attends to child")
OFFSETS = tuple(offset for offset in range(-8, 9) if offset)
"""Distances to the other word that the baseline may choose."""
LONGEST = 128
"""Tokens of a sentence, at most."""
ROWS = 16
"""Sentences of a pass."""
UNIT = "share of arcs"


@dataclass(frozen=True, eq=False)
class Syntax(Shown):
    """Which arcs of dependency trees the attention of each head finds."""

    model: str
    """The model's name."""
    kinds: tuple[str, ...]
    """Kinds of arcs: relations; for a decoder each with the order of the two words, `nsubj, child first`."""
    kind: Int[Tensor, " arc"]
    """The kind of each arc."""
    sentence: Int[Tensor, " arc"]
    """The sentence of each arc."""
    exists: Bool[Tensor, "arc direction"]
    """Whether the one word may attend to the other: in a decoder only the later to the earlier."""
    by_head: Bool[Tensor, "arc direction layer head"]
    """Whether the head's strongest attention from the one word, over all other words, is to the other word."""
    by_offset: Bool[Tensor, "arc direction offset"]
    """Whether the other word is that far from the one word."""
    half: Bool[Tensor, " arc"]
    """Which half of the sentences each arc is in."""
    left_out: int
    """Sentences that are too long."""

    def __repr__(self) -> str:
        return f"Syntax({self.model}, {len(self.kind):,} arcs, UAS {self.uas()}, best offsets {self.uas('offset')})"

    @cached_property
    def chosen(self) -> dict[str, Bool[Tensor, " arc"]]:
        """Whether each arc is found by what is best for its kind on the other half: a head, or a fixed offset."""
        return {name: self._crossed(hits) for name, hits in self._hits.items()}

    @property
    def _hits(self) -> dict[str, Bool[Tensor, "arc option"]]:
        return {"head": self.by_head.flatten(1), "offset": self.by_offset.flatten(1)}

    def _crossed(self, hits: Bool[Tensor, "arc option"]) -> Bool[Tensor, " arc"]:
        right = torch.zeros(len(hits), dtype=torch.bool)
        for kind in range(len(self.kinds)):
            for scored in (self.half, ~self.half):
                rows, others = scored & (self.kind == kind), ~scored & (self.kind == kind)
                if rows.any() and others.any():
                    right[rows] = hits[rows, hits[others].float().mean(0).argmax()]
        return right

    def uas(self, by: str = "head", kind: str | None = None) -> Estimate:
        """Share of arcs (of a kind) that are found, by the best `head` of each kind or the best `offset`.

        What is best is chosen on one half of the sentences and scored on the other, both ways. Interval over sentences.
        """
        rows = torch.ones_like(self.half) if kind is None else self.kind == self.kinds.index(kind)
        return self._share(self.chosen[by][rows], self.sentence[rows])

    def best(self, by: str = "head") -> tuple[str, ...]:
        """For each kind, what is best on all sentences: head and direction, or direction and offset."""
        names = []
        for kind in range(len(self.kinds)):
            options = self.by_head if by == "head" else self.by_offset
            shares = options[self.kind == kind].float().mean(0)
            place = [int(part) for part in torch.unravel_index(shares.argmax(), shares.shape)]
            what = str(Node.head(*place[1:])) if by == "head" else f"{OFFSETS[place[1]]:+d}"
            names.append(f"{what}, {DIRECTIONS[place[0]]}")
        return tuple(names)

    @cached_property
    def head_share(self) -> Float[Tensor, "layer head"]:
        """Share of all arcs that each head alone finds, in its better direction; what cannot exist counts as missed."""
        return self.by_head.float().mean(0).amax(0)

    def _share(self, hits: Tensor, sentences: Tensor) -> Estimate:
        names, place = sentences.unique(return_inverse=True)
        columns = torch.zeros(len(names), 2, dtype=torch.double)
        columns[:, 0].index_add_(0, place, hits.double())
        columns[:, 1].index_add_(0, place, torch.ones_like(hits, dtype=torch.double))
        return bootstrap(columns, lambda means: means[:, 0] / means[:, 1], UNIT)

    def to_dict(self) -> dict[str, Any]:
        """Estimates by kind, what is best, and the share that each head finds, as plain JSON values."""
        heads, offsets, counts = self.best(), self.best("offset"), self.kind.bincount(minlength=len(self.kinds))
        return {
            "sentences": len(self.sentence.unique()),
            "left_out": self.left_out,
            "arcs": len(self.kind),
            "uas": self.uas().to_dict(),
            "offset_uas": self.uas("offset").to_dict(),
            "kinds": [
                {
                    "kind": name,
                    "arcs": int(counts[i]),
                    "best_head": heads[i],
                    "head": self.uas("head", name).to_dict(),
                    "best_offset": offsets[i],
                    "offset": self.uas("offset", name).to_dict(),
                }
                for i, name in enumerate(self.kinds)
            ],
            "head_share": self.head_share.tolist(),
        }


@method
def syntax(setting: Setting, trees: Sequence[Tree], *, min_arcs: int = 100) -> Syntax:
    """Implicit parses: the arcs of `trees` that single heads find by their strongest attention.

    The attention of word i to word j is the mean over the tokens of i of the sum over the tokens of j; special tokens
    are left out. A head's guess for i is the other word of the largest attention, the first of equals. An arc is found
    where the guess for its child is its head, or the other way round; which direction, layer and head is best for a
    relation is chosen on one half of the sentences and scored on the other, and so is the best fixed distance beside
    it. In a decoder only the later word attends to the earlier one, so that each relation is two kinds of arcs, by
    which word comes first, each with the direction that exists.
    Kinds of fewer than `min_arcs` arcs, root and punctuation are left out; so are sentences of more than 128 tokens.
    Source: Chen et al. 2024, arXiv:2309.07311 (implicit UAS); Clark et al. 2019, arXiv:1906.04341 (offsets). They
    choose and score on the same sentences, which flatters all heads; the two halves are ours.

    >>> model = cm.load("smollm2-135m")
    >>> found = cm.dynamics.syntax(model, cm.dynamics.grammar_trees(12), min_arcs=20)
    >>> found.kinds[0], 0 < found.uas().value <= 1
    ('det, child first', True)

    Raises `InputError` where no kind has enough arcs or the model has no tokenizer for it, `UnsupportedModelError` for
    a model that shows no attention.
    """
    model = setting.model
    rows = [(i, tree, *tokens_of_words(model, tree)) for i, tree in enumerate(trees)]
    limit = min(LONGEST, model.positions or LONGEST)
    kept = [row for row in rows if len(row[2]) <= limit]
    kinds = _kinds(model.causal, [row[1] for row in kept], min_arcs)
    tell, done, parts = setting.tell("attention of words to words"), 0, list[_Arcs]()
    for some in _batches(kept):
        guesses = _guesses(setting, some)
        for row, (number, tree, _, share) in enumerate(some):
            parts.append(_Arcs.of(tree, number, kinds, model.causal, guesses[row], share.any(1)))
        done += len(some)
        tell(done, len(kept))
    kind, sentence, exists, by_head, by_offset = (
        torch.cat([getattr(part, name) for part in parts])
        for name in ("kind", "sentence", "exists", "by_head", "by_offset")
    )
    order = torch.randperm(len(trees), generator=torch.Generator().manual_seed(setting.seed))
    half = (order.argsort() < len(trees) / 2)[sentence]
    return Syntax(model.name, tuple(kinds), kind, sentence, exists, by_head, by_offset, half, len(rows) - len(kept))


def _kinds(causal: bool, trees: Sequence[Tree], min_arcs: int) -> list[str]:
    """Kinds of arcs that are frequent enough, most frequent first. Raises `InputError` where there are none."""
    counts = Counter(_kind(causal, *arc) for tree in trees for arc in tree.arcs())
    kinds = [kind for kind, count in counts.most_common() if count >= min_arcs]
    if not kinds:
        most = f"the most frequent has {counts.most_common(1)[0][1]}" if counts else "there are none"
        raise InputError(
            f"No relation has {min_arcs} arcs in these {len(trees)} sentences; {most}. Give more trees, or a smaller "
            "min_arcs."
        )
    return kinds


def _kind(causal: bool, relation: str, child: int, head: int) -> str:
    return f"{relation}, {'child' if child < head else 'head'} first" if causal else relation


Row = tuple[int, Tree, list[int], Tensor]
"""A sentence: its number, its tree, its token ids, and which token is part of which word [word, token]."""


def _batches(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Sentences of about the same length together."""
    ordered = sorted(rows, key=lambda row: len(row[2]))
    for start in range(0, len(ordered), ROWS):
        yield ordered[start : start + ROWS]


def _guesses(setting: Setting, rows: Sequence[Row]) -> Int[Tensor, "sentence layer head word"]:
    """The other word of the largest attention of every word, in one forward pass."""
    model, device = setting.model, setting.model.device
    inputs = packed([row[2] for row in rows]).inputs(model, range(len(rows)))
    shares = torch.zeros(len(rows), max(len(row[1].words) for row in rows), inputs.ids.shape[1])
    for i, row in enumerate(rows):
        shares[i, : row[3].shape[0], : row[3].shape[1]] = row[3]
    shares = shares.to(device)
    queries = shares / shares.sum(-1, keepdim=True).clamp(min=1)
    words = shares.shape[1]
    hidden = ~shares.any(-1)[:, None, :] | torch.eye(words, dtype=torch.bool, device=device)
    if model.causal:
        hidden = hidden | torch.ones(words, words, dtype=torch.bool, device=device).triu()
    guesses: list[Tensor] = []

    def note(layer: int, pattern: Tensor) -> None:
        by_word = torch.einsum("bwq,bhqk,bvk->bhwv", queries, pattern.float(), shares)
        guesses.append(by_word.masked_fill(hidden[:, None], -1.0).argmax(-1).cpu())

    with torch.no_grad(), model.watching_attention(note):
        model.logits(inputs)
    return torch.stack(guesses, 1)


@dataclass(frozen=True, eq=False)
class _Arcs:
    """The arcs of a sentence, laid out as in `Syntax`."""

    kind: Int[Tensor, " arc"]
    sentence: Int[Tensor, " arc"]
    exists: Bool[Tensor, "arc direction"]
    by_head: Bool[Tensor, "arc direction layer head"]
    by_offset: Bool[Tensor, "arc direction offset"]

    @classmethod
    def of(
        cls,
        tree: Tree,
        number: int,
        kinds: Sequence[str],
        causal: bool,
        guesses: Int[Tensor, "layer head longest"],
        shown: Bool[Tensor, " word"],
    ) -> "_Arcs":
        arcs = [
            (kinds.index(kind), child, head)
            for relation, child, head in tree.arcs()
            if shown[child] and shown[head] and (kind := _kind(causal, relation, child, head)) in kinds
        ]
        kind, child, head = torch.tensor(arcs, dtype=torch.long).view(-1, 3).T
        ends = torch.stack([torch.stack([child, head], 1), torch.stack([head, child], 1)])  # direction, arc, from-to
        attending, attended = ends.unbind(-1)
        exists = (attended < attending) | torch.tensor(not causal)
        right = guesses[:, :, attending].permute(2, 3, 0, 1) == attended[:, :, None, None]
        offsets = (attended - attending)[..., None] == torch.tensor(OFFSETS)
        return cls(
            kind,
            torch.full_like(kind, number),
            exists.T,
            (right & exists[:, :, None, None]).transpose(0, 1),
            (offsets & exists[..., None]).transpose(0, 1),
        )
