"""Payloads for the report's tests: small ones by hand, large ones by formula."""

from typing import Any

import pytest


def estimate(value: float, width: float, unit: str = "share of the clean-corrupted gap") -> dict[str, Any]:
    """An estimate as it stands in a payload."""
    return {"value": value, "low": value - width, "high": value + width, "unit": unit, "n": 64, "level": 0.95}


@pytest.fixture
def small() -> dict[str, Any]:
    """Two layers of four heads that share two key/value heads; every kind of reader occurs."""
    edges = [
        ("embed", "a0.h1.q", -0.5),
        ("embed", "a1.kv1.k", 0.25),
        ("a0.h1", "m0.in", -0.125),
        ("a0.h1", "a1.kv1.v", -0.4),
        ("m0", "a1.h3.q", 0.05),
        ("m0", "m1.in", -0.03),
        ("a1.h3", "logits", -1.0),
    ]
    return {
        "title": "ioi in toy",
        "command": "circuitome find ioi --model toy",
        "unit": "logits",
        "manifest": {
            "circuitome": "0.1.0",
            "created": "2026-01-02T03:04:05Z",
            "model": {"name": "toy", "parameters": 134515008, "bos": False, "weights_hash": "abc123"},
            "task": {"name": "ioi", "seed": 1234567, "source": None},
            "method": {"name": "eap-ig", "steps": 5},
            "seconds": 38.25,
            "peak_memory_bytes": 1_893_000_000,
        },
        "model": {"layers": 2, "heads": 4, "kv_heads": 2, "parallel": False},
        "edges": [
            {"from": source, "to": reader, "score": score, "low": score - 0.01, "high": score + 0.01}
            for source, reader, score in edges
        ],
        "headline": {
            "edges": 7,
            "all_edges": 70651,
            "nodes": 8,
            "clean": estimate(4.123, 0.4, "logits"),
            "corrupted": estimate(-0.512, 0.3, "logits"),
            "circuit": estimate(1.486, 0.35, "logits"),
            "faithfulness": estimate(0.431, 0.052),
            "random": estimate(0.002, 0.004),
        },
        "curve": {
            "sizes": [1, 7, 100],
            "circuit": [estimate(v, 0.05) for v in (0.1, 0.43, 0.97)],
            "random": [estimate(v, 0.02) for v in (0.0, 0.002, 0.1)],
        },
        "prompts": [
            {
                "clean": "When Mary and John left, John gave milk to",
                "corrupted": "When Mary and John left, Mary gave milk to",
                "answers": [" Mary"],
                "wrongs": [" John"],
                "clean_metric": 4.1,
                "corrupted_metric": -0.5,
                "circuit_metric": 2.2,
            }
        ],
    }


@pytest.fixture
def large(small: dict[str, Any]) -> dict[str, Any]:
    """Ten thousand edges of a model of 30 layers, 9 heads and 3 key/value heads, with full-length numbers."""
    pairs = [
        (f"a{low}.h{head}", f"a{high}.{reader}")
        for low in range(30)
        for high in range(low + 1, 30)
        for head in range(9)
        for reader in ("h0.q", "h8.q", "kv0.k", "kv2.v")
    ]
    edges = []
    for i, (source, reader) in enumerate(pairs[:10_000]):
        score = -(-1 if i % 3 == 0 else 1) / (i + 1.7)
        edges.append({"from": source, "to": reader, "score": score, "low": score * 1.1234567, "high": score * 0.912345})
    model = {"layers": 30, "heads": 9, "kv_heads": 3, "parallel": False}
    return small | {"model": model, "edges": edges}
