"""The page: well formed, self-contained, unbreakable by its texts, and the same every time."""

import base64
import copy
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from documents import CONTROL, HOSTILE, circuit_map, every, heat_map, hostile, neuron_index, pairs, routes, table

from circuitome.present import blocks
from circuitome.present.assets import asset
from circuitome.present.blocks import Document, Edge, HeatMap, Lede
from circuitome.present.page import OPEN_PAIRS, SCRIPTS, page

VOID = ("meta", "input", "br", "link", "img")
NAMESPACES = {f"http://www.w3.org/{name}" for name in ("2000/svg", "1998/Math/MathML", "1999/xhtml")}
NAMESPACES |= {"http://graphml.graphdrawing.org/xmlns"}


class Page(HTMLParser):
    """What a browser would see: elements with attributes, text outside scripts and styles, contents of scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif inside != "style":
            self.text += data

    def data(self) -> list[dict[str, Any]]:
        """The embedded JSON."""
        texts = [text for kind, text in self.scripts if kind == "application/json"]
        return [json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")) for text in texts]


@pytest.fixture(scope="module")
def whole() -> str:
    return page(every())


def test_page_asks_for_nothing_outside(whole: str) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<]*", whole))
    assert {address.rstrip("`") for address in addresses} <= NAMESPACES
    assert "@import" not in whole and set(re.findall(r"url\((.)", whole)) <= {"#"}
    for name, attributes in Page(whole).elements:
        assert name not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes and (attributes.get("href") or "#").startswith("#")


@pytest.mark.slow
def test_texts_cannot_break_out(whole: str) -> None:
    bad, plain = Page(page(hostile())), Page(whole)
    assert len(bad.scripts) == len(plain.scripts) + 1  # one more diagram of roles
    assert [text for kind, text in bad.scripts if kind == "module"] == [t for k, t in plain.scripts if k == "module"]
    assert {name for name, _ in bad.elements} <= {name for name, _ in plain.elements}
    assert not [key for _, attributes in bad.elements for key in attributes if key.startswith("on")]
    assert bad.text.count(HOSTILE) >= 40 and "5929" not in bad.text
    for text in (text for kind, text in bad.scripts if kind == "application/json"):
        assert "<" not in text and ">" not in text


@pytest.mark.slow
def test_only_the_pages_own_scripts_may_run() -> None:
    written = page(hostile())
    policy = next(a["content"] for n, a in Page(written).elements if n == "meta" and "http-equiv" in a)
    scripts = re.findall(r'<script type="module">(.*?)</script>', written, re.S)
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts}
    assert policy is not None and "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert set(re.findall(r"'sha256-(.*?)'", policy)) == hashes and len(hashes) == len(SCRIPTS)
    assert "script-src 'unsafe-inline'" not in policy


def test_scripts_come_with_the_blocks_that_need_them() -> None:
    bare = Document(title="t", command="c", sign="", blocks=(Lede(text="x"),))
    assert len(Page(page(bare)).scripts) == 1
    assert len(Page(page(replace(bare, blocks=(circuit_map(), circuit_map())))).scripts) == 4
    assert len(Page(page(replace(bare, blocks=(routes(),)))).scripts) == 3
    assert len(Page(page(replace(bare, blocks=(neuron_index(),)))).scripts) == 3


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_neurons_are_found_by_name_and_by_token() -> None:
    index = Page(page(Document(title="t", command="c", sign="", blocks=(neuron_index(),)))).data()[0]
    for column in (*index["numbers"], *index["lists"]):
        column["values"] = [None if value == "nan" else float(value) for value in column["values"].split()]
    asked = (" the", "THE", "th", "m4.n", "m4.n2", "m0.n3", "nothing")
    calls = f"{asset('neurons.js')}; const i = {json.dumps(index)};"
    calls += f"console.log(JSON.stringify({json.dumps(asked)}.map((words) => found(i, words))))"
    run = subprocess.run(["node", "-e", calls], capture_output=True, text=True, check=True)
    hits = [[f"m{(0, 4)[i // 3]}.n{i % 3}" for i in hit["neurons"]] for hit in json.loads(run.stdout)]
    assert hits[0] == ["m0.n0", "m0.n1", "m4.n2", "m4.n0"]  # " the" in the first list, then in the second
    assert hits[1] == hits[2] == ["m0.n0", "m0.n1", "m4.n0", "m4.n2", "m4.n1", "m0.n2"]
    assert hits[3:] == [["m4.n0", "m4.n1", "m4.n2"], ["m4.n2"], [], []]


@pytest.mark.slow
def test_control_characters_and_lone_surrogates_are_replaced() -> None:
    written = page(hostile(CONTROL))
    assert "a\ufffdb\ufffdc" in written and "\x00" not in written and "\x1b" not in written
    written.encode("utf-8")


def test_numbers_command_and_facts_stand_in_the_text(whole: str) -> None:
    text = unescape(Page(whole).text).replace("\xa0", " ")
    for words in ("0.431", "[0.379, 0.483]", "75 %", "[50, 90]", "1,234", "share of the gap that the circuit keeps"):
        assert words in text
    for words in ("circuitome find ioi --model toy", "134,515,008", "1234567", "1.89 GB", "abc123", "not set"):
        assert words in text
    assert text.count("circuitome find ioi") == 1  # what stands elsewhere on the page is no fact


def test_every_part_is_reached_from_the_top(whole: str) -> None:
    parsed = Page(whole)
    anchors = [attributes["href"] for name, attributes in parsed.elements if name == "a"]
    ids = {attributes.get("id") for _, attributes in parsed.elements}
    assert {anchor[1:] for anchor in anchors if anchor} <= ids
    assert "#the-circuit" in anchors and "#method" in anchors and "#evidence" not in anchors  # folded ones open none
    assert len(anchors) == len(set(anchors))


def test_differing_words_are_marked_and_most_pairs_folded(whole: str) -> None:
    assert re.findall("<mark>(.*?)</mark>", whole) == ["John", "Mary"] * 6
    assert "<code>&#34; Mary&#34;</code>" in whole and f"<summary>{6 - OPEN_PAIRS} more</summary>" in whole
    nothing = Document(title="t", command="c", sign="", blocks=(pairs(0),))
    assert "keeps no example prompts" in page(nothing)


def test_rows_beyond_the_first_are_there_and_marked() -> None:
    written = page(Document(title="t", command="c", sign="", blocks=(table(12, top=5),)))
    assert written.count('class="rest"') == 7 and "All 12 rows" in written
    assert written.count("\N{HEAVY CHECK MARK}") == 3


@pytest.mark.slow
def test_maps_stand_beside_each_other_and_folded_ones_in_one_fold() -> None:
    blocks = tuple(heat_map(title=f"Map {i}", folded=i > 1) for i in range(5))
    written = page(Document(title="t", command="c", sign="", blocks=blocks))
    assert written.count('class="maps"') == 2 and "3 more maps: Map 2, Map 3, Map 4" in written
    assert '<a href="#maps">Maps</a>' in written
    single = page(Document(title="t", command="c", sign="", blocks=(heat_map(title="Effects"),)))
    assert '<a href="#effects">Effects</a>' in single


@pytest.mark.slow
def test_embedded_edges_are_the_blocks_by_strength() -> None:
    data = Page(page(every())).data()[0]
    (edges,), names = data["sets"], data["names"]
    assert edges["score"] == [-1.0, -0.5, -0.4, 0.25, -0.125, 0.05, -0.03]
    assert [names[i] for i in edges["from"][:2]] == ["a1.h3", "embed"] and names[edges["target"][2]] == "a1.kv1"
    assert [names[i] for i in edges["to"][3:5]] == ["a1.kv1.k", "m0.in"] and edges["kind"][:5] == [4, 0, 2, 1, 3]
    assert len({len(edges[name]) for name in ("from", "to", "source", "target", "kind", "score", "low", "high")}) == 1


@pytest.mark.parametrize("bad", [float("nan"), None, float("inf")])
def test_missing_numbers_become_null_and_are_not_written(bad: Any) -> None:
    first, *rest = circuit_map().edges
    edges = (replace(first, score=bad, low=bad, high=bad), *rest)
    cells = replace(table(1), rows=((None, None, bad, bad, (bad, bad, bad), bad, None, None),))
    map_ = heat_map(values=((bad,) * 5,) * 3)
    parsed = Page(page(replace(every(), blocks=(circuit_map(edges=edges), cells, map_), facts={"seconds": bad})))
    assert parsed.data()[0]["sets"][0]["score"][-1] is None
    assert not re.search(r"\b(nan|inf)\b", parsed.text, re.I)


def test_quoted_tokens_of_a_table_stay_whole_and_its_texts_get_room() -> None:
    cells = ('" Mary"\N{NO-BREAK SPACE}+0.1, "a\\"b" c', 7.0)
    written = page(
        Document(title="", command="", sign="", blocks=[blocks.table("", ("word", ("n", "number")), [cells])])
    )
    assert re.findall('<span class="whole">(.*?)</span>', written) == ["&#34; Mary&#34;", "&#34;a\\&#34;b&#34;"]
    styles = [attributes.get("style") for name, attributes in Page(written).elements if name == "th"]
    assert f"--letters:{len(cells[0])}" in styles and styles.count(None) == len(styles) - 1


@pytest.mark.slow
def test_same_document_same_page(whole: str) -> None:
    assert page(copy.deepcopy(every())) == whole


def test_pages_stay_small() -> None:
    """Thirteen maps of 270 cells, or ten thousand edges, stay below 1.5 MB."""
    rows, columns = 30, 9
    numbers = tuple(tuple(0.123456 * (i - j) for j in range(columns)) for i in range(rows))
    block = HeatMap(
        title="Scores",
        rows=tuple(f"a{i}" for i in range(rows)),
        columns=tuple(f"h{j}" for j in range(columns)),
        values=numbers,
        low=numbers,
        high=numbers,
        unit="share of attention",
    )
    one = page(Document(title="t", command="c", sign="", blocks=(block,)))
    none = page(Document(title="t", command="c", sign="", blocks=()))
    assert 13 * (len(one) - len(none)) + len(none) < 900_000


@pytest.mark.slow
def test_a_page_of_ten_thousand_edges_stays_below_two_megabytes() -> None:
    edges = tuple(
        Edge(source=f"a{i % 29}.h{i % 9}", reader="m29.in", score=-1 / (i + 1.7), low=-1.123 / (i + 1.7), high=0.1)
        for i in range(10_000)
    )
    shape = replace(circuit_map().shape, layers=30, heads=9, kv_heads=3)
    written = page(Document(title="t", command="c", sign="", blocks=(circuit_map(edges=edges, shape=shape),)))
    assert len(written.encode()) < 2_000_000
