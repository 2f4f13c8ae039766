"""How much each head and MLP matters to routes over a corpus: mean importances by group of texts or tokens.

At every token of every text the importance of a head is the sum over keys of what it adds to the token's stream, that
of an MLP what it adds; no target and no threshold. A group's mean is over its tokens, its interval over its texts.
Source: Ferrando and Voita 2024, arXiv:2403.00824, section 4 (importances over data sets).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.discovery.routes.forward import RoutePass
from circuitome.discovery.routes.proximity import attention_proximity, check_norm, importances, proximity
from circuitome.discovery.routes.tracing import Prompt, plain_task, prompt_ids
from circuitome.engine.batches import group_rows, make_batch
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method
from circuitome.engine.shards import WHOLE, Shard, shard_of
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.results import Estimate, bootstrap

Labels = Sequence[str] | Sequence[Sequence[str]]
"""One label a text, or one a token of every text."""
BLOCK, SECONDS = 64, 60.0
"""Texts that are put into batches together, and how long work may go on before it is written down."""
ALL = "all"
"""The group of every token where no labels are given."""


@dataclass(frozen=True, eq=False)
class RouteImportance:
    """Importances of heads and MLPs by group; with residual and biases, the parts of one sum at one token give 1."""

    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Query heads of a block."""
    groups: tuple[str, ...]
    """Names of the groups, in the order of their first token."""
    sums: Float[Tensor, "row part"]
    """Importances summed over the tokens that one text has in one group; parts as in `parts`."""
    counts: Float[Tensor, " row"]
    """How many tokens that are."""
    group_of: Int[Tensor, " row"]
    """Which group each row belongs to."""

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts: a0.h0, ..., m0, a1.h0, ..."""
        return tuple(
            str(node)
            for layer in range(self.n_layers)
            for node in (*(Node.head(layer, head) for head in range(self.n_heads)), Node.mlp(layer))
        )

    def _rows(self, group: str) -> Tensor:
        if group not in self.groups:
            raise unknown_name("group", group, self.groups)
        return self.group_of == self.groups.index(group)

    def tokens(self, group: str) -> int:
        """Tokens of a group. Raises `UnknownNameError`."""
        return int(self.counts[self._rows(group)].sum())

    @cached_property
    def mean(self) -> Float[Tensor, "group part"]:
        """Mean importance of every part in every group."""
        rows = [self._rows(group) for group in self.groups]
        return torch.stack([self.sums[row].sum(0) / self.counts[row].sum() for row in rows])

    def heads(self, group: str) -> Float[Tensor, "layer head"]:
        """Mean importances of heads in a group. Raises `UnknownNameError`."""
        return self._grid(group)[:, :-1]

    def mlps(self, group: str) -> Float[Tensor, " layer"]:
        """Mean importances of MLPs in a group. Raises `UnknownNameError`."""
        return self._grid(group)[:, -1]

    def _grid(self, group: str) -> Tensor:
        self._rows(group)
        return self.mean[self.groups.index(group)].view(self.n_layers, -1)

    def estimate(self, part: str, group: str) -> Estimate:
        """One part's mean importance with its bootstrap interval over the group's texts. Raises `UnknownNameError`."""
        if part not in self.parts:
            raise unknown_name("head or MLP", part, self.parts)
        rows = self._rows(group)
        columns = torch.stack([self.sums[rows, self.parts.index(part)], self.counts[rows]], 1)
        return bootstrap(columns, lambda means: means[:, 0] / means[:, 1], "share of a token's stream")

    def general(self, n: int = 10) -> list[tuple[str, float]]:
        """Heads that matter everywhere: the largest importances in the group where each matters least."""
        return self._ranked(self.mean.amin(0), n)

    def specific(self, group: str, n: int = 10) -> list[tuple[str, float]]:
        """Heads of one group: how much more they matter there than in the other group where they matter most.

        Raises `UnknownNameError`, and `InputError` where there is one group only.
        """
        self._rows(group)
        if len(self.groups) < 2:
            raise InputError(f"There is only the group {group!r}, so nothing is specific to it. Give labels.")
        here = self.groups.index(group)
        others = torch.cat([self.mean[:here], self.mean[here + 1 :]])
        return self._ranked(self.mean[here] - others.amax(0), n)

    def _ranked(self, values: Tensor, n: int) -> list[tuple[str, float]]:
        heads = [(name, value) for name, value in zip(self.parts, values.tolist(), strict=True) if name[0] == "a"]
        return sorted(heads, key=lambda item: -item[1])[:n]

    @classmethod
    def joined(cls, parts: Sequence["RouteImportance"]) -> "RouteImportance":
        """The importances of all shards of one corpus, which have the same groups, in their order."""
        names = ("sums", "counts", "group_of")
        sums, counts, group_of = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        return replace(parts[0], sums=sums, counts=counts, group_of=group_of)


@method
def route_importance(
    setting: Setting,
    texts: Sequence[Prompt],
    labels: Labels | None = None,
    *,
    norm: str = "l1",
    shard: Shard = WHOLE,
) -> RouteImportance:
    """Mean importance of every head and MLP over the tokens of `texts`, by label.

    `labels` holds one label a text (domain, language) or one a token of every text (part of speech, `token_labels`).
    Texts are streamed in blocks of `BLOCK`, in each in batches of alike lengths; the result does not depend on them.
    Time: one forward pass, and 3 operations a token, key it sees, head and residual coordinate. `shard` measures the
    texts of one shard alone; `RouteImportance.joined` of all shards is the same to the byte as all texts in one. With
    a checkpoint, what is measured is written every minute.

    >>> model = cm.load("known-ioi")
    >>> texts = ["Ann and Bob met then Bob gave to", "Cid and Dan met then Cid gave to"]
    >>> cm.route_importance(model, texts, ["one", "two"]).groups
    ('one', 'two')

    Raises `InputError` for no texts, an empty text, or labels that do not fit, and `UnknownNameError` for another norm.
    """
    model = setting.model
    check_norm(norm)
    if not len(texts):
        raise InputError("There are no texts; route_importance needs at least one.")
    encoded = [prompt_ids(model, text) for text in texts]
    named = _named(encoded, labels)
    groups = tuple(dict.fromkeys(label for own in named for label in own))
    kept = setting.kept("routes", plain_task(encoded).data_hash(), named, norm, list(shard))
    rows = _empty_rows(model) if (before := kept.read()) is None else before[0]
    done = 0 if before is None else int(before[1]["texts"])
    mine = shard_of(-(-len(encoded) // BLOCK), shard)
    start, end = (min(number * BLOCK, len(encoded)) for number in (mine.start, mine.stop))
    last = time.monotonic()
    for at in range(start + done, end, BLOCK):
        part = range(at, min(at + BLOCK, end))
        block = _block(setting, [encoded[i] for i in part], [named[i] for i in part], groups, norm)
        rows = {name: torch.cat([rows[name], block[name]]) for name in rows}
        if time.monotonic() - last > SECONDS or part.stop == end:
            kept.write(rows, {"texts": part.stop - start})
            last = time.monotonic()
        setting.progress("tracing texts", part.stop - start, end - start)
    return RouteImportance(model.graph.n_layers, model.graph.n_heads, groups, **rows)


def _empty_rows(model: Model) -> dict[str, Tensor]:
    parts = model.graph.n_layers * (model.graph.n_heads + 1)
    return {"sums": torch.zeros(0, parts), "counts": torch.zeros(0), "group_of": torch.zeros(0, dtype=torch.long)}


def _block(
    setting: Setting, encoded: list[list[int]], named: list[list[str]], groups: tuple[str, ...], norm: str
) -> dict[str, Tensor]:
    """The rows of some texts: sums, counts and groups."""
    model, task = setting.model, plain_task(encoded)
    index = {name: i for i, name in enumerate(groups)}
    found: dict[int, list[tuple[Tensor, float, int]]] = {}
    for rows in group_rows(model, task, shared_prefix=False, max_memory=setting.max_memory):
        seen = RoutePass.of(model, make_batch(model, task, rows, shared_prefix=False, corrupted=False).clean)
        with model.eager_attention():
            by_token = _by_token(seen, [len(encoded[row]) for row in rows], norm)
        del seen  # before the next one is recorded
        for row, values in zip(rows, by_token, strict=True):
            member = torch.zeros(len(groups), len(values))
            member[[index[label] for label in named[row]], range(len(values))] = 1
            sums, counts = member @ values, member.sum(1)
            found[row] = [(sums[g], float(counts[g]), g) for g in counts.nonzero().flatten().tolist()]
    flat = [one for row in sorted(found) for one in found[row]]
    sums = torch.stack([values for values, _, _ in flat])
    check_numbers(sums, "importance of heads and MLPs")
    counts, places = (torch.tensor([entry[i] for entry in flat]) for i in (1, 2))
    return {"sums": sums, "counts": counts, "group_of": places}


@torch.no_grad()
def _by_token(seen: RoutePass, lengths: Sequence[int], norm: str) -> list[Float[Tensor, "pos part"]]:
    """Importances of heads and MLPs at every token, text by text."""
    model = seen.model
    found = [torch.zeros(length, len(model.blocks), model.heads.q + 1) for length in lengths]
    for layer, block in enumerate(model.blocks):
        pattern, values, weights = seen.pattern(layer), seen.values(layer), block.head_weights()
        pre, post, mlp = seen.pre(layer), seen.pre(layer + 1), seen.mlp(layer)
        mid = post if seen.parallel else seen.mid(layer)
        biases = torch.stack([seen.attention_bias(layer), seen.mlp_bias(layer)])
        attention_bias, mlp_bias = (
            proximity(bias, total, norm) for bias, total in zip(biases, (mid, post), strict=True)
        )
        near_pre, near_mlp = proximity(pre, mid, norm), proximity(mlp, post, norm)
        near_mid = None if seen.parallel else proximity(mid, post, norm)
        for row, n in enumerate(lengths):
            near = attention_proximity(pattern[row, :n, :, :n], values[row, :, :n], weights, mid[row, :n], norm).sum(-1)
            before, bias = near_pre[row, :n], attention_bias[row, :n]
            last = near_mlp[row, :n], mlp_bias[row, :n]
            if near_mid is None:
                heads, mlps, *_ = importances(near, last[0], last[1], before, bias)
            else:
                heads, *_ = importances(near, before, bias)
                mlps, *_ = importances(last[0], last[1], near_mid[row, :n])
            found[row][:, layer, :-1], found[row][:, layer, -1] = heads.cpu(), mlps.cpu()
    return [one.flatten(1) for one in found]


def _named(encoded: Sequence[Sequence[int]], labels: Labels | None) -> list[list[str]]:
    """A label for every token. Raises `InputError` where labels do not fit the texts."""
    if labels is None:
        return [[ALL] * len(ids) for ids in encoded]
    if len(labels) != len(encoded):
        raise InputError(f"There are {len(labels)} labels for {len(encoded)} texts; give one a text, or a list a text.")
    named = []
    for place, (label, ids) in enumerate(zip(labels, encoded, strict=True)):
        own = [label] * len(ids) if isinstance(label, str) else [str(one) for one in label]
        if len(own) != len(ids):
            raise InputError(f"Text {place} has {len(ids)} tokens and {len(own)} labels; every token needs one.")
        named.append(own)
    return named


TOKEN_LABELS = ("position", "subword")
"""Labels of tokens that need nothing but the text."""


def token_labels(model: Model, texts: Sequence[Prompt], kind: str) -> list[list[str]]:
    """Labels of all tokens: by `position` (first, 1-3, 4-15, 16-63, 64 and more) or `subword` (start, inside, other).

    A token that begins with a space, or comes first, starts a word; one that begins with a letter or digit goes on with
    it; others are punctuation and the like. Raises `UnknownNameError` for another kind.
    """
    if kind not in TOKEN_LABELS:
        raise unknown_name("label of tokens", kind, TOKEN_LABELS)
    encoded = [prompt_ids(model, text) for text in texts]
    if kind == "position":
        return [[_bin(place) for place in range(len(ids))] for ids in encoded]
    return [[_piece(model.decode([i]), place) for place, i in enumerate(ids)] for ids in encoded]


def _bin(place: int) -> str:
    return next(
        (name for limit, name in ((1, "first"), (4, "1-3"), (16, "4-15"), (64, "16-63")) if place < limit), "64+"
    )


def _piece(text: str, place: int) -> str:
    if place == 0 or text[:1].isspace():
        return "word start" if text.strip()[:1].isalnum() else "other"
    return "inside word" if text[:1].isalnum() else "other"
