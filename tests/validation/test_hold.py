"""AblatedOutputs knock-outs against the referee's knock-outs, and methods that run inside."""

import pytest
import torch
from families import CONFIGS, random_task, tiny

from circuitome.discovery.attribution.edges import eap
from circuitome.discovery.patching.edge import exact
from circuitome.engine.ablate_outputs import AblatedOutputs, ablate, replace_outputs
from circuitome.engine.ablation import AblationValues, WriterValues, writer_vectors
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline
from circuitome.engine.knock_out import KnockOut
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import InputError, UnknownNameError
from circuitome.graph.circuits import Circuit

TASK = random_task(3, lengths=(5, 6))
QUICK = ("gpt2", "gemma2", "neox-parallel")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
OUT = ["a0.h1", "a1.h0", "a1.h3", "m1"]


def logits_of(model, held=None):
    found = torch.zeros(len(TASK), 61)
    with torch.no_grad():
        for batch in batches(model, TASK, shared_prefix=False, corrupted=False):
            found[list(batch.rows)] = model.logits(batch.clean)
    return found


def without(model, rows):
    mask = model.graph.mask.clone()
    mask[rows] = False
    return Circuit(model.graph, mask)


@pytest.mark.slow
@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("name", NAMES)
def test_every_pass_is_that_of_the_knocked_out_model(name, ablation):
    model = tiny(name)
    rows = [model.graph.row(one) for one in OUT]
    plain = logits_of(model)
    cut = run_circuit(model, TASK, without(model, rows), ablation=ablation)
    with ablate(model, TASK, OUT, ablation=ablation):
        torch.testing.assert_close(logits_of(model), cut, atol=2e-5, rtol=2e-5)
        # The engine's own runs, behind a shared prefix too, are runs of that model.
        full = Circuit.full(model.graph)
        torch.testing.assert_close(run_circuit(model, TASK, full), cut, atol=5e-5, rtol=5e-5)
        torch.testing.assert_close(run_circuit(model, TASK, full, ablation="zero"), cut, atol=5e-5, rtol=5e-5)
        batch = next(batches(model, TASK, shared_prefix=False, corrupted=False))
        with torch.no_grad():
            activations = model.record(batch.clean)
        written = writer_vectors(model, WriterValues.of(model, activations)).sum(0)
        biases = [b for block in model.blocks if (b := block.output_bias()) is not None]
        written = written + sum(biases) if biases else written
        real = batch.clean.real().bool()
        torch.testing.assert_close(written[real], activations.final.float()[real], atol=2e-5, rtol=2e-5)
    assert not any(model.held.values())
    assert torch.equal(logits_of(model), plain) and not torch.allclose(plain, cut, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_values_of_one_batch_are_held_in_passes_over_it(name):
    model = tiny(name)
    rows = [model.graph.row(one) for one in OUT]
    sets = torch.zeros(1, len(model.graph.writers), dtype=torch.bool)
    sets[0, rows] = True
    replacement = AblationValues.of(model, TASK, "corrupted")
    with torch.no_grad():
        for batch in batches(model, TASK):
            base = baseline(model, TASK, batch, replacement)
            final = KnockOut(model, base).final(sets)[0]
            with replace_outputs(model, AblatedOutputs.of(model, base.ablated, rows)):
                found = model.record(batch.clean).final
            read = torch.arange(len(batch.rows)), batch.clean.read
            torch.testing.assert_close(found[read], final, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_methods_inside_score_the_knocked_out_model(name):
    model = tiny(name)
    rows = [model.graph.row(one) for one in OUT]
    with ablate(model, TASK, OUT, ablation="mean"):
        scores = eap(model, TASK)
        some = ["embed->a0.h1.q", "a0.h0->m1.in", "a1.h1->logits", "a0.h2->a2.h0.q", "a1.h0->logits"]
        among = Circuit.of(model.graph, some)
        found = exact(model, TASK, edges=among)
        clean = run_circuit(model, TASK, Circuit.full(model.graph))
        slow = {}
        for edge in some:
            logits = run_circuit(model, TASK, Circuit.full(model.graph) - Circuit.of(model.graph, [edge]))
            slow[edge] = float((TASK.score(logits, range(3)) - TASK.score(clean, range(3))).mean())
    assert scores.values[rows].abs().max() < 1e-6 < scores.values.abs().max()
    inputs = [c for row in rows[:1] for c in model.graph.inputs_of[row] if ".q" in model.graph.readers[c]]
    if name == "llama":  # nothing reads what a held head would say, but for a post-norm's divisor
        assert scores.values[:, inputs].abs().max() == 0
    for edge, value in slow.items():
        assert found[edge] == pytest.approx(value, abs=2e-5)
    assert slow["a1.h0->logits"] == pytest.approx(0, abs=1e-5) and abs(slow["a1.h1->logits"]) > 1e-3


def test_what_cannot_be_held():
    model = tiny("llama")
    with pytest.raises(UnknownNameError, match=r"no writer 'a9.h1'. Did you mean"), ablate(model, TASK, ["a9.h1"]):
        pass
    for ablation in ("corrupted", "mean-position"):
        with pytest.raises(InputError, match=r"cannot be held"), ablate(model, TASK, OUT, ablation=ablation):
            pass
    with pytest.raises(UnknownNameError, match=r"mean, zero"), ablate(model, TASK, OUT, ablation="median"):
        pass
    with pytest.raises(InputError, match=r"embed cannot be knocked out"), ablate(model, TASK, ["embed"]):
        pass
    with pytest.raises(InputError, match=r"nothing to knock out"), ablate(model, TASK, []):
        pass
