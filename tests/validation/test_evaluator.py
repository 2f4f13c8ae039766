"""What an evaluator runs, and what it takes over from a file."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.engine import setting as settings
from circuitome.engine.setting import Setting
from circuitome.errors import RunError
from circuitome.graph.circuits import Circuit
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.robustness.summary import robustness

TASK = random_task(4, lengths=(5, 6))


def some_edges(graph, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Circuit(graph, graph.mask & (torch.rand(graph.mask.shape, generator=draw) < 0.5))


@pytest.mark.parametrize("fits", [True, False])
def test_faithfulness_prepares_every_batch_once(monkeypatch, fits):
    model, task, prepared = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 8), []

    def counted(model, task, batch, replacement):
        prepared.extend(batch.rows)
        return baseline(model, task, batch, replacement)

    baseline = settings.baseline
    monkeypatch.setattr(settings, "baseline", counted)
    if not fits:
        monkeypatch.setattr("circuitome.validation.faithfulness.evaluator.tokens_within", lambda *_, **__: 0)
    cm.faithfulness(model, some_edges(model.graph), task)
    assert sorted(prepared) == list(range(len(task)))


def test_what_was_measured_is_taken_over_by_the_same_question_only(tmp_path):
    model, other, path = tiny("llama"), tiny("llama", seed=1), tmp_path / "measured.safetensors"
    first, second = some_edges(model.graph), some_edges(model.graph, 1)
    evaluator = Evaluator(Setting(model, TASK, checkpoint=path))
    measured = evaluator.circuits([first])[0]
    evaluator.save()
    again = Evaluator(Setting(model, TASK, checkpoint=path))
    assert torch.equal(again.circuits([first])[0], measured)
    assert not torch.allclose(again.circuits([second])[0], measured)  # another circuit is measured anew
    assert not torch.allclose(again.ablate(torch.ones(1, len(model.graph.writers), dtype=torch.bool))[0], measured)
    for setting in (
        Setting(other, TASK, checkpoint=path),
        Setting(model, TASK, "zero", checkpoint=path),
        Setting(model, random_task(3, lengths=(5, 6)), checkpoint=path),
    ):
        with pytest.raises(RunError, match="belongs to another validation run"):
            Evaluator(setting)


@pytest.mark.slow
def test_sections_of_robustness_are_not_taken_over_from_another_circuit(tmp_path):
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 8)
    scores = cm.eap_ig(model, task)
    kept = Setting(model, task, checkpoint=tmp_path)
    first = robustness(kept, scores.top(9), scores)
    assert robustness(kept, scores.top(9), scores) == first
    with pytest.raises(RunError, match="belongs to another"):
        robustness(kept, scores.top(5), scores)
