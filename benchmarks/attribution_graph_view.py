"""How live the attribution graph's page is with 5,000 nodes and 50,000 edges, in headless chromium.

A made-up graph is opened; its sliders are moved, its drawing is hovered, zoomed with all its edges and moved, and the
time from each move to the frame that shows it is taken in the page.
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

from circuitome.present.blocks import Document, GraphDot, PromptGraph
from circuitome.present.page import page

TOKENS, LAYERS = 12, 26
MOVES = """async ([what, moves]) => {
  const sliders = document.querySelectorAll(".attribution_graph .slider input");
  const drawing = document.querySelector(".layers");
  const box = drawing.getBoundingClientRect();
  const slide = (slider, share) => {
    slider.value = String(1 - 0.9 * share);
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const steps = {
    edges: (share) => slide(sliders[1], share),
    nodes: (share) => slide(sliders[0], share),
    hover: (share) => {
      const [across, down] = [(7 * share) % 1, 0.2 + 0.6 * share];
      const at = { clientX: box.left + box.width * across, clientY: box.top + box.height * down };
      drawing.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, ...at }));
    },
    zoom: (share) => {
      const at = { clientX: box.left + 0.6 * box.width, clientY: box.top + 0.5 * box.height };
      const wheel = { bubbles: true, cancelable: true, ctrlKey: true, deltaY: share < 0.5 ? -20 : 20 };
      drawing.dispatchEvent(new WheelEvent("wheel", { ...wheel, ...at }));
    },
    pan: (share) => {
      const key = ["ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"][Math.floor(8 * share) % 4];
      drawing.dispatchEvent(new KeyboardEvent("keydown", { bubbles: true, key, shiftKey: true }));
    },
  };
  const times = [];
  for (let k = 0; k < 3 && what === "pan"; k++) {
    document.querySelector(".zoom button[aria-label='Zoom in']").click();
    await new Promise((done) => setTimeout(done, 100));
  }
  for (let k = 0; k < moves; k++) {
    const start = performance.now();
    steps[what](k / moves);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))));
    times.push(performance.now() - start);
  }
  for (const slider of sliders) slide(slider, 0);
  document.querySelector(".zoom button:last-child").click();
  return times;
}"""
"""Does one thing again and again, and gives the milliseconds from each to the second frame after it."""


def made_up(nodes: int, edges: int, seed: int = 0) -> Document:
    """Neurons at random tokens of every block, with edges from earlier blocks, and one logit."""
    draw = random.Random(seed)
    dots = [
        GraphDot(id=f"embed@{i}", kind="embed", layer=-1, position=i, key=f"E_{i}_{i}", influence=0.01)
        for i in range(TOKENS)
    ]
    for i in range(nodes - TOKENS - 1):
        layer, at = i * LAYERS // nodes, draw.randrange(TOKENS)
        name = f"m{layer}.n{i}@{at}"
        dots.append(
            GraphDot(id=name, kind="neuron", layer=layer, position=at, label=f'" {i}"', influence=draw.random())
        )
    dots.append(GraphDot(id="logits.t5@11", kind="logit", layer=LAYERS, position=TOKENS - 1, influence=1.0))
    ends = list[tuple[int, int, float, float]]()
    while len(ends) < edges:
        source, target = sorted((draw.randrange(nodes), nodes - 1 if draw.random() < 0.05 else draw.randrange(nodes)))
        if dots[source].layer < dots[target].layer:
            ends.append((source, target, draw.gauss(0, 1), 0.0))
    tokens = tuple(f" t{i}" for i in range(TOKENS))
    graph = PromptGraph(
        title="Graph", tokens=tokens, layers=LAYERS, nodes=tuple(dots), edges=tuple(ends), explains="made up"
    )
    return Document(title="Made up", command="", sign="", blocks=(graph,))


def measured(path: Path, moves: int) -> dict[str, Any]:
    """Milliseconds until the page shows its drawing, and of moves."""
    from playwright.sync_api import sync_playwright

    executable = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        shown.goto(path.as_uri())
        shown.locator("canvas.base[data-drawn]").wait_for()
        first = shown.evaluate("performance.now()")
        found: dict[str, Any] = {"first_view_ms": round(first), "page_mb": round(path.stat().st_size / 1e6, 2)}
        for what in ("edges", "nodes", "hover", "zoom", "pan"):
            times = sorted(shown.evaluate(MOVES, [what, moves]))
            found[f"{what}_moved"] = {"median_ms": round(statistics.median(times), 1), "worst_ms": round(times[-1], 1)}
        browser.close()
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--edges", type=int, default=50_000)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page(made_up(arguments.nodes, arguments.edges)), "utf-8")
        found = measured(path, arguments.moves)
    load = {"cores": os.cpu_count(), "load": [round(value, 1) for value in os.getloadavg()]}
    record = {"nodes": arguments.nodes, "edges": arguments.edges, "moves": arguments.moves, **load, **found}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
