"""Documents with questions and answers about them, made from facts that are drawn: instruction-augmented pre-training.

Cheng et al. 2024 (arXiv:2406.14491) put made questions and answers behind each document of a corpus and train on all
tokens. Here the documents are made as well, from facts about people, so that answers are known and nothing is learned
by heart. The control puts the same questions and answers behind other documents: the format without the content.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuitome.errors import unknown_name
from circuitome.models.model import Model
from circuitome.neurons.text_windows import packed

NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack"),
    *("Kate", "Leo", "Maria", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor"),
)
CITIES = (
    *("Paris", "Rome", "Berlin", "Madrid", "London", "Vienna"),
    *("Lisbon", "Athens", "Oslo", "Dublin", "Prague", "Warsaw"),
)
JOBS = (
    *("baker", "doctor", "teacher", "farmer", "singer", "lawyer"),
    *("nurse", "painter", "pilot", "cook", "driver", "writer"),
)
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "brown", "grey")
THINGS = ("car", "house", "bicycle", "coat", "boat", "door", "hat", "table")


@dataclass(frozen=True)
class Document:
    """A text, and questions that it answers."""

    text: str
    """Sentences about several people."""
    questions: tuple[tuple[str, str], ...]
    """Questions and their answers, of one word."""

    def augmented(self, questions: Sequence[tuple[str, str]]) -> str:
        """The text with questions and answers behind it, whoever's they are."""
        return "\n".join([self.text, *(f"Question: {question} Answer: {answer}" for question, answer in questions)])


def documents(n: int, seed: int = 0, *, people: int = 3, questions: int = 3) -> list[Document]:
    """`n` documents about so many people each, all facts drawn.

    >>> document = cm.applications.instructions.documents(1)[0]
    >>> len(document.questions), all(answer in document.text for _, answer in document.questions)
    (3, True)
    """
    drawn = random.Random(f"documents {seed}")
    return [_document(drawn, people, questions) for _ in range(n)]


def _document(drawn: random.Random, people: int, questions: int) -> Document:
    sentences, asked = list[str](), list[tuple[str, str]]()
    for name in drawn.sample(NAMES, people):
        city, job, colour, thing = (drawn.choice(words) for words in (CITIES, JOBS, COLOURS, THINGS))
        facts = [
            (f"{name} lives in {city}.", f"Where does {name} live?", city),
            (f"{name} works as a {job}.", f"What does {name} work as?", job),
            (f"The {thing} of {name} is {colour}.", f"What colour is the {thing} of {name}?", colour),
        ]
        sentences += [fact[0] for fact in facts]
        asked += [(fact[1], fact[2]) for fact in facts]
    drawn.shuffle(sentences)
    return Document(" ".join(sentences), tuple(drawn.sample(asked, min(questions, len(asked)))))


def corpus(made: Sequence[Document], kind: str, share: float = 0.5, seed: int = 0) -> list[str]:
    """Texts to train on: `plain`, `augmented` (a share of the documents with their questions), or `shuffled`.

    The control `shuffled` has the questions of another of these documents behind each, so that it has the same strings.

    >>> made = cm.applications.instructions.documents(4)
    >>> [len(cm.applications.instructions.corpus(made, kind)) for kind in ("plain", "augmented", "shuffled")]
    [4, 4, 4]

    Raises `InputError` for another kind.
    """
    if kind not in KINDS:
        raise unknown_name("kind of corpus", kind, KINDS)
    count = round(share * len(made))
    chosen = sorted(random.Random(f"corpus {seed}").sample(range(len(made)), count)) if kind != "plain" else []
    ahead = 1 if kind == "shuffled" else 0
    others = {chosen[i]: chosen[(i + ahead) % len(chosen)] for i in range(len(chosen))}
    return [
        document.augmented(made[others[i]].questions) if i in others else document.text
        for i, document in enumerate(made)
    ]


KINDS = ("plain", "augmented", "shuffled")
"""Kinds of `corpus`."""


def answer_accuracy(model: Model, made: Sequence[Document]) -> float:
    """Share of the questions, behind their own document, whose answer's first token is the model's most likely one.

    >>> made = cm.applications.instructions.documents(4)
    >>> tokenizer = cm.training.vocabulary(cm.applications.instructions.corpus(made, "augmented"), size=400)
    >>> import transformers
    >>> config = transformers.LlamaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    >>> model = cm.training.untrained(config, tokenizer=tokenizer)
    >>> 0 <= cm.applications.instructions.answer_accuracy(model, made) <= 1
    True
    """
    rows, wanted = list[list[int]](), list[int]()
    for document in made:
        for question, answer in document.questions:
            rows.append(model.encode(f"{document.text}\nQuestion: {question} Answer:"))
            wanted.append(model.encode_answer(f" {answer}")[0])
    prompts, right = packed(rows), 0
    for start in range(0, len(rows), 64):
        part = range(start, min(start + 64, len(rows)))
        with torch.no_grad():
            said = model.logits(prompts.inputs(model, part)).argmax(-1).tolist()
        right += sum(a == b for a, b in zip(said, wanted[start:], strict=False))
    return right / len(rows)
