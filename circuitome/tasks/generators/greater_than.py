"""Greater-Than: an event ends in a later year than it began."""

from collections import defaultdict
from dataclasses import dataclass
from random import Random

from circuitome.errors import TaskError
from circuitome.tasks.generators.words import EVENTS
from circuitome.tasks.sampling import Template, draw_task, one_token_words
from circuitome.tasks.task import Pair, Task, Tokens, continuation

TEMPLATE = Template("greater-than", "The {noun} lasted from the year {XX}{YY}{_rest} to the year {_again}")
LAYOUTS = ((2, 2), (2, 1), (3, 1))
"""How tokenizers may cut a year: digits in front of the compared token, digits in it. 17|45, 17|4|5, 174|5."""
YEARS = range(1100, 1800)


@dataclass(frozen=True)
class Years:
    """The years that a tokenizer cuts in one way."""

    given: int
    """Digits in front of the compared token; the prompt ends with these."""
    size: int
    """Digits of the compared token."""
    keys: tuple[str, ...]
    """All digits of that size that are one token, in order."""
    by_key: dict[str, list[str]]
    """Years by their compared digits, for digits with smaller and with larger ones in `keys`."""


def greater_than(model: Tokens, n: int = 64, seed: int = 0) -> Task:
    """An event began in one year: the year it ended in must be a later one.

    clean      The war lasted from the year 1745 to the year 17   -> "46" to "99", not "00" to "45"
    corrupted  The war lasted from the year 1701 to the year 17

    Corrupted: the last two digits of the first year are 01, so that hardly any year is ruled out. Start years are
    balanced over their compared digits. Where the tokenizer gives each digit a token of its own, the tens digit is the
    answer: after 1745, "5" to "9" are right and "0" to "4" are wrong, although 1749 would be possible; where it groups
    three digits, the prompt ends with 174 and the last digit is the answer.
    Roles: noun, XX (century), YY (the compared digits of the start year), end.
    Metric: prob_diff, probability of all right digits minus probability of all wrong ones.
    Raises `TaskError` where years are cut in no such way.
    Source: Hanna et al. 2023, arXiv:2305.00586.

    >>> model = cm.load("smollm2-135m")
    >>> cm.tasks.greater_than(model, n=2).pairs[0].clean_text
    'The battle lasted from the year 1529 to the year 15'
    """
    nouns = one_token_words(model, EVENTS, "event nouns", 3)
    years = _years(model)
    keys = sorted(years.by_key)

    def draw(rng: Random, index: int) -> Pair:
        key = keys[index % len(keys)]
        year = rng.choice(years.by_key[key])
        again = {"_again": year[: years.given]}
        clean = {"noun": rng.choice(nouns), **_slots(year, years.given, years.size), **again}
        corrupted = _slots(_corrupted(year), years.given, years.size)
        answers, wrongs = [k for k in years.keys if k > key], [k for k in years.keys if k <= key]
        return TEMPLATE.pair(model, clean, corrupted, answers=answers, wrongs=wrongs)

    return draw_task("greater-than", n, seed, draw, "prob_diff")


def _years(tokens: Tokens) -> Years:
    """The first layout that the tokenizer follows."""
    for given, size in LAYOUTS:
        keys = [f"{k:0{size}}" for k in range(10**size)]
        keys = [key for key in keys if len(continuation(tokens, key)) == 1]
        by_key: dict[str, list[str]] = defaultdict(list)
        for year in map(str, YEARS):
            key = year[given : given + size]
            if key in keys[2:-2] and all(_is_cut(tokens, y, given, size) for y in (year, _corrupted(year))):
                by_key[key].append(year)
        if len(by_key) >= 3:
            return Years(given, size, tuple(keys), dict(by_key))
    seen = "|".join(tokens.decode([i]) for i in continuation(tokens, " 1745"))
    raise TaskError(
        f"greater-than: this tokenizer cuts the year 1745 into {seen!r}; the task needs 17|45, 1|7|4|5 or 174|5. "
        "Write prompts that suit it into a file and use from_file (--data)."
    )


def _is_cut(tokens: Tokens, year: str, given: int, size: int) -> bool:
    """Whether `year` is the tokens of its first `given` digits, one token of `size` digits, and the rest."""
    parts = (" " + year[:given], year[given : given + size], year[given + size :])
    head, key, rest = (continuation(tokens, part) if part else [] for part in parts)
    return len(key) == 1 and continuation(tokens, " " + year) == head + key + rest


def _corrupted(year: str) -> str:
    return year[:2] + "01"


def _slots(year: str, given: int, size: int) -> dict[str, str]:
    return {"XX": year[:given], "YY": year[given : given + size], "_rest": year[given + size :]}
