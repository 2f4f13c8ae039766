"""A behaviour as data: clean and corrupted prompt pairs, the answers, and the metric that tells how well it is done."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from circuitome.errors import TaskError
from circuitome.tasks.metrics import Metric, metric_of


@runtime_checkable
class Tokens(Protocol):
    """What a task needs of a model: its tokenizer with its own defaults (BOS included where it adds one)."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens as the tokenizer adds them."""
        ...

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a continuation: no special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...


@dataclass(frozen=True)
class Pair:
    """One prompt and its corrupted twin. Raises `TaskError` for negative token ids and positions outside the prompt.

    >>> cm.tasks.Pair(clean=(1, 2, 3), corrupted=(1, 4, 3), answers=(5,), wrongs=(6,)).answer_position
    2
    """

    clean: tuple[int, ...]
    """Token ids of the clean prompt."""
    corrupted: tuple[int, ...]
    """Token ids of the corrupted prompt; as many as in `clean` where activations are to be swapped by position."""
    answers: tuple[int, ...]
    """Token ids that count as right after the clean prompt."""
    wrongs: tuple[int, ...]
    """Token ids that count as wrong after the clean prompt."""
    clean_text: str = ""
    """The clean prompt as text, for people."""
    corrupted_text: str = ""
    """The corrupted prompt as text, for people."""
    template: str = ""
    """Name of the template the pair was made from; groups pairs whose positions mean the same."""
    roles: Mapping[str, int] = field(default_factory=dict)
    """Token position in `clean` of each named role, e.g. {"IO": 1, "S1": 3, "S2": 9, "end": 13}."""
    answer_position: int = -1
    """Position of the token in `clean` after which the answer is expected and the logits are read, counted from 0; a
    negative one is counted from the end when it is given."""
    corrupted_roles: Mapping[str, int] = field(default_factory=dict)
    """Token position in `corrupted` of roles, where the two prompts differ in length: what the ablation by-role goes
    by."""

    def __post_init__(self) -> None:
        size = len(self.clean)
        if not size:
            raise TaskError("The clean prompt has no tokens; give at least one token id.")
        for what in ("clean", "corrupted", "answers", "wrongs"):
            if bad := [token for token in getattr(self, what) if token < 0]:
                raise TaskError(f"A token id is a number from 0 on, got {bad[0]} in `{what}` of {self._shown}.")
        if not -size <= self.answer_position < size:
            raise TaskError(
                f"The answer position {self.answer_position} lies outside of the clean prompt of {self._shown}, which "
                f"has {size} tokens. Give one from 0 to {size - 1}, or from -{size} to -1 to count from the end."
            )
        for role, position in self.roles.items():
            if not 0 <= position < size:
                raise TaskError(
                    f"The role {role!r} is at position {position}, outside of the clean prompt of {self._shown}, which "
                    f"has {size} tokens. Give a position from 0 to {size - 1}."
                )
        for role, position in self.corrupted_roles.items():
            if not 0 <= position < len(self.corrupted):
                raise TaskError(
                    f"The role {role!r} is at position {position}, outside of the corrupted prompt of {self._shown}, "
                    f"which has {len(self.corrupted)} tokens. Give a position from 0 to {len(self.corrupted) - 1}."
                )
        object.__setattr__(self, "answer_position", self.answer_position % size)

    @property
    def _shown(self) -> str:
        """The pair in an error message."""
        return f"the pair {self.clean_text or list(self.clean)!r}"


@dataclass(frozen=True, repr=False)
class Task:
    """Prompt pairs with one metric. The metric is larger when the model does the task better.

    >>> model = cm.load("known-ioi")
    >>> clean, corrupted = "Ann and Bob met then Bob gave to", "Ann and Bob met then Ann gave to"
    >>> cm.Task("names", (cm.tasks.make_pair(model, clean, corrupted, ["Ann"], ["Bob"]),))
    Task('names', 1 prompt pairs, metric logit diff in logits)

    Raises `UnknownNameError` for a metric that does not exist, `TaskError` where there are no pairs or the metric lacks
    wrong answers.
    """

    name: str
    """Short name, e.g. "ioi"."""
    pairs: tuple[Pair, ...]
    """The prompts."""
    metric: "str | Metric | Callable[[Tensor, Sequence[Pair]], Tensor]" = "logit_diff"
    """A name in `circuitome.tasks.METRICS`, a `Metric`, or a function of logits [batch, vocab] and pairs."""
    seed: int | None = None
    """Seed the prompts were drawn with; None when they came from a file."""
    source: str = ""
    """Where the prompts came from: a generator's name or a file name."""

    def __post_init__(self) -> None:
        if not self.pairs:
            raise TaskError(f"Task {self.name!r} has no prompt pairs; it needs at least one.")
        if self.measure.name != "answer_log_prob" and any(pair.wrongs and not pair.answers for pair in self.pairs):
            raise TaskError(
                f"Task {self.name!r} has answers of several tokens, which only the metric of its own can score, their "
                f"summed log-probability; {self.measure.name} sees one token."
            )
        if self.measure.name == "logit_diff_max" and not all(pair.wrongs for pair in self.pairs):
            raise TaskError(f"Task {self.name!r}: the metric logit_diff_max needs a wrong answer for every prompt.")

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self)} prompt pairs, metric {self.measure} in {self.unit})"

    def __len__(self) -> int:
        return len(self.pairs)

    def rows_of(self, template: str) -> list[int]:
        """The prompts of a template."""
        return [row for row, pair in enumerate(self.pairs) if pair.template == template]

    @cached_property
    def measure(self) -> Metric:
        """The metric."""
        return metric_of(self.metric)

    @property
    def unit(self) -> str:
        """Unit of the metric, e.g. "logits"."""
        return self.measure.unit

    def measured_by(self, metric: "str | Metric | Callable[[Tensor, Sequence[Pair]], Tensor]") -> "Task":
        """The same prompts with another metric. Raises `UnknownNameError` for a name that is none."""
        return replace(self, metric=metric)

    @property
    def groups(self) -> tuple[int, ...]:
        """By prompt: the number of its template, in order of appearance; prompts of one group are not independent.

        A prompt without a template is a group of its own, shared only with prompts of the same clean tokens.
        """
        numbers: dict[object, int] = {}
        return tuple(numbers.setdefault(pair.template or pair.clean, len(numbers)) for pair in self.pairs)

    def score(self, logits: Float[Tensor, "batch vocab"], rows: Sequence[int]) -> Float[Tensor, " batch"]:
        """The metric of each prompt in `rows`, from the logits after its last token. Higher is better; float32."""
        return self.measure(logits.float(), [self.pairs[row] for row in rows])

    def narrowed(self) -> "tuple[Task, list[int]] | None":
        """This task on the logits of its own answers alone, and the ids of these; None if its metric needs all logits.

        `self.score(logits, rows)` is `narrow.score(logits[:, ids], rows)`, without an unembedding of the vocabulary.
        """
        if not self.measure.on_answers:
            return None
        ids = sorted({i for pair in self.pairs for i in (*pair.answers, *pair.wrongs)})
        place = {token: i for i, token in enumerate(ids)}

        def moved(pair: Pair) -> Pair:
            answers, wrongs = (tuple(place[i] for i in these) for these in (pair.answers, pair.wrongs))
            return replace(pair, answers=answers, wrongs=wrongs)

        return replace(self, pairs=tuple(map(moved, self.pairs))), ids

    def data_hash(self) -> str:
        """SHA-256 over the token ids, answers and metric: equal hashes mean equal inputs to every method."""
        rows: list[Any] = [[p.clean, p.corrupted, p.answers, p.wrongs, p.answer_position] for p in self.pairs]
        if any(p.corrupted_roles for p in self.pairs):
            rows += [sorted({**p.roles}.items()) + sorted({**p.corrupted_roles}.items()) for p in self.pairs]
        return hashlib.sha256(json.dumps([self.measure.key, rows]).encode()).hexdigest()


def continuation(tokens: Tokens, text: str) -> list[int]:
    """Token ids of `text` as it would follow a prompt, its leading space included.

    Tokenizers that put a space of their own in front of every text (Llama 2, Mistral) spell " Mary" on its own as two
    tokens, but as one after another word; so where there are several, the ones that follow a letter are taken.

    >>> model = cm.load("smollm2-135m")
    >>> model.decode(cm.tasks.continuation(model, " Mary"))
    ' Mary'
    """
    alone = tokens.encode_answer(text)
    if len(alone) <= 1:
        return alone
    before, both = tokens.encode_answer("a"), tokens.encode_answer("a" + text)
    return both[len(before) :] if both[: len(before)] == before else alone


def make_pair(
    tokens: Tokens,
    clean: str,
    corrupted: str,
    answers: Sequence[str],
    wrongs: Sequence[str],
    *,
    template: str = "",
    roles: Mapping[str, int] | None = None,
    corrupted_roles: Mapping[str, int] | None = None,
    where: str = "",
    aligned: bool = True,
) -> Pair:
    """A `Pair` from texts, checked: equal token counts if `aligned`, prompts that differ, answers of one token each.

    The role "end", the last token, is added to `roles`. `where` (e.g. "prompts.csv, line 3") starts each message.
    Raises `TaskError` and shows both tokenisations.

    >>> model = cm.load("known-ioi")
    >>> clean, corrupted = "Ann and Bob met then Bob gave to", "Ann and Bob met then Ann gave to"
    >>> pair = cm.tasks.make_pair(model, clean, corrupted, ["Ann"], ["Bob"], roles={"S2": 6})
    >>> pair.roles, model.decode(pair.answers)
    ({'S2': 6, 'end': 8}, 'Ann')
    """
    at = f"{where}: " if where else ""
    a, b = check_prompts(tokens, clean, corrupted, at, aligned)
    if not answers:
        raise TaskError(f"{at}there is no answer; give at least one.")
    right = tuple(_one_token(tokens, text, "answer", at) for text in answers)
    wrong = tuple(_one_token(tokens, text, "wrong answer", at) for text in wrongs)
    if both := sorted(set(right) & set(wrong)):
        raise TaskError(f"{at}{tokens.decode(both[:1])!r} is listed both as right and as wrong answer.")
    return Pair(
        tuple(a),
        tuple(b),
        right,
        wrong,
        clean,
        corrupted,
        template,
        {**(roles or {}), "end": len(a) - 1},
        corrupted_roles=corrupted_roles or {},
    )


def check_prompts(tokens: Tokens, clean: str, corrupted: str, at: str, aligned: bool) -> tuple[list[int], list[int]]:
    """Token ids of the two prompts of a pair. Raises `TaskError`, with `at` in front, where they make no pair."""
    a, b = tokens.encode(clean), tokens.encode(corrupted)
    if not a:
        raise TaskError(f"{at}the clean prompt {clean!r} has no tokens.")
    if not b:
        raise TaskError(f"{at}the corrupted prompt {corrupted!r} has no tokens.")
    if aligned and len(a) != len(b):
        raise TaskError(
            f"{at}the two prompts must have the same number of tokens, got {len(a)} and {len(b)}.\n"
            f"  clean     {_spell(tokens, a)}\n  corrupted {_spell(tokens, b)}\n"
            "Change the corrupted prompt so that every word that differs has as many tokens as the one it replaces, or "
            "use an ablation that swaps nothing position by position: zero, mean, or by-role, with the columns roles "
            "and corrupted_roles."
        )
    if a == b:
        raise TaskError(f"{at}clean and corrupted prompt are the same ({clean!r}), so there is nothing to compare.")
    return a, b


def _one_token(tokens: Tokens, text: str, kind: str, at: str) -> int:
    if not text:
        raise TaskError(f"{at}the {kind} is empty; it must be one token.")
    ids = continuation(tokens, text)
    if len(ids) != 1:
        hint = "" if text.startswith(" ") else f" Most tokenizers want the space before the word: {' ' + text!r}."
        raise TaskError(
            f"{at}the {kind} {text!r} must be one token, got {len(ids)}: {_spell(tokens, ids)}.{hint} "
            "Use a one-token answer, its first token, or in a file the metric answer_log_prob, which sums over tokens."
        )
    return ids[0]


def _spell(tokens: Tokens, ids: Sequence[int]) -> str:
    return "|".join(tokens.decode([i]) for i in ids).replace("\n", "\\n")
