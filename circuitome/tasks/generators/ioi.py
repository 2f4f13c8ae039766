"""Indirect object identification."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from circuitome.errors import unknown_name
from circuitome.tasks.generators.words import FEMALE_NAMES, MALE_NAMES, OBJECTS, PLACES
from circuitome.tasks.sampling import Template, draw_task, one_token_words
from circuitome.tasks.task import Pair, Task, Tokens

SENTENCES = (
    "When {first} and {second} went to the {place}, {S2} gave a {object} to",
    "Then, {first} and {second} had a long talk at the {place}. Afterwards {S2} handed a {object} to",
    "After {first} and {second} arrived at the {place}, {S2} decided to give a {object} to",
    "One morning {first} and {second} were sitting in the {place}, and {S2} passed a {object} to",
    "While {first} and {second} were working at the {place}, {S2} brought a {object} to",
    "Yesterday {first} and {second} met outside the {place}. Without a word {S2} threw a {object} to",
)
PARAPHRASES = (
    "Everybody saw {first} and {second} near the {place} that evening, where {S2} offered a {object} to",
    "The {place} was empty when {first} and {second} walked in, so {S2} quietly showed a {object} to",
    "Once again {first} and {second} had lunch at the {place}, and once again {S2} lent a {object} to",
    "Since {first} and {second} were waiting beside the {place}, {S2} went over and sold a {object} to",
)
"""Sentences that `SENTENCES` do not hold: the same behaviour in other words."""

Words = dict[str, str]
CORRUPTIONS: dict[str, Callable[[Words, list[str]], Words]] = {
    "s2-random": lambda words, new: {"S2": new[0]},
    "s2-io": lambda words, new: {"S2": words["IO"]},
    "abc": lambda words, new: {"IO": new[0], "S1": new[1], "S2": new[2]},
}
"""What changes in the corrupted prompt, from the clean words and three new names."""


def ioi(model: Tokens, n: int = 64, seed: int = 0, *, corruption: str = "s2-random", paraphrased: bool = False) -> Task:
    """Two people are named, one of them acts again: the sentence must end with the other one's name.

    clean      When Mary and John went to the store, John gave a drink to   -> " Mary", not " John"
    corrupted  When Mary and John went to the store, Tom gave a drink to

    Corrupted: S2, the second mention of the subject, is a third name ("s2-random"), the indirect object ("s2-io"), or
    all three names are different new ones ("abc"). Half of the templates name the indirect object first (ABBA), half
    the subject (BABA); every template is used equally often. `paraphrased` takes other sentences, none of which is
    among the usual ones. Roles: IO, S1, S1+1, S2, place, object, end.
    Metric: logit_diff, logit of IO minus logit of S, in logits.
    Raises `UnknownNameError` for any other corruption, `TaskError` where the tokenizer has too few words.
    Source: Wang et al. 2022, arXiv:2211.00593; sentences are our own.

    >>> model = cm.load("smollm2-135m")
    >>> cm.tasks.ioi(model, n=2).pairs[0].clean_text
    'When Rebecca and Helen went to the bank, Helen gave a bottle to'
    """
    if corruption not in CORRUPTIONS:
        raise unknown_name("corruption", corruption, CORRUPTIONS)
    names = one_token_words(model, [*MALE_NAMES, *FEMALE_NAMES], "names", 10)
    places = one_token_words(model, PLACES, "places", 3)
    objects = one_token_words(model, OBJECTS, "objects", 3)
    templates = PARAPHRASED if paraphrased else TEMPLATES

    def draw(rng: Random, index: int) -> Pair:
        io, subject, *new = rng.sample(names, 5)
        words = {"IO": io, "S1": subject, "S2": subject, "place": rng.choice(places), "object": rng.choice(objects)}
        template = templates[index % len(templates)]
        change = CORRUPTIONS[corruption](words, new)
        pair = template.pair(model, words, change, answers=[" " + io], wrongs=[" " + subject])
        return replace(pair, roles={**pair.roles, "S1+1": pair.roles["S1"] + 1})

    options = f", corruption {corruption}" + (", paraphrased" if paraphrased else "")
    return draw_task("ioi", n, seed, draw, options=options)


def _templates(name: str, sentences: tuple[str, ...]) -> tuple[Template, ...]:
    """Each sentence in both orders of the first two names."""
    orders = {"ABBA": ("{IO}", "{S1}"), "BABA": ("{S1}", "{IO}")}
    return tuple(
        Template(f"{name}-{order}-{number}", text.replace("{first}", first).replace("{second}", second))
        for number, text in enumerate(sentences)
        for order, (first, second) in orders.items()
    )


TEMPLATES = _templates("ioi", SENTENCES)
PARAPHRASED = _templates("ioi-paraphrase", PARAPHRASES)
