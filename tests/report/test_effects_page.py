"""Pages of maps and comparisons: well formed, self-contained, unbreakable, and the same every time."""

import copy
from io import StringIO
from xml.etree import ElementTree

import pytest
from rich.console import Console

from circuitome.cli import heatmap as terminal
from circuitome.report import formats
from circuitome.report.compare_page import compare_svg, render_compare
from circuitome.report.effects_page import render_effects
from circuitome.report.heatmap import certain, heatmap_svg, label

HOSTILE = """</script><script>alert(1)</script><!-- "quoted" & 'single' <img src=x onerror=alert(1)> $title"""


def estimate(value):
    return {"value": value, "low": value - 0.5, "high": value + 0.5, "unit": "logits", "n": 8}


def grid(rows, columns, value):
    return [[value(i, j) for j in range(columns)] for i in range(rows)]


def effects_of(rows, columns, name="patching heads, noise"):
    """A map whose cell (0, 0) does not exist, with one effect that is surely not zero."""

    def mean(i, j):
        return None if i == j == 0 else -2.0 if (i, j) == (1, 1) else 0.01 * ((i * 7 + j * 3) % 11 - 5)

    def end(width):
        return lambda i, j: None if mean(i, j) is None else mean(i, j) + width

    return {
        "name": name,
        "unit": "logits",
        "rows": [f"a{i}" for i in range(rows)],
        "columns": [*(f"h{j}" for j in range(columns - 1)), "mlp"],
        "mean": grid(rows, columns, mean),
        "low": grid(rows, columns, end(-0.3)),
        "high": grid(rows, columns, end(0.3)),
        "clean": estimate(4.0),
        "corrupted": estimate(-1.0),
    }


@pytest.fixture
def effects():
    return {
        "title": "activation patching: ioi in toy",
        "command": "circuitome patch ioi",
        "sign": "An effect is a difference.",
        "unit": "logits",
        "maps": [effects_of(3, 5), effects_of(3, 5, "patching heads, denoise")],
        "top": [{"map": "patching heads, noise", "label": "a1.h1", "mean": -2.0, "low": -2.3, "high": -1.7}],
        "prompts": [{"clean": "a b", "corrupted": "a c", "answers": ["d"], "wrongs": ["e"]}],
        "manifest": {"task": {"name": "ioi"}, "model": {"name": "toy"}},
        "tree": [
            {"receiver": "logits", "depth": 0, "senders": [{"label": "a1.h1", "mean": -2.0, "kept": True}]},
            {"receiver": "a1.h1.q", "depth": 1, "senders": [{"label": "a0.h0", "mean": -0.1, "kept": False}]},
        ],
        "circuit_edges": 1,
    }


@pytest.fixture
def comparison():
    points = [
        {"edges": size, "value": value, "low": value - 0.05, "high": value + 0.05, "held_out": value - 0.02}
        for size, value in ((100, 0.2), (1000, 0.43), (10000, 0.84))
    ]
    one = {"description": "what it does", "seconds": 3.25, "pearson": 0.9, "pearson_abs": 0.8, "spearman": None}
    return {
        "title": "Methods compared: ioi in toy",
        "command": "circuitome compare ioi",
        "unit": "share of the clean-ablated gap",
        "methods": [{"name": "eap-ig", "points": points, **one}, {"name": "acdc", "points": points[1:2], **one}],
        "random": [{"edges": 1000, "value": 0.0, "low": -0.01, "high": 0.02}],
        "held_out": {"name": "ioi", "n": 64},
        "exact_edges": 200,
        "manifest": {"task": {"name": "ioi"}, "model": {"name": "toy"}},
    }


@pytest.mark.parametrize("shape", [(3, 5), (30, 10), (270, 14), (2, 1), (2, 64)])
def test_maps_are_well_formed_and_every_cell_is_there(shape):
    effects = effects_of(*shape)
    drawing = ElementTree.fromstring(heatmap_svg(effects))
    titles = [title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == shape[0] * shape[1] - 1
    width, height = (float(drawing.get(side)) for side in ("width", "height"))
    assert width < 1100 and height < 3500
    if shape[1] > 2:
        assert any(title.startswith("a1.h1: \N{MINUS SIGN}2.000 [") for title in titles)


def test_cells_have_names_and_certainty():
    effects = effects_of(3, 5)
    assert [label(effects, 1, 2), label(effects, 2, 4)] == ["a1.h2", "m2"]
    assert certain(effects, 1, 1) and not certain(effects, 2, 2) and not certain(effects, 0, 0)
    by_place = {"rows": ["resid3"], "columns": ["-2"]}
    assert label(by_place, 0, 0) == "resid3@-2"
    flat = effects | {"mean": grid(3, 5, lambda i, j: 0.0)}
    ElementTree.fromstring(heatmap_svg(flat))


def test_pages_load_nothing_and_survive_hostile_texts(effects, comparison):
    for payload, render in ((effects, render_effects), (comparison, render_compare)):
        page = render(payload)
        assert page == render(copy.deepcopy(payload))
        assert (
            "default-src 'none'" in page
            and "<script" not in page
            and "://" not in page.replace("http://www.w3.org", "")
        )
        payload["title"] = payload["command"] = HOSTILE
        payload["manifest"]["note"] = HOSTILE
        hostile = render(payload)
        assert "<script" not in hostile and "<img" not in hostile
        assert "&lt;script&gt;alert(1)" in hostile


def test_effects_page_holds_maps_cells_and_tree(effects):
    page = render_effects(effects)
    assert "a1.h1 \N{MINUS SIGN}2.000" in page  # a kept sender
    assert "nothing that matters" in page
    assert "\N{MINUS SIGN}40.0\N{NO-BREAK SPACE}%" in page  # -2 of a gap of 5
    assert "patching heads, denoise" in page
    del effects["tree"]
    assert "trace back" not in render_effects(effects)


def test_comparison_has_a_line_and_a_column_for_each_method(comparison):
    drawing = ElementTree.fromstring(compare_svg(comparison))
    words = "".join(drawing.itertext())
    assert "eap-ig, 1,000 edges: 0.430 [0.380, 0.480]" in words and "acdc" in words
    page = render_compare(comparison)
    assert "held out 0.820" in page and formats.MISSING in page
    comparison["held_out"], comparison["exact_edges"] = None, 0
    assert "nothing held out" in render_compare(comparison)
    comparison["methods"][0]["points"] = []
    comparison["random"] = []
    ElementTree.fromstring(compare_svg(comparison))


@pytest.mark.parametrize("width", [80, 200])
def test_terminal_shows_maps_trees_and_comparisons(effects, comparison, width):
    console = Console(width=width, record=True, file=StringIO())
    terminal.effects(effects, console)
    del effects["tree"]
    effects["maps"] = [effects_of(270, 40)]
    terminal.effects(effects, console)
    terminal.compare(comparison, console)
    shown = console.export_text()
    assert "Trace back from the logits, edges kept: 1" in shown
    assert "the strongest 60 of 270 rows" in " ".join(shown.split())
    assert "a1.h1" in shown and "eap-ig" in shown and "0.430" in shown
