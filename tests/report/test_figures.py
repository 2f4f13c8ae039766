"""The figures: well-formed, and drawn where the model's order says."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from circuitome.report import circuit, curve
from circuitome.report.figures import circuit_svg, curve_svg
from circuitome.report.grid import make_grid

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("changes", [{}, {"curve": None}, {"edges": []}])
@pytest.mark.parametrize("name", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_figures_are_well_formed_and_stand_alone(
    name: str, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    payload = request.getfixturevalue(name) | changes
    for figure in (circuit_svg(payload), curve_svg(payload)):
        assert ElementTree.fromstring(figure).tag == f"{SVG}svg"
        assert "var(" not in figure and "nan" not in figure.lower()


@pytest.mark.slow
def test_static_drawing_holds_the_strongest_edges(large: dict[str, Any]) -> None:
    drawn = ElementTree.fromstring(circuit_svg(large)).find(f"{SVG}g[@class='edges']")
    assert drawn is not None and len(drawn) == circuit.STRONGEST


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("layers", "heads", "kv_heads"), [(2, 2, 2), (30, 9, 3), (12, 12, 12), (32, 32, 8)])
def test_later_is_higher(layers: int, heads: int, kv_heads: int, parallel: bool) -> None:
    model = {"layers": layers, "heads": heads, "kv_heads": kv_heads, "parallel": parallel}
    grid = make_grid(model, ["embed"])
    nodes = grid.nodes
    heights = [nodes["embed"].y, *(nodes[f"a{i}.h0"].y for i in range(layers)), nodes["logits"].y]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == layers + 2
    for layer in range(layers):
        head, mlp = nodes[f"a{layer}.h0"], nodes[f"m{layer}"]
        assert mlp.y == head.y if parallel else mlp.y < head.y
        assert layer + 1 == layers or mlp.y > nodes[f"a{layer + 1}.h0"].y
    assert all(0 < point.x < grid.width and 0 < point.y < grid.height for point in nodes.values())
    assert len(set(nodes.values())) == len(nodes)


def test_edges_between_layers_run_upwards_and_start_at_their_writer(small: dict[str, Any]) -> None:
    drawing = circuit.draw(small)
    for edge in drawing.edges:
        numbers = [float(number) for number in re.findall(r"-?\d+", edge.path)]
        assert numbers[0] == round(drawing.grid.nodes[edge.source].x)
        assert edge.layers == 0 or numbers[-1] < numbers[1]


def test_shared_keys_and_values_end_at_the_bracket_of_their_group() -> None:
    grid = make_grid({"layers": 2, "heads": 9, "kv_heads": 3}, [])
    bracket = grid.brackets["a1.kv2"]
    assert grid.group(2) == [6, 7, 8]
    assert bracket.left < grid.nodes["a1.h6"].x and bracket.right > grid.nodes["a1.h8"].x
    assert grid.reader_node("a1.kv2.k") == "a1.kv2"
    assert grid.nodes["a0.h6"].y > bracket.y > grid.nodes["a1.h6"].y


def test_without_sharing_keys_and_values_end_at_the_head() -> None:
    grid = make_grid({"layers": 2, "heads": 4, "kv_heads": 4}, [])
    assert grid.brackets == {}
    assert grid.reader_node("a1.kv2.v") == "a1.h2"


def test_writers_before_block_zero_share_the_bottom_row() -> None:
    nodes = make_grid({"layers": 1, "heads": 2}, ["pos_embed", "a0.h1", "embed"]).nodes
    assert nodes["embed"].y == nodes["pos_embed"].y > nodes["a0.h0"].y
    assert nodes["embed"].x != nodes["pos_embed"].x


def test_strength_is_the_sum_over_a_nodes_edges(small: dict[str, Any]) -> None:
    strengths = circuit.draw(small).strengths
    assert strengths["a0.h1"] == pytest.approx(0.5 + 0.125 + 0.4)
    assert strengths["a1.kv1"] == pytest.approx(0.25 + 0.4)
    assert "a1.h2" not in strengths


def test_colour_is_the_sign(small: dict[str, Any]) -> None:
    colours = {edge.score: edge.colour for edge in circuit.draw(small).edges}
    assert colours[-1.0] == "helps" and colours[0.25] == "hurts"


def test_curve_points_rise_with_faithfulness_and_skip_missing_values(small: dict[str, Any]) -> None:
    small["curve"]["circuit"][1]["value"] = float("nan")
    points = ElementTree.fromstring(curve_svg(small)).findall(f"{SVG}circle")
    circuit_points = [p for p in points if (p.findtext(f"{SVG}title") or "").startswith("circuit")]
    assert len(points) == 5 and len(circuit_points) == 2
    assert float(circuit_points[0].get("cy", "")) > float(circuit_points[1].get("cy", ""))
    assert circuit_points[1].findtext(f"{SVG}title") == "circuit, 100 edges: 0.970 [0.920, 1.020]"


@pytest.mark.parametrize("sizes", [[500], [1000, 100, 10], [0, 5, 9], [101, 102, 103]])
def test_curve_takes_any_sizes(small: dict[str, Any], sizes: list[int]) -> None:
    small["curve"] = {"sizes": sizes, "circuit": small["curve"]["circuit"][: len(sizes)]}
    ElementTree.fromstring(curve_svg(small))
    assert [sample.size for sample in curve.samples(small["curve"], "circuit")] == sorted(s for s in sizes if s > 0)


def test_wild_intervals_do_not_flatten_the_curve(small: dict[str, Any]) -> None:
    small["curve"]["random"][0] |= {"low": -1000.0, "high": 1000.0}
    heights = [float(p.get("cy", "")) for p in ElementTree.fromstring(curve_svg(small)).findall(f"{SVG}circle")]
    assert max(heights) - min(heights) > 100
