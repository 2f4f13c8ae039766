"""The app in a browser: the list of runs, a form whose job becomes a run, the prompt box."""

import json

import pytest
from browser.looks import accessible, no_wider_than_its_window, texts

VALUES = "(all) => all.map((field) => field.type === 'radio' ? field.checked : field.value)"
PROMPT = "Ann and Bob met then Bob gave to"


def test_a_run_is_opened_from_the_list(visit, server, runs):
    page = visit(server.address)
    manifest = json.loads((runs / "found" / "manifest.json").read_text())
    page.locator("a[href='#run=found']").click()
    report = page.frame_locator("iframe")
    assert report.locator("h1").inner_text() == manifest["title"]
    report.locator(".circuit canvas.nodes").wait_for()
    accessible(page)
    listed = page.locator(".list .runs a")
    count = listed.count()
    assert count >= 9
    page.get_by_role("searchbox", name="Search").fill("heads of")
    assert listed.all_inner_texts() == ["Heads of known-ioi"]
    assert page.locator(".list output").inner_text() == f"1 of {count}"


def test_a_form_starts_a_job_that_becomes_a_run(visit, server, runs):
    page = visit(server.address)
    page.get_by_role("link", name="New study").click()
    page.get_by_role("link", name="weights", exact=True).click(timeout=60_000)
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


def test_the_route_slides_says_its_heads_and_switches_neurons_off(visit, server):
    page = visit(f"{server.address}#view=prompt&model=known-ioi&prompt={PROMPT}")
    page.get_by_role("button", name="Trace").click(timeout=60_000)
    page.locator(".routes svg").wait_for(timeout=60_000)
    route = server.ask("api/prompt", {"model": "known-ioi", "prompt": PROMPT, "routes": True})
    edges = route["data"]["edges"]
    page.locator(".routes .slider input").fill("0.4")
    assert page.locator(".routes .controls output").inner_text().startswith("0.400: ")
    kept = page.locator(".routes [data-edge]:not([display])")
    assert 0 < kept.count() < len(edges)
    by_heads = max(range(len(edges)), key=lambda i: max(edges[i]["heads"], default=0.0))
    page.locator(f".routes [data-edge='{by_heads}']").dispatch_event("click")
    strongest = max(edges[by_heads]["heads"])
    assert f"h{edges[by_heads]['heads'].index(strongest)}" in page.locator(".routes .panel").inner_text()
    assert f"{strongest:.3f}" in page.locator(".routes .panel").inner_text()
    with page.expect_download() as svg:
        page.locator(".routes").get_by_role("button", name="SVG").click()
    assert "<svg" in svg.value.path().read_text("utf-8")
    chips = page.locator(".routes .chip")
    assert chips.all_inner_texts() == route["neurons"]
    if not route["neurons"]:  # the known model's MLPs write nothing here: a name is typed
        page.get_by_label("Switch off").fill("m1.n0")
        page.keyboard.press("Enter")
    else:
        chips.first.click()
    name = (route["neurons"] or ["m1.n0"])[0]
    page.get_by_role("button", name=f"Switch {name} on again").wait_for()
    assert f"off={name}" in page.url
    again = visit(page.url, width=390, dark=True)  # a link traces, slides and chooses again
    again.locator(".routes .panel .num").first.wait_for(timeout=60_000)
    for selector in (".routes .controls output", ".routes .panel"):
        assert again.locator(selector).inner_text() == page.locator(selector).inner_text()
    no_wider_than_its_window(again)
    accessible(again)
    page.get_by_role("button", name=f"Switch {name} on again").click()
    page.get_by_role("button", name=f"Switch {name} on again").wait_for(state="detached")
    assert "off=" not in page.url


@pytest.mark.parametrize(
    ("view", "ready"),
    [
        ("run=heads", "iframe"),
        ("view=study&study=find&task=ioi&n=7", ".study #field-n"),
        (f"view=prompt&model=known-ioi&prompt={PROMPT}&heads=a1.h0,a2.h0&off=a2.h1", ".next td:nth-child(3)"),
    ],
)
def test_an_address_opens_the_same_view_again(visit, server, view, ready):
    seen = []
    for width in (1280, 390):
        page = visit(f"{server.address}#{view}", width=width, dark=width == 390)
        page.locator(ready).first.wait_for(timeout=60_000)
        if width == 1280:  # as it stands in the address after a reload, too
            page.reload()
            page.locator(ready).first.wait_for(timeout=60_000)
        seen.append([texts(page, "main h2, main h3, .next td"), page.locator("input").evaluate_all(VALUES)])
        no_wider_than_its_window(page)
        accessible(page)
    assert seen[0] == seen[1] and any(seen[0])


def test_a_server_that_is_gone_is_said_and_the_page_goes_on_when_it_is_back(visit, server):
    visit.expected.extend(["net::ERR_FAILED", "status of 403"])
    page = visit(server.address)
    page.locator(".list .runs a").first.wait_for()
    for gone in (lambda route: route.abort(), lambda route: route.fulfill(status=403)):
        page.route("**/api/events", gone)
        page.reload()
        page.get_by_role("alert").wait_for()
        assert "does not answer" in page.get_by_role("alert").inner_text()
        accessible(page)
        page.unroute("**/api/events")
        page.get_by_role("alert").wait_for(state="detached")
        page.locator(".list .runs a").first.wait_for()


def test_runs_that_the_command_line_makes_come_and_go_in_the_list(visit, server, runs):
    page = visit(server.address)
    page.get_by_role("link", name="Heads of known-ioi").first.wait_for()
    manifest = json.loads((runs / "heads/manifest.json").read_text()) | {"title": "A run made meanwhile"}
    (runs / "meanwhile").mkdir()
    (runs / "meanwhile/manifest.json").write_text(json.dumps(manifest))
    (runs / "meanwhile").rename(runs / "made")
    page.get_by_role("link", name="A run made meanwhile").wait_for()
    (runs / "made/manifest.json").unlink()
    (runs / "made").rmdir()
    page.get_by_role("link", name="A run made meanwhile").wait_for(state="detached")


def test_progress_comes_live_and_a_job_is_cancelled(visit, server):
    page = visit(f"{server.address}#view=study&study=find&task=known-ioi&model=known-ioi&n=3000")
    page.get_by_role("button", name="Start").click()
    bar = page.locator("progress")
    bar.wait_for(timeout=60_000)
    page.wait_for_function("document.querySelector('progress')?.value > 0", timeout=60_000)
    accessible(page)
    page.get_by_role("button", name="Cancel").click()
    page.locator(".state.cancelled").first.wait_for(timeout=60_000)
    assert page.get_by_role("button", name="Go on").first.is_visible()
