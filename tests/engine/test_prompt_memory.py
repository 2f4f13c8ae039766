"""Memory grows with the tokens of a batch, and not with the number of prompts."""

import pytest
import torch
from families import random_task, tiny
from meta_models import Peak, pairs

import circuitome as cm
from circuitome.engine import sample_rows
from circuitome.engine.sample_rows import SampleRows
from circuitome.errors import MemoryBudgetError


def peak(model: cm.Model, prompts: int, budget: int) -> int:
    task = pairs(prompts, 7)
    with Peak() as memory:
        cm.eap(model, task, max_memory=budget)
    return memory.peak


@pytest.mark.slow
def test_ten_times_the_prompts_take_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", layers=2)
    budget = 4 * 7 * model.bytes_per_token(gradients=True)
    monkeypatch.setattr(sample_rows, "IN_MEMORY", 0)
    few, many, wide = peak(model, 8, budget), peak(model, 80, budget), peak(model, 80, 10 * budget)
    assert many < 1.05 * few
    assert wide > 3 * few


def test_a_budget_leaves_room_beside_the_tensors() -> None:
    """Holes between freed tensors take 12 to 15 % of a budget: one that the tensors of a prompt fill is too small."""
    model, task = tiny("llama", layers=6), pairs(1, 40)
    need = 40 * model.bytes_per_token(gradients=True)
    assert len(cm.eap_ig(model, task, steps=2, max_memory=need * 5 // 4).samples) == 1
    with pytest.raises(MemoryBudgetError, match="the budget leaves"):
        cm.eap_ig(model, task, steps=2, max_memory=need)


def test_rows_in_a_file_are_those_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, task = tiny("llama"), random_task()
    expected = cm.eap(model, task)
    monkeypatch.setattr(sample_rows, "IN_MEMORY", 0)
    scores = cm.eap(model, task)
    assert torch.equal(scores.samples, expected.samples) and torch.equal(scores.values, expected.values)
    rows = SampleRows(3, 2)
    rows.put([2, 0], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    rows.put([1], torch.tensor([[5.0, 6.0]]))
    assert rows.read().tolist() == [[3, 4], [5, 6], [1, 2]]
