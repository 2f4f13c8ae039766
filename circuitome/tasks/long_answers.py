"""Answers of several tokens, scored by their summed log-probability.

log p(r1 r2 | prompt) = log p(r1 | prompt) + log p(r2 | prompt r1): a pair becomes a row for each token of its answer
and of its wrong answer, whose clean and corrupted prompts both go on with the tokens before it. Where the two answers
part they share a row; tokens before that, which both have, need none. So each row is read at one position, as always,
and every method serves. The mean over rows, times rows per pair, is the mean over pairs of log p(answer) - log p(wrong
answer). Rows of a pair share a template, so that intervals resample whole pairs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from circuitome.errors import TaskError
from circuitome.tasks.metrics import METRICS, Metric
from circuitome.tasks.task import Pair, Tokens, check_prompts, continuation, make_pair


def make_pairs(
    tokens: Tokens, clean: str, corrupted: str, answers: Sequence[str], wrongs: Sequence[str], **options: Any
) -> list[Pair]:
    """What `make_pair` makes of answers of one token; else a row for each token of the answer and the wrong answer.

    `options` are those of `make_pair`. Raises `TaskError` as it does, and where one of several answers has several
    tokens.
    """
    spelled = [[continuation(tokens, text) for text in texts] for texts in (answers, wrongs)]
    if all(len(ids) <= 1 for side in spelled for ids in side):
        return [make_pair(tokens, clean, corrupted, answers, wrongs, **options)]
    template, roles = options.get("template", ""), options.get("roles") or {}
    where = options.get("where")
    at = f"{where}: " if where else ""
    if len(answers) != 1 or len(wrongs) > 1:
        raise TaskError(
            f"{at}answers of several tokens need one answer and at most one wrong answer, got {len(answers)} and "
            f"{len(wrongs)}. Give one of each, or answers of one token."
        )
    a, b = check_prompts(tokens, clean, corrupted, at, options.get("aligned", True))
    right, wrong = spelled[0][0], spelled[1][0] if wrongs else []
    if right == wrong:
        raise TaskError(f"{at}{answers[0]!r} is both the right and the wrong answer.")

    def row(before: list[int], right: Sequence[int], wrong: Sequence[int]) -> Pair:
        said = tokens.decode(before) if before else ""
        ids, others = (*a, *before), (*b, *before)
        at_end = {**roles, "end": len(ids) - 1}
        return Pair(ids, others, tuple(right), tuple(wrong), clean + said, corrupted + said, template, at_end)

    shared = next(
        (i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), min(len(right), len(wrong))
    )
    apart = row(right[:shared], right[shared : shared + 1], wrong[shared : shared + 1])
    rights = [row(right[:i], right[i : i + 1], ()) for i in range(shared + 1, len(right))]
    return [apart, *rights, *(row(wrong[:i], (), wrong[i : i + 1]) for i in range(shared + 1, len(wrong)))]


def metric_of_rows(rows: int, pairs: int) -> Metric:
    """`answer_log_prob` of `pairs` pairs that have become `rows` rows: their mean is the mean over pairs of sums."""
    whole = METRICS["answer_log_prob"]
    return replace(whole, function=lambda logits, given: whole.function(logits, given) * (rows / pairs))
