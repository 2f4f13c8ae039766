"""Views of one prompt and of roles in a browser: attention, routes, the diagram of classes."""

import pytest
from browser.looks import accessible, no_wider_than_its_window, texts
from documents import SENTENCE, roles, routes

from circuitome.present.blocks import Attention, table
from circuitome.present.drawings.routes import on_route

BOTH = pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])


def attention():
    """Two heads over a sentence: one attends to the token before, one to all earlier ones alike."""
    count = len(SENTENCE)
    before = tuple(tuple(1.0 if j == max(0, i - 1) else 0.0 for j in range(count)) for i in range(count))
    alike = tuple(tuple(1 / (i + 1) if j <= i else None for j in range(count)) for i in range(count))
    return Attention(title="Attention", tokens=SENTENCE, heads=(("a0.h1", before), ("a2.h0", alike)))


@BOTH
def test_attention_is_chosen_hovered_kept_and_saved(show, width, dark):
    page = show(attention(), width=width, dark=dark)
    said = page.locator(".said-attention")
    assert said.inner_text().split() == ["a0.h1:", "·to", "attends", "to", "·milk", "100.0", "%"]
    page.locator(".token").nth(4).click()
    assert said.inner_text().split() == ["a0.h1:", "·left", "attends", "to", "·John", "100.0", "%"]
    assert page.locator(".arcs path").count() == 1
    page.locator(".token").nth(2).hover()
    assert "\u00b7left attends" in said.inner_text()  # kept
    page.get_by_role("button", name="a2.h0").click()
    assert said.inner_text().count("20.0 %") == 4 and page.locator(".arcs path").count() == 5
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert "\u00b7John attends to" in said.inner_text() and page.locator(".arcs path").count() == 4
    accessible(page)
    no_wider_than_its_window(page)
    page.wait_for_timeout(300)
    page.reload()
    assert "\u00b7John attends to" in said.inner_text()
    page.get_by_label("Attention of a2.h0 over").focus()
    page.keyboard.press("Escape")
    box = page.locator(".large .map").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.05, box["y"] + box["height"] * 0.35)
    assert said.inner_text().split() == ["a2.h0:", "·John", "attends", "to", "When", "25.0", "%"]
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    rows = download.value.path().read_text("utf-8").splitlines()
    assert rows[0] == "head,query,query token,key,key token,attention"
    assert len(rows) == 1 + len(SENTENCE) ** 2 + len(SENTENCE) * (len(SENTENCE) + 1) // 2
    assert "a2.h0,3, John,1, Mary,0.25" in rows


def test_tokens_that_run_from_right_to_left_stay_in_front_of_their_numbers(show):
    tokens = ("is", "\u0645\u0631", "\u0627\u0644")
    alike = tuple(tuple(1 / (i + 1) if j <= i else None for j in range(3)) for i in range(3))
    page = show(Attention(title="Attention", tokens=tokens, heads=(("a0.h1", alike),)))
    places = page.locator(".said-attention span").evaluate_all(
        """(all) => all.map((span) => {
            const number = document.createRange();
            number.selectNode(span.lastChild);
            return [span.querySelector("bdi").getBoundingClientRect().right, number.getBoundingClientRect().right];
        })"""
    )
    assert len(places) == 3 and all(token < number for token, number in places)


@BOTH
def test_roles_say_who_is_in_them_and_what_leads_where(show, width, dark):
    shown = roles()
    evidence = table("a9.h6: name mover", ("test", "result"), [("copies", "0.9")], folded=True)
    page = show(shown, evidence, width=width, dark=dark)
    panel = page.locator(".roles .panel")
    page.locator("[data-class='name mover'] rect").click()
    members = shown.classes[2].members
    assert [text for text in texts(page, ".roles .panel li .name") if text.startswith("a9")] == [*members]
    assert "copies the name" in panel.inner_text() and "q 0.9" in panel.inner_text()
    accessible(page)
    no_wider_than_its_window(page)
    panel.get_by_role("button", name="a9.h6").click()
    assert page.locator("details[open] summary").inner_text() == "a9.h6: name mover"
    panel.get_by_role("button", name="S-inhibition").click()
    assert panel.locator("h3").first.inner_text() == "S-inhibition \u2192 name mover"
    assert texts(page, ".roles .panel li") == [*shown.edges[1]]
    page.locator("[data-arrow='0']").focus()
    page.keyboard.press("Enter")
    assert "duplicate token" in panel.inner_text() and "through v" in panel.inner_text()
    dashes = page.evaluate(
        "[...document.querySelectorAll('.roles path[marker-end]')].map((p) => p.getAttribute('stroke-dasharray'))"
    )
    assert sorted(dashes) == ["2 3", "none", "none"]
    with page.expect_download() as download:
        page.get_by_role("button", name="SVG").first.click()
    svg = download.value.path().read_text("utf-8")
    assert svg.startswith("<svg") and "name mover" in svg and "var(" not in svg


@BOTH
def test_routes_slide_and_say_what_heads_and_parts_do(show, width, dark):
    block = routes()
    page = show(block, width=width, dark=dark)
    slider = page.locator(".routes .slider input")
    counts = {}
    for threshold in (block.lowest, 0.2, 0.45):
        slider.fill(str(threshold))
        counts[threshold] = page.locator(".routes [data-edge]:not([display])").count()
        assert page.locator(".routes output").inner_text() == f"{threshold:.3f}: {counts[threshold]} edges"

    assert counts == {threshold: len(on_route(block, threshold)) for threshold in counts}
    slider.fill(str(block.lowest))
    accessible(page)
    no_wider_than_its_window(page)
    edge = next(i for i, edge in enumerate(block.edges) if edge.heads)
    page.locator(f".routes [data-edge='{edge}']").dispatch_event("click")
    assert page.locator(".routes .chosen").get_attribute("data-edge") == str(edge)
    shown = page.locator(".routes .panel")
    strongest = max(block.edges[edge].heads)
    assert (
        f"h{block.edges[edge].heads.index(strongest)}" in shown.inner_text()
        and f"{strongest:.3f}" in shown.inner_text()
    )
    part, (token, value) = block.parts[0][0], block.parts[0][2][0]
    page.locator(f".routes [data-node='{part}']").dispatch_event("click")
    assert token.strip() in shown.inner_text() and f"{value:+.2f}" in shown.inner_text()
