"""Numbers, cells and tokens as every view writes them."""

from typing import Any

import pytest

from circuitome.present import formats
from circuitome.present.blocks import Column, Figure, Table

MINUS = "\u2212"
NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ((0.431, 0.379, 0.483), "43\xa0% [38, 48]"),
        ((0.004, -0.001, 0.009), f"0.4\xa0% [{MINUS}0.1, 0.9]"),
        ((0.0, 0.0, 0.0), "0\xa0% [0, 0]"),
        ((-0.0004, -0.2, 0.1), f"0\xa0% [{MINUS}20, 10]"),
        ((1.04, NAN, NAN), "104\xa0%"),
        ((None, 0.1, 0.2), "n/a"),
    ],
)
def test_percent(value: tuple[Any, ...], shown: str) -> None:
    assert formats.percent(*value) == shown


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [
        (-0.12345, 3, f"{MINUS}0.123"),
        (0, 3, "0.000"),
        (-0.0, 3, "0.000"),
        (3e-7, 3, f"3.0e{MINUS}07"),
        (12345.6, 1, "12,345.6"),
        (NAN, 3, "n/a"),
        (None, 3, "n/a"),
    ],
)
def test_fixed(value: float | None, decimals: int, shown: str) -> None:
    assert formats.fixed(value, decimals) == shown


@pytest.mark.parametrize(("largest", "decimals"), [(0.0, 3), (0.12, 4), (4.1, 3), (250.0, 2), (1e-9, 8)])
def test_score_decimals(largest: float, decimals: int) -> None:
    assert formats.score_decimals(largest) == decimals


@pytest.mark.parametrize(("value", "shown"), [(999, "999 bytes"), (1_500_000, "1.5 MB"), (1_893_000_000, "1.89 GB")])
def test_size(value: int, shown: str) -> None:
    assert formats.size(value) == shown


@pytest.mark.parametrize(
    ("style", "ends", "shown"),
    [
        ("number", (0.6, 0.5, 0.7), ("0.600", "[0.500, 0.700]")),
        ("number", (250.0, None, None), ("250.0", "")),
        ("percent", (0.6, 0.5, 0.7), ("60\xa0%", "[50, 70]")),
        ("count", (1234, None, None), ("1,234", "")),
        ("signed", (0.5, None, None), ("+0.500", "")),
        ("number", (None, None, None), ("n/a", "")),
    ],
)
def test_headline_numbers_and_their_intervals(style: Any, ends: tuple[Any, ...], shown: tuple[str, str]) -> None:
    value, low, high = ends
    assert formats.headline(Figure(name="", value=value, low=low, high=high, style=style)) == shown


@pytest.mark.parametrize(
    ("style", "cell", "shown"),
    [
        ("text", None, ""),
        ("text", "words", "words"),
        ("number", None, "n/a"),
        ("number", NAN, "n/a"),
        ("number", 7, "7"),
        ("number", 0.25, "0.2500"),
        ("signed", 0.25, "+0.2500"),
        ("count", 1234.0, "1,234"),
        ("percent", 0.25, "25\xa0%"),
        ("percent", (0.25, 0.1, 0.3), "25\xa0% [10, 30]"),
        ("estimate", (0.25, 0.1, 0.3), "0.2500 [0.1000, 0.3000]"),
        ("estimate", (0.25, None, None), "0.2500"),
        ("estimate", (None, None, None), "n/a"),
    ],
)
def test_cells_follow_the_style_of_their_column(style: Any, cell: Any, shown: str) -> None:
    assert formats.texts(Table(columns=(Column(name="", style=style),), rows=((cell,),))) == [[shown]]


def test_a_column_has_one_number_of_decimals_unless_it_is_given() -> None:
    rows = ((123.456,), (0.5,))
    assert formats.texts(Table(columns=(Column(name="", style="number"),), rows=rows)) == [["123.46"], ["0.50"]]
    assert formats.texts(Table(columns=(Column(name="", style="number", decimals=1),), rows=rows))[1] == ["0.5"]


def test_names_for_files_and_tokens_in_quotes() -> None:
    assert formats.slug("Faithfulness by size (share of 1)") == "faithfulness-by-size-share-of-1"
    assert formats.quoted(" Ma\n") == '" Ma\\n"'
    assert formats.printable("a\nb\x1b[2J") == "a\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}b\ufffd[2J"
