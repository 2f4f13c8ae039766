"""Texts that try to run a script, wherever they can stand: they stay texts, in reports and in the app."""

import json
from dataclasses import asdict

import pytest
from app.serving import Server
from browser.looks import accessible, no_wider_than_its_window
from documents import HOSTILE, hostile

NAMES = ("<img src=x onerror=alert(1)>", "a#b?c%20d", "quote\"'&amp;", "\u202etxt.exe", "line\nbreak", "x" * 200)


def test_a_report_of_hostile_texts_runs_nothing(show):
    page = show(hostile())
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("img, iframe, object, b[onclick]").count() == 0
    page.locator(".neurons input").first.fill("m4.n1")
    page.locator(".neurons .hits button").first.click()
    for slider in page.locator("input[type=range]").all():
        slider.fill(slider.get_attribute("min") or "0")
    for _ in range(3):  # a click makes another list of nodes
        page.locator("[data-pin]").first.click()
    assert page.locator("img, iframe, object").count() == 0


@pytest.fixture(scope="module")
def hostile_server(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    blocks = json.loads(json.dumps([asdict(block) for block in hostile().blocks]))
    for name in NAMES:
        (root / name).mkdir()
        named = {"key": name, "kind": HOSTILE, "title": f"{HOSTILE} {name}", "command": HOSTILE, "sign": HOSTILE}
        manifest = {**named, "created": "2026-01-01T00:00:00", "model": {"name": HOSTILE}, "blocks": blocks}
        (root / name / "manifest.json").write_text(json.dumps(manifest))
        (root / name / "report.html").write_text("<script>alert(1)</script>")
    started = Server(root)
    yield started
    started.stop()


def test_runs_of_any_name_are_listed_and_opened(visit, hostile_server):
    page = visit(hostile_server.address)
    for name in NAMES:
        shown = " ".join(f"{HOSTILE} {name}".split())
        page.locator(".runs a", has_text=shown[:390]).last.click()
        assert page.frame_locator("iframe").locator("h1").inner_text().startswith(HOSTILE[:20])
        page.locator("summary", has_text="Files").click()
        page.locator(".files-list a").nth(1).wait_for()
        assert page.locator(".files-list a").all_inner_texts() == ["manifest.json", "report.html"]
        with page.expect_download() as saved:
            page.locator(".files-list a", has_text="report.html").click()
        assert saved.value.path().read_text() == "<script>alert(1)</script>"
        assert page.locator(".report code").first.inner_text().split() == name.split()
        assert page.locator("img").count() == 0
        no_wider_than_its_window(page)


def test_hostile_tokens_are_texts_in_the_prompt_box(visit, server):
    answer = server.ask("api/prompt", {"model": "known-ioi", "prompt": "Ann and Bob met"})
    spoilt = json.loads(json.dumps(answer))
    spoilt["tokens"] = [HOSTILE, "\u202eright to left", "\x00\x1b[2J", "\n" * 50, "x" * 2000]
    spoilt["tokens"] = spoilt["tokens"][: len(answer["tokens"])]
    spoilt["next"][0]["token"] = spoilt["lens"][0]["tokens"][0][0] = HOSTILE
    page = visit(f"{server.address}#view=prompt&model=known-ioi")
    page.route("**/api/prompt", lambda route: route.fulfill(json=spoilt))
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Run").click()
    page.locator(".next tbody tr").first.wait_for()
    assert "onerror" in page.locator(".next tbody td").first.inner_text()
    assert page.locator("img").count() == 0
    no_wider_than_its_window(page)


def test_what_a_model_cannot_read_is_said(visit, server):
    visit.expected.append("status of 400")
    page = visit(f"{server.address}#view=prompt&model=known-ioi")
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    page.get_by_role("button", name="Run").click()
    assert "onerror" in page.locator(".warning").inner_text()
    assert page.locator("img").count() == 0
    accessible(page)


def test_another_page_cannot_ask_the_app(visit, server, tmp_path):
    (tmp_path / "other.html").write_text("<p>another page")
    refusals = ["NotSameOrigin", "CORS policy", "net::ERR_FAILED", "Content Security Policy", "status of 403"]
    visit.expected.extend(refusals)
    page = visit(tmp_path / "other.html")
    asked = "(url) => fetch(url, { method: 'POST', mode: 'no-cors' }).then((answer) => answer.type, () => 'refused')"
    framed = "(url) => { const f = document.createElement('iframe'); f.src = url; document.body.append(f); }"
    assert page.evaluate(asked, server.address + "api/state") in ("opaque", "refused")
    assert page.evaluate("(url) => fetch(url).then(() => 'read', () => 'refused')", server.address) == "refused"
    page.evaluate(framed, server.address)
    page.wait_for_timeout(300)
    assert page.frames[1].locator("#app").count() == 0
