"""The page of a comparison: a line and a row for each method, told apart without colour, unbreakable by its texts."""

import copy
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from circuitome.report import formats
from circuitome.report.compare_page import compare_svg, render_compare, shared_sizes, sizes_of
from circuitome.report.figures import fixed_colours

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """</script><script>alert(1)</script><!-- "quoted" & 'single' <img src=x onerror=alert(1)> $title"""


def point(edges: int, value: float) -> dict[str, Any]:
    return {"edges": edges, "value": value, "low": value - 0.05, "high": value + 0.05, "held_out": value - 0.02}


def method(name: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "description": f"what {name} does",
        "seconds": 3.25,
        "points": points,
        "pearson": 0.9,
        "pearson_abs": 0.8,
        "spearman": None,
        "note": None,
    }


@pytest.fixture
def comparison() -> dict[str, Any]:
    points = [point(100, 0.2), point(1000, 0.43), point(10000, 0.84)]
    return {
        "title": "Methods compared: ioi in toy",
        "command": "circuitome compare ioi",
        "unit": "share of the clean-ablated gap",
        "methods": [method("eap-ig", points), method("eap", points), method("acdc", [points[1], point(437, 0.5)])],
        "random": [{"edges": 1000, "value": 0.0, "low": -0.01, "high": 0.02}],
        "held_out": {"name": "ioi", "n": 64},
        "exact_edges": 200,
        "manifest": {"task": {"name": "ioi"}, "model": {"name": "toy"}},
    }


def figure(comparison: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(compare_svg(comparison))


def main_of(page: str) -> ElementTree.Element:
    found = re.search(r"<main>.*</main>", page, re.S)
    assert found
    return ElementTree.fromstring(found[0])


def text_of(page: str) -> str:
    return " ".join("".join(main_of(page).itertext()).split())


def table_of(page: str) -> list[list[str]]:
    """The cells of the first table, head first."""
    table = main_of(page).find(".//table")
    assert table is not None
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def test_page_is_well_formed_and_loads_nothing(comparison: dict[str, Any]) -> None:
    page = render_compare(comparison)
    assert "default-src 'none'" in page and "<script" not in page and "</br>" not in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "what acdc does" in text_of(page) and "circuitome compare ioi" in text_of(page)


def test_texts_cannot_break_out(comparison: dict[str, Any]) -> None:
    for key in ("title", "command", "unit"):
        comparison[key] = HOSTILE
    comparison["held_out"]["name"] = HOSTILE
    comparison["methods"][0] |= {"name": HOSTILE, "description": HOSTILE, "note": HOSTILE}
    page = render_compare(comparison)
    assert "<script" not in page and "<img" not in page
    assert text_of(page).count("<script>alert(1)") >= 6


def test_each_method_has_a_line_and_an_entry(comparison: dict[str, Any]) -> None:
    words = "".join(figure(comparison).itertext())
    assert "eap-ig, 1,000 edges: 0.430 [0.380, 0.480]" in words
    assert "random circuits, 1,000 edges: 0.000 [−0.010, 0.020]" in words
    assert "share of the clean-ablated gap" in words and "0 = ablated run" in words


def test_more_faithful_is_higher_and_larger_is_further_right(comparison: dict[str, Any]) -> None:
    line = figure(comparison).findall(f"{SVG}g/{SVG}path")[0]
    numbers = [float(number) for number in re.findall(r"[\d.]+", line.get("d", ""))]
    assert numbers[0::2] == sorted(numbers[0::2]) and numbers[1::2] == sorted(numbers[1::2], reverse=True)


def test_methods_are_told_apart_without_colour(comparison: dict[str, Any]) -> None:
    comparison["methods"] = [method(f"method {i}", comparison["methods"][0]["points"]) for i in range(20)]
    lines = [group for group in figure(comparison).findall(f"{SVG}g") if group.get("transform") is None]
    looks = set()
    for group in lines:
        mark = next(item for item in group if item.get("class") == "point")
        shape = re.sub(r"^M[\d. ]+", "", mark.get("d", "circle"))
        looks.add((group[0].get("stroke-dasharray"), shape))
    assert len(lines) == len(looks) == 20


def test_table_has_a_row_for_each_method_and_a_column_for_each_shared_size(comparison: dict[str, Any]) -> None:
    assert sizes_of(comparison) == [100, 437, 1000, 10000] and shared_sizes(comparison) == [100, 1000, 10000]
    head, *rows = table_of(render_compare(comparison))
    assert head[:5] == ["method", "100 edges", "1,000 edges", "10,000 edges", "other sizes"]
    assert head[5:] == ["seconds", "Pearson", "Pearson of sizes", "Spearman of sizes"]
    assert [row[0] for row in rows] == ["eap-ig", "eap", "acdc", "random circuits"]
    assert rows[0][3] == "0.840[0.79, 0.89]held out 0.820"
    assert rows[0][4:] == ["", "3.2", "0.900", "0.800", formats.MISSING]
    assert rows[2][1:5] == ["", "0.430[0.38, 0.48]held out 0.410", "", "437 edges0.500[0.45, 0.55]held out 0.480"]
    assert rows[3][2] == "0.000[−0.01, 0.02]"


def test_what_was_not_measured_is_left_out(comparison: dict[str, Any]) -> None:
    comparison |= {"held_out": None, "exact_edges": 0, "random": []}
    for one in comparison["methods"]:
        one |= {"pearson": None, "pearson_abs": math.nan}
    page = render_compare(comparison)
    head, *rows = table_of(page)
    assert "nothing held out" in text_of(page) and "Correlations" not in text_of(page)
    assert head[-1] == "seconds" and len(rows) == 3


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_missing_values_are_not_drawn_and_not_zero(comparison: dict[str, Any], bad: float | None) -> None:
    comparison["methods"][0]["points"][1] |= {"value": bad, "low": bad, "high": bad, "held_out": bad}
    comparison["methods"][1]["points"] = comparison["methods"][0]["points"]
    comparison["random"][0] |= {"low": bad, "high": bad}
    page = render_compare(comparison)
    assert table_of(page)[1][2] == formats.MISSING
    assert "eap-ig, 1,000 edges" not in page
    assert not re.search(r"\b(nan|inf)\b", text_of(page), re.I)


def test_the_goal_is_marked_and_named(comparison: dict[str, Any]) -> None:
    comparison["goal"] = {"edges": 50000, "value": 0.8}
    assert "goal: 0.80 at 50,000 edges" in "".join(figure(comparison).itertext())


@pytest.mark.parametrize("points", [[], [point(500, 0.3)], [point(0, 0.0)]])
def test_any_number_of_points_gives_a_figure(comparison: dict[str, Any], points: list[dict[str, Any]]) -> None:
    comparison |= {"methods": [method("eap", points)], "random": []}
    main_of(render_compare(comparison))
    assert "var(" not in fixed_colours(compare_svg(comparison))
    comparison["methods"] = []
    main_of(render_compare(comparison))


def test_same_payload_same_page_and_payload_untouched(comparison: dict[str, Any]) -> None:
    before = copy.deepcopy(comparison)
    assert render_compare(comparison) == render_compare(before)
    assert comparison == before
