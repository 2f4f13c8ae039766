"""Charts: valid Vega-Lite, drawn with every value where it belongs, readable without colour, small on a page."""

import math
import re
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
from documents import every, heat_map, lines

from circuitome.errors import InputError
from circuitome.present import charts
from circuitome.present.assets import palette
from circuitome.present.blocks import Lede, Lines
from circuitome.present.heat_maps import certain

CHARTS = [block for block in every().blocks if charts.is_chart(block)]


def drawn(block: Any) -> ElementTree.Element:
    return ElementTree.fromstring(charts.svg(block))


def said(block: Any) -> list[str]:
    return [mark.get("data-label", "") for mark in drawn(block).iter() if mark.tag.endswith("path")]


@pytest.mark.parametrize("block", CHARTS, ids=lambda block: block.block)
def test_charts_are_valid_and_take_the_pages_colours(block: Any) -> None:
    charts.chart(block).to_dict(validate=True)
    svg = charts.svg(block)
    ElementTree.fromstring(svg)
    assert not re.search(r"#[0-9a-f]{6}", svg) and "var(--helps)" in svg
    plain = charts.plain_svg(block)
    assert "var(" not in plain and palette()["helps"] in plain
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_what_is_no_chart_is_refused() -> None:
    with pytest.raises(InputError, match="Lede blocks are no charts"):
        charts.chart(Lede(text=""))


def test_cells_say_their_value_interval_and_share() -> None:
    words = said(heat_map())
    assert "a1.h1: \u22122.000 [\u22122.600, \u22121.400], \u221250\xa0% of the gap" in words
    assert len([label for label in words if label]) == 14  # cell (0, 0) does not exist


def test_outlined_are_cells_whose_interval_leaves_out_chance() -> None:
    block = heat_map()
    assert [certain(block, 1, 1), certain(block, 1, 2), certain(block, 0, 0)] == [True, False, False]
    above = replace(block, chance=0.001, low=((0.0,) * 5, (0.2,) * 5, (-9.0,) * 5))
    assert certain(above, 1, 2) and not certain(above, 2, 1)
    drawn = charts.svg(above)
    assert "the 95 % interval lies<" in drawn and "above chance (0.001)<" in drawn  # on two lines, else it is cut off


def test_layers_go_upwards() -> None:
    """The first row is drawn lowest where a map says so, and on top where it does not."""

    def heights(block: Any) -> list[float]:
        marks = {mark.get("data-label", "")[:5]: mark.get("d", "") for mark in drawn(block).iter()}
        return [float(re.findall(r"[\d.]+", marks[f"a{i}.h1"])[1]) for i in range(3)]

    assert heights(heat_map()) == sorted(heights(heat_map()), reverse=True)
    assert heights(heat_map(upwards=False)) == sorted(heights(heat_map(upwards=False)))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(60, 14), (2, 120), (1, 1)])
def test_any_shape_of_map_is_drawn_whole(shape: tuple[int, int]) -> None:
    block = heat_map(*shape)
    words = [label for label in said(block) if label]
    assert len(words) == shape[0] * shape[1] - 1
    assert len(charts.svg(block)) < 4000 + 190 * len(words) + 250 * sum(shape)


@pytest.mark.parametrize(("value", "words"), [(0.0, "all values are 0"), (None, "no values"), (math.nan, "no values")])
def test_maps_without_values_say_so(value: Any, words: str) -> None:
    assert words in charts.svg(heat_map(values=((value,) * 5,) * 3, low=(), high=()))


def test_more_is_higher_and_larger_is_further_right() -> None:
    paths = [mark.get("d", "") for mark in drawn(lines(1)).iter() if mark.tag.endswith("path")]
    curve = next(d for d in paths if re.fullmatch(r"M[\d.,]+(L[\d.,]+){2}", d))
    numbers = [float(number) for number in re.findall(r"[\d.]+", curve)]
    assert numbers[0::2] == sorted(numbers[0::2]) and numbers[1::2] == sorted(numbers[1::2], reverse=True)


def test_lines_are_told_apart_without_colour() -> None:
    block = lines(20)
    spec = charts.chart(block).to_dict(validate=False)
    scales = {
        channel: layer["encoding"][channel]["scale"]["range"]
        for layer in spec["layer"]
        for channel in ("strokeDash", "shape")
        if channel in layer.get("encoding", {})
    }
    looks = {(tuple(dash), shape) for dash, shape in zip(scales["strokeDash"], scales["shape"], strict=True)}
    assert len(looks) == 20


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_missing_values_are_not_drawn_and_not_zero(bad: Any) -> None:
    block = lines(1)
    hole = replace(block.series[0], y=(0.0, bad, 0.4), low=(bad,) * 3, high=(bad,) * 3)
    words = [label for label in said(replace(block, series=(hole,))) if label]
    assert words == ["line 0, 1: 0.000", "line 0, 100: 0.400"]


@pytest.mark.parametrize("sizes", [(500,), (1000, 100, 10), (0, 5, 9), (101, 102, 103), ()])
def test_lines_take_any_sizes(sizes: tuple[float, ...]) -> None:
    block = lines(1, sizes, marks=())
    assert len([label for label in said(block) if label]) == len([size for size in sizes if size > 0])


def test_wild_intervals_do_not_flatten_the_lines() -> None:
    block = lines(1)
    wild = replace(block, series=(replace(block.series[0], low=(-1000.0,) * 3, high=(1000.0,) * 3),), levels=())

    def heights(block: Lines) -> list[float]:
        places = [mark.get("transform", "") for mark in drawn(block).iter() if "line 0, " in mark.get("data-label", "")]
        return [float(re.findall(r"[\d.]+", place)[1]) for place in places]

    assert max(heights(wild)) - min(heights(wild)) > 100


def test_what_siblings_share_is_said_once_and_of_two_as_common_the_first():
    group = ElementTree.fromstring('<g><path fill="red"/><path fill="blue"/><path fill="blue"/><path fill="red"/></g>')
    charts._hoist(group, "fill")
    assert group.get("fill") == "red"
    assert [child.get("fill") for child in group] == [None, "blue", "blue", None]
