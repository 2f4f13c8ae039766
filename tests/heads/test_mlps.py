"""What MLPs of a circuit do: every effect against hooks written by hand, in every kind of block."""

from dataclasses import replace

import pytest
import torch
from families import random_task, tiny
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import circuitome as cm
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Model

TASK = random_task(5)
FAMILIES = [
    "llama",
    "gemma2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "neox-parallel", "qwen3", "opt")),
]


def metric_with(model, pair, row, layer=None, positions=()):
    """The metric of a clean prompt whose MLP writes what it writes on the corrupted one at some positions."""
    end, written = model.blocks[layer or 0].mlp_ends[1], []
    handle = end.register_forward_hook(lambda module, args, out: written.append(out.detach()))
    with torch.no_grad():
        model.hf(torch.tensor([pair.corrupted]))
    handle.remove()

    def put(module, args, out):
        out = out.clone()
        flat, other = out.view(-1, out.shape[-1]), written[0].view(-1, out.shape[-1])
        flat[list(positions)] = other[list(positions)]
        return out

    handle = end.register_forward_hook(put) if layer is not None else None
    with torch.no_grad():
        logits = model.hf(torch.tensor([pair.clean])).logits[:, pair.answer_position]
    if handle is not None:
        handle.remove()
    return float(TASK.score(logits, [row])[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_hooks_written_by_hand(family):
    model = tiny(family)
    found = cm.heads.explain_mlps(model, Circuit.full(model.graph), TASK)
    assert found.names == tuple(f"m{layer}" for layer in range(model.graph.n_layers))
    for row, pair in enumerate(TASK.pairs):
        clean = metric_with(model, pair, row)
        for layer in range(model.graph.n_layers):
            everywhere = metric_with(model, pair, row, layer, range(len(pair.clean))) - clean
            at_end = metric_with(model, pair, row, layer, [pair.answer_position]) - clean
            assert float(found.all_positions[row, layer]) == pytest.approx(everywhere, abs=2e-5)
            assert float(found.last_position[row, layer]) == pytest.approx(at_end, abs=2e-5)
            for role, name in enumerate(found.roles):
                effect = float(found.by_role[row, layer, role])
                where = {"first": 0, "end": pair.answer_position, **pair.roles}.get(name)
                if effect == effect and where is not None:
                    expected = metric_with(model, pair, row, layer, [where]) - clean
                    assert effect == pytest.approx(expected, abs=2e-5)


def spelled(family):
    """A tiny model whose tokens are called t0, t1, ..."""
    raw = Tokenizer(models.WordLevel({f"t{i}": i for i in range(61)}, unk_token="t0"))
    return Model(tiny(family).hf, PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="t0"), f"spelled-{family}")


def changes_by_hand(model, layer):
    """Probabilities minus those when only the logits see an MLP write what it does on the corrupted prompt; mean."""
    changes, written = torch.zeros(61), []
    write = model.blocks[layer].mlp_ends[1]
    for pair in TASK.pairs:
        at, written[:] = pair.answer_position, []
        kept = write.register_forward_hook(lambda module, args, out: written.append(out.view(-1, 24).detach()))
        with torch.no_grad():
            logits = [model.hf(torch.tensor([ids])).logits[0, at] for ids in (pair.corrupted, pair.clean)]
            kept.remove()
            difference = torch.zeros(len(pair.clean), 24)
            difference[at] = (written[0] - written[1])[at]
            put = model.final_norm.module.register_forward_pre_hook(
                lambda module, args, more=difference: args[0] + more
            )
            logits.append(model.hf(torch.tensor([pair.clean])).logits[0, at])
            put.remove()
        changes += (logits[1].softmax(-1) - logits[2].softmax(-1)) / len(TASK.pairs)
    return changes


@pytest.mark.parametrize("family", FAMILIES)
def test_raised_and_lowered_tokens_are_those_whose_probability_changes_most(family):
    model = spelled(family)
    found = cm.heads.explain_mlps(model, Circuit.full(model.graph), TASK)
    for place in range(len(found.names)):
        changes = changes_by_hand(model, place)
        for named, largest in ((found.raised[place], True), (found.lowered[place], False)):
            values, tokens = changes.topk(5, largest=largest)
            expected = [(f"t{token}", value) for token, value in zip(tokens.tolist(), values.tolist(), strict=True)]
            expected = [(token, value) for token, value in expected if (value if largest else -value) >= 0.001]
            assert [token for token, _ in named] == [token for token, _ in expected]
            assert [value for _, value in named] == pytest.approx([value for _, value in expected], abs=1e-5)
    assert any(found.raised) or family == "neox-parallel"  # whose MLPs write little


def test_no_tokens_are_named_where_there_is_no_vocabulary_to_name_them_from():
    found = cm.heads.explain_mlps(tiny("llama"), Circuit.full(tiny("llama").graph), TASK)
    assert found.raised == found.lowered == ((), (), ())


def test_the_last_mlp_acts_on_the_logits_alone():
    model = tiny("llama")
    found = cm.heads.explain_mlps(model, Circuit.full(model.graph), TASK)
    torch.testing.assert_close(found.direct[:, -1], found.last_position[:, -1], rtol=0, atol=2e-5)
    torch.testing.assert_close(found.direct[:, -1], found.all_positions[:, -1], rtol=0, atol=2e-5)
    assert not torch.allclose(found.direct[:, 0], found.last_position[:, 0], atol=1e-4)


def test_what_it_reads_and_feeds_are_edges_of_the_circuit():
    model = tiny("llama")
    edges = ["embed->m0.in", "a0.h1->m1.in", "m0->m1.in", "m1->a2.h0.q", "m1->logits"]
    found = cm.heads.explain_mlps(model, Circuit.of(model.graph, edges), TASK)
    assert found.names == ("m0", "m1")
    assert found.reads("m1") == ("a0.h1", "m0") and found.feeds("m1") == ("a2.h0.q", "logits")
    by_name = {mlp["mlp"]: mlp for mlp in found.to_dict()}
    assert by_name["m0"]["feeds"] == ["m1.in"] and by_name["m0"]["reads"] == ["embed"]
    assert [mlp["mlp"] for mlp in found.to_dict()] == [found.names[i] for i in found.ranked]


def test_a_circuit_without_mlps_has_none_to_explain():
    model = tiny("llama")
    found = cm.heads.explain_mlps(model, Circuit.of(model.graph, ["embed->a0.h0.q", "a0.h0->logits"]), TASK)
    assert found.names == () and found.to_dict() == []


def test_it_acts_where_ablating_it_surely_matters_most():
    model, task = cm.load("tracr-reverse"), cm.ground_truth.task("tracr-reverse", 16)
    circuit = cm.ground_truth.true_circuit(model, task, ablation="zero")
    found = cm.heads.explain_mlps(model, circuit, task, ablation="zero")
    for place in range(len(found.names)):
        effects = found.by_role[:, place].nanmean(0)
        if found.acts_at(place):
            assert effects.abs().nan_to_num(0).argmax() == found.roles.index(found.acts_at(place))
    assert any(found.acts_at(place) for place in range(len(found.names)))


NONE = float("nan")


@pytest.mark.parametrize(
    ("at_end", "role"),
    [
        ((-9.0, -9.1, -9.0, -8.9, -9.0), "end"),
        ((-9.0, 9.0, -9.0, 8.0, -9.0), "first"),  # the larger effect on average, but prompts disagree
        ((-9.0, -9.1, -9.0, NONE, NONE), "end"),
        ((-9.0, -9.0, NONE, NONE, NONE), "first"),  # two prompts say nothing of others
    ],
)
def test_a_role_is_named_only_where_the_interval_of_its_effect_excludes_zero(at_end, role):
    model = tiny("llama")
    found = cm.heads.explain_mlps(model, Circuit.full(model.graph), TASK)
    by_role = torch.full_like(found.by_role, NONE)
    by_role[:, 0, found.roles.index("end")] = torch.tensor(at_end)
    by_role[:, 0, found.roles.index("first")] = torch.linspace(1.0, 1.1, 5)
    known = replace(found, by_role=by_role, scale=1.0)
    assert [known.acts_at(place) for place in range(3)] == [role, "", ""]
    assert known.role_effects[0][found.roles.index("end")].value == pytest.approx(float(by_role[:, 0, -1].nanmean()))
    assert known.to_dict()[known.ranked.index(0)]["by_role"]["first"]["value"] == pytest.approx(1.05)


def test_batches_do_not_decide_what_is_measured():
    model, task = tiny("llama"), random_task(12)
    circuit = Circuit.full(model.graph)
    longest = max(len(pair.clean) for pair in task.pairs)
    budget = 2 * longest * model.bytes_per_token(gradients=False)
    whole, cut = (cm.heads.explain_mlps(model, circuit, task, max_memory=size) for size in (None, budget))
    torch.testing.assert_close(cut.by_role, whole.by_role, rtol=0, atol=2e-5, equal_nan=True)
    assert [cut.acts_at(i) for i in range(3)] == [whole.acts_at(i) for i in range(3)]
