"""A real browser without a network. Errors on the console, and requests that leave this machine, fail the test.

CIRCUITOME_SCREENSHOTS=FOLDER keeps a picture of each page as its test left it, to be looked at.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
LOCAL = ("file:", "data:", "blob:", "about:", "http://127.0.0.1:")
HEIGHTS = {1280: 900, 390: 844}


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def chromium():
    """The system's chromium. One a module: while Playwright is started, no other test can have an event loop."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, a package of requirements.txt")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium: apt-get install chromium")
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=arguments)
        yield started
        started.close()


@pytest.fixture
def visit(chromium, request):
    """Opens an address or a file: `visit(address, width=1280, dark=False)` gives a page of Playwright.

    What the browser rightly says on its console goes to `visit.expected`, a part of each sentence: it may come late.
    """
    opened, faults, expected = [], [], []

    def refused(dialog):
        faults.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def visit(address, *, width=1280, dark=False):
        context = chromium.new_context(
            viewport={"width": width, "height": HEIGHTS.get(width, 900)},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            permissions=["clipboard-read", "clipboard-write"],
        )
        context.set_default_timeout(10_000)
        context.on(
            "request", lambda asked: faults.extend([f"asked for {asked.url}"][: not asked.url.startswith(LOCAL)])
        )
        context.on("weberror", lambda error: faults.append(str(error.error)))
        context.on("console", lambda said: faults.extend([f"console: {said.text}"][: said.type == "error"]))
        context.on("dialog", refused)
        page = context.new_page()
        opened.append((page, f"{request.node.name}-{width}{'-dark' if dark else ''}-{len(opened)}"))
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        return page

    visit.expected = expected
    yield visit
    for page, name in opened:
        if folder := os.environ.get("CIRCUITOME_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name.replace('/', '-')}.png", full_page=True)
        page.context.close()
    faults = [fault for fault in faults if not any(part in fault for part in expected)]
    assert not faults, "\n".join(faults)


@pytest.fixture
def show(visit, tmp_path):
    """Opens blocks, or a whole document, as a page: `show(*blocks, width=1280, dark=False)`."""
    from circuitome.present.blocks import Document
    from circuitome.present.page import page

    def show(*blocks, **how):
        document = (
            blocks[0]
            if isinstance(blocks[0], Document)
            else Document(title="Shown", command="circuitome", sign="", blocks=blocks)
        )
        path = tmp_path / "page.html"
        path.write_text(page(document), "utf-8")
        return visit(path, **how)

    return show


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with small runs of many studies, made by one process, so that this one need not import torch."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "runs-in-a-browser"
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            single = {**os.environ, "OMP_NUM_THREADS": "1"}  # threads of so small models only wait for each other
            command = [sys.executable, HERE / "make_runs.py", folder]
            done = subprocess.run(command, capture_output=True, text=True, env=single)
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def server(runs):
    """The app on these runs; `server.address` opens it. One for all tests, so that models are loaded once."""
    pytest.importorskip("fastapi")
    from app.serving import Server

    started = Server(runs)
    yield started
    started.stop()
