"""From a run to the plain data that the page is made of."""

from typing import Any

from circuitome.graph import Graph
from circuitome.runs import Run

PROMPTS = 20
"""Example prompts on the page."""


def graph_of(run: Run) -> Graph:
    """The graph that the run's matrices belong to."""
    model = run.manifest["model"]
    return Graph(model["layers"], model["heads"], model["kv_heads"], parallel=model["parallel"])


def strongest_edges(run: Run) -> list[dict[str, Any]]:
    """The circuit's edges, strongest |score| first: from, to, score, low, high."""
    graph, chosen = graph_of(run), run.tensors["circuit"]
    scores = run.tensors["scores"][chosen].tolist()
    columns = zip(
        chosen.nonzero().tolist(),
        scores,
        run.tensors["score_low"].tolist(),
        run.tensors["score_high"].tolist(),
        strict=True,
    )
    edges = [
        {"from": graph.writers[row], "to": graph.readers[column], "score": score, "low": low, "high": high}
        for (row, column), score, low, high in columns
    ]
    return sorted(edges, key=lambda edge: -abs(edge["score"]))


def payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `find` run."""
    manifest = run.manifest
    results = manifest["results"]
    curve = results["curve"]
    metrics = run.tensors["metrics"].tolist()
    done = {key: value for key, value in manifest.items() if key not in ("results", "prompts")}
    return {
        "title": f"{manifest['task']['name']} in {manifest['model']['name']}",
        "command": manifest["command"],
        "manifest": done,
        "model": manifest["model"],
        "edges": strongest_edges(run),
        "unit": manifest["task"]["unit"],
        "headline": {
            "edges": results["edges"],
            "all_edges": results["all_edges"],
            "nodes": results["nodes"],
            "clean": results["clean"],
            "corrupted": results["ablated"],
            "circuit": results["circuit"],
            "faithfulness": results["faithfulness"],
            "random": results["random"],
        },
        "curve": {key: curve[key] for key in ("sizes", "circuit", "random")},
        "prompts": [
            {**prompt, "clean_metric": clean, "corrupted_metric": ablated, "circuit_metric": own}
            for prompt, (own, clean, ablated) in zip(manifest["prompts"][:PROMPTS], metrics, strict=False)
        ],
    }
