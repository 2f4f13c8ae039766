"""Soft masks against the written-out run and `run_circuit`; hard-concrete chances against draws; learning on toys."""

from pathlib import Path

import pytest
import torch
from families import CONFIGS, random_task, tiny
from referee import masked_logits, writer_outputs

from circuitome.discovery.attribution.edges import eap
from circuitome.discovery.search.learned_masks import (
    chance_open,
    chance_whole,
    edge_pruning,
    sample,
    subnetwork_probing,
)
from circuitome.discovery.search.mask_objective import MASK_LOSSES, MaskObjective
from circuitome.engine.ablation import AblationValues
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline
from circuitome.engine.masked_run import masked_final
from circuitome.engine.run_circuit import run_circuit
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, MemoryBudgetError, UnknownNameError
from circuitome.graph.circuits import Circuit

TASK = random_task(3)
QUICK = ("gemma2", "neox-parallel")
PAIRS = Path(__file__).parents[2] / "benchmarks" / "ioi32.jsonl"


def by_speed(name):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[by_speed(name) for name in CONFIGS])
def model(request):
    return tiny(request.param)


def soft_logits(model, z, ablation="corrupted"):
    """Logits of all prompts under the mask z, batch by batch."""
    replacement = AblationValues.of(model, TASK, ablation)
    corrupted = replacement.from_prompts
    found = {}
    with model.frozen_parameters():
        for batch in batches(model, TASK, shared_prefix=corrupted, corrupted=corrupted):
            base = baseline(model, TASK, batch, replacement)
            found |= dict(zip(batch.rows, model.unembed(masked_final(model, base, z)), strict=True))
    return torch.stack([found[row] for row in range(len(TASK))])


def drawn(model, density):
    """Edges drawn at random, the same ones each time."""
    chance = torch.rand(model.graph.mask.shape, generator=torch.Generator().manual_seed(1))
    return (chance < density) & model.graph.mask


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.15, 0.6, 1.1])
def test_whole_masks_are_a_circuit_run(model, ablation, density):
    mask = drawn(model, density)
    expected = run_circuit(model, TASK, Circuit(model.graph, mask), ablation=ablation)
    torch.testing.assert_close(soft_logits(model, mask.float(), ablation), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_values_and_gradients_of_a_part_open_mask_are_those_of_the_written_out_run(model):
    start = torch.rand(model.graph.mask.shape, generator=torch.Generator().manual_seed(2)) * drawn(model, 0.7)
    z = start.clone().requires_grad_(True)
    logits = soft_logits(model, z)
    (found,) = torch.autograd.grad(TASK.score(logits, range(len(TASK))).sum(), z)
    for row, pair in enumerate(TASK.pairs):
        z = start.clone().requires_grad_(True)
        expected = masked_logits(model, pair, writer_outputs(model, pair.corrupted), z)
        torch.testing.assert_close(logits[row : row + 1], expected, atol=2e-5, rtol=2e-5)
        found -= torch.autograd.grad(TASK.score(expected, [row]).sum(), z)[0] * (start > 0)
    torch.testing.assert_close(found, torch.zeros_like(found), atol=5e-5, rtol=0)


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_the_gradient_at_fully_open_masks_is_minus_eap(model, ablation):
    z = model.graph.mask.float().requires_grad_(True)
    metric = TASK.score(soft_logits(model, z, ablation), range(len(TASK))).mean()
    (gradient,) = torch.autograd.grad(metric, z)
    torch.testing.assert_close(-gradient, eap(model, TASK, ablation=ablation).values, atol=1e-5, rtol=1e-4)


def test_the_slope_of_the_metric_is_its_gradient_over_all_prompts(model):
    z = drawn(model, 0.3).float() * 0.7
    leaf = z.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(TASK.score(soft_logits(model, leaf), range(len(TASK))).mean(), leaf)
    slopes = MaskObjective(Setting(model, TASK), "metric").metric_slope(z)
    torch.testing.assert_close(slopes, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("log_alpha", [-2.0, -0.5, 0.0, 1.0, 2.5])
def test_chances_of_hard_concrete_masks(log_alpha):
    values = torch.full((200_000,), log_alpha)
    draws = sample(values, torch.Generator().manual_seed(0))
    assert float((draws > 0).float().mean()) == pytest.approx(float(chance_open(values)[0]), abs=0.01)
    assert float((draws == 1).float().mean()) == pytest.approx(float(chance_whole(values)[0]), abs=0.01)


@pytest.fixture(scope="module")
def toy():
    return tiny("gpt2")


@pytest.mark.slow
@pytest.mark.parametrize("loss", MASK_LOSSES)
@pytest.mark.parametrize("edges", [1, 37])
def test_edge_pruning_gives_as_many_edges_as_asked_for(toy, loss, edges):
    scores = edge_pruning(toy, TASK, edges=edges, steps=6, loss=loss)
    chance = -scores.values[toy.graph.mask]
    assert len(scores.top(edges)) == edges
    assert float(chance.sum()) == pytest.approx(edges, rel=0.01)
    assert float(chance.min()) >= 0 and float(chance.max()) <= 1
    assert scores.top(edges) == scores.top(edges, signed=True)


@pytest.mark.parametrize("method", [edge_pruning, subnetwork_probing])
def test_masks_asked_for_everything_are_all_open(toy, method):
    size = {"edges": toy.graph.n_edges} if method is edge_pruning else {"nodes": len(toy.graph.writers)}
    scores = method(toy, TASK, steps=2, **size)
    assert torch.isfinite(scores.values[toy.graph.mask]).all()
    assert len(scores.top(toy.graph.n_edges)) == toy.graph.n_edges


@pytest.mark.slow
def test_learning_beats_the_scores_it_starts_from(toy):
    task = random_task(8)
    learned = edge_pruning(toy, task, edges=60, steps=80).top(60)
    clean = run_circuit(toy, task, Circuit.full(toy.graph))

    def far(circuit):
        log_p, log_q = clean.log_softmax(-1), run_circuit(toy, task, circuit).log_softmax(-1)
        return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())

    assert far(learned) < 0.8 * far(eap(toy, task).top(60))


@pytest.mark.slow
def test_the_seed_decides(toy):
    first, again, other = (edge_pruning(toy, TASK, edges=30, steps=8, seed=seed).values for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["corrupted", "mean"])
def test_subnetwork_probing_scores_edges_by_their_weaker_node(toy, ablation):
    seen = []
    scores = subnetwork_probing(
        toy, TASK, nodes=6, steps=10, ablation=ablation, progress=lambda what, done, total: seen.append((done, total))
    )
    assert seen == [(step + 1, 10) for step in range(10)]
    chance = -scores.values[:, -1]  # the logits' side of an edge is open
    assert float(chance.sum()) == pytest.approx(6, rel=0.01)
    graph = toy.graph
    head, mlp = graph.row("a2.h1"), graph.row("m0")
    expected = -min(float(chance[mlp]), float(chance[head]))
    assert scores["m0->a2.h1.q"] == pytest.approx(expected)
    assert not scores.values[~graph.mask].any()


@pytest.mark.slow
def test_small_memory_means_small_minibatches(toy):
    bits = toy.bytes_per_token(gradients=True) + 4 * toy.d_model * 2 * sum(
        map(len, (toy.graph.writers, toy.graph.readers))
    )
    assert len(edge_pruning(toy, TASK, edges=9, steps=4, max_memory=11 * bits).top(9)) == 9
    with pytest.raises(MemoryBudgetError, match="prompt"):
        edge_pruning(toy, TASK, edges=9, steps=4, max_memory=8 * bits)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"edges": 0}, InputError),
        ({"edges": 10**6}, InputError),
        ({"steps": 0}, InputError),
        ({"loss": "l1"}, UnknownNameError),
    ],
)
def test_bad_options(toy, options, error):
    with pytest.raises(error):
        edge_pruning(toy, TASK, **{"edges": 10, "steps": 2, **options})
