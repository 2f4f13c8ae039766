"""Capitals of countries."""

from collections import defaultdict
from random import Random

from circuitome.tasks.generators.words import CAPITALS
from circuitome.tasks.sampling import Template, draw_task, enough, is_one_token
from circuitome.tasks.task import Pair, Task, Tokens, continuation

SENTENCES = (
    "The capital of {country} is",
    "The capital city of {country} is called",
    "She lives in the capital of {country}, the city of",
)


def capitals(model: Tokens, n: int = 64, seed: int = 0) -> Task:
    """A country is named: its capital must follow.

    clean      The capital of France is   -> " Paris", not " Rome"
    corrupted  The capital of Italy is

    Corrupted: another country with as many tokens; its capital is the wrong answer. Roles: country (last token), end.
    Metric: logit_diff, logit of the capital minus logit of the other country's capital, in logits.
    Raises `TaskError` where the tokenizer has too few words.
    Source: the capital-country task of Hanna et al. 2024, arXiv:2403.17806; sentences are our own.

    >>> model = cm.load("smollm2-135m")
    >>> pair = cm.tasks.capitals(model, n=2).pairs[0]
    >>> pair.clean_text, model.decode(pair.answers)
    ('The capital of Japan is', ' Tokyo')
    """
    groups = _by_length(model)
    countries = [(country, length) for length, group in groups.items() for country in group]

    def draw(rng: Random, index: int) -> Pair:
        country, length = rng.choice(countries)
        other = rng.choice([name for name in groups[length] if name != country])
        number = index % len(SENTENCES)
        template = Template(f"capitals-{number}-country-of-{length}", SENTENCES[number])
        answers, wrongs = [" " + CAPITALS[country]], [" " + CAPITALS[other]]
        return template.pair(model, {"country": country}, {"country": other}, answers=answers, wrongs=wrongs)

    return draw_task("capitals", n, seed, draw)


def _by_length(tokens: Tokens) -> dict[int, list[str]]:
    """Countries with a capital of one token, by the token count of the country; groups of at least two."""
    groups: dict[int, list[str]] = defaultdict(list)
    for country, capital in CAPITALS.items():
        if is_one_token(tokens, capital):
            groups[len(continuation(tokens, " " + country))].append(country)
    usable = {length: group for length, group in groups.items() if len(group) > 1}
    enough(
        [c for group in usable.values() for c in group], "countries with a capital of one token", 4, of=len(CAPITALS)
    )
    return usable
