"""The pages of many studies in a browser: opened, searched, hovered, saved, and compared with the runs' own numbers."""

import csv
import io
import json
import re
from xml.etree import ElementTree

import pytest
from browser.looks import accessible, no_wider_than_its_window, texts
from documents import table

from circuitome.present import blocks as kinds
from circuitome.present.charts import is_chart
from circuitome.present.export import figures
from circuitome.present.formats import headline, slug
from circuitome.present.rows import as_csv
from circuitome.present.stored import loaded

RUNS = ("found", "heads", "patched", "compared", "aligned", "neurons", "dictionary", "features", "developed")
CHARTED = ("patched", "compared", "aligned", "developed", "found", "heads")
DRAWN = ("found", "patched", "aligned", "developed")
"""Runs whose charts are hovered, and whose pictures are saved."""
NUMBER = re.compile(r"[-\N{MINUS SIGN}+]?\d[\d,]*(?:\.\d+)?(?:e[-+\N{MINUS SIGN}]?\d+)?")


CELLS = "(e) => [...e.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.innerText))"


LABELS = "(e) => [...e.querySelectorAll('path[data-label]')].map((mark) => mark.dataset.label)"


def blocks_of(runs, name):
    manifest = json.loads((runs / name / "manifest.json").read_text())
    return [block for block in loaded(manifest["blocks"]) if block.where != "terminal"]


def opened(visit, runs, name, **how):
    page = visit(runs / name / "report.html", **how)
    page.evaluate("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    return page


def same(said, value, style="number"):
    """Whether a text says a number, to the digits that it has."""
    found = NUMBER.search(said.replace("\N{NO-BREAK SPACE}", " "))
    if value is None:
        return found is None
    text = found[0].replace("\N{MINUS SIGN}", "-").replace(",", "")
    digits = len(text.partition("e")[0].partition(".")[2])
    scale = float("1e" + (text.partition("e")[2] or "0"))
    return abs(float(text) - value * (100 if style == "percent" else 1)) <= 0.5001 * scale * 10**-digits


def download(page, button):
    with page.expect_download() as saved:
        button.click()
    return saved.value


@pytest.mark.parametrize("name", RUNS)
def test_a_page_can_be_read_and_is_the_runs_own(visit, runs, name):
    page, shown = opened(visit, runs, name), blocks_of(runs, name)
    no_wider_than_its_window(page)
    accessible(page)
    tables_and_headline_numbers_are_the_runs_own(page, shown)
    if name in CHARTED:
        charts_say_their_numbers(page, shown)
    page = opened(visit, runs, name, width=390, dark=True)
    no_wider_than_its_window(page)
    accessible(page)
    if name in DRAWN:
        pictures_are_saved_as_png_and_svg(page)


def tables_and_headline_numbers_are_the_runs_own(page, shown):
    page.evaluate("document.querySelectorAll('.all-rows').forEach((button) => button.click())")
    tables = [block for block in shown if isinstance(block, kinds.Table)]
    drawn = page.locator(".scroll[data-csv]")
    assert drawn.count() == len(tables)
    for shown_table, place in zip(tables, drawn.all(), strict=True):
        cells = place.evaluate(CELLS)
        assert len(cells) == len(shown_table.rows)
        for row, said in zip(shown_table.rows, cells, strict=True):
            for column, value, text in zip(shown_table.columns, row, said[-len(row) :], strict=True):
                number = value[0] if isinstance(value, tuple) else value
                if isinstance(number, int | float) and column.style != "text":
                    assert same(text, number, column.style), (shown_table.title, column.name, value, text)
        saved = download(page, place.locator("xpath=following-sibling::p[1]").locator(".save-table"))
        assert saved.suggested_filename.endswith(f"-{slug(shown_table.title) or 'table'}.csv")
        assert saved.path().read_text("utf-8") == as_csv(shown_table)
        assert len(list(csv.reader(io.StringIO(as_csv(shown_table))))) == len(shown_table.rows) + 1
    numbers = [item for block in shown if isinstance(block, kinds.Numbers) for item in block.items]
    for item, said in zip(numbers, texts(page, ".card .value"), strict=True):
        assert same(said, item.value, item.style) or said.startswith(headline(item)[0])


def charts_say_their_numbers(page, shown):
    charts = [block for block in shown if is_chart(block)]
    assert charts
    figures_shown = page.locator("figure", has=page.locator(".chart")).all()
    assert len(figures_shown) == len(charts)
    for block, figure in list(zip(charts, figures_shown, strict=True))[:4]:
        said = figure.evaluate(LABELS)
        if isinstance(block, kinds.HeatMap):
            values = {n: v for row, c, n, v, *_ in csv_rows(block) for n, v in [(n, v)] if v}
            assert len(said) >= len(values) > 0
            for label in said:
                head, _, rest = label.partition(": ")
                assert head not in values or same(rest, float(values[head]))
        elif isinstance(block, kinds.Lines):
            assert len(said) >= sum(len(line.points) for line in block.series)
    mark = page.locator(".chart path[data-label]").first
    mark.scroll_into_view_if_needed()
    mark.hover(force=True)
    labels = page.locator(".chart").first.evaluate(LABELS)
    assert page.locator("#tip").inner_text() in labels


def csv_rows(block):
    return list(csv.reader(io.StringIO(as_csv(block))))[1:]


def pictures_are_saved_as_png_and_svg(page):
    drawn = page.locator("figure:has(svg)").all()
    assert drawn
    for figure in drawn[:3]:
        png = download(page, figure.get_by_role("button", name="PNG", exact=True))
        assert png.suggested_filename.endswith(".png") and png.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        svg = download(page, figure.get_by_role("button", name="SVG", exact=True))
        text = svg.path().read_text("utf-8")
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and int(float(root.get("width"))) > 0
        assert "var(" not in text and "script" not in text and " data-" not in text


def test_every_figure_of_the_page_is_one_of_the_command_line(runs):
    for name in RUNS:
        document = kinds.Document(title="", command="", sign="", blocks=blocks_of(runs, name))
        assert len(figures(document)) == len(document.blocks)


def test_rows_of_a_long_table_are_searched_and_all_are_shown(show):
    page = show(table(150, top=5))
    rows = page.locator("tbody tr").filter(visible=True)
    assert rows.count() == 5
    page.get_by_role("searchbox", name="Search").fill("a14")
    assert texts(page, "tbody tr:visible td.name") == ["a14.h1", *(f"a14{i}.h1" for i in range(10))]
    assert page.locator("output").inner_text() == "11 of 150 rows"
    page.get_by_role("searchbox", name="Search").fill("")
    assert rows.count() == 5
    page.get_by_role("button", name="All 150 rows").click()
    assert rows.count() == 150


def test_a_neuron_is_found_by_name_and_by_token(visit, runs):
    page = opened(visit, runs, "neurons")
    index = next(block for block in blocks_of(runs, "neurons") if isinstance(block, kinds.NeuronIndex))
    head, *rows = csv_rows_with_names(index)
    chosen = dict(zip(head, rows[7], strict=True))
    page.locator(".neurons .filter").fill(chosen["neuron"])
    assert page.locator(".neurons .shown h3").first.inner_text() == chosen["neuron"]
    facts = dict(zip([part.name for part in index.numbers], texts(page, ".neurons .shown .facts b"), strict=True))
    for part in index.numbers:
        value = float(chosen[part.name])
        assert same(facts[part.name], None if value != value else value, part.style) or value == 0
    token = next(token for token in index.tokens if token.strip())
    page.locator(".neurons .filter").fill(token)
    hits = page.locator(".neurons .hits li")
    lists = [name for name in head if name[-1].isdigit()]
    having = {row[0] for row in rows if token in [dict(zip(head, row, strict=True))[name] for name in lists]}
    assert {hit.locator("button").inner_text() for hit in hits.all()} <= having
    assert hits.count() == min(12, len(having))
    saved = download(page, page.locator(".save-neurons")).path().read_text("utf-8")
    assert list(csv.reader(io.StringIO(saved))) == [head, *rows]


def csv_rows_with_names(block):
    return list(csv.reader(io.StringIO(as_csv(block))))
