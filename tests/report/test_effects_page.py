"""The page of maps of effects: well formed, self-contained, unbreakable, and the same every time."""

import copy
import math
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from circuitome.report.effects_page import OPEN_MAPS, SHOWN, render_effects

HOSTILE = """</script><script>alert(1)</script><!-- "quoted" & 'single' <img src=x onerror=alert(1)> $title"""


def effects_of(rows: int, columns: int, name: str = "patching heads, noise", scale: float = 1.0) -> dict[str, Any]:
    """A map whose cell (0, 0) does not exist, with one effect that is surely not zero."""
    mean = [
        [None if i == j == 0 else scale * (-2.0 if i == j == 1 else 0.01 * ((i + j) % 5 - 2)) for j in range(columns)]
        for i in range(rows)
    ]
    ends = [
        [[None if value is None else value + width for value in row] for row in mean]
        for width in (-0.3 * scale, 0.3 * scale)
    ]
    run = {"low": -1.5, "high": 4.5, "unit": "logits", "n": 8}
    return {
        "name": name,
        "unit": "logits",
        "rows": [f"a{i}" for i in range(rows)],
        "columns": [*(f"h{j}" for j in range(columns - 1)), "mlp"],
        "mean": mean,
        "low": ends[0],
        "high": ends[1],
        "clean": run | {"value": 4.0},
        "corrupted": run | {"value": -1.0},
    }


def sender(label: str, mean: float, kept: bool) -> dict[str, Any]:
    return {"label": label, "mean": mean, "low": mean - 0.01, "high": mean + 0.01, "kept": kept}


@pytest.fixture
def effects() -> dict[str, Any]:
    prompt = {"clean": "a b", "corrupted": "a c", "answers": ["d"], "wrongs": ["e"]}
    return {
        "title": "activation patching: ioi in toy",
        "command": "circuitome patch ioi",
        "sign": "An effect is a difference.",
        "unit": "logits",
        "maps": [effects_of(3, 5), effects_of(3, 5, "patching heads, denoise")],
        "top": [{"map": "patching heads, noise", "label": "a1.h1", "mean": -2.0, "low": -2.3, "high": -1.7}],
        "prompts": [prompt | {"clean_metric": 4.25, "corrupted_metric": -1.125}],
        "manifest": {"task": {"name": "ioi"}, "model": {"name": "toy"}},
    }


@pytest.fixture
def trace(effects: dict[str, Any]) -> dict[str, Any]:
    tree = [
        {"receiver": "logits", "depth": 0, "senders": [sender("a1.h1", -2.0, True), sender("m2", 0.5, True)]},
        {"receiver": "a1.kv0.v", "depth": 1, "senders": [sender("a0.h0", -0.25, True), sender("m0", 0.1, False)]},
        {"receiver": "a1.h1.q", "depth": 1, "senders": [sender("a0.h2", -0.125, False)]},
    ]
    model = {"name": "toy", "layers": 3, "heads": 4, "kv_heads": 2, "parallel": False}
    return effects | {"tree": tree, "circuit_edges": 3, "manifest": {"model": model}}


def main_of(page: str) -> ElementTree.Element:
    """The page's content, which is well-formed XML."""
    found = re.search(r"<main>.*</main>", page, re.S)
    assert found
    return ElementTree.fromstring(found[0])


def text_of(page: str) -> str:
    return " ".join("".join(main_of(page).itertext()).replace("\N{NO-BREAK SPACE}", " ").split())


def test_page_is_well_formed_and_loads_nothing(effects: dict[str, Any], trace: dict[str, Any]) -> None:
    for payload in (effects, trace):
        page = render_effects(payload)
        main_of(page)
        assert "default-src 'none'" in page and "<script" not in page and "script-src" not in page
        assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
        assert "url(" not in page and "@import" not in page
        assert set(re.findall(r'href="(.)', page)) == {"#"}


def test_texts_cannot_break_out(trace: dict[str, Any]) -> None:
    for key in ("title", "command", "sign", "unit"):
        trace[key] = HOSTILE
    trace["manifest"]["note"] = HOSTILE
    trace["headline"] = {HOSTILE: HOSTILE}
    trace["maps"][0]["name"] = trace["top"][0]["map"] = trace["top"][0]["label"] = HOSTILE
    trace["tree"][0]["receiver"] = trace["tree"][0]["senders"][0]["label"] = HOSTILE
    trace["prompts"][0] |= {"clean": HOSTILE, "answers": [HOSTILE]}
    page = render_effects(trace)
    assert "<script" not in page and "<img" not in page
    assert not [key for element in main_of(page).iter() for key in element.attrib if key.startswith("on")]
    assert text_of(page).count("<script>alert(1)") >= 8


def test_result_is_a_sentence_with_the_plain_runs_below(effects: dict[str, Any]) -> None:
    text = text_of(render_effects(effects))
    words = "a1.h1 has the strongest effect (patching heads, noise): −2.000 logits [−2.300, −1.700], −40 % of the gap."
    assert words in text
    for part in ("Clean4.000 logits", "Corrupted−1.000 logits", "Gap5.000 logits", "An effect is a difference."):
        assert part in text


@pytest.mark.parametrize("headline", [{"Runs": 12, "Share": 0.5}, [["Runs", "12"], ["Share", 0.5]]])
def test_headline_may_be_given(effects: dict[str, Any], headline: Any) -> None:
    text = text_of(render_effects(effects | {"headline": headline}))
    assert "Runs12" in text and "Share0.500" in text and "Corrupted" not in text


def test_strongest_cells_stand_with_intervals_and_shares(effects: dict[str, Any]) -> None:
    text = text_of(render_effects(effects))
    assert "patching heads, noisea1.h1−2.000[−2.300, −1.700]−40.0 %" in text
    cell = effects["top"][0]
    effects["top"] = [cell | {"label": f"x{i}", "mean": 0.01 * i, "low": None, "high": math.nan} for i in range(40)]
    effects["top"].append(cell | {"label": "no number", "mean": math.nan})
    page = render_effects(effects)
    assert page.count("no interval") == SHOWN
    assert "x39 has the strongest effect" in text_of(page) and "no number" not in text_of(page)
    assert not re.search(r"\bnan\b", page, re.I)


def test_runs_without_effects_have_a_page(effects: dict[str, Any]) -> None:
    for one in effects["maps"]:
        for key in ("mean", "low", "high"):
            one[key] = [[None] * 5] * 3
        del one["clean"], one["corrupted"]
    del effects["unit"], effects["prompts"]
    text = text_of(render_effects(effects | {"top": [], "maps": effects["maps"][:1]}))
    assert "There is no effect to show." in text and "0 of 0 outlined" in text
    assert "keeps no example prompts" in text


def test_only_metrics_that_were_measured_stand_below_prompts(effects: dict[str, Any]) -> None:
    text = text_of(render_effects(effects))
    assert "clean 4.250corrupted −1.125logits" in text and "circuit" not in text.partition("Example prompts")[2][:80]


def test_many_maps_are_folded_and_figures_have_names_of_their_own(effects: dict[str, Any]) -> None:
    effects["maps"] = [effects_of(3, 5, f"into receiver {i}") for i in range(OPEN_MAPS + 4)]
    page = render_effects(effects)
    assert page.count('<details class="map">') == 4
    names = [item.get("id") for item in main_of(page).iter("{http://www.w3.org/2000/svg}svg")]
    assert len(set(names)) == len(names) == OPEN_MAPS + 4
    assert "into receiver 0, 1 of 14 outlined" in text_of(page)


def test_trace_is_drawn_and_listed(trace: dict[str, Any]) -> None:
    page = render_effects(trace)
    text, main = text_of(page), main_of(page)
    assert "3 edges were kept" in text and "Edges kept3" in text and "3 receivers asked" in text
    assert "a1.h1 −2.000 [−2.010, −1.990]" in text and "m2 0.500 [0.490, 0.510]" in text
    assert "1 receivers with nothing that matters" in text and "a0.h2 −0.125" in text
    edges = main.find(".//*[@id='circuit-svg']/*[@class='edges']")
    assert edges is not None and len(edges) == 3
    assert "Blue: corrupting the path lowers the metric" in text


def test_trace_is_listed_where_it_cannot_be_drawn(trace: dict[str, Any]) -> None:
    del trace["manifest"]["model"]["layers"]
    page = render_effects(trace)
    assert 'id="circuit-svg"' not in page and "a1.h1 −2.000" in text_of(page)
    trace["tree"] = trace["tree"][2:]
    assert "1 receivers with nothing that matters" in text_of(render_effects(trace))
    del trace["tree"]
    assert "trace back" not in render_effects(trace)


def test_same_payload_same_page_and_payload_untouched(trace: dict[str, Any]) -> None:
    before = copy.deepcopy(trace)
    assert render_effects(trace) == render_effects(before)
    assert trace == before


@pytest.mark.slow
def test_large_maps_stay_below_one_megabyte(effects: dict[str, Any]) -> None:
    effects["maps"] = [effects_of(270, 14), effects_of(30, 10)]
    assert len(render_effects(effects).encode()) < 1_000_000
