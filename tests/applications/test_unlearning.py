"""Unlearning, relearning: what is taken, what is left, what comes back."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.applications.rankings import metrics
from circuitome.applications.relearning import answers, forget, relearn
from circuitome.applications.unlearning import random_like
from circuitome.engine.setting import Setting
from circuitome.errors import InputError


@pytest.fixture(scope="module")
def ioi():
    return cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)


def texts(task):
    return cm.neurons.packed([pair.clean for pair in task.pairs])


@pytest.mark.slow
def test_the_heads_of_the_known_circuit_are_taken(ioi):
    model, task = ioi
    found = cm.unlearn(model, task, texts=texts(task), kinds=["heads"], left=0.05)
    clean, corrupted = metrics(Setting(model, task))
    with model.edited(found.edit):
        after = metrics(Setting(model, task))
    left = float((after[0] - after[1]).mean() / (clean - corrupted).mean())
    assert found.reached and left == pytest.approx(found.left[-1], abs=1e-5) and left <= 0.05
    truth = set(cm.ground_truth.true_circuit(Setting(model, task)).nodes)
    assert set(found.parts) <= truth
    assert set(found.prices) == set(found.parts)


def test_a_circuit_limits_what_is_taken(ioi):
    model, task = ioi
    circuit = cm.Circuit.of(model.graph, ["embed->a0.h0.q", "a0.h0->a1.h0.k", "a1.h0->logits", "embed->a1.h0.v"])
    found = cm.unlearn(model, task, texts=texts(task), circuit=circuit)
    assert set(found.parts) <= {"a0.h0", "a1.h0"}


def test_random_parts_are_as_many_and_others():
    model = tiny("llama")
    names = ["a0.h1", "a2.h3", "m1.n4", "m1.n5", "m2.n0"]
    drawn = random_like(model, names, 0)
    assert [cm.Node.parse(name).kind for name in drawn] == ["head"] * 2 + ["neuron"] * 3
    assert not set(drawn) & set(names) and drawn == random_like(model, names, 0)


def test_bad_input(ioi):
    model, task = ioi
    with pytest.raises(InputError, match="Kinds of parts"):
        cm.unlearn(model, task, texts=texts(task), kinds=["mlps"])
    with pytest.raises(InputError, match="below 1"):
        cm.unlearn(model, task, texts=texts(task), left=1.0)
    turned = cm.applications.rankings.swapped(task)
    with pytest.raises(InputError, match="nothing to unlearn"):
        cm.unlearn(model, turned, texts=texts(task))


def test_answers_alone_are_counted():
    task = random_task(5)
    tokens = answers(task, 8, torch.Generator().manual_seed(0))
    counted = (tokens.labels != -100).sum(1)
    assert counted.eq(1).all() and tokens.mask.sum(1).max() == tokens.ids.shape[1]
    first = {(*pair.clean, pair.answers[0]) for pair in task.pairs}
    rows = zip(tokens.ids.tolist(), tokens.mask.sum(1).tolist(), strict=True)
    assert all(tuple(row[:length]) in first for row, length in rows)


def test_fine_tuning_goes_where_it_should_and_leaves_the_model():
    model, task = tiny("llama"), random_task(4)
    setting = Setting(model, task)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    clean, corrupted = metrics(setting)
    gap = float((clean - corrupted).mean())
    toward = relearn(setting, task, gap=gap + 1.0, steps=30, rate=3e-3, rows=4)
    away = forget(setting, task, gap=gap - 1.0, steps=30, rate=3e-3, rows=4)
    assert toward.reached and toward.gaps[-1] >= gap + 1.0 and away.reached and away.gaps[-1] <= gap - 1.0
    assert toward.steps == len(toward.gaps) - 1 > 0
    assert relearn(setting, task, gap=gap - 1.0).steps == 0
    assert all(torch.equal(value, before[name]) for name, value in model.hf.state_dict().items())
