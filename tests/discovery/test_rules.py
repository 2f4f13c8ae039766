"""Rules of the backward pass against forms written out with detach, conservation, and edge scores by autograd."""

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from families import CONFIGS, random_task, tiny
from referee import inputs_of, masked_logits, writer_outputs

import circuitome as cm
from circuitome.discovery.attribution.edges import eap, eap_ig
from circuitome.discovery.attribution.nodes import atp
from circuitome.engine.backward_rules import RULES, Rules, backward_rules
from circuitome.errors import AdapterError, InputError, UnknownNameError, UnsupportedModelError
from circuitome.models.attention import attending, by_group, mix
from circuitome.models.hooks import hooked, replaced

TASK = random_task(3, lengths=(5, 6))
SINGLE = {
    "norm": Rules(norm=True),
    "gate": Rules(gate=True),
    "half": Rules(half=True),
    "pattern": Rules(pattern=True),
    "temperature": Rules(temperature=2.0),
    "qkv": Rules(qkv=(0.25, 0.25, 0.5)),
}
CONSERVING = Rules(norm=True, gate=True, half=True, pattern=True)
QUICK = ("gpt2", "gemma2")


def by_speed(names, quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def models():
    """Tiny models, each made once."""
    return cache(tiny)


def leaf_gradient(model, pair, context):
    """Value of the metric and its gradient at the embeddings while `context` is in force."""
    inputs = inputs_of(model, pair.clean)
    leaf = model.embeddings(inputs).detach().requires_grad_(True)
    with context, model.starting_from(leaf):
        metric = TASK.score(model.logits(inputs), [0]).sum()
        return metric.detach(), torch.autograd.grad(metric, leaf)[0]


@contextmanager
def by_hand(model, rules):
    """The same rules from formulas with detach; modules found by their names in transformers' code."""
    gemma = model.hf.config.model_type.startswith("gemma")

    def norm(module):
        def run(x):
            layer_norm = isinstance(module, torch.nn.LayerNorm)
            c = x - x.mean(-1, keepdim=True) if layer_norm else x
            eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
            sigma = (c.square().mean(-1, keepdim=True) + eps).sqrt().detach()
            return c / sigma * (module.weight + gemma) + (module.bias if layer_norm else 0)

        return run

    def secant(forward):
        return lambda z: z * (forward(z) / z).detach()

    def attend(call, q, k, v):
        q, k, v = (x * f + (x * (1 - f)).detach() for x, f in zip((q, k, v), rules.qkv, strict=True))
        scores = call.capped(by_group(q, k.shape[1], k.transpose(-1, -2)))
        scores = scores if call.mask is None else scores + call.mask
        pattern = scores.softmax(-1)
        if rules.temperature != 1:
            warm = (scores / rules.temperature).softmax(-1)
            pattern = pattern.detach() + rules.temperature * (warm - warm.detach())
        return mix(pattern.detach() if rules.pattern else pattern, v)

    with ExitStack() as stack:
        for name, module in model.hf.named_modules():
            last = name.split(".")[-1]
            if rules.norm and ("norm" in last or last.startswith("ln_")):
                stack.enter_context(replaced(module, norm(module)))
            if rules.gate and last in ("act", "act_fn", "activation_fn"):
                stack.enter_context(replaced(module, secant(module.forward)))
            if rules.half and last == "down_proj":
                half = lambda m, args: 0.5 * args[0] + (0.5 * args[0]).detach()  # noqa: E731
                stack.enter_context(hooked(module.register_forward_pre_hook, half))
        if rules.attention:
            stack.enter_context(attending(model, attend))
        yield


@pytest.mark.parametrize("name", by_speed(CONFIGS, (*QUICK, "qwen3", "phi3", "opt", "neox-parallel", "olmo2")))
def test_rules_change_gradients_and_no_value(models, name):
    model = models(name)
    ordinary, _ = leaf_gradient(model, TASK.pairs[0], ExitStack())
    for label, rules in {**SINGLE, **RULES}.items():
        value, gradient = leaf_gradient(model, TASK.pairs[0], backward_rules(model, rules))
        if rules.attention:
            torch.testing.assert_close(value, ordinary, atol=1e-5, rtol=1e-5)
        else:
            assert value == ordinary
        hand_value, by_formula = leaf_gradient(model, TASK.pairs[0], by_hand(model, rules))
        torch.testing.assert_close(hand_value, ordinary, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, by_formula, atol=2e-5, rtol=1e-4, msg=lambda m, r=label: f"{r}: {m}")


def test_rules_differ(models):
    model = models("gemma2")
    _, plain = leaf_gradient(model, TASK.pairs[0], ExitStack())
    for label, rules in SINGLE.items():
        _, gradient = leaf_gradient(model, TASK.pairs[0], backward_rules(model, rules))
        assert not torch.allclose(gradient, plain, rtol=1e-2), label


def test_a_small_input_of_an_activation_has_its_slope(models):
    model = models("llama")
    activation, z = model.blocks[0].activation, torch.tensor([0.0, 1e-9, -1e-7, 2.0], requires_grad=True)
    with pytest.raises(AdapterError), backward_rules(model, SINGLE["gate"]):
        slope = torch.autograd.grad(activation(z).sum(), z)[0]
    torch.testing.assert_close(slope, torch.tensor([0.5, 0.5, 0.5, float(activation(z[3]).detach()) / 2]))


def cuts(graph):
    """Masks of the edges across every cut between two readers of a sequential model."""
    for layer in range(graph.n_layers):
        for writers, column in (
            (graph.upstream_of_attention(layer), graph.attention_columns(layer).start),
            (graph.upstream_of_mlp(layer), graph.mlp_column(layer)),
        ):
            mask = graph.mask.clone()
            mask[writers:] = mask[:, :column] = False
            yield mask
    yield graph.mask & (torch.arange(len(graph.readers)) == len(graph.readers) - 1)


@pytest.mark.parametrize("name", by_speed(("llama", "qwen3", "phi3", "olmo2"), ("llama",)))
def test_relp_with_frozen_patterns_shares_out_the_metric_at_every_cut(models, name):
    model = models(name)
    with torch.no_grad():
        metric = torch.cat([TASK.score(model.logits(inputs_of(model, p.clean)), [i]) for i, p in enumerate(TASK.pairs)])
    conserved = eap(model, TASK, ablation="zero", rules=CONSERVING).values
    plain = eap(model, TASK, ablation="zero", rules="relp").values
    for mask in cuts(model.graph):
        torch.testing.assert_close(-conserved[mask].sum(), metric.mean(), atol=1e-4, rtol=1e-4)
    assert abs(float(plain[0].sum() + metric.mean())) > 0.01


def brute_force(model, rules):
    """Gradient of the metric at a factor on every edge, each reader with a residual stream of its own."""
    total = torch.zeros(model.graph.mask.shape)
    for row, pair in enumerate(TASK.pairs):
        ablated = writer_outputs(model, pair.corrupted)
        keep = torch.ones(model.graph.mask.shape, requires_grad=True)
        with backward_rules(model, rules):
            metric = TASK.score(masked_logits(model, pair, ablated, keep, frozen=rules.norm), [row]).sum()
        total -= torch.autograd.grad(metric, keep)[0] / len(TASK)
    return total * model.graph.mask


CASES = [(name, label) for name in CONFIGS for label in ("norm", "relp", "gim", "pattern")]
QUICK_CASES = [("gpt2", "relp"), ("gemma2", "gim"), ("qwen3", "gim"), ("neox-parallel", "norm")]


@pytest.mark.parametrize(
    ("name", "label"),
    [case if case in QUICK_CASES else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_edge_scores_under_rules_are_gradients_of_the_edge_mask(models, name, label):
    model, rules = models(name), {**SINGLE, **RULES}[label]
    scores = eap(model, TASK, rules=rules)
    torch.testing.assert_close(scores.values, brute_force(model, rules), atol=1e-5, rtol=1e-4)
    assert scores.method == f"eap, rules {label}"


@pytest.mark.parametrize("rules", [Rules(), RULES["gim"]], ids=str)
def test_conductance_is_its_formula(models, rules):
    """Each step by itself: EAP's gradient in its middle, times the change that the writers make on it."""
    from circuitome.discovery.attribution.contraction import contract, reader_gradients

    model, pair, steps = models("llama"), TASK.pairs[0], 3
    task = cm.Task("one", (pair,))
    inputs, other = inputs_of(model, pair.clean), inputs_of(model, pair.corrupted)
    with torch.no_grad():
        corrupted, clean = model.embeddings(other), model.embeddings(inputs)
    points = [corrupted + k / steps * (clean - corrupted) for k in range(steps + 1)]
    expected = torch.zeros(())
    for before, after in pairwise(points):
        metric = lambda logits: task.score(logits, [0])  # noqa: E731
        _, start = reader_gradients(model, inputs, before[None], metric)
        _, end = reader_gradients(model, inputs, after[None], metric)
        gradients, _ = reader_gradients(model, inputs, ((before + after) / 2)[None], metric, rules=rules)
        expected = expected + contract(model, end.minus(start), gradients)[0]
    scores = eap_ig(model, task, steps=steps, path="conductance", rules=rules)
    torch.testing.assert_close(scores.values, -expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", by_speed(QUICK, ("gpt2",)))
def test_conductance_shares_out_the_gap_at_every_cut(models, name):
    model = models(name)
    with torch.no_grad():
        clean, corrupted = (
            torch.cat(
                [TASK.score(model.logits(inputs_of(model, getattr(p, side))), [i]) for i, p in enumerate(TASK.pairs)]
            )
            for side in ("clean", "corrupted")
        )
    gap = float((corrupted - clean).mean())

    def worst(steps, path):
        scores = eap_ig(model, TASK, steps=steps, path=path).values
        return max(abs(float(scores[mask].sum()) - gap) for mask in cuts(model.graph)) / abs(gap)

    assert worst(4, "conductance") > 8 * worst(16, "conductance")  # the error shrinks with the square of the steps
    assert worst(16, "conductance") < 0.01
    assert worst(64, "inputs") > 0.03  # complete at the embeddings alone


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_conductance_does_not_depend_on_prefix_or_batches(models, name):
    model = models(name)
    scores = eap_ig(model, TASK, steps=3, path="conductance", rules="gim")
    apart = eap_ig(model, TASK, steps=3, path="conductance", rules="gim", shared_prefix=False)
    small = eap_ig(
        model,
        TASK,
        steps=3,
        path="conductance",
        rules="gim",
        max_memory=model.bytes_per_token(gradients=True) * 11,
    )
    for other in (apart, small):
        torch.testing.assert_close(scores.values, other.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("label", ["relp", pytest.param("gim", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", by_speed(CONFIGS, ("gemma2",)))
def test_a_writers_score_is_the_sum_of_its_edges(models, name, label):
    model = models(name)
    nodes, edges = atp(model, TASK, qk_fix=False, rules=label), eap(model, TASK, rules=label)
    torch.testing.assert_close(nodes.writers, edges.values.sum(1), atol=1e-5, rtol=1e-4)
    assert nodes.method == f"atp, rules {label}"


@pytest.mark.slow
def test_variants_of_integrated_gradients_take_rules(models):
    model = models("qwen3")
    for rules in ("norm", "relp", "gim"):
        inputs = eap_ig(model, TASK, steps=4, rules=rules)
        outputs = eap_ig(model, TASK, steps=4, rules=rules, variant="activations")
        torch.testing.assert_close(outputs.values[0], inputs.values[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(outputs.values, inputs.values)
        assert torch.isfinite(eap_ig(model, TASK, rules=rules, variant="clean-corrupted").values).all()


@pytest.mark.parametrize("name", by_speed(CONFIGS, ("qwen3", "gpt2")))
def test_every_rule_says_where_it_acted(models, name):
    model, inputs = models(name), inputs_of(models(name), TASK.pairs[0].clean)
    for label, rules in SINGLE.items():
        with backward_rules(model, rules) as fired:
            model.logits(inputs)
        acts = label != "half" or model.blocks[0].gated
        per_block = 2 * (label == "norm") or 1
        assert all(count >= per_block * acts for count in fired.by_layer(label)), label
        assert bool(fired.expected) == acts
        assert {rule for rule, _, _ in fired.expected} <= {label}
    norms = [n for n, _ in model.hf.named_modules() if "norm" in n.split(".")[-1] or n.split(".")[-1].startswith("ln_")]
    with backward_rules(model, RULES["norm"]) as fired:
        model.logits(inputs)
    assert len(fired.expected) == len(norms)


def test_a_rule_that_never_acts_is_an_error(models):
    model = models("llama")
    mlp, attention = model.blocks[1].layer.mlp, model.blocks[1].attention
    silu = torch.nn.functional.silu
    past = replaced(mlp, lambda x: mlp.down_proj(silu(mlp.gate_proj(x)) * mlp.up_proj(x)))
    with past, pytest.raises(AdapterError, match="gate at m1"):
        eap(model, TASK, rules="relp")
    with replaced(attention, lambda hidden_states, **_: (hidden_states, None)):
        for label in ("pattern", "temperature", "qkv"):
            with pytest.raises(AdapterError, match=f"{label} at a1"), backward_rules(model, SINGLE[label]):
                model.logits(inputs_of(model, TASK.pairs[0].clean))
    with pytest.raises(AdapterError, match="never acted"), backward_rules(model, "norm"):
        pass


def test_a_norm_that_nobody_described_is_an_error():
    model = tiny("qwen3")
    model.blocks = tuple(replace(block, qk_norms=()) for block in model.blocks)
    with pytest.raises(AdapterError, match=r"self_attn\.q_norm"):
        eap(model, TASK, rules="norm")


def test_the_model_is_left_as_it_was(models):
    model, before = models("gemma2"), models("gemma2").hf.config._attn_implementation
    with pytest.raises(ZeroDivisionError), backward_rules(model, Rules(norm=True, gate=True, half=True, pattern=True)):
        1 / 0  # noqa: B018
    assert not any("forward" in module.__dict__ for module in model.hf.modules())
    assert model.hf.config._attn_implementation == before


def test_what_cannot_be_says_so(models):
    model = models("llama")
    with pytest.raises(UnknownNameError, match="Did you mean 'relp'"):
        eap(model, TASK, rules="rel")
    with pytest.raises(UnknownNameError, match="path"):
        eap_ig(model, TASK, path="output")
    with pytest.raises(InputError, match="no path of the variant"):
        eap_ig(model, TASK, path="conductance", variant="activations")
    with pytest.raises(InputError, match="zero ablation"):
        eap_ig(model, TASK, path="conductance", ablation="zero")
    with pytest.raises(InputError, match="qk_fix=False"):
        atp(model, TASK, rules="gim")
    with pytest.raises(InputError, match="one of the two"):
        Rules(pattern=True, temperature=2.0)
    with pytest.raises(InputError, match="positive"):
        Rules(temperature=0.0)
    known, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 2)
    with pytest.raises(UnsupportedModelError, match="attention"):
        eap(known, task, rules="gim")
