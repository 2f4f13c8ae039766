"""Numbers as the page writes them."""

from typing import Any

import pytest

from circuitome.present import formats

MINUS = "\u2212"
NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"value": 0.431, "low": 0.379, "high": 0.483}, "43\xa0% [38, 48]"),
        ({"value": 0.004, "low": -0.001, "high": 0.009}, f"0.4\xa0% [{MINUS}0.1, 0.9]"),
        ({"value": 0.0, "low": 0.0, "high": 0.0}, "0\xa0% [0, 0]"),
        ({"value": -0.0004, "low": -0.2, "high": 0.1}, f"0\xa0% [{MINUS}20, 10]"),
        ({"value": 1.04, "low": NAN, "high": NAN}, "104\xa0%"),
        ({"value": None}, "n/a"),
    ],
)
def test_percent(value: dict[str, Any], shown: str) -> None:
    assert formats.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "decimals", "shown"),
    [(-0.12345, 3, f"{MINUS}0.123"), (0, 3, "0.000"), (3e-7, 3, f"3.0e{MINUS}07"), (NAN, 3, "n/a"), (None, 3, "n/a")],
)
def test_fixed(value: float | None, decimals: int, shown: str) -> None:
    assert formats.fixed(value, decimals) == shown


@pytest.mark.parametrize(("largest", "decimals"), [(0.0, 3), (0.12, 4), (4.1, 3), (250.0, 2), (1e-9, 8)])
def test_score_decimals(largest: float, decimals: int) -> None:
    assert formats.score_decimals(largest) == decimals


@pytest.mark.parametrize(("value", "shown"), [(999, "999 bytes"), (1_500_000, "1.5 MB"), (1_893_000_000, "1.89 GB")])
def test_size(value: int, shown: str) -> None:
    assert formats.size(value) == shown
