"""Attribution graphs of SmolLM2-135M: what they cost in bare forward passes, and how far the model does as they say.

    python benchmarks/attribution_graphs.py [--write]

Writes benchmarks/results/attribution-graphs-DATE.json.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import torch
from speed import HERE, machine, one_thread

import circuitome as cm

PROMPTS: dict[str, tuple[str, tuple[str, str] | None]] = {
    "IOI, contrast": ("When Mary and John went to the store, John gave a drink to", (" Mary", " John")),
    "IOI": ("When Mary and John went to the store, John gave a drink to", None),
    "capital, contrast": ("The capital of France is", (" Paris", " London")),
    "capital": ("The capital of France is", None),
    "agreement, contrast": ("The keys to the old wooden cabinet", (" are", " is")),
    "language, contrast": ("In Germany people speak", (" German", " French")),
}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and its processor seconds, so that other programs do not count."""
    start = time.process_time()
    return work(), time.process_time() - start


def bare(model: cm.Model, tokens: int) -> float:
    """Seconds of a bare forward pass over 32 prompts; the least of three."""
    ids = torch.randint(100, 40_000, (32, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return min(timed(lambda: model.hf(ids))[1] for _ in range(3))


def measured(model: cm.Model, prompt: str, contrast: tuple[str, str] | None) -> dict[str, Any]:
    """Cost, scores and checks of one prompt's graph."""
    graphs = cm.attribution_graphs
    before = bare(model, len(model.encode(prompt)))
    graph, seconds = timed(lambda: cm.attribution_graph(model, prompt, contrast=contrast))
    checks, checked = timed(lambda: graphs.check_graph(model, graph))
    loadings, taken = timed(lambda: graphs.head_loadings(model, graph))
    whole, edges = loadings.heads.double().sum(-1) + loadings.bypass, graph.weights[loadings.edges, None]
    places = graphs.attention_places(model, graph, loadings)
    found = graphs.attention_of(model, graph, [(place.head, place.query, place.key) for place in places])
    unit = min(before, bare(model, len(graph.ids)))
    random = [abs(node.measured) for node in checks.random]
    return {
        "prompt": prompt,
        "explains": graph.explains,
        "tokens": len(graph.ids),
        "bare_seconds": unit,
        "graph_passes": seconds / unit,
        "check_passes": checked / unit,
        "heads_passes": taken / unit,
        "neurons": len(graph.units()),
        "edges": len(graph.weights),
        "replacement": graph.replacement,
        "completeness": graph.completeness,
        "sums": checks.sums,
        "differences": checks.differences,
        "loadings": float((whole - edges).abs().nan_to_num().max()),
        "attention_logits": max(abs(float(a.raw.double().sum()) - a.logit) for a in found),
        "correlation": checks.correlation.to_dict(),
        "correlation_held": checks.correlation_held.to_dict(),
        "mean_change_strongest": sum(abs(node.measured) for node in checks.off) / len(checks.off),
        "mean_change_random": sum(random) / len(random),
    }


def main() -> None:
    """Measure every prompt."""
    one_thread()
    model = cm.load("smollm2-135m")
    results: dict[str, Any] = {}
    for name, (prompt, contrast) in PROMPTS.items():
        results[name] = measured(model, prompt, contrast)
        print(name, json.dumps(results[name]), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    written = {"machine": machine(), "model": "smollm2-135m", "peak_bytes": peak, "prompts": results}
    if "--write" in sys.argv:
        path = HERE / "results" / f"attribution-graphs-{date.today()}.json"
        path.write_text(json.dumps(written, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
