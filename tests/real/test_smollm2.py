"""The real model: published numbers, exactness, and the whole job."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import random_task

import circuitome as cm
from circuitome.engine.run_circuit import run_circuit
from circuitome.graph.circuits import Circuit
from circuitome.models.loading import load, weights_hash
from circuitome.tasks import TASKS

pytestmark = pytest.mark.slow


def plain(model, task, side):
    with torch.no_grad():
        return torch.cat(
            [model.hf(torch.tensor([getattr(p, side)]), logits_to_keep=1).logits[:, 0] for p in task.pairs]
        )


def test_shape_and_classic_prompt(smollm2):
    assert len(smollm2.graph.writers) == 301
    assert len(smollm2.graph.readers) == 481
    assert smollm2.graph.n_edges == 70_651
    ids = smollm2.encode("When Mary and John went to the store, John gave a drink to")
    assert ids[0] == smollm2.encode_answer("When")[0]  # no BOS
    with torch.no_grad():
        probabilities = smollm2.hf(torch.tensor([ids])).logits[0, -1].softmax(-1)
    assert float(probabilities[smollm2.encode_answer(" Mary")[0]]) == pytest.approx(0.92, abs=0.01)


def test_second_load_reads_the_cache_and_gives_the_same_weights(smollm2):
    assert weights_hash(load("smollm2-135m")) == weights_hash(smollm2)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_full_and_empty_circuit(smollm2, small_ioi, ablation):
    full = run_circuit(smollm2, small_ioi, Circuit.full(smollm2.graph), ablation=ablation)
    clean = plain(smollm2, small_ioi, "clean")
    torch.testing.assert_close(full, clean, atol=5e-4, rtol=1e-5)  # logits up to 30 over 30 layers
    if ablation == "corrupted":
        empty = run_circuit(smollm2, small_ioi, Circuit.empty(smollm2.graph))
        torch.testing.assert_close(empty, plain(smollm2, small_ioi, "corrupted"), atol=5e-4, rtol=1e-5)


def test_scores_do_not_depend_on_prefix_batch_or_padding(smollm2, small_ioi):
    scores = cm.eap(smollm2, small_ioi)
    whole = cm.eap(smollm2, small_ioi, shared_prefix=False)
    small = cm.eap(smollm2, small_ioi, max_memory=smollm2.bytes_per_token(gradients=True) * 20)
    for other in (whole, small):
        torch.testing.assert_close(scores.values, other.values, atol=1e-5, rtol=1e-5)


def test_bfloat16_scores_follow_float32_and_accumulate_in_float32(smollm2, small_ioi):
    half = load("smollm2-135m", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    scores, exact = cm.eap_ig(half, small_ioi), cm.eap_ig(smollm2, small_ioi)
    assert scores.values.dtype == torch.float32
    both = torch.stack([scores.values[scores.graph.mask], exact.values[exact.graph.mask]])
    assert float(torch.corrcoef(both)[0, 1]) > 0.98


@pytest.mark.parametrize("name", list(TASKS))
def test_the_model_does_every_task(smollm2, name):
    task = TASKS[name](smollm2, n=8, seed=1)
    rows = range(len(task))
    clean = task.score(plain(smollm2, task, "clean"), rows).mean()
    assert clean > task.score(plain(smollm2, task, "corrupted"), rows).mean()


def test_published_numbers_on_the_32_comparison_pairs(smollm2):
    """Mean logit differences, and faithfulness that an independent EAP-IG implementation measured at five sizes."""
    task = cm.tasks.from_file(smollm2, Path(__file__).parents[2] / "benchmarks" / "ioi32.jsonl")
    published = {100: 0.216, 300: 0.346, 1_000: 0.433, 3_000: 0.644, 10_000: 0.842}
    curve = cm.faithfulness_curve(smollm2, cm.eap_ig(smollm2, task), task, sizes=list(published), draws=1)
    assert curve.circuits[0].model.value == pytest.approx(4.299, abs=1e-3)
    assert curve.circuits[0].empty.value == pytest.approx(-0.819, abs=1e-3)
    for circuit, value in zip(curve.circuits, published.values(), strict=True):
        assert circuit.value == pytest.approx(value, abs=0.03)


def test_a_circuit_beats_random_ones_and_grows_to_the_model(smollm2):
    task = cm.tasks.ioi(smollm2, n=8, seed=0)
    curve = cm.faithfulness_curve(smollm2, cm.eap_ig(smollm2, task), task, sizes=[300, 3000, 70_651], draws=2)
    values = [circuit.value for circuit in curve.circuits]
    assert values[0] < values[1]
    assert values[2] == pytest.approx(1, abs=1e-4)
    assert values[1] > 0.5
    for own, (low, high) in zip(curve.circuits[:2], curve.random_range, strict=False):
        assert low <= high < min(0.1, own.interval[0])


def test_a_swapped_answer_is_no_behaviour(smollm2, small_ioi):
    from dataclasses import replace

    swapped = replace(small_ioi, pairs=tuple(replace(p, answers=p.wrongs, wrongs=p.answers) for p in small_ioi.pairs))
    with pytest.raises(cm.errors.InputError, match="does not do the task"):
        cm.faithfulness(smollm2, Circuit.empty(smollm2.graph), swapped)


def test_a_circuit_of_another_model_is_refused(smollm2, small_ioi):
    with pytest.raises(cm.errors.InputError, match="belongs to another model"):
        run_circuit(smollm2, small_ioi, Circuit.empty(cm.Graph(12, 12, 12)))


def test_nan_weights_are_reported(small_ioi):
    from families import tiny

    model = tiny("llama")
    with torch.no_grad():
        model.hf.lm_head.weight[5] = torch.nan
    with pytest.raises(cm.errors.NumericsError, match="not finite"):
        cm.load(model.hf)
    task = random_task(2)
    from dataclasses import replace

    task = replace(task, pairs=tuple(replace(p, answers=(5,)) for p in task.pairs))
    with pytest.raises(cm.errors.NumericsError, match="metric is not finite in 2 of 2 numbers"):
        cm.eap(model, task)


def test_help_does_not_import_torch():
    code = """
import sys
import circuitome.cli.main as cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
