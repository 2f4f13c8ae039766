"""Matryoshka attribution: the gradient through the border, sizes, masks; what it learns where the circuit is known."""

from pathlib import Path

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.discovery.search.mask_objective import MaskObjective, log_ranks
from circuitome.discovery.search.matryoshka import Training, open_masks, through_tau
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError

PAIRS = Path(__file__).parents[2] / "benchmarks" / "ioi32.jsonl"
SCORES = torch.tensor([0.3, -0.2, 1.4, 2.0, -1.0, 0.1, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("size", [1.5, 3.0, 6.0])
def test_masks_sum_to_the_size_in_the_order_of_the_scores(size):
    opened = open_masks(SCORES, size, 0.5)
    assert float(opened.sum()) == pytest.approx(size, abs=1e-6)
    assert opened.argsort().tolist() == SCORES.argsort().tolist()


@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_the_gradient_through_the_border_is_that_of_small_changes(temperature):
    weights = torch.linspace(-1, 2, len(SCORES), dtype=torch.float64)

    def loss(scores):
        return float((open_masks(scores, 3.0, temperature) * weights).sum())

    found = through_tau(weights, open_masks(SCORES, 3.0, temperature), temperature)
    step = 1e-4
    for i in range(len(SCORES)):
        up, down = SCORES.clone(), SCORES.clone()
        up[i] += step
        down[i] -= step
        assert float(found[i]) == pytest.approx((loss(up) - loss(down)) / (2 * step), abs=1e-5)
    assert float(found.sum()) == pytest.approx(0.0, abs=1e-9)  # raising all scores alike changes nothing


def test_sizes_fill_the_logarithm_of_their_range_evenly():
    model = tiny("llama")
    training = Training(MaskObjective(Setting(model, random_task(3)), "both"), 64, sizes=(4, 64))
    assert model.graph.n_edges > 128
    sizes = torch.tensor([training.size(step, model.graph) for step in range(64)])
    assert sizes.min() >= 4 and sizes.max() <= 64
    places = (sizes / 4).log2() / 4  # 0 to 1
    assert torch.histc(places, bins=8, min=0, max=1).min() >= 6
    assert len(sizes.unique()) == 64


def test_learning_starts_from_the_ranks_of_eap_ig():
    setting = Setting(tiny("llama"), random_task(3))
    graph = setting.model.graph
    start = graph.matrix(log_ranks(cm.eap_ig(setting)).exp())
    assert cm.EdgeScores(graph, start).top(20) == cm.eap_ig(setting).top(20)
    assert float(start.max()) == 1.0


def test_a_step_lowers_the_loss_of_the_size_it_was_taken_at():
    setting = Setting(tiny("neox-parallel"), random_task(3))
    training = Training(MaskObjective(setting, "both"), 20, sizes=(30, 31))
    training.moments = {name: torch.zeros(setting.model.graph.n_edges) for name in ("average", "square")}
    scores = log_ranks(cm.eap_ig(setting))
    graph, losses = setting.model.graph, []
    for step in range(12):
        losses.append(float(training.objective(graph.matrix(open_masks(scores, 30, 0.5)), 0)))
        scores = training.step(scores, step)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tracr-reverse", "known-induction"])
def test_the_true_edges_come_first(name):
    model, task = cm.load(name), cm.ground_truth.task(name, 48)
    truth = cm.ground_truth.true_circuit(model, task, ablation="zero")
    scores = cm.mattr(model, task, ablation="zero", steps=60)
    assert truth <= scores.top(len(truth) + 2)
    assert not truth <= cm.random_scores(model, task).top(len(truth) + 2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "llama"])
def test_circuits_of_every_size_do_better_than_those_it_started_from(family):
    model, task = tiny(family), random_task(6)
    learned, start = cm.mattr(model, task, steps=150), cm.eap_ig(model, task)
    clean = task.score(cm.run_circuit(model, task, cm.Circuit.full(model.graph)), range(6))

    def miss(scores, size):
        run = task.score(cm.run_circuit(model, task, scores.top(size)), range(6))
        return float((run - clean).square().mean())

    sizes = [model.graph.n_edges // part for part in (8, 4, 3, 2)]
    better = [miss(learned, size) < miss(start, size) for size in sizes]
    assert sum(better) >= 3, [(miss(learned, size), miss(start, size)) for size in sizes]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_scores_and_a_stopped_search_goes_on(tmp_path):
    model, task = tiny("llama"), random_task(3)
    whole = cm.mattr(model, task, steps=24)
    assert torch.equal(whole.values, cm.mattr(model, task, steps=24).values)
    assert not torch.equal(whole.values, cm.mattr(model, task, steps=24, seed=1).values) or len(task) <= 8

    def stop(what, done, total):
        if "learning" in what and done == 15:
            raise KeyboardInterrupt

    kept = tmp_path / "mattr.safetensors"
    with pytest.raises(KeyboardInterrupt):
        cm.mattr(model, task, steps=24, checkpoint=kept, progress=stop)
    told = []
    again = cm.mattr(
        model, task, steps=24, checkpoint=kept, progress=lambda what, done, total: told.append((what, done))
    )
    assert torch.equal(whole.values, again.values)
    assert min(done for what, done in told if "learning" in what) == 11  # after the ten that were kept


def test_bad_input():
    model, task = tiny("llama"), random_task(3)
    with pytest.raises(InputError, match="steps and prompts must be at least 1, got 0 and 8"):
        cm.mattr(model, task, steps=0)
    with pytest.raises(InputError, match="steps and prompts must be at least 1, got 200 and 0"):
        cm.mattr(model, task, prompts=0)


def test_a_step_takes_as_many_prompts_as_are_asked_for():
    model = tiny("llama")
    task = random_task(5, lengths=(7,))
    assert [len(MaskObjective(Setting(model, task), "kl", n).groups) for n in (1, 2, 5, 100)] == [5, 3, 1, 1]
    few, all_of_them = (cm.mattr(model, task, steps=2, prompts=n).values for n in (2, 5))
    assert not torch.equal(few, all_of_them)
    with pytest.raises(UnknownNameError, match="no loss 'l2'"):
        cm.mattr(model, task, loss="l2")


def test_a_hundred_edges_of_smollm2_do_the_task_here_and_elsewhere(smollm2):
    task = cm.tasks.from_file(smollm2, PAIRS)
    scores = cm.mattr(smollm2, task, steps=60)
    curve = cm.faithfulness_curve(smollm2, scores, task, sizes=(70, 100, 150), draws=0)
    best = min(curve.circuits, key=lambda point: abs(1 - point.value))
    assert abs(1 - best.value) <= 0.15
    elsewhere = cm.faithfulness(smollm2, scores.top(best.n_edges), cm.tasks.ioi(smollm2, n=32, seed=7)).value
    assert abs(1 - elsewhere) <= 0.3
    assert cm.faithfulness(smollm2, cm.eap_ig(smollm2, task).top(best.n_edges), task).value < 0.5
