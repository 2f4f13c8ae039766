"""Word lists that the generators draw from. Each tokenizer uses those that are one token behind a space."""

import tomllib
from pathlib import Path
from typing import Any

_lists: dict[str, Any] = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


def _words(name: str) -> tuple[str, ...]:
    return tuple(_lists[name].split())


MALE_NAMES, FEMALE_NAMES = _words("male_names"), _words("female_names")
MALE_PEOPLE, FEMALE_PEOPLE = _words("male_people"), _words("female_people")
PLACES, OBJECTS, EVENTS = _words("places"), _words("objects"), _words("events")
NOUNS, ARGUMENTS = _words("nouns"), _words("arguments")
COUNTABLE_NOUNS = tuple((noun, noun + "s") for noun in _words("countable_nouns"))
"""Singular and plural."""
CAPITALS: dict[str, str] = _lists["capitals"]
"""Countries and their capitals."""
