"""A small grammar of English with its trees: agreement, relative clauses, coordination, and pairs that break a rule.

There are more than 10**12 sentences, so that a model that has learned some by heart has not seen those of a test.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from circuitome.dynamics.trees import Tree

_LISTS: dict[str, str] = tomllib.loads(Path(__file__).with_name("grammar.toml").read_text(encoding="utf-8"))
NOUNS, ACTS, STATES, THOUGHTS, ADJECTIVES, ADVERBS, PREPOSITIONS = (
    tuple(_LISTS[name].split())
    for name in ("nouns", "acts", "states", "thoughts", "adjectives", "adverbs", "prepositions")
)
DETERMINERS = {"singular": ("the", "this", "that", "every", "one"), "plural": ("the", "these", "those", "some", "many")}
NUMBERS = ("singular", "plural")
DEEPEST = 2
"""Phrases within phrases, at most."""


def plural(noun: str) -> str:
    """A noun's plural; all nouns here are regular."""
    return noun + "s"


def verb_form(verb: str, number: str) -> str:
    """A verb of the present tense that agrees with a subject of a number."""
    if number == "plural":
        return verb
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("sh", "ch", "s")) else "s")


@dataclass(frozen=True)
class Phrase:
    """Words with the arcs inside of them, and which of them is the head of all."""

    words: tuple[str, ...]
    heads: tuple[int, ...]
    """For each word, its head inside of the phrase; -1 for the phrase's own head."""
    relations: tuple[str, ...]
    number: str = "singular"
    """Singular or plural, of a noun phrase."""

    @property
    def top(self) -> int:
        """The place of the phrase's head."""
        return self.heads.index(-1)


def _joined(*parts: "Phrase | str", top: int, relations: tuple[str, ...], number: str = "singular") -> Phrase:
    """Phrases side by side: part `top` is the head, of which each other part is what `relations` says."""
    phrases = [part if isinstance(part, Phrase) else Phrase((part,), (-1,), ("",)) for part in parts]
    starts = [sum(len(phrase.words) for phrase in phrases[:i]) for i in range(len(phrases))]
    head = starts[top] + phrases[top].top
    words: list[str] = []
    heads: list[int] = []
    names: list[str] = []
    for i, (phrase, start) in enumerate(zip(phrases, starts, strict=True)):
        for word, inner, name in zip(phrase.words, phrase.heads, phrase.relations, strict=True):
            words.append(word)
            outer = inner < 0 and i != top
            heads.append(head if outer else -1 if inner < 0 else start + inner)
            names.append(relations[i] if outer else name)
    return Phrase(tuple(words), tuple(heads), tuple(names), number)


def grammar_trees(n: int, *, seed: int = 0) -> list[Tree]:
    """`n` sentences of the grammar with their trees, in the relations of Universal Dependencies.

    Subjects and verbs agree across prepositional phrases, relative clauses and coordination; verbs may take objects,
    adverbs, clauses with `that`, and other verbs with `and`. Their texts, one a line, are
    a text to train on.

    >>> tree = cm.dynamics.grammar_trees(4)[3]
    >>> tree.text, tree.arcs()  # relation, child, head
    ('these lawyers jump .', [('det', 0, 1), ('nsubj', 1, 2)])
    """
    rng = Random(seed)
    return [sentence(rng) for _ in range(n)]


def sentence(rng: Random) -> Tree:
    """One sentence of the grammar with its tree."""
    phrase = _joined(_clause(rng, 0), ".", top=0, relations=("", "punct"))
    relations = ["root" if head < 0 else name for head, name in zip(phrase.heads, phrase.relations, strict=True)]
    return Tree.of(phrase.words, phrase.heads, relations)


def _clause(rng: Random, depth: int, number: str | None = None) -> Phrase:
    subject = _subject(rng, depth, number)
    predicate = _predicate(rng, depth, subject.number)
    return _joined(subject, predicate, top=1, relations=("nsubj", ""))


def _subject(rng: Random, depth: int, number: str | None = None) -> Phrase:
    first = noun_phrase(rng, depth, number)
    if number is None and rng.random() < 0.15:
        other = _joined("and", noun_phrase(rng, DEEPEST), top=1, relations=("cc", ""))
        return _joined(first, other, top=0, relations=("", "conj"), number="plural")
    return first


def noun_phrase(rng: Random, depth: int, number: str | None = None, noun: str | None = None) -> Phrase:
    """Determiner, adjectives, noun, and what may follow it."""
    number = number or rng.choice(NUMBERS)
    stem = noun or rng.choice(NOUNS)
    adjectives = rng.sample(ADJECTIVES, rng.choice((0, 0, 1, 1, 2)))
    head = stem if number == "singular" else plural(stem)
    names = ("det", *("amod" for _ in adjectives), "")
    phrase = _joined(rng.choice(DETERMINERS[number]), *adjectives, head, top=len(names) - 1, relations=names)
    kind = rng.random() if depth < DEEPEST else 1.0
    if kind < 0.25:
        phrase = _joined(phrase, _attached(rng, depth + 1), top=0, relations=("", "nmod"))
    elif kind < 0.5:
        phrase = _joined(phrase, _relative(rng, depth + 1, number), top=0, relations=("", "acl"))
    return Phrase(phrase.words, phrase.heads, phrase.relations, number)


def _attached(rng: Random, depth: int, number: str | None = None) -> Phrase:
    return _joined(rng.choice(PREPOSITIONS), noun_phrase(rng, depth, number), top=1, relations=("case", ""))


def _relative(rng: Random, depth: int, number: str, subject: bool | None = None) -> Phrase:
    """A relative clause: `that` is its subject, so that its verb has the noun's number, or its object."""
    if rng.random() < 0.5 if subject is None else subject:
        return _joined("that", _predicate(rng, DEEPEST, number), top=1, relations=("nsubj", ""))
    inner = noun_phrase(rng, DEEPEST)
    verb = verb_form(rng.choice(ACTS), inner.number)
    return _joined("that", inner, verb, top=2, relations=("obj", "nsubj", ""))


def _predicate(rng: Random, depth: int, number: str) -> Phrase:
    kind = rng.random()
    if kind < 0.4:
        verb = verb_form(rng.choice(ACTS), number)
        phrase = _joined(verb, noun_phrase(rng, depth + 1), top=0, relations=("", "obj"))
    elif kind < 0.9 or depth >= DEEPEST:
        phrase = _joined(verb_form(rng.choice(STATES), number), top=0, relations=("",))
    else:
        said = _joined("that", _clause(rng, depth + 1), top=1, relations=("mark", ""))
        phrase = _joined(verb_form(rng.choice(THOUGHTS), number), said, top=0, relations=("", "ccomp"))
    if rng.random() < 0.25:
        phrase = _joined(rng.choice(ADVERBS), phrase, top=1, relations=("advmod", ""))
    if depth == 0 and rng.random() < 0.15:
        other = _joined("and", verb_form(rng.choice(STATES), number), top=1, relations=("cc", ""))
        phrase = _joined(phrase, other, top=0, relations=("", "conj"))
    return phrase


@dataclass(frozen=True)
class MinimalPair:
    """Two sentences that differ in one word: one is right, the other breaks a rule."""

    good: str
    """The sentence that is right."""
    bad: str
    """The sentence that is not."""
    kind: str
    """Which rule."""


def grammar_pairs(n: int, *, seed: int = 0) -> list[MinimalPair]:
    """`n` minimal pairs of each of six kinds, whose sentences differ in one word's number.

    agreement: verb and subject; across a prepositional phrase, and across a relative clause, with a noun of the other
    number between; in a relative clause whose subject is `that`; of a coordinated subject; determiner and noun.

    >>> cm.dynamics.grammar_pairs(1)[0]
    MinimalPair(good='that young rabbit listens .', bad='that young rabbit listen .', kind='agreement')
    """
    rng = Random(seed)
    return [
        _pair(rng, kind, "plural" if kind == "coordination" else NUMBERS[i % 2], make)
        for kind, make in PAIRS.items()
        for i in range(n)
    ]


def _pair(rng: Random, kind: str, number: str, make: Callable[[Random, str, str], list[str]]) -> MinimalPair:
    """The sentence with a word of this number and with the same word of the other one."""
    state, other = rng.getstate(), NUMBERS[1 - NUMBERS.index(number)]
    good = make(rng, number, number)
    rng.setstate(state)
    return MinimalPair(" ".join([*good, "."]), " ".join([*make(rng, number, other), "."]), kind)


def _simple(rng: Random, number: str) -> list[str]:
    return list(noun_phrase(rng, DEEPEST, number).words)


def _agreement(rng: Random, number: str, verb: str) -> list[str]:
    return [*_simple(rng, number), verb_form(rng.choice(STATES), verb)]


def _across_phrase(rng: Random, number: str, verb: str) -> list[str]:
    between = _attached(rng, DEEPEST, NUMBERS[1 - NUMBERS.index(number)])
    return [*_simple(rng, number), *between.words, verb_form(rng.choice(STATES), verb)]


def _across_clause(rng: Random, number: str, verb: str) -> list[str]:
    other = NUMBERS[1 - NUMBERS.index(number)]
    clause = ["that", *_simple(rng, other), verb_form(rng.choice(ACTS), other)]
    return [*_simple(rng, number), *clause, verb_form(rng.choice(STATES), verb)]


def _in_clause(rng: Random, number: str, verb: str) -> list[str]:
    start = _simple(rng, number)
    clause = ["that", verb_form(rng.choice(ACTS), verb), *_simple(rng, rng.choice(NUMBERS))]
    return [*start, *clause, verb_form(rng.choice(STATES), number)]


def _coordination(rng: Random, number: str, verb: str) -> list[str]:
    """Two subjects are plural together, though each is singular."""
    return [*_simple(rng, "singular"), "and", *_simple(rng, "singular"), verb_form(rng.choice(STATES), verb)]


def _determiner(rng: Random, number: str, noun: str) -> list[str]:
    """The noun is an object, so that no verb gives its number away."""
    subject = rng.choice(NUMBERS)
    start = [*_simple(rng, subject), verb_form(rng.choice(ACTS), subject)]
    word = rng.choice([word for word in DETERMINERS[number] if word != "the"])
    stem = rng.choice(NOUNS)
    return [*start, word, rng.choice(ADJECTIVES), stem if noun == "singular" else plural(stem)]


PAIRS: dict[str, Callable[[Random, str, str], list[str]]] = {
    "agreement": _agreement,
    "across a prepositional phrase": _across_phrase,
    "across a relative clause": _across_clause,
    "in a relative clause": _in_clause,
    "coordination": _coordination,
    "determiner and noun": _determiner,
}
"""By rule: a function of generator, the subject's number, and the number of the word that must agree."""
