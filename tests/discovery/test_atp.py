"""Node attribution against autograd, EAP and exact patching; the baselines against what they promise."""

from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch
from families import CONFIGS, random_task, tiny
from referee import inputs_of

from circuitome.discovery.attribution.edges import eap
from circuitome.discovery.attribution.nodes import atp
from circuitome.discovery.search.baselines import magnitude, random_scores
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import InputError, UnknownNameError
from circuitome.graph.node_scores import NodeScores
from circuitome.models.hooks import replaced
from circuitome.models.model import Model

TASK = random_task(3)
QUICK = ("gpt2", "gemma2", "neox-parallel")


def by_speed(name):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[by_speed(name) for name in CONFIGS])
def model(request):
    return tiny(request.param)


def projected(model, ids):
    """Outputs of every block's q, k, v projections, by reader; recorded without any of our batching."""
    with torch.no_grad():
        activations = model.record(inputs_of(model, ids))
    return [block.split(outs) for block, outs in zip(model.blocks, activations.projected, strict=True)]


def patched_metric(model, row, layer, values):
    """Metric of one clean prompt while the projections of one block give `values` [1, pos, reader, d_head]."""
    block, pair = model.blocks[layer], TASK.pairs[row]
    handles = [
        module.register_forward_hook(lambda m, args, out, part=part: part)
        for module, part in zip(block.projections, block.merge(values), strict=True)
    ]
    try:
        return TASK.score(model.logits(inputs_of(model, pair.clean)), [row])[0]
    finally:
        for handle in handles:
            handle.remove()


def readers_by(model, effect):
    """Mean over prompts of `effect(row, layer, clean, corrupted)`, a number for each q, k, v reader."""
    scores = torch.zeros(len(model.graph.readers))
    for row, pair in enumerate(TASK.pairs):
        clean, corrupted = projected(model, pair.clean), projected(model, pair.corrupted)
        for layer in range(len(model.blocks)):
            span = model.graph.attention_columns(layer)
            scores[span] += effect(row, layer, clean[layer], corrupted[layer]) / len(TASK)
    return scores


def attention_only(model, scores):
    return torch.cat([scores[model.graph.attention_columns(layer)] for layer in range(len(model.blocks))])


@pytest.mark.slow
def test_without_the_fix_it_is_the_derivative(model):
    expected = readers_by(model, partial(derivative, model))
    scores = atp(model, TASK, qk_fix=False)
    torch.testing.assert_close(
        attention_only(model, scores.readers), attention_only(model, expected), atol=1e-5, rtol=1e-4
    )


def derivative(model, row, layer, clean, corrupted):
    """Of one prompt's metric along the change of every q, k and v of a block."""
    steps = torch.zeros(clean.shape[2], requires_grad=True)
    with model.frozen_parameters():
        metric = patched_metric(model, row, layer, clean + steps[:, None] * (corrupted - clean))
    return torch.autograd.grad(metric, steps)[0] if metric.requires_grad else torch.zeros_like(steps)


@contextmanager
def detached(block):
    """Inside, no gradient passes a block but along the residual stream."""
    handles = [
        module.register_forward_hook(lambda m, args, out: out.detach())
        for module in (block.attention_end, block.mlp_ends[1])
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", *map(by_speed, ("gemma2", "neox-parallel", "llama", "opt"))])
def test_grad_drop_averages_sizes_over_gradients_that_pass_one_block_by(name):
    model = tiny(name, layers=2)

    def dropped(*case):
        for block in model.blocks:
            with detached(block):
                yield derivative(model, *case)

    sizes = readers_by(model, lambda *case: sum(change.abs() for change in dropped(*case)) / (len(model.blocks) - 1))
    sums = readers_by(model, lambda *case: sum(dropped(*case), derivative(model, *case)))
    scores, plain = atp(model, TASK, qk_fix=False, grad_drop=True), atp(model, TASK, qk_fix=False)
    found, expected = (attention_only(model, values) for values in (scores.readers, sums.sign() * sizes))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert scores.readers[-1] == plain.readers[-1] and scores.method == "atp with GradDrop"


def test_grad_drop_sees_what_a_later_block_undoes():
    model = tiny("gpt2")
    last = model.blocks[-1]
    end = torch.randn(model.d_model)
    with ExitStack() as stack:  # the last MLP takes away whatever the stream brings it
        stack.enter_context(replaced(last.mlp_ends[0], lambda x: x))
        stack.enter_context(replaced(last.mlp[-1], lambda x: end - x))
        plain, dropped = (atp(model, TASK, grad_drop=drop).writers for drop in (False, True))
    before = slice(0, model.graph.mlp_row(2))
    assert float(plain[before].abs().max()) < 1e-5
    assert float(dropped[before].abs().median()) > 1e-3


def test_grad_drop_needs_two_blocks():
    with pytest.raises(InputError, match="only one"):
        atp(linear_behind_attention("gpt2"), TASK, grad_drop=True)


@pytest.mark.slow
def test_writers_sum_their_edges_and_the_logits_hold_the_whole_effect(model):
    scores = atp(model, TASK)
    torch.testing.assert_close(scores.writers, eap(model, TASK).values.sum(1))
    rows = range(len(TASK))
    circuits = [model_logits(model, side) for side in ("corrupted", "clean")]
    corrupted, clean = (TASK.score(logits, rows).mean() for logits in circuits)
    torch.testing.assert_close(scores.readers[-1], corrupted - clean, atol=1e-5, rtol=1e-4)
    assert scores["m1.in"] == scores["m1"]


def model_logits(model, side):
    with torch.no_grad():
        return torch.cat([model.logits(inputs_of(model, getattr(pair, side))) for pair in TASK.pairs])


def linear_behind_attention(name) -> Model:
    """One block whose MLP writes nothing, and a final norm that passes its input on."""
    model = tiny(name, layers=1)
    with torch.no_grad():
        for parameter in model.blocks[0].mlp[-1].parameters():
            parameter.zero_()
    model.final_norm.module.forward = lambda x: x
    return model


@pytest.mark.parametrize("name", ["gpt2", *map(by_speed, ("llama", "neox-sequential", "qwen3", "mistral-window"))])
def test_the_fix_is_exact_where_all_behind_the_probabilities_is_linear(name):
    model = linear_behind_attention(name)

    def exact(row, layer, clean, corrupted):
        def without(reader):
            values = clean.clone()
            values[:, :, reader] = corrupted[:, :, reader]
            return patched_metric(model, row, layer, values)

        with torch.no_grad():
            whole = patched_metric(model, row, layer, clean)
            return torch.stack([without(reader) - whole for reader in range(clean.shape[2])])

    expected = attention_only(model, readers_by(model, exact))
    fixed, plain = (attention_only(model, atp(model, TASK, qk_fix=fix).readers) for fix in (True, False))
    torch.testing.assert_close(fixed, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.slow
def test_with_zero_ablation_and_small_batches(model):
    whole = atp(model, TASK, ablation="zero")
    small = atp(model, TASK, ablation="zero", max_memory=model.bytes_per_token(gradients=True) * 11)
    torch.testing.assert_close(whole.readers, small.readers, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(whole.readers).all() and whole.readers.any()


def test_edges_take_the_weaker_end_and_the_readers_sign():
    model = tiny("gpt2")
    scores = atp(model, TASK)
    edges = scores.edges()
    expected = min(abs(scores["a0.h1"]), abs(scores["a1.h2.q"]))
    assert abs(edges["a0.h1->a1.h2.q"]) == pytest.approx(expected)
    assert edges["a0.h1->a1.h2.q"] * scores["a1.h2.q"] > 0
    assert not edges.values[~model.graph.mask].any()
    assert run_circuit(model, TASK, edges.top(30)).shape == (3, 61)


def test_names_files_and_progress(tmp_path):
    model, seen = tiny("gpt2"), []
    scores = atp(model, TASK, progress=lambda *at: seen.append(at))
    assert seen[-1] == ("scoring nodes", 3, 3) and seen == sorted(seen)
    scores.save(tmp_path / "nodes.safetensors")
    again = NodeScores.load(tmp_path / "nodes.safetensors")
    assert again.graph == scores.graph and again.method == scores.method == "atp with QK fix"
    assert torch.equal(again.writers, scores.writers) and torch.equal(again.readers, scores.readers)
    strengths = [abs(value) for _, value in scores.ranked()]
    assert (
        strengths == sorted(strengths, reverse=True) and len(strengths) == len(scores.writers) + len(scores.readers) - 1
    )
    with pytest.raises(UnknownNameError, match=r"a1\.h9"):
        scores["a1.h9"]


def test_magnitude_is_the_product_of_norms(model):
    scores = magnitude(model, TASK)
    block = model.blocks[1]
    out = block.head_weights()[2].square().sum(-1).mean().sqrt()
    read = block.reader_weights()[1].float() * (block.attention_norm.gain if block.attention_norm else 1)
    value = float(out * read.square().sum(-1).mean().sqrt())
    column = model.graph.attention_columns(1).start + 1
    row = model.graph.head_rows(1).start + 2
    assert scores.values[row, column] == 0  # a head does not reach its own block
    same_kind = magnitude(model, TASK).values[row, -1] / magnitude(model, TASK).values[0, -1]
    embed = model.hf.get_input_embeddings().weight.detach().float().square().sum(-1).mean().sqrt()
    torch.testing.assert_close(same_kind, out / embed)
    into = scores.values[0, column]
    assert float(into) == pytest.approx(float(embed) * value / float(out), rel=1e-4)
    assert bool((scores.values[model.graph.mask] > 0).all())


def test_random_scores_depend_on_the_seed_alone():
    model = tiny("gpt2")
    assert random_scores(model, TASK, seed=3).top(20) == random_scores(model, TASK, seed=3).top(20)
    assert random_scores(model, TASK, seed=3).top(20) != random_scores(model, TASK, seed=4).top(20)
