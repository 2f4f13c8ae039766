"""Every supported architecture against Hugging Face and against the slow exact form."""

import pytest
import torch
from families import CONFIGS, random_task, tiny
from referee import inputs_of, masked_logits, writer_outputs

from circuitome.discovery.attribution.edges import eap, eap_ig
from circuitome.engine.run_circuit import run_circuit
from circuitome.graph.circuits import Circuit

TASK = random_task(3)


QUICK = ("gemma2", "neox-parallel")
"""Between them: grouped queries, windows, soft caps, post-norms, fused and parallel layouts, biases, LayerNorm."""


def by_speed(name):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[by_speed(name) for name in CONFIGS])
def model(request):
    return tiny(request.param)


def plain_logits(model, side):
    with torch.no_grad():
        return torch.cat([model.hf(torch.tensor([getattr(pair, side)])).logits[:, -1] for pair in TASK.pairs])


def test_logits_with_hooks_are_bit_equal(model):
    for pair in TASK.pairs:
        inputs = inputs_of(model, pair.clean)
        with torch.no_grad():
            logits = model.hf(input_ids=inputs.ids, attention_mask=inputs.mask, logits_to_keep=1).logits[:, 0]
            assert torch.equal(model.record(inputs).logits, logits)


def test_writers_and_output_biases_add_up_to_the_final_residual(model):
    biases = [b for block in model.blocks if (b := block.output_bias()) is not None]
    for pair in TASK.pairs:
        with torch.no_grad():
            total = torch.stack([*writer_outputs(model, pair.clean), *(b.expand(len(pair.clean), -1) for b in biases)])
            final = model.record(inputs_of(model, pair.clean)).final[0]
        torch.testing.assert_close(total.sum(0), final, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_full_circuit_is_the_plain_model(model, ablation):
    logits = run_circuit(model, TASK, Circuit.full(model.graph), ablation=ablation)
    torch.testing.assert_close(logits, plain_logits(model, "clean"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_empty_circuit_is_the_corrupted_model(model, shared_prefix):
    logits = run_circuit(model, TASK, Circuit.empty(model.graph), shared_prefix=shared_prefix)
    torch.testing.assert_close(logits, plain_logits(model, "corrupted"), atol=1e-5, rtol=1e-5)


def mean_outputs(model):
    """Every writer's mean output over all corrupted prompts and positions."""
    outputs = [writer_outputs(model, pair.corrupted) for pair in TASK.pairs]
    return [torch.cat([out[row] for out in outputs]).mean(0) for row in range(len(model.graph.writers))]


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("density", [0.15, pytest.param(0.6, marks=pytest.mark.slow)])
def test_any_circuit_equals_the_written_out_run(model, ablation, density):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.rand(model.graph.mask.shape, generator=generator) < density) & model.graph.mask
    logits = run_circuit(model, TASK, Circuit(model.graph, mask), ablation=ablation)
    for i, pair in enumerate(TASK.pairs):
        ablated = writer_outputs(model, pair.corrupted)
        if ablation == "zero":
            ablated = [torch.zeros_like(out) for out in ablated]
        if ablation == "mean":
            ablated = mean_outputs(model)
        with torch.no_grad():
            expected = masked_logits(model, pair, ablated, mask.float())
        torch.testing.assert_close(logits[i : i + 1], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_eap_is_the_gradient_of_the_edge_mask(model, ablation):
    total = torch.zeros(model.graph.mask.shape)
    for row, pair in enumerate(TASK.pairs):
        ablated = writer_outputs(model, pair.corrupted)
        if ablation == "zero":
            ablated = [torch.zeros_like(out) for out in ablated]
        keep = torch.ones(model.graph.mask.shape, requires_grad=True)
        metric = TASK.score(masked_logits(model, pair, ablated, keep), [row]).sum()
        total -= torch.autograd.grad(metric, keep)[0] / len(TASK)  # corrupting is the other way
    scores = eap(model, TASK, ablation=ablation)
    torch.testing.assert_close(scores.values, total * model.graph.mask, atol=1e-5, rtol=1e-4)
    assert scores.values.dtype == torch.float32


def test_ig_over_the_embedding_edges_sums_to_the_metric_difference(model):
    rows = range(len(TASK))
    expected = (
        TASK.score(plain_logits(model, "corrupted"), rows) - TASK.score(plain_logits(model, "clean"), rows)
    ).mean()
    total = eap_ig(model, TASK, steps=128).values[0].sum()
    torch.testing.assert_close(total, expected, atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_scores_do_not_depend_on_prefix_batch_or_padding(model):
    scores = eap_ig(model, TASK, steps=3)
    apart = eap_ig(model, TASK, steps=3, shared_prefix=False)
    small = eap_ig(model, TASK, steps=3, max_memory=model.bytes_per_token(gradients=True) * 11)
    for other in (apart, small):
        torch.testing.assert_close(scores.values, other.values, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_activation_variant_agrees_with_inputs_on_the_embedding_and_is_eap_where_the_metric_is_linear(model):
    inputs = eap_ig(model, TASK, steps=4)
    outputs = eap_ig(model, TASK, steps=4, variant="activations")
    torch.testing.assert_close(outputs.values[0], inputs.values[0], atol=1e-5, rtol=1e-5)
    ends = eap_ig(model, TASK, variant="clean-corrupted").values
    assert torch.isfinite(ends).all()
    assert not torch.allclose(outputs.values, inputs.values)


def test_the_model_is_left_as_it_was(model):
    before = [p.requires_grad for p in model.hf.parameters()]
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())
    model.hf.train()
    run_circuit(model, TASK, eap(model, TASK).top(20))
    assert model.hf.training
    model.hf.eval()
    assert [p.requires_grad for p in model.hf.parameters()] == before
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules()) == hooks
    assert not any("forward" in m.__dict__ for m in model.hf.modules())
