"""The app in a browser: the list of runs, a form whose job becomes a run, the prompt box."""

import json

from browser.looks import accessible, no_wider_than_its_window, texts

PROMPT = "Ann and Bob met then Bob gave to"


def test_a_run_is_opened_from_the_list(visit, server, runs):
    page = visit(server.address)
    manifest = json.loads((runs / "found" / "manifest.json").read_text())
    page.locator("a[href='#run=found']").click()
    report = page.frame_locator("iframe")
    assert report.locator("h1").inner_text() == manifest["title"]
    report.locator(".circuit canvas.nodes").wait_for()
    accessible(page)
    page.get_by_role("searchbox", name="Search").fill("no such run")
    assert page.locator(".list output").inner_text().startswith("0 of ")


def test_a_form_starts_a_job_that_becomes_a_run(visit, server, runs):
    page = visit(server.address)
    page.get_by_role("link", name="New study").click()
    page.get_by_role("link", name="weights", exact=True).click()
    page.get_by_label("head", exact=True).fill("a2.h9")
    page.get_by_label("model", exact=True).fill("known-ioi")
    accessible(page)
    page.get_by_role("button", name="Start").click()
    page.locator(".state.failed").wait_for(timeout=60_000)
    assert "a2.h9" in page.locator(".warning").inner_text()
    page.go_back()
    page.get_by_label("head", exact=True).fill("a2.h0")
    page.get_by_label("model", exact=True).fill("known-ioi")
    page.get_by_role("button", name="Start").click()
    page.get_by_role("link", name="open", exact=True).click(timeout=60_000)
    assert "a2.h0" in page.frame_locator("iframe").locator("h1").inner_text()


def test_the_prompt_box_answers_and_switches_a_head_off(visit, server):
    page = visit(f"{server.address}#view=prompt&model=known-ioi")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Run").click()
    page.locator(".next tbody tr").first.wait_for(timeout=60_000)
    request = {"model": "known-ioi", "prompt": PROMPT}
    plain = server.ask("api/prompt", request)["next"]
    assert texts(page, ".next td:nth-child(2)") == [f"{100 * row['probability']:.1f} %" for row in plain]
    page.locator("[data-head='a2.h0']").click()
    page.locator(".next th:nth-child(3)", has_text="switched off").wait_for()
    page.locator(".answer:not(.stale)").wait_for()
    changed = server.ask("api/prompt", {**request, "ablate": ["a2.h0"]})["next"]
    assert texts(page, ".next td:nth-child(3)") == [f"{100 * row['ablated']:.1f} %" for row in changed]
    accessible(page)
    again = visit(page.url, width=390, dark=True)
    again.locator(".next th:nth-child(3)", has_text="switched off").wait_for(timeout=20_000)
    assert texts(again, ".next td:nth-child(3)") == [f"{100 * row['ablated']:.1f} %" for row in changed]
    no_wider_than_its_window(again)
    accessible(again)
