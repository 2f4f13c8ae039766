"""Induction on random words."""

from random import Random

from circuitome.tasks.generators.words import NOUNS
from circuitome.tasks.sampling import Template, draw_task, one_token_words
from circuitome.tasks.task import Pair, Task, Tokens

LENGTH = 10
"""Different words in a sequence."""
SPOTS = range(2, LENGTH - 2)
"""Where A may stand among them: with words before it, and with more than B behind it."""


def induction(model: Tokens, n: int = 64, seed: int = 0) -> Task:
    """A sequence of random words starts again: the word that came next the first time must come next again.

    clean      Words: apple river candle wire movie table apple river candle   -> " wire", not " movie"
    corrupted  Words: apple river bridge wire movie table apple river candle

    Corrupted: the first A (here "candle", the word in front of the answer B) is a word that occurs nowhere else, so
    that the last word has no earlier occurrence to look back to. The place of A is balanced.
    Roles: A1 (first A), B, A2 (second A), end (= A2).
    Metric: logit_diff, logit of B minus logit of another word of the sequence, in logits.
    Raises `TaskError` where the tokenizer has too few words.
    Source: Olsson et al. 2022, arXiv:2209.11895; they repeat random tokens, we repeat whole words.

    >>> model = cm.load("smollm2-135m")
    >>> cm.tasks.induction(model, n=2).pairs[0].clean_text
    'Words: copper paint horse lemon museum kitchen plastic chicken wall computer copper paint horse'
    """
    words = one_token_words(model, NOUNS, "nouns", 2 * LENGTH)

    def draw(rng: Random, index: int) -> Pair:
        spot = SPOTS[index % len(SPOTS)]
        *sequence, other = rng.sample(words, LENGTH + 1)
        a, b = sequence[spot : spot + 2]
        clean = {f"_w{i}": word for i, word in enumerate(sequence)} | {"A1": a, "B": b, "A2": a}
        wrong = rng.choice([word for word in sequence if word not in (a, b)])
        return _template(spot).pair(model, clean, {"A1": other}, answers=[" " + b], wrongs=[" " + wrong])

    return draw_task("induction", n, seed, draw)


def _template(spot: int) -> Template:
    slots = [f"{{_w{i}}}" for i in range(LENGTH)]
    first = [*slots[:spot], "{A1}", "{B}", *slots[spot + 2 :]]
    return Template(f"induction-{spot}", " ".join(["Words:", *first, *slots[:spot], "{A2}"]))
