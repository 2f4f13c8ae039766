"""ACDC against the algorithm as published: one edge after another, one run of the circuit each."""

import pytest
import torch
from families import random_task, tiny

import circuitome as cm
from circuitome.discovery.search.pruning import ORDERS, Step, acdc
from circuitome.engine.ablation import AblationValues
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline, circuit_logits
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import InputError, UnknownNameError
from circuitome.graph.circuits import Circuit
from circuitome.tasks.losses import loss_of

TASK = random_task(3, lengths=(5, 6))
SHORT = random_task(2, lengths=(5,))


def one_edge_at_a_time(model, task, threshold, *, loss="metric", order="reverse", absolute=False, ablation="corrupted"):
    graph = model.graph
    value = loss_of(task, loss)
    clean = run_circuit(model, task, Circuit.full(graph))
    replacement = AblationValues.of(model, task, ablation)
    corrupted = replacement.from_prompts
    made = batches(model, task, shared_prefix=corrupted, corrupted=corrupted)
    bases = [baseline(model, task, batch, replacement) for batch in made]

    def mean_loss(mask):
        total = 0.0
        for base in bases:
            some = base.batch.rows
            total += float(value(circuit_logits(model, base, Circuit(graph, mask)), clean[list(some)], some).sum())
        return total / len(task)

    mask = graph.mask.clone()
    present, steps = mean_loss(mask), []
    for column in reversed(range(len(graph.readers))):
        senders = graph.mask[:, column].nonzero().flatten().tolist()
        for row in senders[::-1] if order == "reverse" else senders:
            mask[row, column] = False
            without = mean_loss(mask)
            change = without - present
            kept = not (abs(change) if absolute else change) < threshold
            mask[row, column] = kept
            present = present if kept else without
            steps.append(Step(row, column, change, kept))
    return steps


def same(found, expected):
    assert [(s.row, s.column, s.kept) for s in found.steps] == [(s.row, s.column, s.kept) for s in expected]
    torch.testing.assert_close(
        torch.tensor([s.change for s in found.steps]),
        torch.tensor([s.change for s in expected]),
        atol=2e-5,
        rtol=2e-5,
    )


@pytest.mark.parametrize(("name", "order"), [("gpt2", "reverse"), ("llama", "normal")])
def test_acdc_of_two_blocks_is_the_published_algorithm(name, order):
    model = tiny(name, layers=2)
    result = acdc(model, SHORT, threshold=0.05, order=order)
    same(result, one_edge_at_a_time(model, SHORT, 0.05, order=order))
    assert 0 < len(result.circuit) < model.graph.n_edges
    assert result.scores("logits").top(len(result.circuit)) == result.circuit


CASES = [(name, threshold, order) for name in ("gpt2", "llama") for threshold in (0.003, 0.05) for order in ORDERS]
CASES += [("gemma2", 0.05, "reverse"), ("neox-parallel", 0.05, "normal")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "threshold", "order"), CASES)
def test_acdc_is_the_published_algorithm(name, threshold, order):
    model = tiny(name)
    same(acdc(model, TASK, threshold=threshold, order=order), one_edge_at_a_time(model, TASK, threshold, order=order))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"loss": "kl"}, {"absolute": True}, {"ablation": "zero"}, {"loss": "l2"}], ids=str)
def test_so_it_is_with_other_losses_tests_and_ablations(options):
    model = tiny("llama")
    same(acdc(model, TASK, threshold=0.02, **options), one_edge_at_a_time(model, TASK, 0.02, **options))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["reverse", "normal"])
@pytest.mark.parametrize(("name", "ablation"), [("known-ioi", "corrupted"), ("tracr-frac-prevs", "zero")])
def test_so_it_is_on_models_whose_circuit_is_known(name, ablation, order):
    model, task = cm.load(name), cm.ground_truth.task(name, 6)
    for threshold in (0.002, 0.2):
        options = {"order": order, "ablation": ablation, "loss": "l2"}
        same(acdc(model, task, threshold=threshold, **options), one_edge_at_a_time(model, task, threshold, **options))


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "layers"), [pytest.param(0.05, 3, marks=pytest.mark.slow), (0.2, 2)])
def test_in_groups_it_takes_fewer_runs_to_the_same_circuit(threshold, layers):
    model, task = tiny("llama", layers=layers), TASK if layers == 3 else SHORT
    one_by_one, grouped = (acdc(model, task, threshold=threshold, grouped=grouped) for grouped in (False, True))
    assert grouped.evaluations < 0.8 * one_by_one.evaluations
    assert grouped.circuit == one_by_one.circuit
    assert [(s.row, s.column) for s in grouped.steps] == [(s.row, s.column) for s in one_by_one.steps]
    metric = task.score(run_circuit(model, task, grouped.circuit), range(len(task))).mean()
    assert grouped.loss == pytest.approx(-float(metric), abs=1e-5)
    dropped = sum(step.change for step in grouped.steps if not step.kept)
    assert grouped.full_loss + dropped == pytest.approx(grouped.loss, abs=1e-4)


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_result(tmp_path):
    model = tiny("llama")
    whole = acdc(model, TASK, threshold=0.02)
    path = tmp_path / "acdc.safetensors"
    turns = iter(range(10**6))

    def kill(what, done, total):
        if next(turns) == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        acdc(model, TASK, threshold=0.02, checkpoint=path, progress=kill)
    resumed = acdc(model, TASK, threshold=0.02, checkpoint=path)
    assert resumed.steps == whole.steps
    assert resumed.evaluations <= whole.evaluations
    with pytest.raises(InputError, match="another ACDC run"):
        acdc(model, TASK, threshold=0.03, checkpoint=path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.0}, InputError, "above 0"),
        ({"threshold": 0.1, "order": "backwards"}, UnknownNameError, "sender order"),
        ({"threshold": 0.1, "loss": "k1"}, UnknownNameError, "kl"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        acdc(tiny("gpt2"), TASK, **options)
