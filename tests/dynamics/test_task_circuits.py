"""Circuits of tasks over training: tasks of own tokens, one checkpoint against slow forms, curves over steps."""

import json
from dataclasses import replace

import pytest
import torch
from families import tiny
from referee import masked_logits, writer_outputs

import circuitome as cm
from circuitome.dynamics.development import of_rows
from circuitome.dynamics.task_circuits import RANKINGS, TaskCircuits, task_circuit
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, TaskError, UnknownNameError
from circuitome.validation.faithfulness.evaluator import Evaluator


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox-parallel"])
def test_repeats_say_a_sequence_again_and_break_the_first_match(family):
    model = tiny(family)
    task = cm.dynamics.repeats(model, 20, seed=3)
    assert len({pair.clean for pair in task.pairs}) == 20
    for pair in task.pairs:
        different = [i for i, (a, b) in enumerate(zip(pair.clean, pair.corrupted, strict=True)) if a != b]
        assert different == [pair.roles["A1"]] and pair.corrupted[different[0]] not in pair.clean
        end = len(pair.clean) - 1
        assert pair.roles["A2"] == end and pair.clean[end] == pair.clean[pair.roles["A1"]]
        assert pair.answers == (pair.clean[pair.roles["B"]],) and pair.roles["B"] == pair.roles["A1"] + 1
        assert pair.wrongs[0] in pair.clean and pair.wrongs[0] not in (*pair.answers, pair.clean[end])
        assert pair.clean[12:] == pair.clean[: end - 11]
    assert {token for pair in cm.dynamics.repeats(model, 9, tokens=range(3, 20)).pairs for token in pair.clean} <= {
        *range(3, 20)
    }
    with pytest.raises(InputError, match="at least 4 different tokens"):
        cm.dynamics.repeats(model, 4, tokens=range(3))


def test_agreement_differs_in_the_number_of_the_subject():
    model = cm.dynamics.small_model("decoder", cm.dynamics.grammar_tokenizer())
    across = 0
    for pair in cm.dynamics.agreement(model, 16).pairs:
        words, others = pair.clean_text.split(), pair.corrupted_text.split()
        assert (
            [i for i, (a, b) in enumerate(zip(words, others, strict=True)) if a != b] == [pair.roles["subject"]] == [2]
        )
        plural = words[2].endswith("s")
        assert others[2] == (words[2][:-1] if plural else words[2] + "s")
        verbs, wrong = ([model.decode([token]) for token in ids] for ids in (pair.answers, pair.wrongs))
        assert ("swim" in verbs) == plural and ("swims" in wrong) == plural
        across += len(words) > 3 and words[-1].endswith("s") != plural
    assert across == 4


def test_named_tasks_are_drawn_twice_or_refused(tmp_path):
    model = cm.dynamics.recipe(steps=1, texts=["the cat sat. " * 400]).model
    drawn = cm.dynamics.watched_tasks(model, ["induction"], n=16, tokens=range(5, 250))[0]
    assert not {pair.clean for pair in drawn.search.pairs} & {pair.clean for pair in drawn.held_out.pairs}
    with pytest.raises(TaskError, match=r"ioi does not suit the vocabulary of .* Any vocabulary suits induction"):
        cm.dynamics.watched_tasks(model, ["ioi"])
    with pytest.raises(UnknownNameError, match="Did you mean 'agreement'"):
        cm.dynamics.watched_tasks(model, ["agrement"])
    masked = cm.dynamics.small_model("masked", cm.dynamics.grammar_tokenizer())
    with pytest.raises(InputError, match="next token"):
        cm.dynamics.watched_tasks(masked, ["induction"])
    rows = [{"clean": f"the {i} cat", "corrupted": f"the {i} sat", "answer": "t", "wrong": "a"} for i in range(10, 50)]
    file = tmp_path / "cats.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    known = cm.dynamics.watched_tasks(model, [str(file)])[0]
    assert known.search.name == "cats" and len(known.search) == 20 and len(known.held_out) == 10


def done(model, n=6):
    """The repeats that a model happens to do best, of many."""
    task = cm.dynamics.repeats(model, 8 * n, seed=1)
    evaluator = Evaluator(Setting(model, task))
    order = (evaluator.clean - evaluator.empty).argsort(descending=True)[:n].tolist()
    return replace(task, pairs=tuple(task.pairs[i] for i in order))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gemma2", "neox-parallel"])
def test_faithfulness_by_size_equals_the_slow_form(family):
    model = tiny(family, layers=2)
    task = done(model)
    found = task_circuit(model, task, sizes=(5, 60, model.graph.n_edges))
    scores = cm.eap_ig(model, task)
    assert found.edges[0] == scores.ranked(scores.top(1))[0] and len(found.edges) == 60
    assert [score for _, score in found.edges] == sorted(
        (score for _, score in found.edges), key=lambda score: -abs(score)
    )

    ablated = [writer_outputs(model, pair.corrupted) for pair in task.pairs]

    @torch.no_grad()
    def slow(circuit):
        keep = circuit.mask.float()
        rows = [masked_logits(model, *both, keep) for both in zip(task.pairs, ablated, strict=True)]
        return float(task.score(torch.cat(rows), range(len(task))).mean())

    empty, clean = slow(cm.Circuit.empty(model.graph)), slow(cm.Circuit.full(model.graph))
    assert sum(found.metric) / len(task) == pytest.approx(clean, abs=1e-3)
    for size, share in zip(found.sizes, found.faithfulness, strict=True):
        assert share == pytest.approx((slow(scores.top(size)) - empty) / (clean - empty), abs=2e-3)
    kept = cm.Circuit.of(model.graph, found.circuit)
    assert abs((slow(kept) - empty) / (clean - empty) - 1) <= 0.1 + 1e-3


def test_a_model_that_does_not_do_the_task_has_no_circuit():
    model = cm.dynamics.small_model("attention", cm.dynamics.grammar_tokenizer(), width=32)
    found = task_circuit(model, cm.dynamics.repeats(model, 16))
    assert found.faithfulness is None and found.circuit is None
    assert len(found.edges) == 60 and len(found.metric) == 16


@pytest.mark.slow
def test_edges_are_ranked_by_learning_where_that_is_asked_for(monkeypatch):
    monkeypatch.setitem(RANKINGS, "mattr", lambda setting: cm.mattr(setting, steps=40))
    model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    found = task_circuit(model, task, ranking="mattr")
    assert found.score_unit == "1 / rank" and found.edges[0][1] < 0
    assert set(found.circuit) == set(cm.ground_truth.true_circuit(model, task))
    with pytest.raises(UnknownNameError, match="Did you mean 'mattr'"):
        task_circuit(model, task, ranking="matr")


def row(size, *edges, metric=(1.0, 2.0)):
    plain = {
        "unit": "logits",
        "score_unit": "logits",
        "metric": list(metric),
        "ablated": [0.0, 0.0],
        "all_edges": 14,
        "sizes": [2, 7],
    }
    shares = [0.5, 1.0] if size else None
    circuit = [name for name, _ in edges][:size] if size else None
    return {**plain, "faithfulness": shares, "circuit": circuit, "edges": [list(edge) for edge in edges]}


def test_curves_of_circuits_by_hand():
    a, b, c, d = ("embed->a0.h0.q", 1.0), ("embed->a0.kv0.k", 0.8), ("embed->a0.kv0.v", 0.5), ("a0.h0->logits", 0.4)
    rows = [(1, row(0, d, c, b, a)), (2, row(3, a, c, d, b)), (4, row(2, a, d, b, c)), (8, row(2, a, b, c, d))]
    found = TaskCircuits.of_rows("made", rows)
    assert found.sizes == [None, 3, 2, 2]
    assert found.jaccard == [None, 1 / 4, 1 / 3, 1.0]
    assert found.jaccard_of_strongest == [0.0, 1 / 3, 1 / 3, 1.0]  # two of 14 edges are compared
    assert found.since == [2, 8, None, None]
    plain = found.to_dict()
    assert plain["size_for_.9"] == [None, 3, 2, 2] and plain["metric"] == [1.5] * 4 and plain["strongest"] == 2
    assert plain["faithfulness"][0] is None and plain["edges"][1][1] == ["embed->a0.kv0.v", 0.5]
    watched = of_rows("made", [(step, {"circuits": {"made": circuits}}) for step, circuits in rows])
    assert watched.curve("circuit_size:made")[0] == [2, 4, 8]
    assert watched.curve("task_metric:made")[1].shape == (2, 4)
    assert watched.title("circuit_jaccard:made") == "made: circuit in common"
    assert watched.about("task_metric:made").unit == "logits"
    assert watched.to_dict()["circuits"]["made"] == plain
    with pytest.raises(UnknownNameError, match="circuit_size:made"):
        watched.curve("circuit_sizes:made")


@pytest.mark.slow
def test_watching_circuits_leaves_the_training_alone(tmp_path):
    def ready(*tasks):
        return cm.dynamics.recipe(
            width=16, heads=1, steps=4, batch=4, length=24, texts=["the cat sat. " * 400], tasks=tasks
        )

    plain, watched = ready(), ready("induction")
    plain.develop()
    grown = watched.develop(tmp_path)
    assert grown.circuits["induction"].steps == (0, 1, 2, 3, 4)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.model.hf.parameters(), watched.model.hf.parameters(), strict=True)
    )
    again = ready("induction").develop(tmp_path)
    assert again.circuits["induction"].at == grown.circuits["induction"].at
