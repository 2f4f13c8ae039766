"""Prompts with a needle in a haystack: a fact somewhere in a long text, and a question that it answers.

Built from token ids, so that it is known where the needle is. Source: Wu et al. 2024, arXiv:2404.15574, section 2;
nightdessert/Retrieval_Head: retrieval_head_detection.py. Text and needles of the package are our own.
"""

import json
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from circuitome.errors import DataFileError, InputError
from circuitome.models.model import Model

HERE = Path(__file__).parent
LENGTHS = (128, 256, 512)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
ASK = "\n\nQ: {question}\nA:"
"""What follows the text: plain, for models of any training; the published prompt has an instruction and "Answer:"."""
ENDS = re.compile(r"[.!?][\"'\N{RIGHT DOUBLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK})]*\s*$")
"""How the token at the end of a sentence ends."""


@dataclass(frozen=True)
class Needle:
    """A fact to hide, a question about it, and the answer.

    >>> cm.heads.Needle("The code is 7.", "What is the code?", "7").answer
    '7'
    """

    text: str
    """The fact, a sentence."""
    question: str
    """What is asked."""
    answer: str
    """What the fact answers, in its own words."""


@dataclass(frozen=True)
class NeedlePrompt:
    """A prompt with a needle in its text."""

    ids: tuple[int, ...]
    """Its tokens."""
    span: tuple[int, int]
    """First position of the needle, and one past its last."""
    depth: float
    """Share of the text that stands before the needle, as asked for: 0 to 1."""
    needle: int
    """Which needle it is."""
    answer: str
    """The expected answer."""
    answer_ids: tuple[int, ...]
    """Its tokens, as they would follow the prompt."""

    @property
    def needle_ids(self) -> tuple[int, ...]:
        """The needle's tokens."""
        return self.ids[slice(*self.span)]


def own_text() -> str:
    """The text that comes with the package: plain prose, 1,700 words, written for it.

    >>> len(cm.heads.own_text().split())
    1737
    """
    return (HERE / "haystack.txt").read_text(encoding="utf-8")


def own_needles() -> tuple[Needle, ...]:
    """The three needles that come with the package."""
    return read_needles(HERE / "needles.jsonl")


def read_needles(path: Path) -> tuple[Needle, ...]:
    """Needles from a JSONL file with `needle`, `question` and `answer`.

    Raises `DataFileError` for a file that is no UTF-8 text or holds none, and for a line that is none, which it names.

    >>> path = Path(circuitome.__path__[0]) / "heads" / "long_context" / "needles.jsonl"
    >>> len(cm.heads.read_needles(path))
    3
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path} cannot be read as UTF-8 text: {error}") from error
    needles = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            needles.append(Needle(*(str(row[name]) for name in ("needle", "question", "answer"))))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataFileError(
                f"{path}:{number} is not a needle. A line reads "
                '{"needle": "...", "question": "...", "answer": "..."}.'
            ) from error
    if not needles:
        raise DataFileError(f"{path} holds no needles. Write one JSON object with needle, question and answer a line.")
    return tuple(needles)


def needle_prompts(
    model: Model,
    *,
    lengths: Sequence[int] = LENGTHS,
    depths: Sequence[float] = DEPTHS,
    text: str | None = None,
    needles: Sequence[Needle] | None = None,
) -> tuple[NeedlePrompt, ...]:
    """Every needle at every depth of every length, as prompts: lengths vary slowest, needles fastest.

    A prompt is the tokenizer's own first tokens, the text cut so that the prompt has exactly `length` tokens, the
    question and "A:". The needle stands after the last sentence end before its depth; at depth 1 after the text.
    No chat template. Raises `InputError` for lengths, depths, texts and needles that cannot be, and
    `UnsupportedModelError` for a masked language model.
    Source: Wu et al. 2024, arXiv:2404.15574, section 2.

    >>> model = cm.load("smollm2-135m")
    >>> prompt = cm.heads.needle_prompts(model, lengths=(96,), depths=(0.5,))[0]
    >>> len(prompt.ids), model.decode(prompt.needle_ids)
    (96, ' The best thing to do in Aldermoor is to drink pear cider on the harbour wall at sunset.')
    """
    model.check_sums("Answering token by token")
    needles = own_needles() if needles is None else needles
    if not (lengths and depths and needles):
        raise InputError("A search needs at least one length, one depth and one needle.")
    if wrong := [depth for depth in depths if not 0 <= depth <= 1]:
        raise InputError(f"A depth is the share of the text before the needle, from 0 to 1; got {wrong[0]:g}.")
    tokens = model.encode_answer(own_text() if text is None else text)
    ends = [at + 1 for at, token in enumerate(tokens) if ENDS.search(model.decode([token]))]
    return tuple(
        _needle_prompt(model, tokens, ends, length, depth, index, needle)
        for length in lengths
        for depth in depths
        for index, needle in enumerate(needles)
    )


def _needle_prompt(
    model: Model, tokens: list[int], ends: list[int], length: int, depth: float, index: int, needle: Needle
) -> NeedlePrompt:
    first, stripped = model.encode(""), (needle.text.strip(), needle.answer.strip())
    hidden, answer = (model.encode_answer(f" {said}") if said else [] for said in stripped)
    for name, ids in (("needle", hidden), ("answer", answer)):
        if not ids:
            raise InputError(f"The {name} of needle {index + 1} has no tokens. Give a sentence that says something.")
    question = model.encode_answer(ASK.format(question=needle.question))
    room = length - len(first) - len(hidden) - len(question)
    if room < 1:
        raise InputError(
            f"A prompt of {length} tokens has no room for text: needle {index + 1} takes {len(hidden)}, its question "
            f"{len(question)}. Give lengths of at least {length - room + 1}."
        )
    if room > len(tokens):
        raise InputError(
            f"The text has {len(tokens):,} tokens; prompts of {length:,} need {room:,} of it. Give a longer text, or "
            f"lengths of at most {length - room + len(tokens):,}."
        )
    at = round(depth * room)
    if depth < 1:
        before = bisect_right(ends, at)
        at = ends[before - 1] if before else 0
    start = len(first) + at
    prompt = (*first, *tokens[:at], *hidden, *tokens[at:room], *question)
    return NeedlePrompt(prompt, (start, start + len(hidden)), depth, index, needle.answer, tuple(answer))


def recall(answer: str, expected: str) -> float:
    """ROUGE-1 recall: the share of expected words that were found, each as often as it occurs; case and signs apart.

    Words are runs of letters and digits, not stemmed (the published code stems).
    """
    said, wanted = (Counter(re.findall(r"[^\W_]+", text.lower())) for text in (answer, expected))
    return sum((said & wanted).values()) / sum(wanted.values()) if wanted else 0.0
