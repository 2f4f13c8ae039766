"""Figures and tables as files and in notebooks."""

import csv
import io
import json
import typing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair as alt
import networkx as nx
import pytest
from documents import circuit_map, every, heat_map, lines, neuron_index, routes, table

from circuitome.errors import InputError, UnknownNameError
from circuitome.present import charts
from circuitome.present.blocks import (
    AnyBlock,
    CausalMap,
    Checkpoints,
    CircuitMap,
    Drawn,
    Lede,
    NeuronIndex,
    Note,
    Numbers,
    Pairs,
    PromptGraph,
    Roles,
    Routes,
    Table,
    Tokens,
)
from circuitome.present.export import export, figures
from circuitome.present.notebook import Drawing
from circuitome.present.rows import as_csv, as_graph

DOCUMENT = every()
NAMES = list(figures(DOCUMENT))
PICTURES = [n for n, b in figures(DOCUMENT).items() if charts.is_chart(b) or isinstance(b, Drawn)]


def test_every_block_has_a_name() -> None:
    assert len(NAMES) == len(DOCUMENT.blocks) and NAMES[:3] == ["lede", "numbers", "note"]
    assert {"the-circuit", "faithfulness-by-size", "heads", "routes"} <= set(NAMES)
    twice = figures(type(DOCUMENT)(title="", command="", sign="", blocks=(Lede(text="a"), Lede(text="b"))))
    assert list(twice) == ["lede", "lede-2"]


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_written_without_a_browser(name: str, tmp_path: Path) -> None:
    export(DOCUMENT, name, "svg", tmp_path / "f.svg")
    written = (tmp_path / "f.svg").read_text()
    assert ElementTree.fromstring(written).tag.endswith("svg") and "var(" not in written
    export(DOCUMENT, name, "png", tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_pdf_and_numbers_of_figures(tmp_path: Path) -> None:
    export(DOCUMENT, NAMES.index("the-circuit"), "pdf", tmp_path / "f.pdf")
    assert (tmp_path / "f.pdf").read_bytes()[:4] == b"%PDF"
    export(DOCUMENT, "numbers", "json", tmp_path / "f.json")
    assert json.loads((tmp_path / "f.json").read_text())["items"][0]["value"] == 0.431


@pytest.mark.parametrize(
    ("figure", "to", "words"),
    [
        ("the-circus", "png", "the-circuit"),
        (99, "png", "99"),
        ("the-circuit", "gif", "png"),
        ("heads", "png", "heads is a table block, not a picture. Write it as csv, json or parquet."),
        ("note", "csv", "A note block holds no table. Write it as json."),
    ],
)
def test_what_cannot_be_written_is_refused(figure: Any, to: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        export(DOCUMENT, figure, to, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no/f\.csv cannot be written: No such file"):
        export(DOCUMENT, "heads", "csv", tmp_path / "no" / "f.csv")


def rows(block: AnyBlock) -> list[list[str]]:
    return list(csv.reader(io.StringIO(as_csv(block))))


def test_tables_have_columns_for_the_ends_of_intervals() -> None:
    head, first, *_ = rows(table(2))
    assert head[:5] == ["head", "role", "share", "share low", "share high"]
    assert first[:5] == ["a0.h1", "previous token", "0.61", "0.5", "0.7"]
    assert {len(row) for row in rows(table(2))} == {len(head)}


@pytest.mark.parametrize(
    ("block", "count", "first"),
    [
        (heat_map(), 15, ["a0", "h0", "a0.h0", "", "", ""]),
        (lines(2), 6, ["line 0", "1", "0.0", "-0.05", "0.05"]),
        (circuit_map(), 7, ["a1.h3", "logits", "-1.0", "-1.01", "-0.99"]),
        (routes(), 7, ["mid1@1", "x2@1", "stay", "0.6", "0.0", ""]),
    ],
)
def test_rows_of_figures(block: AnyBlock, count: int, first: list[str]) -> None:
    assert len(rows(block)) == count + 1 and rows(block)[1] == first


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("lede", "note")])
def test_all_else_is_written_as_csv(name: str) -> None:
    head, *body = rows(figures(DOCUMENT)[name])
    assert body and {len(row) for row in body} == {len(head)}


@pytest.mark.slow
@pytest.mark.parametrize("block", DOCUMENT.blocks, ids=lambda block: block.block)
def test_blocks_show_themselves_in_notebooks(block: AnyBlock, tmp_path: Path) -> None:
    html = block._repr_html_()
    assert html.startswith('<div class="circuitome"><style>') and '<script type="module"' not in html
    picture = block.plot()
    if isinstance(block, Drawn):
        assert isinstance(picture, Drawing) and "var(" not in picture._repr_svg_() and "Drawing(" in repr(picture)
        picture.save(tmp_path / "f.png")
        with pytest.raises(UnknownNameError):
            picture.save(tmp_path / "f.gif")
    elif charts.is_chart(block):
        assert isinstance(picture, alt.TopLevelMixin)
    else:
        assert picture is block


@pytest.mark.slow
def test_documents_show_themselves_in_notebooks() -> None:
    html = DOCUMENT._repr_html_()
    assert html.count("<style>") == 1 and "The circuit" in html and not issubclass(Note, Drawn)


def test_an_index_of_neurons_is_a_row_for_each() -> None:
    first, *rows = as_csv(neuron_index()).splitlines()
    assert first == "neuron,active,information,fires on 1,fires on 2,promotes 1,promotes 2"
    assert rows[0] == 'm0.n0,0.1,nan, the,,The,"' and len(neuron_index().tokens) == 3


GRAPHS = (CircuitMap, Routes, PromptGraph, Roles, CausalMap)
TEXTS = (Lede, Note)
SHOWN = {type(block): name for name, block in figures(DOCUMENT).items()}


def test_every_kind_of_block_can_be_written(tmp_path: Path) -> None:
    """A new kind of block comes with its rows, its picture or its graph, or says here that it is none."""
    kinds = [kind for kind in typing.get_args(typing.get_args(AnyBlock)[0]) if kind not in TEXTS]
    assert len(kinds) >= 15 and set(kinds) <= set(SHOWN)
    for kind in kinds:
        for to in ("csv", "json", *(["graphml"] if kind in GRAPHS else [])):
            export(DOCUMENT, SHOWN[kind], to, tmp_path / f"f.{to}")
            assert (tmp_path / f"f.{to}").stat().st_size > 20
        drawn = kind not in (Checkpoints, Numbers, Table, Tokens, NeuronIndex, Pairs)
        assert drawn == (SHOWN[kind] in PICTURES)


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_come_back_from_graphml_with_their_numbers(kind: type, tmp_path: Path) -> None:
    block = figures(DOCUMENT)[SHOWN[kind]]
    export(DOCUMENT, SHOWN[kind], "graphml", tmp_path / "f.graphml")
    read = nx.read_graphml(tmp_path / "f.graphml")
    assert dict(read.nodes(data=True)) == dict(as_graph(block).nodes(data=True))
    assert {*read.edges} == {*as_graph(block).edges} and len(read.edges) >= 3
    for source, target, facts in as_graph(block).edges(data=True):
        assert read.edges[source, target] == facts


def test_what_draws_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="A table block draws no graph"):
        export(DOCUMENT, "heads", "graphml", tmp_path / "f")
