"""The heat map: well formed at every size, every cell where its layer is, and marks that mean what the legend says."""

import copy
import math
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from circuitome.report.figures import fixed_colours
from circuitome.report.heatmap import certain, gap, heatmap_svg, label, largest_effect, share

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """</svg><script>alert(1)</script><!-- "quoted" & 'single' \x00"""


def effects_of(rows: int, columns: int) -> dict[str, Any]:
    """Heads and MLPs: cell (0, 0) does not exist, a1.h1 is surely negative, a2.h1 positive but not surely so."""

    def mean(i: int, j: int) -> float | None:
        special = {(0, 0): None, (1, 1): -2.0, (2, 1): 0.25}
        return special.get((i, j), 0.01 * ((i * 7 + j * 3) % 11 - 5))

    def grid(width: float) -> list[list[float | None]]:
        cells = [[mean(i, j) for j in range(columns)] for i in range(rows)]
        return [[None if value is None else value + width for value in row] for row in cells]

    estimate = {"low": -0.5, "high": 0.5, "unit": "logits", "n": 8}
    return {
        "name": "patching heads, noise",
        "unit": "logits",
        "rows": [f"a{i}" for i in range(rows)],
        "columns": [*(f"h{j}" for j in range(columns - 1)), "mlp"],
        "mean": grid(0.0),
        "low": grid(-0.3),
        "high": grid(0.3),
        "clean": estimate | {"value": 4.0},
        "corrupted": estimate | {"value": -1.0},
    }


def draw(effects: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(heatmap_svg(effects))


def cells(effects: dict[str, Any], figure: ElementTree.Element | None = None) -> dict[str, ElementTree.Element]:
    """Cells by their names."""
    figure = draw(effects) if figure is None else figure
    found = [cell for cell in figure.iter(f"{SVG}rect") if cell.find(f"{SVG}title") is not None]
    return {(cell.findtext(f"{SVG}title") or "").partition(":")[0]: cell for cell in found}


def texts(effects: dict[str, Any]) -> list[str]:
    return [text.text or "" for text in draw(effects).iter(f"{SVG}text")]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(3, 5), (30, 10), (270, 14), (32, 33), (2, 1), (2, 64), (3, 120)])
def test_every_cell_lies_inside_the_figure_and_is_large_enough(shape: tuple[int, int]) -> None:
    effects = effects_of(*shape)
    figure = draw(effects)
    found = cells(effects, figure)
    assert len(found) == shape[0] * shape[1] - 1
    width, height = (float(figure.get(side, "")) for side in ("width", "height"))
    assert height < 3500
    for cell in found.values():
        x, y, wide, high = (float(cell.get(key, "")) for key in ("x", "y", "width", "height"))
        assert wide >= 10 and high >= 9
        assert x > 0 and y > 0 and x + wide < width and y + high < height


def test_layers_go_upwards_and_heads_to_the_right() -> None:
    found = cells(effects_of(3, 5))
    places = {name: (float(cell.get("x", "")), float(cell.get("y", ""))) for name, cell in found.items()}
    assert places["a0.h1"][1] > places["a1.h1"][1] > places["a2.h1"][1]
    assert places["a1.h0"][0] < places["a1.h3"][0] < places["m1"][0]


def test_tooltips_give_mean_interval_and_share_of_the_gap() -> None:
    words = cells(effects_of(3, 5))["a1.h1"].findtext(f"{SVG}title")
    assert words == "a1.h1: −2.000 [−2.300, −1.700], −40.0\N{NO-BREAK SPACE}% of the gap"


def test_sign_is_the_colour_size_the_opacity_and_certainty_the_outline() -> None:
    found = cells(effects_of(3, 5))
    below, above = found["a1.h1"], found["a2.h1"]
    assert below.get("fill") == "var(--helps)" and above.get("fill") == "var(--hurts)"
    assert float(below.get("fill-opacity", "")) == 1 > float(above.get("fill-opacity", "")) > 0
    assert [name for name, cell in found.items() if cell.get("stroke")] == ["a1.h1"]


def test_small_effects_that_are_surely_not_zero_are_outlined_too() -> None:
    effects = effects_of(3, 5)
    effects["mean"][2][2], effects["low"][2][2], effects["high"][2][2] = 1e-4, 5e-5, 2e-4
    assert cells(effects)["a2.h2"].get("stroke") == "var(--ink)"


def test_strong_cells_carry_their_number() -> None:
    assert "−2.00" in texts(effects_of(30, 10))
    assert "−2.00" in texts(effects_of(3, 64))  # on the scale
    assert texts(effects_of(3, 64)).count("−2.00") == 1  # cells are too narrow


def test_scale_has_numbers_and_shares() -> None:
    words = texts(effects_of(3, 5))
    for tick in ("−2.00", "0", "2.00", "logits", "−40\N{NO-BREAK SPACE}%", "40\N{NO-BREAK SPACE}%", "of the gap"):
        assert tick in words
    equal = effects_of(3, 5)
    equal["corrupted"] = equal["clean"]
    assert gap(equal) is None and "of the gap" not in texts(equal)
    del equal["clean"], equal["corrupted"]
    assert gap(equal) is None and share(equal, 1.0) == ""


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_cells_without_a_value_are_struck_out(bad: float | None) -> None:
    effects = effects_of(3, 5)
    effects["mean"][1][2] = bad
    assert "a1.h2" not in cells(effects) and len(cells(effects)) == 13
    assert "no such part" in texts(effects)
    strokes = [path.get("d", "") for path in draw(effects).iter(f"{SVG}path")]
    assert max(d.count("M") for d in strokes) == 2
    assert "nan" not in heatmap_svg(effects).lower() and "inf" not in heatmap_svg(effects).replace("interval", "")


@pytest.mark.parametrize("bad", [None, math.nan])
def test_cells_without_an_interval_are_not_outlined(bad: float | None) -> None:
    effects = effects_of(3, 5)
    effects["low"][1][1] = bad
    cell = cells(effects)["a1.h1"]
    assert cell.get("stroke") is None and "[" not in (cell.findtext(f"{SVG}title") or "")


@pytest.mark.parametrize(("value", "words"), [(lambda old: 0.0, "all effects are 0"), (lambda old: None, "no effects")])
def test_maps_without_effects_say_so(value: Callable[[Any], float | None], words: str) -> None:
    effects = effects_of(3, 5)
    for key in ("mean", "low", "high"):
        effects[key] = [[value(old) for old in row] for row in effects[key]]
    assert words in texts(effects) and largest_effect(effects) == 0


@pytest.mark.parametrize("value", [-3.0, 1e-9, 12345.0])
def test_one_cell_is_a_map(value: float) -> None:
    one = {"title": "one", "rows": ["a0"], "columns": ["h0"], "mean": [[value]], "low": [[None]], "high": [[None]]}
    assert list(cells(one)) == ["a0.h0"]
    draw(one | {"rows": [], "columns": [], "mean": [], "low": [], "high": []})


@pytest.mark.slow
def test_heads_by_position_are_grouped_by_layer_and_labelled_above_and_below() -> None:
    effects = effects_of(63, 14)
    effects["rows"] = [f"a{layer}.h{head}" for layer in range(7) for head in range(9)]
    effects["columns"] = [str(i - 13) for i in range(14)]
    words = texts(effects)
    assert words.count("a6") == 1 and words.count("h8") == 7 and words.count("-13") == 2
    assert "a0.h1@-12" in cells(effects)


def test_column_labels_are_thinned_and_keep_the_last() -> None:
    words = texts(effects_of(3, 33))
    shown = [word for word in words if word.startswith("h") or word == "mlp"]
    assert shown[0] == "h0" and shown[-1] == "mlp" and 10 < len(shown) < 30
    assert texts(effects_of(3, 5))[-6:-1] == ["h0", "h1", "h2", "h3", "mlp"]


@pytest.mark.parametrize(
    ("row", "column", "name"),
    [
        ("a5", "h1", "a5.h1"),
        ("a5", "mlp", "m5"),
        ("m5", "mlp", "m5"),
        ("embed", "mlp", "embed"),
        ("resid3", "-2", "resid3@-2"),
        ("a5", "here", "a5@here"),
    ],
)
def test_cells_have_names(row: str, column: str, name: str) -> None:
    assert label({"rows": [row], "columns": [column]}, 0, 0) == name


def test_certain_means_that_the_interval_leaves_out_zero() -> None:
    effects = effects_of(3, 5)
    assert certain(effects, 1, 1) and not certain(effects, 2, 1) and not certain(effects, 0, 0)
    effects["low"][2][1] = 0.0
    assert not certain(effects, 2, 1)


def test_hostile_labels_stay_labels() -> None:
    effects = effects_of(3, 5) | {"title": HOSTILE, "unit": HOSTILE}
    effects["rows"][1] = effects["columns"][1] = HOSTILE
    drawn = heatmap_svg(effects)
    assert "<script" not in drawn
    words = ["".join(text.itertext()) for text in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    assert any(word.startswith("</svg><script>") for word in words)


def test_same_map_same_figure_and_map_untouched() -> None:
    effects = effects_of(30, 10)
    before = copy.deepcopy(effects)
    assert heatmap_svg(effects) == heatmap_svg(before)
    assert effects == before
    assert "var(" not in fixed_colours(heatmap_svg(effects))
