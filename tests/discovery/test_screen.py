"""Estimates of path patching: exactly the slope of the effect, and the trace that they spare is the exact one."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.discovery.patching.screen import path_estimates
from circuitome.engine.setting import Setting
from circuitome.tasks.task import Pair, Task

FAMILIES = [
    "llama",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "neox-parallel", "gemma2", "qwen3")),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_with_frozen_mlps_an_estimate_is_the_score_of_the_edge(family):
    model, task = tiny(family), random_task(3)
    names = [name for name in model.graph.readers if name.startswith(("a2", "m1", "logits"))]
    found = path_estimates(Setting(model, task), names, freeze_mlps=True)
    scores = cm.eap_ig(model, task, steps=5).values
    for name, estimates in zip(names, found, strict=True):
        column = model.graph.column(name)
        upstream = model.graph.mask[:, column]
        torch.testing.assert_close(estimates[upstream], scores[upstream, column], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_estimate_is_the_slope_of_the_patched_effect(family, freeze):
    """Where the corrupted prompt is nearly the clean one, patching is linear."""
    model = tiny(family)
    embedding = model.hf.get_input_embeddings().weight
    before = embedding.data.clone()
    try:
        noise = torch.randn(embedding.shape[1], generator=torch.Generator().manual_seed(0))
        embedding.data[7] = embedding.data[5] + 0.02 * embedding.data[5].norm() / noise.norm() * noise
        task = Task("near", (Pair((3, 5, 9, 11), (3, 7, 9, 11), answers=(4,), wrongs=(6,)),))
        graph = model.graph
        receiver = next(name for name in graph.readers if name.startswith("a2") and name.endswith(".v"))
        found = path_estimates(Setting(model, task), [receiver], freeze_mlps=freeze)[0]
        exact = cm.path_patch(model, task, receiver, receiver_positions="all", freeze_mlps=freeze).mean
        rows = graph.mask[:, graph.column(receiver)].nonzero().flatten().tolist()
        nodes = [graph.writer_nodes[row] for row in rows]
        places = [
            (graph.layer_of[row] + 1, node.index if node.kind == "head" else graph.n_heads)
            for row, node in zip(rows, nodes, strict=True)
        ]
        effects = torch.stack([exact[place] for place in places])
        assert (found[rows] - effects).norm() < 0.05 * effects.norm() and effects.norm() > 1e-4
    finally:
        embedding.data.copy_(before)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_screened_trace_keeps_what_the_exact_one_keeps(freeze):
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    options = {"depth": 3, "width": 1, "freeze_mlps": freeze}
    exact, screened = (cm.trace_back(model, task, exact=exact, **options) for exact in (True, False))
    assert screened.circuit == exact.circuit and screened.receivers == exact.receivers
    assert not any(exact.screened) and screened.screened[0] == ()
    left = [part for level in screened.screened[1:] for part in level]
    assert len(left) == sum(map(len, screened.receivers[1:])) and any(part.left for part in left)
    assert all(part.patched >= 4 and part.bound >= 0 for part in left if part.left)
