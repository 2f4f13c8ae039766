"""What is drawn by hand: every node where the model's order says, edges between the right ends, routes by threshold."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
from documents import attention, causal_map, circuit_map, prompt_graph, roles, routes

from circuitome.present.assets import on_paper
from circuitome.present.blocks import Edge, Shape
from circuitome.present.drawings import attention as attention_drawing
from circuitome.present.drawings import attribution_graph as graph_drawing
from circuitome.present.drawings import causal_map as causal_drawing
from circuitome.present.drawings import circuit
from circuitome.present.drawings import roles as roles_drawing
from circuitome.present.drawings import routes as routes_drawing
from circuitome.present.drawings.grid import Grid

SVG = "{http://www.w3.org/2000/svg}"


def test_drawings_are_well_formed_and_stand_alone() -> None:
    drawings = [
        circuit.svg(circuit.draw(circuit_map())),
        circuit.svg(circuit.draw(circuit_map(edges=()))),
        roles_drawing.svg(roles()),
        roles_drawing.svg(replace(roles(), arrows=(), positions=())),
        causal_drawing.svg(causal_map()),
        routes_drawing.svg(routes()),
        graph_drawing.svg(prompt_graph()),
        graph_drawing.svg(prompt_graph(edges=())),
        attention_drawing.svg(attention(), 0),
        attention_drawing.together(attention()),
    ]
    for drawing in map(on_paper, drawings):
        assert ElementTree.fromstring(drawing).tag == f"{SVG}svg"
        assert "var(" not in drawing and "nan" not in drawing.lower()


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("layers", "heads", "kv_heads"), [(2, 2, 2), (30, 9, 3), (12, 12, 12), (32, 32, 8)])
def test_later_is_higher(layers: int, heads: int, kv_heads: int, parallel: bool) -> None:
    grid = Grid(Shape(layers=layers, heads=heads, kv_heads=kv_heads, parallel=parallel))
    nodes = grid.nodes
    heights = [nodes["embed"].y, *(nodes[f"a{i}.h0"].y for i in range(layers)), nodes["logits"].y]
    assert heights == sorted(heights, reverse=True) and len(set(heights)) == layers + 2
    for layer in range(layers):
        head, mlp = nodes[f"a{layer}.h0"], nodes[f"m{layer}"]
        assert mlp.y == head.y if parallel else mlp.y < head.y
        assert layer + 1 == layers or mlp.y > nodes[f"a{layer + 1}.h0"].y
    assert all(0 < point.x < grid.width and 0 < point.y < grid.height for point in nodes.values())
    assert len(set(nodes.values())) == len(nodes)


def test_edges_between_layers_run_upwards_and_start_at_their_writer() -> None:
    drawing = circuit.draw(circuit_map())
    for drawn in drawing.edges:
        numbers = [float(number) for number in re.findall(r"-?\d+", circuit.path(drawing, drawn))]
        assert numbers[0] == round(drawing.grid.nodes[drawn.edge.source].x)
        assert drawn.layers == 0 or numbers[-1] < numbers[1]


def test_shared_keys_and_values_end_at_the_bracket_of_their_group() -> None:
    grid = Grid(Shape(layers=2, heads=9, kv_heads=3))
    bracket = grid.brackets["a1.kv2"]
    assert grid.groups[2] == [6, 7, 8]
    assert bracket.left < grid.nodes["a1.h6"].x and bracket.right > grid.nodes["a1.h8"].x
    assert grid.node_of("a1.kv2.k") == "a1.kv2"
    assert grid.nodes["a0.h6"].y > bracket.y > grid.nodes["a1.h6"].y


def test_without_sharing_keys_and_values_end_at_the_head() -> None:
    grid = Grid(Shape(layers=2, heads=4, kv_heads=4))
    assert grid.brackets == {} and grid.node_of("a1.kv2.v") == "a1.h2"


def test_writers_before_block_zero_share_the_bottom_row() -> None:
    nodes = Grid.of(Shape(layers=1, heads=2, kv_heads=2), ["position", "a0.h1", "token"]).nodes
    assert nodes["token"].y == nodes["position"].y > nodes["a0.h0"].y
    assert nodes["token"].x != nodes["position"].x


def test_neurons_and_features_are_drawn_at_their_mlp() -> None:
    edges = (Edge(source="m0.n12", reader="m1.f3.in", score=-1.0),)
    assert set(circuit.draw(circuit_map(edges=edges)).strengths) == {"m0", "m1"}


def test_strength_is_the_sum_over_a_nodes_edges() -> None:
    strengths = circuit.draw(circuit_map()).strengths
    assert strengths["a0.h1"] == pytest.approx(0.5 + 0.125 + 0.4)
    assert strengths["a1.kv1"] == pytest.approx(0.25 + 0.4)
    assert "a1.h2" not in strengths


def test_colour_is_the_sign_and_order_the_size() -> None:
    edges = circuit.draw(circuit_map(edges=circuit_map().edges[::-1])).edges
    colours = {drawn.edge.score: drawn.colour for drawn in edges}
    assert colours[-1.0] == "helps" and colours[0.25] == "hurts"
    assert [drawn.edge.score for drawn in edges] == [-1.0, -0.5, -0.4, 0.25, -0.125, 0.05, -0.03]
    assert [drawn.kind for drawn in edges[:5]] == ["logits", "q", "v", "k", "mlp"]


def test_the_static_drawing_holds_the_strongest_edges() -> None:
    edges = tuple(Edge(source="embed", reader="m1.in", score=-1 / (i + 1)) for i in range(200))
    drawn = ElementTree.fromstring(circuit.svg(circuit.draw(circuit_map(edges=edges)))).find(f"{SVG}g[@class='edges']")
    assert drawn is not None and len(drawn) == circuit.STRONGEST


def _reached(block: Any, threshold: float) -> set[str]:
    return {block.edges[i].source for i in routes_drawing.on_route(block, threshold)}


def test_very_many_nodes_are_plain_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = circuit.draw(circuit_map())
    named = circuit.svg(drawing)
    monkeypatch.setattr(circuit, "TITLED", 2)
    plain = circuit.svg(drawing)
    dots = [
        {(item.get("cx"), item.get("cy")) for item in ElementTree.fromstring(on_paper(some)).iter(f"{SVG}circle")}
        for some in (named, plain)
    ]
    assert "a0.h1, strength" in named and "a0.h1, strength" not in plain
    assert len(dots[0]) == len(dots[1]) and plain.count("<circle") < named.count("<circle")


def test_a_route_holds_what_is_reached_over_strong_edges() -> None:
    block = routes()
    assert _reached(block, 0.04) == {"mid1@1", "m1@1", "x1@0", "x0@0"}
    assert _reached(block, 0.02) == _reached(block, 0.04) | {"x1@1", "x0@1"}
    assert _reached(block, 0.5) == {"mid1@1"}


def test_what_is_not_on_the_route_is_there_but_not_displayed() -> None:
    root = ElementTree.fromstring(routes_drawing.svg(routes()))
    hidden = {item.get("data-node") for item in root.iter() if item.get("display") == "none"} - {None}
    assert hidden == {"x1@1", "x0@1"}
    fixed = ElementTree.fromstring(routes_drawing.svg(routes(slides=False)))
    assert not [item for item in fixed.iter() if item.get("display")]


def test_classes_stand_above_what_they_read_and_in_the_column_of_their_position() -> None:
    diagram = roles_drawing.Diagram(roles())
    low, middle, high = (diagram.boxes[name] for name in ("duplicate token", "S-inhibition", "name mover"))
    assert low.y > middle.y > high.y > diagram.logits.y
    left, right = diagram.spans["S2"]
    assert left <= low.x and low.x + roles_drawing.BOX <= right < diagram.spans["end"][0]
    assert [arrow.label for arrow in diagram.arrows] == ["v", "q", ""]  # weakest first
    assert low.lines[-1] == "and 2 more"


def test_several_inputs_of_an_arrow_stand_together_and_get_room() -> None:
    """Of an MLP there is but one input, which nobody needs to be told."""
    arrows = (("S-inhibition", "name mover", "q", 1.0), ("duplicate token", "name mover", "q, k, v", 2.0))
    diagram = roles_drawing.Diagram(replace(roles(), arrows=(*arrows, ("duplicate token", "S-inhibition", "in", 3.0))))
    assert [arrow.label for arrow in diagram.arrows] == ["q", "qkv", ""]
    short, long, _ = diagram.arrows
    assert short.place.x - long.place.x == pytest.approx(144 * 4 / 6)  # as letters and a space are to all of them
    assert "through q, k, v: 2" in long.said
    low = roles().classes[0]
    placed = replace(low, name=f"early MLPs at {low.position}"), replace(low, name="early MLPs at no", position="")
    titles = [item.title for item in roles_drawing.Diagram(replace(roles(), classes=placed)).boxes.values()]
    assert titles == ["early MLPs", "early MLPs at no"]  # the column says the first one's position


def test_boxes_never_lie_on_each_other() -> None:
    many = tuple(replace(roles().classes[0], name=f"class {i}", position="end" if i % 2 else "S2") for i in range(9))
    arrows = tuple((f"class {i}", f"class {i + 2}", "q", 1.0) for i in range(7))
    boxes = list(roles_drawing.Diagram(replace(roles(), classes=many, arrows=arrows)).boxes.values())
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            apart = abs(a.x - b.x) >= roles_drawing.BOX or a.y + a.height <= b.y or b.y + b.height <= a.y
            assert apart, (a.role.name, b.role.name)


def test_nodes_of_an_attribution_graph_lie_in_the_column_of_their_token_and_the_row_of_their_block() -> None:
    block = prompt_graph()
    places = graph_drawing.Map(block)
    for dot, point in zip(block.nodes, places.places, strict=True):
        assert point.y == places.row(dot.layer)
        left, width = places.columns[dot.position]
        assert dot.kind in ("bias", "logit") or left <= point.x <= left + width
    assert len(set(places.places)) == len(block.nodes)
    many = tuple(replace(block.nodes[5], id=f"m1.n{i}@1") for i in range(200))
    crowded = graph_drawing.Map(prompt_graph(nodes=many, edges=()))
    left, width = crowded.columns[1]
    assert all(left <= point.x <= left + width for point in crowded.places)


def test_variables_stand_above_their_causes_and_lead_to_their_sites() -> None:
    diagram = causal_drawing.Diagram(causal_map())
    boxes = diagram.boxes
    for variable in diagram.block.variables:
        assert all(boxes[name].y > boxes[variable.name].y for name in variable.parents)
    rows = [[boxes[v.name].x for v in row] for row in diagram.rows]
    assert all(b - a >= causal_drawing.BOX for row in rows for a, b in pairwise(row))
    (low, position), (high, name) = diagram.dots
    assert (position.variable.name, name.variable.name) == ("position", "name") and low.y > high.y and low.x < high.x
    assert high.y == pytest.approx(diagram.height_of(24.3)) and diagram.height_of(30) == causal_drawing.TOP
    drawn = causal_drawing.svg(causal_map())
    assert "at x18@S2 IIA 95 % [90, 100], which stands out from all controls" in " ".join(drawn.split())
    assert position.about == "x18@S2 IIA 0.95" and boxes["first"].about == "input" and not boxes["answer"].about
    # No arrow passes through a box: that from `second` to `name` goes around `position`, which stands between them.
    start = f"M{boxes['second'].x + causal_drawing.BOX / 2:.1f} {boxes['second'].y:.1f}"
    (around,) = (path for path in diagram.arrows if path.startswith(start))
    bend = float(around.split("Q")[1].split()[0])
    middle = (bend + boxes["second"].x + causal_drawing.BOX / 2) / 2
    assert not boxes["position"].x < middle < boxes["position"].x + causal_drawing.BOX
