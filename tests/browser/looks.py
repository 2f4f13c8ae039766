"""What holds for every page, whatever it shows."""

import functools
import re
from pathlib import Path

import pytest

AXE = Path(__file__).parents[2] / "viewer/node_modules/axe-core/axe.min.js"
GRAVE = ("serious", "critical")
TOO_WIDE = """(window) => [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right + scrollX > window && !e.closest(".scroll"))
    .slice(0, 5).map((e) => `${e.tagName}.${e.getAttribute("class")} ${e.getBoundingClientRect().right}`)"""
"""What reaches beyond the window, and how far."""


@functools.cache
def _axe():
    return AXE.read_text("utf-8") if AXE.is_file() else None


def accessible(page):
    """Fails for what axe calls serious or critical, in the page and its frames; skips where axe is not installed."""
    if _axe() is None:
        pytest.skip("needs axe-core: cd viewer && npm ci")
    for frame in page.frames:
        frame.evaluate(f"() => {{ {_axe()}; }}")
        found = frame.evaluate("() => axe.run(document, { iframes: false, resultTypes: ['violations'] })")
        grave = [
            f"{fault['id']} ({fault['impact']}): {fault['help']}\n  {node['target']} {node['html'][:200]}"
            for fault in found["violations"]
            if fault["impact"] in GRAVE
            for node in fault["nodes"][:4]
        ]
        assert not grave, "\n".join(grave)


def no_wider_than_its_window(page):
    """Fails where the page scrolls sideways; tables and drawings scroll inside."""
    for frame in page.frames:
        wide, window = frame.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        if wide > window:
            raise AssertionError(f"{wide} wide in a window of {window}: {frame.evaluate(TOO_WIDE, window)}")


def texts(page, selector):
    """What stands in the elements that match."""
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def zoom_in(page, x, y, steps=4):
    """Turn the wheel with Ctrl at a place of the window, and wait for the address to say so."""
    page.mouse.move(x, y)
    page.keyboard.down("Control")
    for _ in range(steps):
        page.mouse.wheel(0, -100)
        page.wait_for_timeout(50)
    page.keyboard.up("Control")
    page.wait_for_url(re.compile(r"-zoom\.at"))


SHARP = """() => [...document.querySelectorAll(".layers canvas")].every((canvas) => Math.abs(
    canvas.width - canvas.getBoundingClientRect().width * devicePixelRatio) <= 1)"""
"""Whether every canvas of a drawing has a pixel for each of the screen's."""
