"""Subject-verb agreement."""

from random import Random

from circuitome.tasks.generators.words import COUNTABLE_NOUNS
from circuitome.tasks.sampling import Template, draw_task, enough, is_one_token, one_token_words
from circuitome.tasks.task import Pair, Task, Tokens

TEMPLATES = (
    Template("subject-verb-near", "The {subject} near the {attractor}"),
    Template("subject-verb-behind", "The {subject} behind the {attractor}"),
    Template("subject-verb-next", "The {subject} next to the {attractor}"),
    Template("subject-verb-front", "The {subject} in front of the {attractor}"),
)
VERBS = (("is", "was", "has", "does"), ("are", "were", "have", "do"))
"""Singular and plural."""


def subject_verb(model: Tokens, n: int = 64, seed: int = 0) -> Task:
    """A subject is followed by another noun: the verb must agree with the subject in number.

    clean      The keys near the cabinet   -> " are", " were", ..., not " is", " was", ...
    corrupted  The key near the cabinet

    Corrupted: the subject has the other number. Half of the clean subjects are singular; half of the other nouns
    (attractors) have the subject's number in the clean prompt, half do not. Roles: subject, attractor, end.
    Metric: logit_diff, mean logit of the verbs that agree minus mean logit of those that do not, in logits.
    Raises `TaskError` where the tokenizer has too few words.
    Source: Finlayson et al. 2021, arXiv:2106.06087; Linzen et al. 2016, arXiv:1611.01368; sentences are our own.

    >>> model = cm.load("smollm2-135m")
    >>> cm.tasks.subject_verb(model, n=2).pairs[0].clean_text
    'The cat near the ducks'
    """
    both = [pair for pair in COUNTABLE_NOUNS if all(is_one_token(model, word) for word in pair)]
    kind = "nouns that are one token in singular and plural"
    nouns = enough(both, kind, 5, of=len(COUNTABLE_NOUNS))
    verbs = [[" " + verb for verb in one_token_words(model, row, "verbs", 1)] for row in VERBS]

    def draw(rng: Random, index: int) -> Pair:
        number, agrees, turn = index % 2, index // 2 % 2, index // 4
        subject, attractor = rng.sample(nouns, 2)
        return TEMPLATES[turn % len(TEMPLATES)].pair(
            model,
            {"subject": subject[number], "attractor": attractor[number if agrees else 1 - number]},
            {"subject": subject[1 - number]},
            answers=verbs[number],
            wrongs=verbs[1 - number],
        )

    return draw_task("subject-verb", n, seed, draw)
