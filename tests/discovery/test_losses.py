"""Scores by a distance from the clean model in place of the metric; pairs that are not aligned."""

from dataclasses import replace

import pytest
import torch
from families import random_task, tiny

from circuitome.discovery.attribution.edges import eap, eap_ig
from circuitome.discovery.patching.edge import exact
from circuitome.discovery.search.pruning import loss_gap
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import InputError, TaskError, UnknownNameError
from circuitome.graph.circuits import Circuit
from circuitome.tasks.losses import loss_of, loss_unit

TASK = random_task(3, lengths=(5, 6))


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "l2"])
def test_scores_that_leave_the_embedding_sum_to_the_whole_distance(model, loss):
    rows = range(len(TASK))
    clean, empty = (run_circuit(model, TASK, c) for c in (Circuit.full(model.graph), Circuit.empty(model.graph)))
    distance = float(loss_of(TASK, loss)(empty, clean, rows).mean())
    scores = eap_ig(model, TASK, steps=64, loss=loss)
    assert float(scores.values[0].sum()) == pytest.approx(-distance, rel=0.01)
    assert scores.unit == loss_unit(TASK, loss) and loss in scores.method
    assert loss_gap(model, TASK, loss) == pytest.approx(distance, rel=1e-4)


def test_exact_scores_by_divergence(model):
    edges = Circuit.of(model.graph, ["a0.h1->a1.h0.q", "m1->logits", "embed->a0.kv0.v"])
    scores = exact(model, TASK, edges=edges, loss="kl")
    clean = run_circuit(model, TASK, Circuit.full(model.graph))
    for name in edges:
        without = run_circuit(model, TASK, Circuit.full(model.graph) - Circuit.of(model.graph, [name]))
        expected = -loss_of(TASK, "kl")(without, clean, range(len(TASK))).mean()
        torch.testing.assert_close(torch.tensor(scores[name]), expected, atol=2e-6, rtol=1e-3)


def test_a_gradient_at_the_clean_model_knows_no_distance_from_it(model):
    with pytest.raises(InputError, match=r"every score would be 0\. Use eap_ig"):
        eap(model, TASK, loss="kl")
    for method in (eap, eap_ig, exact):
        with pytest.raises(UnknownNameError, match="kl"):
            method(model, TASK, loss="k1")


def test_pairs_of_unequal_length_run_under_ablations_that_swap_nothing(model):
    uneven = replace(TASK, pairs=tuple(replace(pair, corrupted=pair.corrupted[1:]) for pair in TASK.pairs))
    for ablation in ("zero", "mean"):
        assert torch.isfinite(eap_ig(model, uneven, ablation=ablation).values).all()
        logits = run_circuit(model, uneven, Circuit.full(model.graph), ablation=ablation)
        torch.testing.assert_close(logits, run_circuit(model, TASK, Circuit.full(model.graph)), atol=1e-5, rtol=1e-5)
    with pytest.raises(TaskError, match="not aligned: 5 clean and 4 corrupted tokens"):
        eap_ig(model, uneven)


def test_prefixes_of_very_different_length_stay_within_the_positions_a_model_has():
    model = tiny("gpt2")
    room = model.hf.config.n_positions
    ids = torch.randint(3, 60, (2, room), generator=torch.Generator().manual_seed(0)).tolist()
    pairs = []
    for row, at in zip(ids, (2, room - 5), strict=True):
        other = list(row)
        other[at] = (row[at] + 1) % 60
        pairs.append(replace(TASK.pairs[0], clean=tuple(row), corrupted=tuple(other)))
    pairs.append(replace(pairs[0], corrupted=pairs[0].clean))  # nothing differs
    task = replace(TASK, pairs=tuple(pairs))
    full = Circuit.full(model.graph)
    whole = run_circuit(model, task, full, shared_prefix=False)
    torch.testing.assert_close(run_circuit(model, task, full), whole, atol=1e-5, rtol=1e-5)
