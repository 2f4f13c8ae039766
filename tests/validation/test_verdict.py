"""The suite on models whose circuit is known: the truth passes, damaged or padded circuits fail where they must."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.discovery.attribution.edges import eap
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, RunError, UnknownNameError
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.variants import node_circuit
from circuitome.validation.tests.completeness import completeness
from circuitome.validation.tests.minimality import is_reader, minimality, shrink, without
from circuitome.validation.tests.significance import edge_test, necessity, random_path
from circuitome.validation.verdict import validate

USELESS = ("embed->a1.h1.q", "a0.h0->a1.kv1.v", "a1.h1->logits", "m1->logits")


@pytest.fixture(scope="module")
def known():
    """Model, task, and true circuit of the IOI toy."""
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 40)
    return model, task, cm.ground_truth.true_circuit(model, task)


@pytest.fixture(scope="module")
def verdict(known):
    model, task, truth = known
    return validate(model, truth, task, scores=eap(model, task), truth=truth)


@pytest.mark.slow
def test_the_truth_passes_everything(verdict):
    failed = [one for one in verdict.criteria if one.verdict != "pass"]
    assert not failed and len(verdict.criteria) >= 11
    assert verdict.holds and verdict["faithfulness"].value == pytest.approx(1, abs=1e-3)
    assert set(verdict.templates) == {"ABBA", "BABA"}
    assert verdict.variants["difference"].value == pytest.approx(0, abs=0.02)
    assert verdict.variants["KL, circuit"].value == pytest.approx(0, abs=1e-3)
    assert verdict.variants["argmax agreement, circuit"].value == 1
    assert verdict.variants["KL, empty circuit"].value > 0.1
    assert verdict.known is not None and verdict.known["precision"] == verdict.known["recall"] == 1
    assert {one.name for one in verdict.ablations} == {"zero", "mean", "mean-position"}
    assert set(verdict.robustness) == {"backups", "stability", "shuffled", "transfer", "rephrasing", "methods"}
    assert verdict["stability"].value > 0.9 and verdict["beats shuffled labels"].verdict == "pass"
    assert len(verdict.to_dict()["curve"]) == len(verdict.curve) and verdict.curve[-1][1] == pytest.approx(1, abs=1e-4)


@pytest.mark.slow
def test_the_truth_without_one_edge_is_not_faithful_or_not_complete(known):
    model, task, truth = known
    for edge in truth:
        evaluator = Evaluator(Setting(model, task))
        damaged = truth - Circuit.of(truth.graph, [edge])
        own = evaluator.circuits([damaged, Circuit.empty(truth.graph)]).mean(1)
        share = (own[0] - own[1]) / (evaluator.clean.mean() - own[1])
        found = completeness(evaluator, damaged, draws=10)
        assert abs(float(share) - 1) > 0.05 or float(found.scores.max()) > 0.05, edge


@pytest.mark.slow
def test_a_useless_node_is_not_minimal_and_shrinking_removes_it(known):
    model, task, truth = known
    padded = truth | Circuit.of(truth.graph, USELESS)
    evaluator = Evaluator(Setting(model, task))
    found = minimality(evaluator, padded)
    assert {name for name in found.useless() if not is_reader(name)} == {"a1.h1", "m1"}
    assert {"a1.h1.q", "a1.kv1.v"} <= set(found.useless())
    assert without(padded, found.useless()) == truth.without_dangling()
    smaller, gone = shrink(evaluator, padded, found)
    assert smaller == truth.without_dangling() and set(gone) >= {"a1.h1", "m1"}
    assert validate(model, padded, task, quick=True)["minimality"].verdict == "fail"


@pytest.mark.slow
def test_a_useless_edge_is_no_better_than_chance(known):
    model, task, truth = known
    found = edge_test(Evaluator(Setting(model, task)), truth | Circuit.of(truth.graph, USELESS))
    assert set(found.unneeded) == set(USELESS) and found.summary.rejected()
    assert not edge_test(Evaluator(Setting(model, task)), truth).summary.rejected()


@pytest.mark.slow
def test_each_part_changes_what_leaving_it_out_changes():
    model, task = tiny("llama"), random_task(3, lengths=(5, 6))
    draw = torch.Generator().manual_seed(0)
    circuit = Circuit(model.graph, model.graph.mask & (torch.rand(model.graph.mask.shape, generator=draw) < 0.6))
    found = minimality(Evaluator(Setting(model, task)), circuit, sets=0)
    slow = Evaluator(Setting(model, task))
    whole = slow.circuits([circuit])[0].mean()
    for name in ("a0.h1", "m1", "a2.h0.q", "a1.kv1.v", "m2.in", "logits"):
        mask = circuit.mask.clone()
        if is_reader(name):
            mask[:, model.graph.column(name)] = False
        else:
            mask[model.graph.row(name)] = False
        change = slow.circuits([Circuit(model.graph, mask)])[0].mean() - whole
        got = found.changes[0, found.names.index(name)].mean()
        torch.testing.assert_close(got, change, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
def test_identities(known):
    model, task, _ = known
    evaluator = Evaluator(Setting(model, task))
    full = Circuit.full(model.graph)
    none = torch.zeros(1, len(model.graph.writers), dtype=torch.bool)
    torch.testing.assert_close(evaluator.ablate(none)[0], evaluator.clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluator.circuits([full])[0], evaluator.clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluator.logits(), evaluator.logits(full), atol=1e-5, rtol=1e-5)
    found = completeness(evaluator, full, draws=4, greedy=2)
    torch.testing.assert_close(found.scores, torch.zeros_like(found.scores), atol=1e-4, rtol=0)
    assert found.kinds.count("random") == 4 and found.kinds.count("greedy") == 2
    named = completeness(evaluator, full, draws=0, greedy=0, groups={"movers": ["a1.h0"]})
    assert named.sets == (("a1.h0",),) and named.kinds == ("movers",)
    with pytest.raises(UnknownNameError, match=r"a9\.h9"):
        completeness(evaluator, full, draws=0, greedy=0, groups={"movers": ["a9.h9"]})


def test_random_paths_lead_from_an_embedding_to_the_logits():
    graph = tiny("llama").graph
    draw = torch.Generator().manual_seed(0)
    paths = [random_path(graph, draw) for _ in range(20)]
    assert all(path.without_dangling() == path and 1 <= len(path) <= 8 for path in paths)
    assert len(set(paths)) > 10


@pytest.mark.slow
def test_the_nodes_alone_hold_all_edges_between_them(known):
    _, _, truth = known
    nodes = node_circuit(truth)
    assert truth <= nodes and set(nodes.nodes) <= set(truth.nodes)


@pytest.mark.slow
def test_cutting_the_truth_out_hurts_most(known):
    model, task, truth = known
    test, damage, others = necessity(Evaluator(Setting(model, task)), truth)
    assert test.rejected() and damage > max(others)
    all_of_it, _, none = necessity(Evaluator(Setting(model, task)), Circuit.full(model.graph))
    assert not all_of_it.rejected() and none == []


@pytest.mark.slow
def test_a_stopped_validation_goes_on_with_the_same_result(known, tmp_path, monkeypatch):
    model, task, truth = known
    whole = validate(model, truth, task, quick=True)

    def kill(what, done, total):
        if what.startswith("minimality"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(model, truth, task, quick=True, checkpoint=tmp_path, progress=kill)
    evaluator = Evaluator(Setting(model, task, checkpoint=tmp_path / "measured.safetensors"))
    evaluator.circuits([truth])
    evaluator.save()
    again = Evaluator(Setting(model, task, checkpoint=tmp_path / "measured.safetensors"))
    monkeypatch.setattr(again, "bases", None)  # nothing may be run
    torch.testing.assert_close(again.circuits([truth]), evaluator.circuits([truth]))
    assert validate(model, truth, task, quick=True, checkpoint=tmp_path).to_dict() == whole.to_dict()
    with pytest.raises(RunError, match="another validation run"):
        Evaluator(Setting(model, cm.ground_truth.task("known-ioi", 20), checkpoint=tmp_path / "measured.safetensors"))


@pytest.mark.slow
def test_few_prompts_leave_verdicts_unclear(known):
    model, _, truth = known
    found = validate(model, truth, cm.ground_truth.task("known-ioi", 4), quick=True)
    assert found["equivalence"].verdict == "unclear" and "need at least 8" in found["equivalence"].note
    assert found["sufficiency"].verdict == "pass"  # a matter of random circuits, not of prompts
    assert found.to_dict()["criteria"][0]["name"] == "faithfulness"


@pytest.mark.slow
def test_bad_input(known):
    model, task, _ = known
    with pytest.raises(InputError, match="circuit is empty"):
        validate(model, Circuit.empty(model.graph), task)
    with pytest.raises(InputError, match="another model"):
        validate(model, Circuit.full(Graph(1, 1, 1)), task)
    with pytest.raises(InputError, match="no head or MLP"):
        minimality(Evaluator(Setting(model, task)), Circuit.of(model.graph, ["embed->logits"]))
