"""Tasks that small models with vocabularies of their own can do, and known ones by name; drawn twice."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from circuitome.dynamics import grammar
from circuitome.errors import InputError, TaskError, unknown_name
from circuitome.heads.atlas.repeated import ordinary_ids, tokens_in_front
from circuitome.models.model import Model
from circuitome.tasks import TASKS, from_file
from circuitome.tasks.held_out import Split, fresh, split
from circuitome.tasks.sampling import Template, draw_task, enough, is_one_token
from circuitome.tasks.task import Pair, Task

PAIRS = 64
"""Prompt pairs that a circuit is looked for on, and as many others that it is measured on."""
PERIOD = 12
"""Different tokens of a sequence that is said again."""
FEWEST_WORDS = 4
"""Nouns and verbs of the grammar, one token each in both numbers, that agreement needs."""


def repeats(model: Model, n: int = PAIRS, seed: int = 0, tokens: Sequence[int] | None = None) -> Task:
    """Induction on a model's own tokens: a sequence of random tokens starts again; what came next comes next again.

        clean      t1 t2 A B t5 ... t12  t1 t2 A   -> B, not another token of the sequence
        corrupted  t1 t2 X B t5 ... t12  t1 t2 A

    X is a token that stands nowhere else, so that the last A has no earlier occurrence. The place of A is balanced.
    `tokens` are those that are drawn from, by default ordinary words where the vocabulary has such. Roles: A1, B, A2,
    end. Metric: logit_diff, in logits. Source: Olsson et al. 2022, arXiv:2209.11895. `cm.tasks.induction` is the same
    with words that a tokenizer of English knows.

    >>> task = cm.dynamics.repeats(cm.load("known-induction"), n=2)
    >>> task.pairs[0].clean, task.pairs[0].answers  # BOS, twelve tokens, and the first two again
    ((0, 13, 16, 7, 1, 5, 9, 8, 14, 12, 4, 3, 10, 13, 16), (7,))

    Raises `InputError` where the model has too few tokens or positions.
    """
    ids, front = list(ordinary_ids(model) if tokens is None else tokens), tokens_in_front(model)
    fits = min(PERIOD, len(ids) - 1, ((model.positions or 4 * PERIOD) - len(front) + 2) // 2)
    spots = range(1, fits - 2)
    if not spots:
        raise InputError(
            f"Induction needs sequences of at least 4 different tokens twice; {model.name} has {len(ids)} ordinary "
            f"tokens and {model.positions} positions."
        )

    def draw(rng: Random, index: int) -> Pair:
        spot = spots[index % len(spots)]
        *sequence, other = rng.sample(ids, fits + 1)
        answer, start = sequence[spot + 1], len(front)
        wrong = rng.choice([token for i, token in enumerate(sequence) if i not in (spot, spot + 1)])
        clean = (*front, *sequence, *sequence[: spot + 1])
        corrupted = (*front, *sequence[:spot], other, *clean[start + spot + 1 :])
        end = len(clean) - 1
        roles = {"A1": start + spot, "B": start + spot + 1, "A2": end, "end": end}
        texts = ("", "") if model.tokenizer is None else (model.decode(clean), model.decode(corrupted))
        return Pair(clean, corrupted, (answer,), (wrong,), *texts, f"induction-{spot}", roles)

    return draw_task("induction", n, seed, draw, options=f", {fits} tokens")


def agreement(model: Model, n: int = PAIRS, seed: int = 0) -> Task:
    """Agreement in the grammar of `grammar_trees`: the verb must have the number of its subject.

        clean      the old ships near these cats   -> verbs in the plural, not in the singular
        corrupted  the old ship near these cats

    One token differs. In every other pair a noun stands between subject and verb, in half of these one of the other
    number. Roles: subject, end. Metric: logit_diff, mean logit of the verbs that agree minus that of the others.
    Source: Linzen et al. 2016, arXiv:1611.01368; the sentences are those of the grammar.

    >>> model = cm.dynamics.small_model("decoder", cm.dynamics.grammar_tokenizer())
    >>> pair = cm.dynamics.agreement(model, n=4).pairs[3]
    >>> pair.clean_text, pair.corrupted_text
    ('the quiet ships beside one bottle', 'the quiet ship beside one bottle')

    Raises `TaskError` where the words of the grammar are not single tokens.
    """
    singular, plural = grammar.NUMBERS
    nouns = [noun for noun in grammar.NOUNS if is_one_token(model, noun) and is_one_token(model, grammar.plural(noun))]
    enough(nouns, "nouns of the grammar that are one token in both numbers", FEWEST_WORDS, of=len(grammar.NOUNS))
    forms = [[f" {grammar.verb_form(verb, number)}" for number in (singular, plural)] for verb in grammar.STATES]
    verbs = [pair for pair in forms if all(is_one_token(model, form.strip()) for form in pair)]
    enough(verbs, "verbs of the grammar that are one token in both numbers", FEWEST_WORDS, of=len(forms))

    def draw(rng: Random, index: int) -> Pair:
        number, between, agrees = index % 2, index // 2 % 2, index // 4 % 2
        noun = rng.choice(nouns)
        adjective = rng.choice(grammar.ADJECTIVES)
        other = grammar.NUMBERS[number if agrees else 1 - number]
        of_other = rng.choice(grammar.DETERMINERS[other]), _form(rng.choice(nouns), other)
        phrase = (rng.choice(grammar.PREPOSITIONS), *of_other)
        words = " ".join(("the {_adjective} {subject}", *(phrase if between else ())))
        template = Template(f"agreement-{'across' if between else 'near'}", words)
        right, wrong = ([pair[i] for pair in verbs] for i in (number, 1 - number))
        forms = (_form(noun, grammar.NUMBERS[number]), _form(noun, grammar.NUMBERS[1 - number]))
        clean = {"_adjective": adjective, "subject": forms[0]}
        return template.pair(model, clean, {"subject": forms[1]}, answers=right, wrongs=wrong)

    return draw_task("agreement", n, seed, draw)


def _form(noun: str, number: str) -> str:
    return noun if number == "singular" else grammar.plural(noun)


OWN: dict[str, Callable[..., Task]] = {"induction": repeats, "agreement": agreement}
"""Tasks for models with vocabularies of their own, by name."""


def watched_tasks(
    model: Model, names: Sequence[str], *, n: int = PAIRS, seed: int = 0, tokens: Sequence[int] | None = None
) -> tuple[Split, ...]:
    """Prompts of each named task to find its circuit on, and others to measure it on.

    `induction` is that of `repeats` (on `tokens` where given), `agreement` that of the grammar; other names are those
    of `circuitome tasks`, or files of prompt pairs, half of which are held out.

    >>> model = cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer())
    >>> [(task.search.name, len(task.held_out)) for task in cm.dynamics.watched_tasks(model, ["induction"], n=16)]
    [('induction', 16)]

    Raises `UnknownNameError` for a name that is none, `TaskError` where the tokenizer lacks a task's words,
    `InputError` for a masked language model, which predicts no next token.
    """
    if names:
        model.check_sums("Tasks that ask for a next token")
    return tuple(_drawn(model, name, n, seed, tokens) for name in names)


def _drawn(model: Model, name: str, n: int, seed: int, tokens: Sequence[int] | None) -> Split:
    if Path(name).is_file():
        parts = split(from_file(model, name, name=Path(name).stem))
        return Split(parts.search, None, parts.held_out)
    if name not in {**TASKS, **OWN}:
        raise unknown_name("task", name, {**TASKS, **OWN}, "A file of prompt pairs will do as well.")
    options = {"tokens": tokens} if name == "induction" else {}
    try:
        search, other = ({**TASKS, **OWN}[name](model, n=n, seed=seed + more, **options) for more in (0, 1))
    except TaskError as error:
        raise TaskError(
            f"The task {name} does not suit the vocabulary of {model.name}. {error} Any vocabulary suits induction, "
            "and a file of prompt pairs can stand in the place of a task's name."
        ) from None
    return Split(search, None, fresh(other, [search]))
