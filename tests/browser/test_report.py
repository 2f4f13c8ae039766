"""A report in a browser: its sections, its tables, and that it fits."""

import json
from pathlib import Path

import pytest
from browser.looks import accessible, no_wider_than_its_window, texts

import circuitome

DEMO = Path(circuitome.__file__).parent / "present/assets/demo.html"

BOTH = pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])


@BOTH
def test_a_report_shows_its_sections_and_fits(visit, runs, width, dark):
    folder = runs / "found"
    page = visit(folder / "report.html", width=width, dark=dark)
    manifest = json.loads((folder / "manifest.json").read_text())
    titles = [block["title"] for block in manifest["blocks"] if block["where"] != "terminal" and block["title"]]
    shown = {*texts(page, "main h2, main h3, main summary")}
    assert len(titles) > 3 and {*titles} <= shown
    assert page.locator("h1").inner_text() == manifest["title"]
    assert page.locator("#command").inner_text() == manifest["command"]
    no_wider_than_its_window(page)
    accessible(page)


@BOTH
def test_the_demo_is_a_report(visit, width, dark):
    page = visit(DEMO, width=width, dark=dark)
    assert page.locator(".circuit .node").count() > 3
    no_wider_than_its_window(page)
    accessible(page)
