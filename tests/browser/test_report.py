"""A report in a browser: its sections, its tables, and that it fits."""

import json

import pytest
from browser.looks import accessible, no_wider_than_its_window, texts

from circuitome.present.assets import demo_page

BOTH = pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])


def test_a_report_shows_its_sections(visit, runs):
    folder = runs / "found"
    page = visit(folder / "report.html")
    manifest = json.loads((folder / "manifest.json").read_text())
    titles = [block["title"] for block in manifest["blocks"] if block["where"] != "terminal" and block["title"]]
    shown = {*texts(page, "main h2, main h3, main summary")}
    assert len(titles) > 3 and {*titles} <= shown
    assert page.locator("h1").inner_text() == manifest["title"]
    assert page.locator("#command").inner_text() == manifest["command"]


@BOTH
def test_the_demo_is_a_report(visit, tmp_path, width, dark):
    (tmp_path / "demo.html").write_text(demo_page(), "utf-8")
    page = visit(tmp_path / "demo.html", width=width, dark=dark)
    assert page.locator(".circuit canvas.nodes").count() == 1
    no_wider_than_its_window(page)
    accessible(page)
