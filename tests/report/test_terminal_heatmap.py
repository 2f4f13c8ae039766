"""Maps, traces and comparisons in the terminal: readable without colour, at any width, whatever the texts are."""

import math
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from circuitome.cli import heatmap as terminal

HOSTILE = "[/] [red]x[/red] [bold"


def effects_of(rows: int, columns: int) -> dict[str, Any]:
    """Cell (0, 0) does not exist, a1.h1 is surely negative, a1.h2 positive but not surely so."""
    special = {(0, 0): None, (1, 1): -2.0, (1, 2): 0.5}
    mean = [[special.get((i, j), 0.001 * (i + j)) for j in range(columns)] for i in range(rows)]
    ends = [[[None if v is None else v + width for v in row] for row in mean] for width in (-0.6, 0.6)]
    return {
        "name": "patching heads, noise",
        "unit": "logits",
        "rows": [f"a{i}" for i in range(rows)],
        "columns": [*(f"h{j}" for j in range(columns - 1)), "mlp"],
        "mean": mean,
        "low": ends[0],
        "high": ends[1],
        "clean": {"value": 4.0},
        "corrupted": {"value": 0.0},
    }


@pytest.fixture
def effects() -> dict[str, Any]:
    return {
        "title": "activation patching: ioi in toy",
        "unit": "logits",
        "maps": [effects_of(3, 5)],
        "top": [{"map": "patching heads, noise", "label": "a1.h1", "mean": -2.0, "low": -2.6, "high": -1.4}],
    }


@pytest.fixture
def comparison() -> dict[str, Any]:
    points = [
        {"edges": edges, "value": value, "low": value - 0.05, "high": value + 0.05, "held_out": value - 0.02}
        for edges, value in ((100, 0.2), (300, 0.3), (1000, 0.43), (3000, 0.6), (10000, 0.84))
    ]
    lone = points[2] | {"edges": 437}
    one = {"seconds": 3.25, "spearman": None}
    return {
        "title": "Methods compared: ioi in toy",
        "methods": [{"name": name, "points": points, **one} for name in ("eap", "eap-ig")]
        + [{"name": "acdc", "points": [lone], **one}],
        "random": [{"edges": 1000, "value": 0.0, "low": -0.01, "high": 0.02}],
        "held_out": {"name": "ioi", "n": 64},
        "exact_edges": 200,
    }


def shown(draw: Callable[[Mapping[str, Any], Console], None], payload: dict[str, Any], width: int = 100) -> str:
    """What a terminal without colours shows."""
    console = Console(width=width, file=StringIO(), color_system=None, legacy_windows=False)
    draw(payload, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.split() and line.split()[0] == start)


def test_sign_size_and_certainty_can_be_read_without_colour(effects: dict[str, Any]) -> None:
    text = shown(terminal.effects, effects)
    assert line(text, "a1").split() == ["a1", "\N{MIDDLE DOT}", "-9*", "+2", "\N{MIDDLE DOT}", "\N{MIDDLE DOT}"]
    assert line(text, "a0").split()[1:] == ["\N{MIDDLE DOT}"] * 4  # h0 does not exist
    assert text.index("\na2 ") < text.index("\na1 ") < text.index("\na0 ")
    assert "tenths of 2.000 logits, 50" in " ".join(text.split())


def test_colours_are_there_where_they_can_be(effects: dict[str, Any]) -> None:
    console = Console(width=100, file=StringIO(), color_system="truecolor", force_terminal=True)
    terminal.effects(effects, console)
    assert "48;2;27;108;176m-9*" in console.file.getvalue()  # type: ignore[attr-defined]


def test_strongest_cells_have_intervals(effects: dict[str, Any]) -> None:
    text = shown(terminal.effects, effects)
    assert line(text, "a1.h1").split() == ["a1.h1", "−2.000", "[−2.600,", "−1.400]"]
    effects["top"][0] |= {"low": math.nan, "high": None}
    effects["top"].append({"map": "", "label": "nothing", "mean": math.nan, "low": None, "high": None})
    assert "no interval" in shown(terminal.effects, effects) and "nothing" not in shown(terminal.effects, effects)


@pytest.mark.slow
@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("shape", [(270, 14), (32, 33), (30, 10), (2, 120)])
def test_large_maps_keep_their_strongest_rows_and_columns(
    effects: dict[str, Any], shape: tuple[int, int], width: int
) -> None:
    effects["maps"] = [effects_of(*shape)]
    text = shown(terminal.effects, effects, width)
    assert max(len(row) for row in text.splitlines()) <= width
    assert "-9*" in line(text, "a1")
    words = " ".join(text.split())
    assert ("the strongest 60 of 270 rows" in words) == (shape[0] > 60)
    assert ("columns" in words) == (shape[1] > (width - terminal.MARGIN) // 4)


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "all effects are 0"), (None, "no effects"), (math.nan, "no effects")]
)
def test_maps_without_effects_say_so(effects: dict[str, Any], value: float | None, words: str) -> None:
    effects["maps"][0] |= {key: [[value] * 5] * 3 for key in ("mean", "low", "high")}
    assert words in shown(terminal.effects, effects | {"top": []})


def test_one_cell_is_a_map(effects: dict[str, Any]) -> None:
    one = {"rows": ["a0"], "columns": ["h0"], "mean": [[0.5]], "low": [[0.25]], "high": [[0.75]]}
    effects["maps"][0] |= one
    assert line(shown(terminal.effects, effects), "a0").split() == ["a0", "+9*"]


def test_further_maps_are_left_to_the_report(effects: dict[str, Any]) -> None:
    effects["maps"] *= 5
    assert "3 more maps are in the report." in shown(terminal.effects, effects)


@pytest.mark.parametrize("width", [60, 120])
def test_trace_is_a_tree_of_what_was_kept(effects: dict[str, Any], width: int) -> None:
    def sender(label: str, mean: float, kept: bool) -> dict[str, Any]:
        return {"label": label, "mean": mean, "low": None, "high": None, "kept": kept}

    effects["tree"] = [
        {"receiver": "logits", "depth": 0, "senders": [sender("a1.h1", -2.0, True), sender("m0", 0.5, False)]},
        {"receiver": "a1.h1.q", "depth": 1, "senders": [sender("a0.h2", -0.25, True)]},
        {"receiver": "a1.h1.k", "depth": 1, "senders": [sender("a0.h3", 0.01, False)]},
    ]
    text = shown(terminal.effects, effects | {"circuit_edges": 2}, width)
    assert "Trace back from the logits, edges kept: 2" in text
    assert "logits     a1.h1 −2.000" in text and "  a1.h1.q  a0.h2 −0.250" in text
    assert "m0 0.500" not in text and "into 1 more receivers nothing was kept" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_comparison_shows_every_value_whole(comparison: dict[str, Any], width: int) -> None:
    text = shown(terminal.compare, comparison, width)
    for value in ("0.200 (0.18)", "[0.15, 0.25]", "0.840 (0.82)", "[0.79, 0.89]", "0.000", "[−0.01, 0.02]"):
        assert value in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert "437: 0.430 (0.41) [0.38, 0.48]" in " ".join(text.split())
    assert ("continued" in text) == (width < 100)
    assert "200 exactly patched edges" in " ".join(text.split())


def test_comparison_without_random_circuits_or_values(comparison: dict[str, Any]) -> None:
    comparison |= {"held_out": None, "exact_edges": 0, "random": []}
    for one in comparison["methods"][0]["points"]:
        one |= {"value": math.nan, "low": None, "held_out": None}
    text = shown(terminal.compare, comparison)
    assert "n/a" in text and "random" not in text and "held-out" not in text
    shown(terminal.compare, comparison | {"methods": []})


def test_texts_are_shown_as_they_are(effects: dict[str, Any], comparison: dict[str, Any]) -> None:
    effects["title"] = effects["maps"][0]["name"] = effects["top"][0]["label"] = HOSTILE
    effects["maps"][0]["rows"][1] = effects["maps"][0]["columns"][2] = "[red]"
    effects["tree"] = [
        {"receiver": HOSTILE, "depth": 0, "senders": [{"label": HOSTILE, "mean": 1.0, "kept": True}]},
    ]
    text = shown(terminal.effects, effects, 200)
    assert text.count(HOSTILE) >= 5 and text.count("[red]") >= 7
    comparison["title"] = comparison["methods"][0]["name"] = HOSTILE
    assert shown(terminal.compare, comparison, 200).count(HOSTILE) == 3


def test_same_payload_same_text(effects: dict[str, Any], comparison: dict[str, Any]) -> None:
    assert shown(terminal.effects, effects) == shown(terminal.effects, effects)
    assert shown(terminal.compare, comparison) == shown(terminal.compare, comparison)
