"""The smallest circuit: exactly the truth where it is known, chosen on prompts of its own, measured on others."""

from itertools import pairwise

import pytest
import torch

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, TaskError
from circuitome.models.known import KNOWN
from circuitome.validation import smallest
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.smallest import (
    Judge,
    edge_effects,
    walked_sizes,
    without_faint,
    without_idle,
    without_useless,
)

FEW_PROMPTS = ("known-boolean",)
"""It has eight different prompts, too few to split in three."""
WITHOUT_GAP = ("tracr-pair-balance",)
"""Its output is a number whose mean is no larger than with everything ablated: no share can be taken of it."""


def prompts(name):
    return cm.load(name), cm.ground_truth.task(name, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KNOWN if name not in (*WITHOUT_GAP, *FEW_PROMPTS)])
def test_it_is_the_true_circuit_of_every_known_model(name):
    model, task = prompts(name)
    truth = cm.ground_truth.true_circuit(model, task, ablation="zero")
    found = cm.smallest(model, task, faithful=0.99, ablation="zero", steps=100)
    assert found.reached and found.circuit == truth
    assert found.faithfulness.value == pytest.approx(1.0, abs=0.01)


@pytest.fixture(scope="module")
def ioi():
    model, task = prompts("known-ioi")
    return model, task, cm.smallest(model, task, faithful=0.99, steps=60)


def test_it_says_how_it_got_there(ioi):
    model, _, found = ioi
    sizes = [len(circuit) for circuit, _ in found.front]
    assert sizes == sorted(set(sizes)) and sizes[0] < len(found.circuit) <= sizes[-1]
    assert found.faithfulness.share.n == len(found.prompts.held_out)
    assert found.faithfulness.value == cm.faithfulness(model, found.circuit, found.prompts.held_out).value
    assert repr(found).startswith(f"Smallest({len(found.circuit)} edges, ")


def test_an_edges_effect_is_the_circuit_without_it(ioi):
    model, _, found = ioi
    task, effects = found.prompts.held_out, found.edges
    whole = task.score(cm.run_circuit(model, task, found.circuit), range(len(task)))
    for column, edge in list(enumerate(map(tuple, found.circuit.mask.nonzero().tolist())))[::3]:
        name = model.graph.edge_name(*edge)
        rest = found.circuit - cm.Circuit.of(model.graph, [name])
        expected = task.score(cm.run_circuit(model, task, rest), range(len(task))) - whole
        torch.testing.assert_close(effects.samples[:, column], expected, rtol=0, atol=1e-4)
        assert effects.scores[name] == pytest.approx(float(expected.mean()), abs=1e-4)
    low, high = effects.intervals()
    assert (low[found.circuit.mask] <= effects.scores.values[found.circuit.mask] + 1e-5).all()
    assert high[~found.circuit.mask].isnan().all()


@pytest.mark.slow
def test_what_is_useless_goes_and_what_is_needed_stays():
    model, task = prompts("tracr-reverse")
    truth = cm.ground_truth.true_circuit(model, task, ablation="zero")
    spare = cm.random_scores(model, task).top(30)
    setting = Setting(model, task, ablation="zero")
    judge = Judge(Evaluator(setting), 0.99)
    assert judge.keeps(truth | spare) and not judge.keeps(truth - cm.Circuit.of(model.graph, [next(iter(truth))]))
    assert without_useless(Evaluator(setting), truth | spare, judge.keeps) == truth
    effects = edge_effects(Evaluator(setting), truth | spare)
    useless = effects.samples.mean(0).abs() < 1e-4
    inside = truth.mask[(truth | spare).mask]
    assert not (useless & inside).any()


@pytest.mark.slow
def test_faint_edges_of_a_large_circuit_go_by_slopes(monkeypatch):
    model, task = prompts("known-ioi")
    truth = cm.ground_truth.true_circuit(model, task)
    setting, whole = Setting(model, task), cm.Circuit.full(model.graph)
    judge, sizes = Judge(Evaluator(setting), 0.99), list[int]()

    def keeps(circuit):
        sizes.append(len(circuit))
        return judge.keeps(circuit)

    assert without_faint(setting, whole, keeps) == whole and not sizes  # it is not large
    monkeypatch.setattr(smallest, "LARGE", len(truth) + 2)
    left = without_faint(setting, whole, keeps)
    assert judge.keeps(left) and len(truth) <= len(left) < 0.7 * len(whole)  # slopes behind sharp attention are 0
    assert len(sizes) < len(whole) // 4  # found by halves, not edge by edge
    assert without_faint(setting, whole, lambda circuit: False) == whole


@pytest.mark.slow
def test_idle_nodes_go():
    model, task = prompts("tracr-reverse")
    truth = cm.ground_truth.true_circuit(model, task, ablation="zero")
    judge = Judge(Evaluator(Setting(model, task, ablation="zero")), 0.99)
    spare = cm.Circuit.full(model.graph)
    found = without_idle(judge, spare)
    assert truth <= found and len(found) < len(spare)
    assert set(found.nodes) == set(truth.nodes)


def test_a_share_near_one_is_near_by_one_standard_error():
    model, task = prompts("known-ioi")
    judge = Judge(Evaluator(Setting(model, task)), 0.9)
    assert judge.inside(0.95, 0.04) and judge.inside(1.08, 0.0)
    assert not judge.inside(0.95, 0.06) and not judge.inside(1.12, 0.0)
    share, error = judge.shares([cm.Circuit.full(model.graph)])[0]
    assert share == pytest.approx(1.0) and error == pytest.approx(0.0, abs=1e-5)


def test_sizes_of_the_walk():
    assert walked_sizes(20) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20]
    large = walked_sizes(70_651)
    assert large[0] == 8 and large[-1] == 10_093
    assert all(b <= max(a + 1, 1.25 * a) for a, b in pairwise(large))


@pytest.mark.slow
def test_prompts_of_ones_own_decide_and_judge():
    model, task = prompts("known-ioi")
    sizing, held_out = (cm.ground_truth.task("known-ioi", 20, seed) for seed in (8, 9))
    found = cm.smallest(model, task, sizing=sizing, held_out=held_out, steps=30)
    assert (found.prompts.search, found.prompts.sizing, found.prompts.held_out) == (task, sizing, held_out)


def test_what_cannot_be_reached_is_said():
    model, task = prompts("known-ioi")
    some = cm.ground_truth.task("known-ioi", 20, 3)
    from circuitome.validation import smallest as module

    judge = Judge(Evaluator(Setting(model, some)), 0.9)
    scores = cm.random_scores(model, task)
    front = module.walk(judge, cm.EdgeScores(model.graph, scores.values))[:3]
    circuit, reached = module._first_inside(judge, front)
    assert not reached and circuit in [at for at, _ in front]


@pytest.mark.slow
def test_a_stopped_search_goes_on_with_the_same_result(tmp_path):
    model, task = prompts("known-ioi")
    whole = cm.smallest(model, task, steps=30)

    def stop(what, done, total):
        if what == "leaving out what is useless":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cm.smallest(model, task, steps=30, checkpoint=tmp_path, progress=stop)
    assert (tmp_path / "mattr.safetensors").is_file()
    told = set()
    again = cm.smallest(
        model, task, steps=30, checkpoint=tmp_path, progress=lambda what, done, total: told.add((what, done))
    )
    assert again.circuit == whole.circuit and ("learning which edges matter", 5) not in told
    assert again.faithfulness.value == whole.faithfulness.value


def test_bad_input():
    model, task = prompts("known-ioi")
    for share in (0.0, 1.0, 2.0):
        with pytest.raises(InputError, match=f"between 0 and 1; got {share}"):
            cm.smallest(model, task, faithful=share)
    with pytest.raises(TaskError, match="takes at least 32"):
        cm.smallest(model, cm.ground_truth.task("known-ioi", 8))
