"""How generators draw prompt pairs: words of one token, templates with slots, and pairs that are all different.

A template names its slots by role: "When {IO} and {S1} met, {S2} waved to". Filling it twice gives the clean and the
corrupted prompt; where each slot landed in the token ids gives the roles. A slot such as {_place} has no role.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from string import Formatter
from typing import TypeVar

from circuitome.errors import TaskError
from circuitome.tasks.task import Pair, Task, Tokens, continuation, make_pair

T = TypeVar("T")

TRIES = 200
"""Draws in a row that may repeat a pair already drawn, before a generator counts as exhausted."""


@dataclass(frozen=True)
class Template:
    """A prompt with slots."""

    name: str
    """Names the group of pairs whose token positions mean the same."""
    text: str
    """The prompt, with slots in braces; a slot is one word, written without its space."""

    def fill(self, words: Mapping[str, str]) -> str:
        """The prompt with `words` in its slots."""
        return self.text.format(**words)

    def roles(self, tokens: Tokens, ids: Sequence[int], words: Mapping[str, str]) -> dict[str, int]:
        """Position in `ids` of the last token of each slot; empty slots, and slots named _like_this, are left out.

        Slots are searched from left to right, each behind the one before. Raises `TaskError` when one is not found.
        """
        found: dict[str, int] = {}
        start = 0
        for literal, slot, _, _ in Formatter().parse(self.text):
            if slot is None or not words[slot]:
                continue
            word = continuation(tokens, (" " if literal.endswith(" ") else "") + words[slot])
            start = _find(ids, word, start)
            if start < 0:
                raise TaskError(f"{self.name}: this tokenizer spells {words[slot]!r} differently inside a sentence.")
            start += len(word)
            if not slot.startswith("_"):
                found[slot] = start - 1
        return found

    def pair(
        self,
        tokens: Tokens,
        clean: Mapping[str, str],
        corrupted: Mapping[str, str],
        *,
        answers: Sequence[str],
        wrongs: Sequence[str],
    ) -> Pair:
        """The pair of this template filled with `clean`, and with `corrupted` laid over it. Checked by `make_pair`."""
        texts = self.fill(clean), self.fill({**clean, **corrupted})
        pair = make_pair(tokens, *texts, answers, wrongs, template=self.name, where=self.name)
        return replace(pair, roles={**self.roles(tokens, pair.clean, clean), **pair.roles})


def is_one_token(tokens: Tokens, word: str) -> bool:
    """Whether `word` behind a space is one token."""
    return len(continuation(tokens, " " + word)) == 1


def one_token_words(tokens: Tokens, words: Iterable[str], kind: str, need: int) -> list[str]:
    """Those of `words` that are one token behind a space, in their order. Raises `TaskError` for fewer than `need`."""
    words = list(words)
    return enough([word for word in words if is_one_token(tokens, word)], f"{kind} of one token", need, of=len(words))


def enough(found: list[T], kind: str, need: int, *, of: int) -> list[T]:
    """`found`, or a `TaskError` that says there are too few."""
    if len(found) < need:
        raise TaskError(
            f"This tokenizer leaves {len(found)} of {of} {kind}, and this task needs at least {need}. "
            "Write prompts that suit it into a file and use from_file (--data)."
        )
    return found


def draw_task(
    name: str, n: int, seed: int, draw: Callable[[Random, int], Pair], metric: str = "logit_diff", options: str = ""
) -> Task:
    """The task of `n` different pairs from `draw(rng, index)`, the same for the same seed; `options` are in its source.

    `draw` is called with one index until it gives a pair that is new, so what it derives from the index stays
    balanced. Raises `TaskError` when no new pairs come, or when pairs of one template do not align.
    """
    if n < 1:
        raise TaskError(f"{name}: n is the number of prompt pairs and must be at least 1, got {n}.")
    rng = Random(seed)
    pairs: dict[tuple[tuple[int, ...], tuple[int, ...]], Pair] = {}
    for index in range(n):
        for _ in range(TRIES):
            pair = draw(rng, index)
            if (pair.clean, pair.corrupted) not in pairs:
                break
        else:
            raise TaskError(
                f"{name}: found {len(pairs)} different prompt pairs for this tokenizer, not {n}. "
                f"Ask for {len(pairs)} or fewer."
            )
        pairs[pair.clean, pair.corrupted] = pair
    _check_aligned(pairs.values())
    return Task(name, tuple(pairs.values()), metric, seed, f"generator {name}{options}")


def _check_aligned(pairs: Iterable[Pair]) -> None:
    first: dict[str, Pair] = {}
    for pair in pairs:
        known = first.setdefault(pair.template, pair)
        if (len(known.clean), known.roles) != (len(pair.clean), pair.roles):
            raise TaskError(
                f"{pair.template}: this tokenizer spells two prompts of one template differently:\n"
                f"  {known.clean_text!r} ({len(known.clean)} tokens)\n  {pair.clean_text!r} ({len(pair.clean)} tokens)"
            )


def _find(ids: Sequence[int], part: Sequence[int], start: int) -> int:
    """First index from `start` on where `part` begins in `ids`; -1 if nowhere."""
    spots = range(start, len(ids) - len(part) + 1)
    return next((i for i in spots if list(ids[i : i + len(part)]) == list(part)), -1)
