"""Edges of neurons: equal to brute-force gradients, and in sum to the edges of their MLPs, in every family."""

from dataclasses import replace

import pytest
import torch
from families import CONFIGS, random_task, tiny

import circuitome as cm
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, MemoryBudgetError
from circuitome.graph.node import Node
from circuitome.neurons.factors import bytes_per_token
from circuitome.neurons.neuron_edges import Factors, Strongest, block_scores, factor_bytes

TASK = random_task(3)
EVEN = replace(TASK, pairs=tuple(pair for pair in TASK.pairs if len(pair.clean) == len(TASK.pairs[0].clean)))
"""Prompts of one length, which run without padding."""
QUICK = ("llama", "gemma2")


def by_speed(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def scores_of(model, steps, ablation="corrupted", task=TASK):
    """Every edge of neurons by name of writer and reader; mean over prompts."""
    factors = Factors.of(Setting(model, task, ablation=ablation), steps)
    values = {}
    for made in factors.pairs(range(model.graph.n_layers)):
        writers, readers = made[0](), made[1]()
        block = block_scores(writers, readers) / len(task)
        for i, u in enumerate(writers.names):
            for j, v in enumerate(readers.names):
                values[u, v] = float(block[i, j])
    return values


def whole(name):
    """The node of a graph without neurons that a node belongs to."""
    node = Node.parse(name)
    return str(Node("mlp", node.layer, input=node.input)) if node.kind == "neuron" else name


@pytest.mark.parametrize(("steps", "ablation"), [(1, "corrupted"), (3, "corrupted"), (3, "zero")])
@pytest.mark.parametrize("family", by_speed(CONFIGS))
def test_the_edges_of_an_mlps_neurons_sum_to_its_own(family, steps, ablation):
    model = tiny(family)
    if ablation == "zero" and model.blocks[0].mlp_bias() is not None:
        pytest.skip("zeros replace the bias of a whole MLP too, which belongs to no neuron")
    sums = {}
    for (u, v), value in scores_of(model, steps, ablation).items():
        key = whole(u), whole(v)
        sums[key] = sums.get(key, 0.0) + value
    options = {"ablation": ablation}
    expected = cm.eap(model, TASK, **options) if steps == 1 else cm.eap_ig(model, TASK, steps=steps, **options)
    graph = model.graph
    assert len(sums) == graph.n_edges
    found = torch.zeros(graph.mask.shape)
    for (u, v), value in sums.items():
        found[graph.row(u), graph.column(v)] = value
    torch.testing.assert_close(found, expected.values, rtol=1e-3, atol=1e-4 * float(expected.values.abs().max()))


@pytest.mark.parametrize("family", by_speed([name for name in CONFIGS if name != "opt"]))
def test_a_single_edge_is_change_times_the_gradient_at_a_copy_of_the_stream(family):
    model = tiny(family)
    source, target = model.blocks[0], model.blocks[-1]
    outputs, inputs, streams = [], [], []
    handles = [
        source.mlp_writer.register_forward_hook(lambda m, args, out: outputs.append((args[0].detach(), out.detach()))),
        target.mlp_ends[0].register_forward_pre_hook(lambda m, args: streams.append(args[0].detach())),
        *(p.register_forward_hook(lambda m, args, out: inputs.append(out)) for p in target.mlp_readers),
    ]
    try:
        with torch.no_grad():
            model.hf(torch.tensor([pair.corrupted for pair in EVEN.pairs]))
        corrupted = outputs.pop()
        inputs.clear()
        streams.clear()
        model.hf.requires_grad_(True)
        logits = model.hf(torch.tensor([pair.clean for pair in EVEN.pairs])).logits[:, -1]
        clean = outputs.pop()
        grads = torch.autograd.grad(EVEN.score(logits, range(len(EVEN))).sum(), inputs)
    finally:
        for handle in handles:
            handle.remove()

    def share(values):
        a, out = values
        return a if source.mlp_post is None else a / source.mlp_post.sigma(out)

    delta, weights = share(corrupted) - share(clean), source.neuron_weights()
    found = scores_of(model, 1, task=EVEN)
    g = target.split_inputs(grads)
    for u in (0, 3):
        for v in (1, 2):
            x = streams[0].clone().requires_grad_(True)
            normed = target.mlp_norm(x) if target.mlp_norm else x
            columns = target.split_inputs([module(normed) for module in target.mlp_readers])
            value = sum((column[..., v] * gradient[..., v]).sum() for column, gradient in zip(columns, g, strict=True))
            (at_copy,) = torch.autograd.grad(value, x)
            expected = float((delta[..., u, None] * weights[u] * at_copy).sum()) / len(EVEN)
            name = f"m0.n{u}", f"m{model.graph.n_layers - 1}.n{v}.in"
            assert found[name] == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("family", by_speed(CONFIGS))
def test_a_neurons_score_is_the_sum_of_its_edges(family):
    model = tiny(family)
    sums = {}
    for (u, _), value in scores_of(model, 3).items():
        sums[u] = sums.get(u, 0.0) + value
    scores = cm.neurons.scores(model, TASK, steps=3)
    last = model.graph.n_layers - 1
    for name in ("m0.n0", "m0.n5", f"m{last}.n2"):
        assert scores[name] == pytest.approx(sums[name], rel=1e-3, abs=1e-5)
    assert scores.top(1)[0][1] == scores.values.flatten()[scores.values.abs().argmax()]


def test_the_strongest_are_the_strongest_of_all():
    model = tiny("llama")
    values = scores_of(model, 1)
    expected = sorted(values.items(), key=lambda item: -abs(item[1]))[:50]
    found = cm.neurons.edges(model, TASK, steps=1, keep=50)
    assert found.total == len(values)
    assert [abs(value) for value in found.values.tolist()] == pytest.approx([abs(v) for _, v in expected], rel=1e-4)
    assert set(found.names[:30]) <= {name for name, _ in expected}
    assert found.top(1)[0][0] == "->".join(found.names[0]) and "embed" in found.nodes()


def test_a_stream_keeps_its_strongest_whatever_the_blocks():
    generator = torch.Generator().manual_seed(0)
    stream, every = Strongest(7), []
    for block in range(9):
        values = torch.randn(5, 6, generator=generator)
        stream.add(tuple(f"{block}u{i}" for i in range(5)), tuple(f"{block}v{i}" for i in range(6)), values)
        every += [(float(values[i, j]), (f"{block}u{i}", f"{block}v{j}")) for i in range(5) for j in range(6)]
    names, kept = stream.sorted()
    expected = sorted(every, key=lambda item: -abs(item[0]))[:7]
    assert list(names) == [name for _, name in expected] and kept.tolist() == [value for value, _ in expected]


def test_some_layers_alone():
    model = tiny("llama")
    found = cm.neurons.edges(model, TASK, layers=[1], keep=100_000)
    layers = {Node.parse(name).layer for pair in found.names for name in pair if Node.parse(name).kind == "neuron"}
    assert layers == {1}


def test_bad_input():
    model = tiny("llama")
    for options, message in (
        ({"steps": 0}, "steps must be at least 1"),
        ({"ablation": "mean"}, "ablated by corrupted or zero, not by mean"),
        ({"keep": 0}, "keep must be at least 1"),
        ({"layers": [9]}, "no MLP in layer 9"),
    ):
        with pytest.raises(InputError, match=message):
            cm.neurons.edges(model, TASK, **options)


def test_factors_of_all_prompts_count_in_the_budget():
    """With a batch of one prompt beside them the scores stay as they are; with less, what is enough is told."""
    model = tiny("llama")
    with pytest.raises(MemoryBudgetError, match="fewer prompts") as told:
        cm.neurons.edges(model, TASK, steps=3, max_memory=1000)
    assert "--max-memory to" in str(told.value)
    tokens = sum(len(pair.clean) for pair in TASK.pairs)
    budget = 2 * (tokens * factor_bytes(model, 3) + 10 * bytes_per_token(model))
    tight, whole = (cm.neurons.edges(model, TASK, steps=3, keep=50, max_memory=m) for m in (budget, None))
    assert tight.names[:5] == whole.names[:5]
    torch.testing.assert_close(tight.values[:5], whole.values[:5])
