"""The circuit view in a browser: it shows what the run holds, however it is clicked, slid, grouped and saved."""

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from urllib.parse import quote

import networkx as nx
import pytest
from browser.looks import SHARP, accessible, no_wider_than_its_window, texts, zoom_in
from documents import circuit_map

from circuitome.present.blocks import CircuitMap, Edge, EdgeSet, MeasuredSize, Shape
from circuitome.present.drawings.grid import Grid
from circuitome.present.formats import fixed

RANKED = [("embed", f"a{i % 2}.h{i % 4}.q", -1 / (i + 1)) for i in range(40)]


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def drawn(folder):
    """The circuit's block of a run's manifest."""
    return next(block for block in manifest(folder)["blocks"] if block["block"] == "circuit")


def keep(page, name):
    """Find a node by its name and keep it."""
    page.locator(".find-node").fill(name)
    page.locator(".find-node").press("Enter")
    page.locator(".find-node").fill("")
    page.locator(".panel.kept").wait_for()


def place_of(page, block: CircuitMap, name: str):
    """Where the canvas has a node, in its pixels."""
    grid = Grid.of(replace(block.shape, neurons=()), (edge.source for edge in block.edges))
    canvas = page.locator("canvas.chosen")
    canvas.scroll_into_view_if_needed()
    scale = canvas.bounding_box()["width"] / grid.width
    place = grid.nodes[name]
    return {"x": place.x * scale, "y": place.y * scale}


def click(page, block: CircuitMap, name: str, **how):
    """Click a node where the grid has it."""
    page.locator("canvas.chosen").click(position=place_of(page, block, name), **how)


def saved(page, words):
    with page.expect_download() as download:
        page.locator(".circuit").get_by_role("button", name=words, exact=True).click()
    return download.value.path()


def number(text):
    return float(text.replace("\N{MINUS SIGN}", "-"))


def test_a_kept_node_shows_what_comes_in_and_goes_out_by_weight(visit, runs):
    edges = drawn(runs / "found")["edges"]
    source = Counter(edge["source"] for edge in edges).most_common(1)[0][0]
    page = visit(runs / "found/report.html")
    keep(page, source)
    leaving = [edge["score"] for edge in edges if edge["source"] == source]
    shown = [number(text) for text in texts(page, ".panel ol.out .num")]
    assert shown == pytest.approx(sorted(leaving, key=abs, reverse=True)[:8], rel=1e-3)
    touching = [edge for edge in edges if source in (edge["source"], edge["reader"].rsplit(".", 1)[0])]
    assert page.locator(".matches").inner_text().startswith(f"{len(touching)} of {len(edges)} ")
    page.keyboard.press("Escape")
    assert page.locator(".matches").inner_text().startswith(f"{len(edges)} of")


def test_clicks_keep_select_and_let_go(show):
    block = circuit_map()
    page = show(block)
    click(page, block, "a0.h1")
    assert page.locator(".panel header b").inner_text() == "a0.h1"
    assert texts(page, ".panel ol.in .num") == [fixed(-0.5, 3)]
    assert texts(page, ".panel ol.out .num") == [fixed(-0.4, 3), fixed(-0.125, 3)]
    click(page, block, "a0.h1")
    assert page.locator(".panel.kept").count() == 0
    click(page, block, "a0.h1", modifiers=["Shift"])
    assert "1 selected" in page.locator(".grouping").inner_text()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_drawing_is_zoomed_and_moved_and_a_link_brings_that_back(show, visit, width, dark):
    block = circuit_map()
    page = show(block, width=width, dark=dark)
    whole = saved(page, "PNG").read_bytes()
    place, box = place_of(page, block, "a0.h1"), page.locator("canvas.chosen").bounding_box()
    node = box["x"] + place["x"], box["y"] + place["y"]
    zoom_in(page, *node)
    assert page.locator(".zoom output").inner_text() == "739 %" and page.evaluate(SHARP)
    page.mouse.click(*node)  # what was under the pointer is there still
    assert page.locator(".panel.kept header b").inner_text() == "a0.h1"
    page.keyboard.press("Escape")
    page.mouse.move(*node)
    page.mouse.down()
    page.mouse.move(node[0] + 40, node[1] + 30, steps=3)
    page.mouse.up()
    assert page.locator(".panel.kept").count() == 0  # a drag is no click
    page.mouse.click(node[0] + 40, node[1] + 30)
    assert page.locator(".panel.kept header b").inner_text() == "a0.h1"
    page.wait_for_timeout(300)  # until the address has it
    again = visit(page.url, width=width, dark=dark)
    moved = {"x": place["x"] + 40, "y": place["y"] + 30}
    again.locator("canvas.chosen").click(position=moved)  # lets go of the node that the link keeps
    assert again.locator(".panel.kept").count() == 0 and again.locator(".zoom output").inner_text() == "739 %"
    assert saved(page, "PNG").read_bytes() == whole  # files have all of it
    no_wider_than_its_window(page)
    accessible(page)


def test_keys_zoom_and_move_and_a_node_comes_into_sight(show):
    block = circuit_map()
    page = show(block)
    page.locator(".layers").focus()
    for key, said in (("+", "140 %"), ("+", "196 %"), ("-", "140 %"), ("0", "100 %")):
        page.keyboard.press(key)
        page.locator(".zoom output", has_text=said).wait_for()
    for _ in range(6):
        page.get_by_role("button", name="Zoom in").click()
    page.locator(".layers").focus()
    for key in ("Shift+ArrowUp",) * 20:
        page.keyboard.press(key)
    assert not {"0", "1", "layer", "head"} & set(page.locator(".axes text").all_text_contents())
    keep(page, "a0.h1")
    page.wait_for_timeout(300)
    assert page.locator(".axes text").all_text_contents() == ["0", "1"]  # the row and the column that are seen
    scale = float(re.search(r"zoom.at=([\d.]+)", page.url)[1])
    assert scale == pytest.approx(1.4**6, abs=0.01)
    page.locator(".layers").focus()
    for key in ("Shift+ArrowUp",) * 20:
        page.keyboard.press(key)
    page.wait_for_timeout(300)
    there = page.url
    page.reload()  # a link to another part than that of the node that it keeps
    page.locator(".panel.kept").wait_for()
    page.wait_for_timeout(300)
    assert page.url == there and "0" not in page.locator(".axes text").all_text_contents()
    page.get_by_role("button", name="Fit").click()
    page.wait_for_timeout(300)
    assert "zoom.at" not in page.url


SETTLED = "async () => { const y = scrollY; await new Promise(done => setTimeout(done, 300)); return scrollY === y }"
"""A page goes on scrolling for a while after a finger has left it."""


def test_two_fingers_zoom_and_one_scrolls_the_page_until_then(show):
    page = show(circuit_map(), width=390)
    session = page.context.new_cdp_session(page)
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    page.locator(".layers").scroll_into_view_if_needed()
    x, y = 190, page.locator(".layers").bounding_box()["y"] + 40

    def touch(*steps):
        for kind, points in zip(("Start", *["Move"] * (len(steps) - 1)), steps, strict=True):
            fingers = [{"x": at, "y": down, "id": i} for i, (at, down) in enumerate(points)]
            session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": fingers})
        session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_function(SETTLED)

    before = page.evaluate("scrollY")
    touch(*([(x, y - 20 * step)] for step in range(6)))
    assert page.evaluate("scrollY") > before and page.locator(".zoom output").inner_text() == "100 %"
    page.evaluate(f"scrollTo(0, {before})")
    touch(*([(x - 20 * step, y), (x + 20 * step, y)] for step in range(1, 5)))
    assert page.locator(".zoom output").inner_text() == "400 %"
    there = page.url
    touch(*([(x + 10 * step, y + 10 * step)] for step in range(6)))
    assert page.url != there and page.evaluate("scrollY") == before and page.locator(".panel.kept").count() == 0


def test_hovering_an_edge_says_its_value_and_interval(show):
    block = circuit_map()
    page = show(block)
    grid = Grid.of(block.shape, ["embed"])
    box = page.locator("canvas.chosen").bounding_box()
    scale = box["width"] / grid.width
    start, end = grid.nodes["a1.h3"], grid.nodes["logits"]
    middle = (start.x + end.x) / 2, (start.y + end.y) / 2
    page.mouse.move(box["x"] + middle[0] * scale, box["y"] + middle[1] * scale)
    page.locator("#tip").wait_for()
    words = page.locator("#tip").inner_text()
    assert (
        words
        == f"a1.h3 \N{RIGHTWARDS ARROW} logits (logits) {fixed(-1.0, 3)} [{fixed(-1.01, 3)}, {fixed(-0.99, 3)}] logits"
    )


def test_the_slider_goes_along_what_was_measured(visit, runs):
    page = visit(runs / "small/report.html")
    ranking = drawn(runs / "small")["others"][0]
    curve = manifest(runs / "small")["results"]["curve"]
    page.get_by_label("the ranking").check()
    for size, share, random in zip(curve["sizes"], curve["circuit"], curve["random_range"], strict=True):
        page.locator(f".measured[data-edges='{size}'] circle").click()
        assert page.locator(".readout").inner_text().startswith(f"{size} of {len(ranking['edges'])} edges")
        words = page.locator(".faithfulness").inner_text()
        assert words.startswith(f"measured here, faithfulness {fixed(share['value'], 2)} [")
        assert f"({fixed(random[0], 2)} to {fixed(random[1], 2)})" in words
    page.locator("input.shown").fill("0")
    assert page.locator(".readout").inner_text().startswith("1 of ")
    assert "nearest measured" in page.locator(".faithfulness").inner_text() or curve["sizes"][0] == 1


def test_inputs_can_be_left_out(show):
    page = show(circuit_map())
    for name in ("queries", "keys", "values", "MLPs"):
        page.locator(".kinds").get_by_label(name).uncheck()
    assert page.locator(".readout").inner_text().startswith("1 of 7 edges")  # into the logits


def test_the_keyboard_reaches_everything(show):
    page = show(circuit_map())
    page.locator(".layers").focus()
    page.keyboard.press("ArrowUp")
    assert page.locator(".panel header b").inner_text() == "embed"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert page.locator(".panel.kept header b").inner_text() == "a0.h1"
    page.keyboard.press("z")
    assert page.locator(".panel.kept").count() == 0
    page.keyboard.press("y")
    assert page.locator(".panel.kept header b").inner_text() == "a0.h1"
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("a1")
    assert "2 nodes" in page.locator(".tools").inner_text()  # a1.h3 and the bracket a1.kv1
    page.keyboard.press("Escape")
    assert page.locator(".find-node").input_value() == ""


def test_selected_nodes_become_a_group_that_a_link_brings_back(show, visit):
    page = show(circuit_map())
    page.locator(".layers").focus()
    for key in ("ArrowUp", "ArrowUp", "Space", "ArrowUp", "Space", "g"):
        page.keyboard.press(key)
    page.keyboard.type("early: <b>")
    page.keyboard.press("Enter")
    keep(page, "early: <b>")
    assert page.locator(".panel .members").inner_text() == "a0.h1, m0"
    rows = list(zip(*(texts(page, f".panel ol {part}") for part in ("li button", "li .num")), strict=True))
    assert rows == [
        ("embed", fixed(-0.5, 3)),
        ("a1.kv1", fixed(-0.4, 3)),
        ("a1.h3", fixed(0.05, 3)),
        ("m1", fixed(-0.03, 3)),
    ]
    page.wait_for_url(re.compile("circuit.groups"))
    again = visit(page.url)
    assert again.locator(".panel.kept .members").inner_text() == "a0.h1, m0"
    again.locator(".ungroup").click()
    assert again.locator(".panel.kept").count() == 0 and again.locator(".ungroup-all").count() == 0
    again.locator(".undo").click()
    assert again.locator(".panel.kept .members").inner_text() == "a0.h1, m0"


def test_edges_of_a_group_are_added_up(show):
    block = circuit_map(groups=(("early", ("a0.h1", "m0")), ("late", ("a1.h3", "m1"))))
    page = show(block)
    keep(page, "late")  # the keys and values that a1.h3 reads go with it
    shown = zip(*(texts(page, f".panel ol.in li {part}") for part in ("button", ".kind", ".num")), strict=True)
    assert list(shown) == [
        ("early", "value", fixed(-0.4, 3)),
        ("embed", "key", fixed(0.25, 3)),
        ("early", "query", fixed(0.05, 3)),
        ("early", "MLP", fixed(-0.03, 3)),
    ]
    page.locator(".ungroup-all").click()
    page.locator(".by-role").click()
    assert page.locator(".ungroup-all").count() == 1


def test_neurons_fold_out_of_their_mlp(show):
    edges = (
        Edge(source="embed", reader="m0.n3.in", score=-1.0),
        Edge(source="embed", reader="m0.n8.in", score=-0.5),
        Edge(source="m0.n3", reader="logits", score=-0.75),
        Edge(source="m0", reader="logits", score=-0.25),
    )
    shape = Shape(layers=1, heads=2, kv_heads=2, neurons=(("m0.n3", "m0.n8"),))
    block = circuit_map(edges=edges, shape=shape)
    page = show(block)
    keep(page, "m0")
    assert page.locator(".panel ol.in li").inner_text().split("\n")[0] == "embed"
    page.locator(".panel header button").click()
    click(page, block, "m0")  # keeps it and folds it out
    assert texts(page, ".panel ol.out .num") == [fixed(-0.25, 3)]
    keep(page, "m0.n3")
    assert texts(page, ".panel ol.in .num, .panel ol.out .num") == [fixed(-1.0, 3), fixed(-0.75, 3)]
    page.locator(".fold").click()
    assert page.locator(".panel.kept header b").inner_text() == "m0"
    assert texts(page, ".panel ol.in .num") == [fixed(-1.5, 3)]  # both edges into its neurons


def test_what_is_shown_is_saved(show):
    block = circuit_map()
    page = show(block)
    network = nx.node_link_graph(json.loads(saved(page, "JSON").read_text("utf-8")), edges="links")
    again = nx.read_graphml(saved(page, "GraphML"), force_multigraph=True)
    assert set(again.edges(keys=True)) == set(network.edges(keys=True))
    scores = {(source, data["reader"]): data["score"] for source, _, data in network.edges(data=True)}
    assert scores == {(edge.source, edge.reader): edge.score for edge in block.edges}
    assert {target for _, target, key in network.edges(keys=True) if key == "a1.kv1.v"} == {"a1.h2", "a1.h3"}
    assert {data["score"] for *_, data in again.edges(data=True)} == set(scores.values())
    svg = saved(page, "SVG").read_text("utf-8")
    assert svg.count("<path") >= len(block.edges) and "var(" not in svg
    assert saved(page, "PNG").read_bytes().startswith(b"\x89PNG")
    table = list(csv.DictReader(io.StringIO(saved(page, "Download CSV").read_text("utf-8"))))
    assert [(row["from"], row["to"], float(row["score"])) for row in table] == [
        (edge.source, edge.reader, edge.score) for edge in block.edges
    ]
    page.locator("input.shown").fill("300")
    few = json.loads(saved(page, "JSON").read_text("utf-8"))["links"]
    assert {link["reader"] for link in few} == {"logits", "a0.h1.q"}


def test_the_table_is_sorted_filtered_and_turned(show):
    edges = tuple(Edge(source=source, reader=reader, score=score) for source, reader, score in RANKED)
    page = show(circuit_map(edges=edges))
    assert page.locator(".edge-table tbody tr").count() == 25
    page.locator(".next").click()
    assert page.locator(".edge-table tbody tr").count() == 15 and page.locator(".page").inner_text() == "page 2 of 2"
    page.locator(".edge-table th button[data-key=score]").click()
    assert number(texts(page, ".edge-table tbody td.helps")[0]) == -1.0
    page.locator(".filter").fill("a1 .q")
    assert page.locator(".matches").inner_text() == "20 of 40 edges"


def test_other_sets_of_edges_have_their_own_sizes(show):
    edges = tuple(Edge(source=source, reader=reader, score=score) for source, reader, score in RANKED)
    points = tuple(MeasuredSize(edges=n, share=(n / 40, None, None), random=(0.0, 0.0, 0.1)) for n in (4, 40))
    other = EdgeSet(name="the ranking", about="All in order.", edges=edges, unit="ranks", measured=points)
    page = show(circuit_map(others=(other,)))
    page.get_by_label("the ranking").check()
    page.locator(".measured[data-edges='4'] circle").click()
    assert page.locator(".readout").inner_text() == "4 of 40 edges, |score| from 0.250 ranks"
    assert "faithfulness 0.10; random circuits 0.00 (0.00 to 0.10)" in page.locator(".faithfulness").inner_text()
    page.locator(".undo").click()
    page.locator(".undo").click()
    assert page.get_by_label("this circuit").is_checked()


def test_two_runs_lie_on_one_grid(visit, runs):
    results = manifest(runs / "different")["results"]["edges"]
    page = visit(runs / "different/report.html")
    sizes = {}
    for name in ("difference", "both", "only the first", "only the second"):
        page.get_by_label(name, exact=True).check()
        sizes[name] = int(page.locator(".matches").inner_text().split(" of ")[1].split()[0])
    both = results["both"]
    assert sizes["both"] == both and sizes["only the first"] == results["first"] - both
    assert sizes["only the second"] == results["second"] - both
    assert sizes["difference"] == results["first"] + results["second"] - both
    page.get_by_label("difference", exact=True).check()
    page.locator(".edge-table th button[data-key=also0]").click()
    row = [number(text) for text in texts(page, ".edge-table tbody tr:first-child td.num:not(.range)")[:4]]
    strongest = min(results["strongest"], key=lambda edge: (edge["in"] == "neither", edge["first"]))
    assert row[2:] == pytest.approx([strongest["first"], strongest["second"]], abs=0.001)
    assert row[1] == {"first": -1, "second": 1, "both": 0}[strongest["in"]]  # ranks and logits have no difference


def test_the_address_of_the_app_holds_what_its_report_shows(visit, server):
    page = visit(f"{server.address}#run=found")
    report = page.frame_locator("iframe")
    report.locator(".find-node").fill("a2.h0")
    report.locator(".find-node").press("Enter")
    page.wait_for_url(re.compile("at=circuit.pin"))
    again = visit(page.url)
    assert again.frame_locator("iframe").locator(".panel.kept header b").inner_text() == "a2.h0"


def test_groups_made_in_the_app_are_there_when_the_run_is_opened_again(visit, server, runs):
    name = "early <img src=x onerror=alert(1)>"
    page = visit(f"{server.address}#run=found&at={quote(f'circuit.groups={quote(name)}:a2.h0')}")
    report = page.frame_locator("iframe")
    report.locator(".save-groups").click()
    report.get_by_text("kept with the run", exact=True).wait_for()
    assert report.locator(".save-groups").is_disabled()
    kept = {"circuit": {"groups": [{"name": name, "members": ["a2.h0"]}], "pinned": []}}
    assert json.loads((runs / "found/groups.json").read_text()) == kept
    again = visit(f"{server.address}#run=found").frame_locator("iframe")
    again.locator(".find-node").fill("early")
    again.locator(".find-node").press("Enter")
    assert again.locator(".panel.kept header b").inner_text() == name
    other = visit(f"{server.address}#run=found&at=circuit.groups%3Dmine%3Aa0.h0").frame_locator("iframe")
    other.locator(".find-node").fill("mine")  # an address with groups of its own wins
    other.locator(".find-node").press("Enter")
    assert other.locator(".panel.kept header b").inner_text() == "mine"
    other.locator(".ungroup-all").click()
    other.locator(".save-groups").click()
    other.get_by_text("kept with the run", exact=True).wait_for()
    assert json.loads((runs / "found/groups.json").read_text()) == {"circuit": {"groups": [], "pinned": []}}


def test_a_report_saves_groups_as_a_file_that_it_opens(show, tmp_path):
    page = show(circuit_map(groups=(("early <b>", ("a0.h1", "m0")),)))
    file = saved(page, "Save groups")
    made = {"groups": [{"name": "early <b>", "members": ["a0.h1", "m0"]}], "pinned": []}
    assert json.loads(file.read_text("utf-8")) == {"circuit": made}
    page.locator(".ungroup-all").click()
    page.locator(".keeping input").set_input_files(file)
    keep(page, "early <b>")
    assert page.locator(".panel .members").inner_text() == "a0.h1, m0"
    wrong = ("{", "[]", "null", '{"circuit": {"groups": [{"name": 1}]}}', '{"a": [], "b": []}', '{"__proto__": 1}')
    for number, text in enumerate(wrong):
        bad = tmp_path / f"{number}.json"
        bad.write_text(text)
        page.locator(".keeping input").set_input_files(bad)
        page.locator(".keeping .warning", has_text=f"{number}.json").wait_for()
    assert page.locator(".panel .members").inner_text() == "a0.h1, m0"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_roles_are_groups_and_the_page_fits(visit, runs, width, dark):
    block = drawn(runs / "explained")
    page = visit(runs / "explained/report.html", width=width, dark=dark)
    name, members = block["groups"][0]
    keep(page, name)
    assert page.locator(".panel .members").inner_text() == ", ".join(members)
    no_wider_than_its_window(page)
    accessible(page)
