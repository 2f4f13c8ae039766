"""Variants of a task, and circuits of several tasks measured on each other."""

from dataclasses import replace

import pytest
import torch

import circuitome as cm
from circuitome.errors import InputError
from circuitome.validation.robustness.score_agreement import compare_scores
from circuitome.validation.robustness.transfer import by_template, does, transfer, variants_of


@pytest.fixture(scope="module")
def toy():
    return cm.load("known-ioi")


@pytest.fixture(scope="module")
def tasks():
    task = cm.ground_truth.task("known-ioi", 20)
    return {"all": task, **by_template(task)}


def test_templates_become_tasks(tasks):
    assert list(tasks) == ["all", "ABBA", "BABA"]
    assert [pair.template for pair in tasks["ABBA"].pairs] == ["ABBA"] * 10
    assert by_template(tasks["ABBA"]) == {}
    few = replace(tasks["all"], pairs=tasks["all"].pairs[:17])  # 9 and 8
    assert {name: len(one) for name, one in by_template(few).items()} == {"ABBA": 9, "BABA": 8}
    assert set(by_template(few, least=9)) == {"ABBA"}
    numbered = replace(few, pairs=tuple(replace(p, template=f"{p.template}-{i % 4}") for i, p in enumerate(few.pairs)))
    assert {name: len(one) for name, one in by_template(numbered).items()} == {"ABBA": 9, "BABA": 8}


@pytest.mark.slow
def test_circuits_of_one_behaviour_do_each_other(toy, tasks):
    found = transfer(toy, tasks, size=12, search=cm.eap)
    assert torch.equal(found.overlap.matrix("edges").diagonal(), torch.ones(3))
    own = cm.faithfulness(toy, found.circuits[1], tasks["ABBA"])
    assert found["ABBA", "ABBA"] == own.share
    there = cm.faithfulness(toy, found.circuits[1], tasks["BABA"])
    assert found["ABBA", "BABA"] == there.share
    assert list(found.names) == list(tasks)
    told = found.to_dict()
    assert told["faithfulness"][1][2]["value"] == there.value and told["names"] == list(tasks)


@pytest.mark.slow
def test_what_is_at_hand_is_used(toy, tasks):
    truth = cm.Circuit.full(toy.graph)
    scores = {name: cm.eap(toy, task) for name, task in tasks.items()}

    def never(model, task):
        raise AssertionError("scores were at hand")

    found = transfer(toy, tasks, size=9, search=never, scores=scores, circuits={"all": truth})
    assert found.circuits[0] == truth and found.circuits[1] == scores["ABBA"].top(9)
    assert found.matrix[0].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert found.overlap.overlaps[1][2] == compare_scores(scores["ABBA"], scores["BABA"], 9)


@pytest.mark.slow
def test_a_task_that_the_model_does_not_do(toy, tasks):
    wrong = replace(
        tasks["all"], pairs=tuple(replace(p, answers=p.wrongs, wrongs=p.answers) for p in tasks["all"].pairs)
    )
    assert does(toy, tasks["all"]) and not does(toy, wrong)
    with pytest.raises(InputError, match=r"wrong: .*does not do the task.*variants_of"):
        transfer(toy, {"all": tasks["all"], "wrong": wrong}, size=9, search=cm.eap)
    with pytest.raises(InputError, match=r"compared with each other; got only all"):
        transfer(toy, {"all": tasks["all"]}, size=9)
    with pytest.raises(InputError, match=r"Circuits of 0 edges"):
        transfer(toy, tasks, size=0, search=cm.eap)


@pytest.mark.slow
def test_variants_of_ioi(smollm2):
    task = cm.tasks.ioi(smollm2, n=16, corruption="abc")
    found = variants_of(smollm2, task, others=False)
    assert list(found) == ["seed 1", "paraphrase", "ioi-ABBA", "ioi-BABA"]
    assert "abc" in found["seed 1"].source and "abc, paraphrased" in found["paraphrase"].source
    own = {pair.clean for pair in task.pairs}
    assert not own & {pair.clean for pair in found["seed 1"].pairs}
    assert not {p.template for p in task.pairs} & {p.template for p in found["paraphrase"].pairs}
    assert len(found["ioi-ABBA"]) == 8
    assert does(smollm2, found["paraphrase"])
    others = variants_of(smollm2, task, n=8)
    assert "greater-than" in others and "ioi" not in others and all(len(one) == 8 for one in others.values())
