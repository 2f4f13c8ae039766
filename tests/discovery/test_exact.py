"""Exact edge scores against one run of the full circuit without the edge."""

import pytest
import torch
from families import random_task, tiny

from circuitome.discovery.patching.edge import exact
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit

TASK = random_task(3, lengths=(5, 6))


QUICK = [("gemma2", "corrupted"), ("gpt2", "zero")]
CASES = [(name, ablation) for name in ("gemma2", "gpt2", "neox-parallel") for ablation in ("corrupted", "zero")]


@pytest.mark.parametrize(
    ("name", "ablation"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_an_exact_score_is_the_circuit_without_one_edge(name, ablation):
    model = tiny(name)
    rows = range(len(TASK))
    clean = TASK.score(run_circuit(model, TASK, Circuit.full(model.graph)), rows)
    picked = torch.zeros_like(model.graph.mask)
    edges = model.graph.mask.nonzero()[:: model.graph.n_edges // 15]
    picked[edges[:, 0], edges[:, 1]] = True
    scores = exact(model, TASK, edges=Circuit(model.graph, picked), ablation=ablation)
    for row, column in edges.tolist():
        mask = model.graph.mask.clone()
        mask[row, column] = False
        without = TASK.score(run_circuit(model, TASK, Circuit(model.graph, mask), ablation=ablation), rows)
        torch.testing.assert_close(scores.values[row, column], (without - clean).mean(), atol=2e-5, rtol=2e-5)
    assert float(scores.values[~picked].abs().max()) == 0.0


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    model, path = tiny("gpt2"), tmp_path / "exact.safetensors"

    def kill(what, done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exact(model, TASK, checkpoint=path, progress=kill)
    assert torch.equal(exact(model, TASK, checkpoint=path).values, exact(model, TASK).values)
    with pytest.raises(InputError, match="another exact run"):
        exact(model, random_task(4), checkpoint=path)
