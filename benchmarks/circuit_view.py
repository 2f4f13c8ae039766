"""How smooth the circuit view is with 5,000 nodes and 50,000 edges, in headless chromium.

A made-up document is opened, its slider moved over all sizes, its drawing hovered, zoomed and moved; every frame is
timed in the page.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil

from circuitome.present.blocks import CircuitMap, Document, Edge, Shape
from circuitome.present.page import page

LAYERS, HEADS, NEURONS = 40, 64, 60
FRAMES = """async ([what, frames]) => {
  const field = document.querySelector(".circuit input.shown");
  const canvas = document.querySelector(".circuit canvas.chosen");
  const box = canvas.getBoundingClientRect();
  const steps = {
    slide: (share) => {
      field.value = Math.round(1000 * (share < 0.5 ? 2 * share : 2 - 2 * share));
      field.dispatchEvent(new Event("input", { bubbles: true }));
    },
    hover: (share) => {
      const across = 0.1 + 0.8 * ((7 * share) % 1);
      const at = { clientX: box.left + box.width * across, clientY: box.top + box.height * share };
      canvas.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, ...at }));
    },
    zoom: (share) => {
      const at = { clientX: box.left + 0.6 * box.width, clientY: box.top + 0.4 * box.height };
      const wheel = { bubbles: true, cancelable: true, ctrlKey: true, deltaY: share < 0.5 ? -4 : 4 };
      canvas.dispatchEvent(new WheelEvent("wheel", { ...wheel, ...at }));
    },
    move: (share) => {
      const key = ["ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"][Math.floor(8 * share) % 4];
      canvas.parentElement.dispatchEvent(new KeyboardEvent("keydown", { bubbles: true, key, shiftKey: true }));
    },
  };
  const frame = () => new Promise(requestAnimationFrame);
  const times = [];
  let last = await frame();
  for (let k = 0; k < frames; k++) {
    steps[what](k / frames);
    const now = await frame();
    times.push(now - last);
    last = now;
  }
  return times;
}"""
"""Does one thing in every frame, and gives the milliseconds between frames."""


def made_up(edges: int, seed: int = 0) -> Document:
    """A circuit of about 5,000 nodes: heads, MLPs, and neurons that fold out of them."""
    draw = random.Random(seed)
    neurons = tuple(tuple(f"m{layer}.n{7 * i}" for i in range(NEURONS)) for layer in range(LAYERS))

    def writer(layer: int) -> str:
        kind = draw.random()
        if kind < 0.1:
            return f"m{layer}"
        return f"a{layer}.h{draw.randrange(HEADS)}" if kind < 0.7 else draw.choice(neurons[layer])

    def reader(layer: int) -> str:
        name = writer(layer)
        return f"{name}.{draw.choice('qkv')}" if name.startswith("a") else f"{name}.in"

    def edge(rank: int) -> Edge:
        low = draw.randrange(LAYERS - 1)
        score = draw.choice((-1, -1, 1)) * 4.0 / (rank + 9)
        target = reader(draw.randrange(low + 1, LAYERS))
        target = target.replace(".h", ".kv") if target.endswith((".k", ".v")) else target
        return Edge(source=writer(low), reader=target, score=score, low=score - 0.1, high=score + 0.1)

    block = CircuitMap(
        title="The circuit",
        shape=Shape(layers=LAYERS, heads=HEADS, kv_heads=HEADS, neurons=neurons),
        edges=tuple(edge(rank) for rank in range(edges)),
        unit="logits",
    )
    return Document(title="Made up", command="", sign="", blocks=(block,))


def timed(times: list[float]) -> dict[str, float]:
    """Milliseconds of a frame."""
    ordered = sorted(times)
    at = {"median": 0.5, "p95": 0.95, "worst": 1.0}
    return {name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) for name, share in at.items()}


def cpu_ms() -> float:
    """Milliseconds that the browser's processes have computed so far: on a busy machine less than what passes."""
    children = psutil.Process().children(recursive=True)
    return 1000 * sum(sum(child.cpu_times()[:2]) for child in children if "chrom" in child.name())


def measured(path: Path, frames: int, opens: int) -> dict[str, Any]:
    """First view, and frames while sliding and hovering, folded and folded out."""
    from playwright.sync_api import sync_playwright

    results: dict[str, Any] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        first, computed, paints = [], [], []
        for _ in range(opens):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            session = tab.context.new_cdp_session(tab)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            tab.goto(path.as_uri(), wait_until="commit")
            tab.wait_for_selector(".circuit canvas.nodes")
            now = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
            first.append(round(tab.evaluate(now)))
            numbers = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
            computed.append(round(1000 * numbers["TaskDuration"]))
            paints.append(round(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")))
            if len(first) < opens:
                tab.close()
        medians = {"static drawing": paints, "view": first, "view, computed": computed}
        results["first_view_ms"] = {name: statistics.median(values) for name, values in medians.items()}
        for state in ("folded", "folded out"):
            if state == "folded out":
                tab.locator(".circuit .fold-all").click()
            tab.evaluate(FRAMES, ["hover", 5])
            for what in ("slide", "hover", "zoom", "move"):
                if what == "zoom":
                    tab.locator(".circuit input.shown").fill("1000")
                if what == "move":
                    tab.locator(".zoom button[aria-label='Zoom in']").click(click_count=3)
                before = cpu_ms()
                times = timed(tab.evaluate(FRAMES, [what, frames]))
                results[f"{what}, {state}"] = {**times, "computed": round((cpu_ms() - before) / frames, 1)}
            tab.get_by_role("button", name="Fit").click()
        browser.close()
    return results


def main() -> None:
    """Measure and print; --write keeps the result with its date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--edges", type=int, default=50_000)
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--opens", type=int, default=5)
    parser.add_argument("--write", type=Path, help="where the result is kept")
    arguments = parser.parse_args()
    document = made_up(arguments.edges)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        path.write_text(page(document), encoding="utf-8")
        block = document.blocks[0]
        assert isinstance(block, CircuitMap)
        sites = (site for edge in block.edges for site in (edge.source, edge.reader.rsplit(".", 1)[0]))
        ends = {site.replace(".kv", ".h") for site in sites}
        load = {"processes_before": os.getloadavg()[0], "cores": os.cpu_count()}
        results = {**load, "edges": arguments.edges, "nodes": len(ends), "page_bytes": path.stat().st_size}
        results |= measured(path, arguments.frames, arguments.opens)
    text = json.dumps(results, indent=1)
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
