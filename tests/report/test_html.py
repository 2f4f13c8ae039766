"""The page: self-contained, unbreakable by its texts, useful without its script."""

import base64
import copy
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from circuitome.report.html import render

HOSTILE = """</script><script>alert(1)</script><!-- "quoted" & 'single' <img src=x onerror=alert(1)> $title"""


class Page(HTMLParser):
    """What a browser would see: elements with attributes, text outside scripts and styles, contents of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif not self.inside:
            self.text += data

    def data(self) -> dict[str, Any]:
        """The embedded JSON."""
        return json.loads(self.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture
def hostile(small: dict[str, Any]) -> dict[str, Any]:
    payload = copy.deepcopy(small)
    payload["title"] = payload["command"] = payload["unit"] = HOSTILE
    payload["manifest"]["note"] = {HOSTILE: [HOSTILE]}
    payload["prompts"][0] |= {"clean": HOSTILE, "corrupted": HOSTILE + " x", "answers": [HOSTILE], "wrongs": [HOSTILE]}
    return payload


@pytest.mark.parametrize("payload", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_page_asks_for_nothing_outside(payload: str, request: pytest.FixtureRequest) -> None:
    page = render(request.getfixturevalue(payload))
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<]*", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in page and "url(" not in page
    for name, attributes in Page(page).elements:
        assert name not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")


def test_texts_cannot_break_out(small: dict[str, Any], hostile: dict[str, Any]) -> None:
    page = Page(render(hostile))
    plain = Page(render(small))
    assert len(page.scripts) == len(plain.scripts) == 2
    assert page.scripts[1] == plain.scripts[1]
    assert not [name for name, _ in page.elements if name == "img"]
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert page.data()["title"] == HOSTILE
    assert page.text.count(HOSTILE) >= 5
    assert "<" not in page.scripts[0] and "<!--" not in page.scripts[0]


def test_only_the_pages_own_script_may_run(hostile: dict[str, Any]) -> None:
    page = render(hostile)
    policy = next(a["content"] for n, a in Page(page).elements if n == "meta" and "http-equiv" in a)
    script = re.findall(r'<script type="module">(.*?)</script>', page, re.S)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_control_characters_and_lone_surrogates_are_replaced(small: dict[str, Any]) -> None:
    small["prompts"][0]["clean"] = "a\x00b\ud800c"
    assert "a\ufffdb\ufffdc" in render(small)
    render(small).encode("utf-8")


def test_headline_numbers_stand_in_the_text(small: dict[str, Any]) -> None:
    text = unescape(Page(render(small)).text).replace("\xa0", " ")
    assert "7 of 70,651 edges carry 43 % [38, 48] of the clean-corrupted gap; " in text
    assert "random circuits of that size carry 0.2 % [\u22120.2, 0.6]." in text
    numbers = ["4.123", "[3.723, 4.523]", "\u22120.512", "1.486", "0.431", "[0.379, 0.483]", "0.002", "8 nodes"]
    assert [number for number in numbers if number not in text] == []
    assert "95 % intervals over 64 prompts" in text


def test_manifest_and_command_stand_in_the_text(small: dict[str, Any]) -> None:
    text = Page(render(small)).text
    for words in ("circuitome find ioi --model toy", "134,515,008", "1234567", "1.89 GB", "abc123", "not recorded"):
        assert words in text


def test_differing_words_are_marked(small: dict[str, Any]) -> None:
    page = render(small)
    assert re.findall("<mark>(.*?)</mark>", page) == ["John", "Mary"]
    assert "&quot; Mary&quot;" in page


@pytest.mark.parametrize("bad", [float("nan"), None, float("inf")])
def test_missing_numbers_become_null(small: dict[str, Any], bad: float | None) -> None:
    small["edges"][0] |= {"score": bad, "low": bad, "high": bad}
    small["headline"]["faithfulness"] |= {"low": bad, "high": bad}
    small["headline"]["random"] |= {"value": bad, "low": bad, "high": bad}
    small["curve"]["circuit"][1] |= {"low": bad, "high": bad}
    small["curve"]["random"][0]["value"] = bad
    small["prompts"][0]["circuit_metric"] = bad
    small["manifest"]["seconds"] = bad
    page = Page(render(small))
    assert page.data()["edges"]["score"][-1] is None
    assert not re.search(r"\b(nan|inf)\b", page.text, re.I)
    assert "carry 43\xa0% of the clean-corrupted gap." in page.text


def test_parts_may_be_absent(small: dict[str, Any]) -> None:
    for part in ("curve", "prompts"):
        del small[part]
    for part in ("faithfulness", "random"):
        del small["headline"][part]
    page = Page(render(small | {"edges": []}))
    assert "No faithfulness curve was measured" in page.text
    assert "its faithfulness was not measured" in page.text


def test_embedded_edges_are_the_payloads_by_strength(small: dict[str, Any]) -> None:
    edges = Page(render(small)).data()["edges"]
    assert edges["score"] == [-1.0, -0.5, -0.4, 0.25, -0.125, 0.05, -0.03]
    assert edges["from"][:2] == ["a1.h3", "embed"]
    assert edges["target"][2] == "a1.kv1" and edges["kind"][2] == "v"
    assert edges["layers"] == [1, 1, 1, 2, 0, 1, 1]
    assert len({len(column) for column in edges.values()}) == 1


def test_same_payload_same_page_and_payload_untouched(small: dict[str, Any]) -> None:
    before = copy.deepcopy(small)
    assert render(small) == render(small)
    assert small == before


@pytest.mark.slow
def test_large_page_stays_below_three_megabytes(large: dict[str, Any]) -> None:
    assert len(large["edges"]) == 10_000
    assert len(render(large).encode()) < 3_000_000
