"""Gendered pronouns."""

from random import Random

from circuitome.tasks.generators.words import FEMALE_NAMES, FEMALE_PEOPLE, MALE_NAMES, MALE_PEOPLE
from circuitome.tasks.sampling import Template, draw_task, one_token_words
from circuitome.tasks.task import Pair, Task, Tokens

NAME_TEMPLATES = (
    Template("gendered-pronoun-friend", "So {person} is a really great friend, isn't"),
    Template("gendered-pronoun-tired", "Last night {person} went to bed early because"),
)
PEOPLE_TEMPLATES = (
    Template("gendered-pronoun-home", "The {person} stayed at home because"),
    Template("gendered-pronoun-happy", "The {person} was happy when"),
)
PRONOUNS = (" he", " she")


def gendered_pronoun(model: Tokens, n: int = 64, seed: int = 0) -> Task:
    """A man or a woman is mentioned: the pronoun that follows must be "he" or "she" accordingly.

    clean      So Alice is a really great friend, isn't   -> " she", not " he"
    corrupted  So James is a really great friend, isn't

    Corrupted: the name, or the noun for a person (king, queen), is one of the other gender. Half of the clean prompts
    want " he", half " she"; half have a name, half a noun. Roles: person, end.
    Metric: logit_diff, logit of the right pronoun minus logit of the other, in logits.
    Raises `TaskError` where the tokenizer has too few words.
    Source: Mathwin et al. 2023, "Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 small";
    sentences are our own.

    >>> model = cm.load("smollm2-135m")
    >>> cm.tasks.gendered_pronoun(model, n=2).pairs[0].clean_text
    "So Adam is a really great friend, isn't"
    """
    names = [one_token_words(model, names, "names", 5) for names in (MALE_NAMES, FEMALE_NAMES)]
    people = [one_token_words(model, nouns, "nouns for a person", 3) for nouns in (MALE_PEOPLE, FEMALE_PEOPLE)]
    choices = [(t, names) for t in NAME_TEMPLATES] + [(t, people) for t in PEOPLE_TEMPLATES]

    def draw(rng: Random, index: int) -> Pair:
        template, words = choices[index // 2 % len(choices)]
        right = index % 2
        clean, corrupted = rng.choice(words[right]), rng.choice(words[1 - right])
        answers, wrongs = [PRONOUNS[right]], [PRONOUNS[1 - right]]
        return template.pair(model, {"person": clean}, {"person": corrupted}, answers=answers, wrongs=wrongs)

    return draw_task("gendered-pronoun", n, seed, draw)
