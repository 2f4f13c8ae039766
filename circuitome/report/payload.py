"""From a run to the plain data that the page is made of."""

from typing import Any

from circuitome.graph.model_graph import Graph
from circuitome.runs.store import Run

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
        "unit": manifest["method"].get("unit", manifest["task"]["unit"]),
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


def effects_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `patch` or `path` run."""
    manifest = run.manifest
    results = manifest["results"]
    clean, corrupted = run.tensors["clean"].tolist(), run.tensors["corrupted"].tolist()
    left_out = ("results", "prompts", "tree", "circuit")
    what = {"patch": "activation patching", "path": "path patching"}[manifest["kind"]]
    page = {
        "title": f"{what}: {manifest['task']['name']} in {manifest['model']['name']}",
        "command": manifest["command"],
        "sign": manifest["sign"],
        "unit": manifest["task"]["unit"],
        "maps": results["maps"],
        "top": results["top"],
        "manifest": {key: value for key, value in manifest.items() if key not in left_out},
        "prompts": [
            {**prompt, "clean_metric": a, "corrupted_metric": b}
            for prompt, a, b in zip(manifest["prompts"][:PROMPTS], clean, corrupted, strict=False)
        ],
    }
    if "tree" in manifest:
        page |= {"tree": manifest["tree"], "circuit_edges": manifest["edges"]}
    return page


def compare_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `compare` run."""
    manifest = run.manifest
    left_out = ("results", "prompts")
    return {
        "title": f"Methods compared: {manifest['task']['name']} in {manifest['model']['name']}",
        "command": manifest["command"],
        "unit": "share of the clean-ablated gap",
        "methods": manifest["results"]["methods"],
        "random": manifest["results"]["random"],
        "held_out": manifest["held_out"],
        "exact_edges": manifest["exact_edges"],
        "manifest": {key: value for key, value in manifest.items() if key not in left_out},
    }


def verdict_payload(run: Run) -> dict[str, Any]:
    """The data of the page of a `validate` run."""
    manifest = run.manifest
    left_out = ("results", "prompts")
    return {
        "title": f"Is it real? {manifest['task']['name']} in {manifest['model']['name']}",
        "command": manifest["command"],
        "unit": manifest["task"]["unit"],
        "edges": manifest["edges"],
        "holds": manifest["holds"],
        **manifest["results"],
        "manifest": {key: value for key, value in manifest.items() if key not in left_out},
    }
