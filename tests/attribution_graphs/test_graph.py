"""Attribution graphs against written-out forms, on every family: sums, edges, effects, influence, pruning."""

import pytest
import torch
from families import CONFIGS, tiny

import circuitome as cm
from circuitome.attribution_graphs.effects import total_effects
from circuitome.attribution_graphs.expansion import Expansion, expanded
from circuitome.attribution_graphs.explained import Explained
from circuitome.attribution_graphs.frozen_model import FrozenModel, inputs_of
from circuitome.attribution_graphs.pruning import fewest, scores
from circuitome.attribution_graphs.rows import Target, incoming
from circuitome.engine.backward_rules import Rules, backward_rules
from circuitome.errors import InputError
from circuitome.models.hooks import hooked
from circuitome.neurons.factors import watching_neurons

IDS = (5, 17, 42, 8, 23, 31)
QUICK = ("qwen2", "gemma2", "neox-parallel")
NAMES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CONFIGS]


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def frozen(model):
    with torch.no_grad():
        return FrozenModel.of(model, IDS)


@pytest.fixture(scope="module")
def explained(frozen):
    return Explained.of(frozen, None)


def targets_of(frozen, explained):
    """All explained logits, and some neurons of every block."""
    some = [Target(len(frozen.units), len(IDS) - 1, i) for i in range(len(explained.tokens))]
    return some + [Target(layer, pos, 7 * layer + pos) for layer in range(3) for pos in (0, 3, 5)]


def value_of(frozen, explained, target):
    if target.layer == len(frozen.units):
        return float(explained.values(frozen.logits[None])[0, target.unit])
    return float(frozen.units[target.layer].values[target.position, target.unit])


@torch.no_grad()
def test_sources_add_up_to_the_stream(model, frozen):
    stream = frozen.embeddings[None]
    biases = [*frozen.biases, None]
    for layer, attention in enumerate(frozen.attention):
        middle = stream + attention.mixed(attention.values(stream))
        read = stream if model.graph.parallel else middle
        expected = model.record(inputs_of(frozen)).resid_mid[layer][0]
        torch.testing.assert_close(read[0] + biases[layer], expected, atol=1e-4, rtol=1e-4)
        stream = middle + frozen.units[layer].shares @ frozen.units[layer].writes()
    torch.testing.assert_close(stream[0] + frozen.biases[-1], frozen.streams[-1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_incoming_edges_sum_to_the_value(frozen, explained):
    targets = targets_of(frozen, explained)
    rows = incoming(frozen, targets, explained.reads(frozen))
    sums = rows.tokens.sum(1) + rows.bias + sum(units.sum((1, 2)) for units in rows.units if units is not None)
    expected = torch.tensor([value_of(frozen, explained, target) for target in targets])
    torch.testing.assert_close(sums, expected, atol=1e-4, rtol=1e-4)
    biased = any(name.endswith("bias") for name, _ in frozen.model.hf.named_parameters())
    assert bool(rows.bias.abs().max() > 0) == biased


def explicit_row(frozen, explained, target):
    """Edges into a node from autograd through the model's own modules, neurons as leaves."""
    model = frozen.model
    leaves = [units.values.clone().requires_grad_(True) for units in frozen.units]
    embeddings = frozen.embeddings[None].clone().requires_grad_(True)

    def put(module, args, leaf):
        return (leaf.view_as(args[0]), *args[1:])

    rules = Rules(norm=True, pattern=True)
    with backward_rules(model, rules), torch.enable_grad(), model.starting_from(embeddings):
        handles = [
            block.mlp_writer.register_forward_pre_hook(lambda m, args, leaf=leaf: put(m, args, leaf))
            for block, leaf in zip(model.blocks, leaves, strict=True)
        ]
        with (
            watching_neurons(model.blocks) as cache,
            hooked(model.final_norm.module.register_forward_hook, lambda m, a, out: seen.append(out)),
        ):
            seen = []
            model.logits(inputs_of(frozen))
        for handle in handles:
            handle.remove()
        if target.layer == len(frozen.units):
            logits = model.unembedding(seen[0][0, -1])
            value = logits[explained.tokens[target.unit]] - logits.mean()
        else:
            block = model.blocks[target.layer]
            parts = block.split_inputs([x.reshape(len(IDS), -1) for x in cache.inputs[target.layer]])
            at = (target.position, target.unit)
            gate = parts[0][at]
            secant = (block.activation(gate) / gate).detach()
            if block.gated:
                value = secant * (gate * parts[1][at].detach() + gate.detach() * parts[1][at]) / 2
            else:
                value = secant * gate
        found = torch.autograd.grad(value, [embeddings, *leaves], allow_unused=True)
    products = [None if g is None else (g * x).detach() for g, x in zip(found, [embeddings, *leaves], strict=True)]
    return products[0][0].sum(-1), products[1:]


def test_edges_are_those_of_autograd_through_the_held_model(frozen, explained):
    targets = targets_of(frozen, explained)
    reads, count = explained.reads(frozen), len(explained.tokens)
    with torch.no_grad():
        rows = incoming(frozen, targets, reads)
    for i in (0, *range(count, len(targets))):
        target = targets[i]
        tokens, units = explicit_row(frozen, explained, target)
        torch.testing.assert_close(rows.tokens[i], tokens, atol=2e-5, rtol=1e-3)
        for layer, expected in enumerate(units):
            row = rows.units[layer]
            found = torch.zeros(()) if row is None else row[i]
            expected = torch.zeros(()) if expected is None else expected
            torch.testing.assert_close(found + 0 * expected, expected + 0 * found, atol=2e-5, rtol=1e-3)


@torch.no_grad()
def test_effects_are_sums_over_all_paths_of_shares(frozen, explained):
    """With every neuron expanded, edges over values of targets give the effects of one backward pass."""
    reads = explained.reads(frozen)
    width = frozen.units[0].values.shape[1]
    targets = [Target(layer, pos, n) for layer in range(3) for pos in range(len(IDS)) for n in range(width)]
    expansion = Expansion(frozen, reads, explained.weights)
    expansion.expand([Target(3, len(IDS) - 1, i) for i in range(len(explained.tokens))])
    rows = incoming(frozen, targets, reads)

    def flat(rows, n):
        blank = torch.zeros(n, len(targets) // 3)
        return torch.cat([blank if units is None else units.flatten(1) for units in rows.units], 1)

    edges, values = flat(rows, len(targets)), torch.tensor([value_of(frozen, explained, target) for target in targets])
    logits = incoming(frozen, expansion.targets, reads)
    direct = explained.mean(flat(logits, len(explained.tokens)).T)
    passed = direct.clone()
    for layer in (2, 1, 0):  # later nodes' effects are known before earlier ones are summed
        here = slice(layer * len(targets) // 3, (layer + 1) * len(targets) // 3)
        live = values[here].abs() > 1e-12
        passed += torch.where(live, passed[here] / torch.where(live, values[here], 1.0), 0.0) @ edges[here]
    found = total_effects(frozen, explained.mean(reads.vectors.T))
    torch.testing.assert_close(torch.cat([units.flatten() for units in found.neurons]), passed, atol=1e-4, rtol=1e-3)


def test_effects_are_gradients_under_the_rules(frozen, explained):
    """Rule H halves a gated neuron's gradient in front of the last projection: it is half of the effect there."""
    model = frozen.model
    embeddings = frozen.embeddings[None].clone().requires_grad_(True)
    rules = Rules(norm=True, gate=True, half=True, pattern=True)
    with (
        backward_rules(model, rules),
        torch.enable_grad(),
        model.starting_from(embeddings),
        watching_neurons(model.blocks) as cache,
    ):
        final = model.record(inputs_of(frozen)).final
    direction = explained.mean(explained.reads(frozen).vectors.T)
    gradients = torch.autograd.grad(final[0, -1] @ direction, [embeddings, *cache.activations])
    found = total_effects(frozen, direction)
    torch.testing.assert_close(found.tokens, (gradients[0] * embeddings).sum(-1)[0].detach(), atol=1e-4, rtol=1e-3)
    for block, ours, values, gradient in zip(
        model.blocks, found.neurons, cache.activations, gradients[1:], strict=True
    ):
        expected = (values * gradient).detach().reshape(ours.shape) * (2 if block.gated else 1)
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_influence_is_the_series_over_powers(frozen, explained):
    """The sweep from the last block down equals the sum of w A'^k over the expanded nodes."""
    expansion = expanded(frozen, explained.reads(frozen), explained.weights, 60, batch=7, first=0)
    influence, own = expansion.influence()
    n, count = len(expansion.targets), len(explained.tokens)
    shares = torch.zeros(n, len(influence))
    for i in range(n):
        shares[i, expansion.columns[i].long()] = expansion.edges[i].abs() / expansion.sizes[i]
    numbers = [expansion.number(target) for target in expansion.targets[count:]]
    between = torch.zeros(n, n)
    between[:, count:] = shares[:, numbers]
    weights = torch.zeros(n)
    weights[:count] = explained.weights
    total = torch.linalg.solve(torch.eye(n) - between.T, weights)
    torch.testing.assert_close(own, total, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(influence, total @ shares, atol=1e-6, rtol=1e-4)
    # nodes are expanded greedily: none outside had more influence than all inside have now
    left = influence.clone()
    left[numbers] = 0.0
    assert len(set(numbers)) == 60 and float(left.max()) <= float(influence[numbers].max())


@torch.no_grad()
def test_all_influence_ends_somewhere(frozen, explained):
    every = sum(units.values.numel() for units in frozen.units)
    expansion = expanded(frozen, explained.reads(frozen), explained.weights, every, batch=64, first=0)
    replacement, completeness = scores(expansion, expansion.influence()[1])
    assert replacement > 0.99 and completeness > 0.99  # but for edges below the smallest that are kept


def test_the_graph_sums_whatever_is_pruned(model):
    graph = cm.attribution_graph(model, IDS, expand=50, node_share=0.5, edge_share=0.7, first_token=True)
    sums = graph.sums()
    for node, total in zip(graph.nodes, sums.tolist(), strict=True):
        if node.value is not None:
            assert total == pytest.approx(node.value, abs=1e-4, rel=1e-4)
    assert 0 < len(graph.units()) < 50 and graph.expanded == 50
    for node in graph.units():
        assert graph.incoming(node.name) and graph.outgoing(node.name)
        assert all(target.layer > node.layer for target, _ in graph.outgoing(node.name))


@pytest.mark.slow
def test_checks_run_on_every_family(model):
    graph = cm.attribution_graph(model, IDS, expand=50, first_token=True)
    checks = cm.attribution_graphs.check_graph(model, graph, nodes=3)
    assert checks.sums < 1e-3 and checks.differences < 1e-2 and checks.edges == 24
    assert len(checks.off) == len(checks.random) == 3


def test_fewest():
    values = torch.tensor([0.5, 0.1, 0.3, 0.1, 0.0])
    assert fewest(values, 0.8).tolist() == [True, False, True, False, False]
    assert fewest(values, 0.81).sum() == 3 and fewest(values, 1.0).sum() == 4 and not fewest(0 * values, 0.5).any()


def test_a_contrast_is_the_difference_of_two_logits():
    model = cm.load("known-ioi")
    prompt = "Ann and Bob met then Bob gave to"
    graph = cm.attribution_graph(model, prompt, contrast=("Ann", "Bob"), first_token=True)
    with torch.no_grad():
        logits = model.hf(torch.tensor([model.encode(prompt)])).logits[0, -1]
    a, b = (model.encode_answer(name)[0] for name in ("Ann", "Bob"))
    (node,) = graph.logits()
    assert node.value == pytest.approx(float(logits[a] - logits[b]), rel=1e-5)


def test_bf16_sums_within_its_rounding():
    model = tiny("llama", dtype=torch.bfloat16)
    graph = cm.attribution_graph(model, IDS, expand=50, first_token=True)
    error = (graph.sums() - torch.tensor([n.value or 0.0 for n in graph.nodes])).abs() / graph.sizes.clamp(min=1e-3)
    assert float(error[[n.value is not None for n in graph.nodes]].max()) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": ()}, "has no tokens"),
        ({"expand": 0}, "At least one neuron"),
        ({"node_share": 0.0}, "node_share is a share"),
        ({"edge_share": 1.5}, "edge_share is a share"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        cm.attribution_graph(tiny("llama"), options.pop("prompt", IDS), **options)
