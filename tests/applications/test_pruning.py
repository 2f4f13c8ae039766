"""Structural pruning: rankings against slow forms, and smaller models that are the ablated ones on every family."""

import pytest
import torch
from by_hand import close, padded, run
from families import CONFIGS, random_task, tiny

import circuitome as cm
from circuitome.applications.gates import task_gates, text_gates
from circuitome.applications.rankings import RANKINGS, metrics
from circuitome.applications.structure import heads_go, without
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError

INPUTS = padded("right")
TEXTS = cm.neurons.packed([[3 + (7 * i + 5 * j) % 50 for j in range(10 - i % 3)] for i in range(6)])
QUICK = ("gpt2", "llama", "gemma2")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


@pytest.mark.parametrize("name", FAMILIES)
def test_slopes_of_gates_are_differences(name):
    """s is the derivative of the metric when a part moves toward its constant."""
    model, task = tiny(name), random_task(4)
    setting = Setting(model, task)
    _, means = text_gates(setting, TEXTS)
    changes = task_gates(setting).changes(means)
    step = 1e-2
    for part in ("a1.h2", "m0.n7", "m2.n1"):
        node = cm.Node.parse(part)
        of = (means.heads, changes.heads) if node.kind == "head" else (means.neurons, changes.neurons)
        moved = []
        for sign in (1, -1):

            def toward(module, args, sign=sign, node=node, constant=of[0][node.layer, node.index]):
                width = model.heads.width if node.kind == "head" else 1
                values = args[0].clone().unflatten(-1, (-1, width))
                own = values[..., node.index, :]
                values[..., node.index, :] = own + sign * step * (constant - own)
                return (values.flatten(-2),)

            block = model.blocks[node.layer]
            module = block.output if node.kind == "head" else block.mlp_writer
            handle = module.register_forward_pre_hook(toward)
            clean, corrupted = metrics(setting)
            handle.remove()
            moved.append((clean - corrupted).double())
        expected = (moved[0] - moved[1]) / (2 * step)
        torch.testing.assert_close(of[1][:, node.layer, node.index].double(), expected, rtol=0.05, atol=2e-3)


def test_squared_slopes_are_divergences():
    """E[s^2] / 2 over drawn tokens against the KL of a small move, whose second order it is."""
    model = tiny("llama")
    texts = cm.neurons.packed([[5, 9, 17, 30, 8, 44, 21, 3]] * 400)
    gates, _ = text_gates(Setting(model), texts)
    inputs = texts.inputs(model, range(1))
    found = gates.changes(None).neurons.square().mean(0) / 2
    step = 0.05
    for part in ("m0.n3", "m1.n8", "m2.n5"):
        node = cm.Node.parse(part)
        with torch.no_grad():
            plain = model.every_logits(inputs)[:, :-1].double().log_softmax(-1)
            with cm.scale(model, part, 1 - step):
                moved = model.every_logits(inputs)[:, :-1].double().log_softmax(-1)
        expected = float((plain.exp() * (plain - moved)).sum()) / step**2
        assert float(found[node.layer, node.index]) == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pruned_model_is_the_ablated_one(name):
    model = tiny(name)
    pruned = cm.prune(model, random_task(4), 0.4, texts=TEXTS, by="circuit")
    gone = [part for parts in pruned.kept for part in without(model, parts).names(model)]
    _, means = text_gates(Setting(model), TEXTS)
    if not model.blocks[0].attention_post:
        edit = cm.Edit()
        for kind, of in (("head", means.heads), ("neuron", means.neurons)):
            nodes = [cm.Node.parse(part) for part in gone if cm.Node.parse(part).kind == kind]
            held = kind in pruned.means
            values = {str(n): of[n.layer, n.index][None] if kind == "neuron" else of[n.layer, n.index] for n in nodes}
            zero = {part: torch.zeros(()) for part in values}
            edit += cm.Edit((cm.editing.changes.Replaced(values if held else zero),))
        with torch.no_grad(), model.edited(edit):
            expected = run(model, INPUTS)
        with torch.no_grad():
            close(run(pruned.model, INPUTS), expected, 1e-5)
    assert len(pruned.kept[0].neurons) == round(0.6 * model.blocks[0].n_neurons)
    assert ("set to zero" in pruned.removed[0]) is not heads_go(model)


@pytest.mark.parametrize("by", RANKINGS)
def test_every_ranking_removes_a_share_in_any_number_of_rounds(by):
    model, task = tiny("llama"), random_task(4)
    for rounds in (1, 3):
        pruned = cm.prune(model, task, 0.5, texts=TEXTS, by=by, rounds=rounds)
        assert [len(parts.neurons) for parts in pruned.kept] == [20] * 3 and pruned.model.heads.kv == 1
        assert pruned.parameters[1] < pruned.parameters[0]
    fewer = cm.prune(model, task, 0.4, texts=TEXTS, by=by, heads=False, neurons=False, blocks=True)
    assert len(fewer.kept) == 2 and fewer.removed == ["1 of 3 blocks"]
    assert torch.equal(run(cm.prune(model, task, 0.0, texts=TEXTS, by=by).model, INPUTS), run(model, INPUTS))


def test_rounds_on_heads_that_are_set_to_zero():
    model = tiny("gpt2")
    pruned = cm.prune(model, 0.5, texts=TEXTS, by="random", neurons=False, rounds=2, value="zero")
    gone = [part for parts in pruned.kept for part in without(model, parts).names(model)]
    assert len(gone) == 6
    with torch.no_grad(), model.edited(cm.Edit.ablate(model, gone)):
        close(run(pruned.model, INPUTS), run(model, INPUTS), 1e-5)


BAD = [
    ({"share": 1.5}, InputError, "from 0 to 1"),
    ({"by": "circut"}, UnknownNameError, "Did you mean 'circuit'"),
    ({"by": "circuit"}, InputError, "needs a task"),
    ({"heads": False, "neurons": False}, InputError, "nothing to remove"),
    ({"value": "median"}, UnknownNameError, "value of removed parts"),
    ({"blocks": True, "rounds": 0}, InputError, "rounds at least 1"),
]


@pytest.mark.parametrize(("options", "error", "match"), BAD)
def test_bad_input(options, error, match):
    with pytest.raises(error, match=match):
        cm.prune(tiny("llama"), **{"texts": TEXTS, **options})
