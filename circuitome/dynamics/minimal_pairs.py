"""Minimal pairs: whether a model finds the right one of two sentences likelier."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.dynamics.grammar import MinimalPair
from circuitome.engine.batches import memory_budget
from circuitome.engine.setting import Setting, method
from circuitome.errors import DataFileError, InputError
from circuitome.neurons.text_windows import packed
from circuitome.results import Estimate, Shown, proportion

COPIES = 3
"""Times that the logits of a batch are held."""


@dataclass(frozen=True, eq=False)
class PairScores(Shown):
    """Log-probabilities of the two sentences of minimal pairs."""

    kinds: tuple[str, ...]
    """The rule of each pair."""
    good: Float[Tensor, " pair"]
    """Log-probability of the right sentence, nats."""
    bad: Float[Tensor, " pair"]
    """Log-probability of the wrong one."""

    def __repr__(self) -> str:
        return f"PairScores({len(self.kinds)} pairs, accuracy {self.accuracy()})"

    @property
    def right(self) -> Float[Tensor, " pair"]:
        """1 where the right sentence is likelier, 0 where not, also where both are equally likely."""
        return (self.good > self.bad).float()

    def accuracy(self, kind: str | None = None) -> Estimate:
        """Share of pairs (of a kind) whose right sentence is likelier, with its Wilson interval; chance is 0.5."""
        rows = [i for i, name in enumerate(self.kinds) if kind in (None, name)]
        return proportion(self.right[rows], "share of pairs")

    def to_dict(self) -> dict[str, Any]:
        """Accuracy of all pairs and by kind, as plain JSON values."""
        kinds = {kind: self.accuracy(kind).to_dict() for kind in dict.fromkeys(self.kinds)}
        return {"pairs": len(self.kinds), "accuracy": self.accuracy().to_dict(), "kinds": kinds}


@method
def pair_scores(setting: Setting, pairs: Sequence[MinimalPair], *, front: Sequence[int] = ()) -> PairScores:
    """The log-probability of both sentences of each pair, sums over tokens in nats.

    In a decoder, sum over i of log P(t_i | t_1 ... t_i-1) without the first token where nothing stands in front of it.
    Tokens `front` are put in front of each sentence, such as that between texts, which makes the first token count.
    In a masked language model the pseudo-log-likelihood, sum over i of log P(t_i | all others), one pass for each token
    with that token masked; special tokens are not summed.
    Source: Warstadt et al. 2020, arXiv:1912.00582 (minimal pairs); Salazar et al. 2020, arXiv:1910.14659
    (pseudo-log-likelihood).

    >>> pairs = cm.dynamics.grammar_pairs(4)
    >>> cm.dynamics.pair_scores(cm.load("smollm2-135m"), pairs).accuracy().value > 0.5
    True

    Raises `InputError` without pairs, and for a masked language model without a mask token.
    """
    if not pairs:
        raise InputError("There are no minimal pairs to score. Give some, such as grammar_pairs(50).")
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    rows = [[*front, *setting.model.encode(text)] for text in texts]
    scores = _by_token(setting, rows, max(1, len(front))) if setting.model.causal else _masked(setting, rows)
    good, bad = scores.view(-1, 2).T
    return PairScores(tuple(pair.kind for pair in pairs), good, bad)


def _by_token(setting: Setting, rows: Sequence[Sequence[int]], first: int) -> Float[Tensor, " row"]:
    """Sums over the tokens from number `first` on."""
    scores = torch.zeros(len(rows))
    for some in _some_rows(setting, rows):
        inputs = packed([rows[i] for i in some]).inputs(setting.model, range(len(some)))
        with torch.no_grad():
            logits = setting.model.every_logits(inputs)[:, :-1].float().log_softmax(-1)
        each = logits.gather(-1, inputs.ids[:, 1:, None])[..., 0] * inputs.mask[:, 1:]
        scores[some] = each[:, first - 1 :].sum(1).cpu()
    return scores


def _masked(setting: Setting, rows: Sequence[Sequence[int]]) -> Float[Tensor, " row"]:
    """Pseudo-log-likelihoods: each copy of a sentence has one token masked."""
    tokenizer = setting.model.tokenizer
    token = getattr(tokenizer, "mask_token_id", None)
    if tokenizer is None or token is None:
        raise InputError(f"The tokenizer of {setting.model.name} has no mask token, so no token can be hidden.")
    special = set(tokenizer.all_special_ids)
    places = [(row, at) for row, ids in enumerate(rows) for at, i in enumerate(ids) if i not in special]
    copies = [[token if at == place else i for at, i in enumerate(rows[row])] for row, place in places]
    scores = torch.zeros(len(rows))
    for some in _some_rows(setting, copies):
        inputs = packed([copies[i] for i in some]).inputs(setting.model, range(len(some)))
        here = [places[i] for i in some]
        at = torch.tensor([place for _, place in here], device=setting.model.device)
        target = torch.tensor([rows[row][place] for row, place in here], device=setting.model.device)
        with torch.no_grad():
            logits = setting.model.every_logits(inputs)[torch.arange(len(at), device=at.device), at]
        each = logits.float().log_softmax(-1).gather(1, target[:, None])[:, 0]
        scores.index_add_(0, torch.tensor([row for row, _ in here]), each.cpu())
    return scores


def _some_rows(setting: Setting, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the rows in groups of about one length that fit the memory budget."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    model, longest = setting.model, max(map(len, rows))
    each = longest * (int(model.hf.config.vocab_size) * 4 * COPIES + model.bytes_per_token(gradients=False))
    size = max(1, memory_budget(setting.model, setting.max_memory) // each)
    return [order[start : start + size] for start in range(0, len(order), size)]


def read_pairs(path: str | Path) -> list[MinimalPair]:
    """Minimal pairs of a JSONL file with `sentence_good`, `sentence_bad` and, if wanted, `UID`, as BLiMP has them.

    A folder stands for all its .jsonl files.

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "agreement.jsonl"
    >>> _ = path.write_text('{"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep."}')
    >>> cm.dynamics.read_pairs(path)
    [MinimalPair(good='The cat sleeps.', bad='The cat sleep.', kind='agreement')]

    Raises `DataFileError`, with file and line.
    """
    place = Path(path)
    if place.is_dir():
        files = sorted(place.glob("*.jsonl"))
        if not files:
            raise DataFileError(f"The folder {path} holds no .jsonl file. Give one with minimal pairs, or a file.")
        return [pair for file in files for pair in read_pairs(file)]
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise DataFileError(f"{path}: cannot be read ({reason}). Give a JSONL file of minimal pairs.") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                pairs.append(MinimalPair(row["sentence_good"], row["sentence_bad"], row.get("UID", place.stem)))
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise DataFileError(
                    f"{path}, line {number}: expected an object with sentence_good and sentence_bad, got {line[:40]!r}."
                ) from None
    if not pairs:
        raise DataFileError(f"{path}: the file is empty. Give a JSONL file of minimal pairs.")
    return pairs
