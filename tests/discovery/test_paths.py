"""Path patching against the published four passes, written out with hooks on Hugging Face's modules."""

from contextlib import ExitStack

import pytest
import torch
from families import random_task, tiny
from referee import inputs_of

from circuitome.discovery.patching.path import path_patch
from circuitome.discovery.patching.tracing_back import trace_back
from circuitome.engine.run_circuit import run_circuit
from circuitome.errors import InputError, UnknownNameError
from circuitome.graph.circuits import Circuit

TASK = random_task(3, lengths=(5, 6))


def four_passes(model, row, sender, receiver, positions):
    """The metric of prompt `row` after patching one sender head into one reader, MLPs free (Wang et al., app. B)."""
    pair, graph = TASK.pairs[row], model.graph
    clean, new = model.record(inputs_of(model, pair.clean)), model.record(inputs_of(model, pair.corrupted))
    layer, head = graph.layer_of[graph.row(sender)], int(sender.split("h")[1])
    column = graph.column(receiver)
    target = graph.reader_layer[column]
    part = slice(head * model.heads.width, (head + 1) * model.heads.width)

    def freeze(at, z):
        z = clean.z[at].clone()
        if at == layer:
            z[..., part] = new.z[layer][..., part]
        return z

    def hook(module, function):
        return module.register_forward_pre_hook(lambda m, args: (function(args[0]), *args[1:])).remove

    with torch.no_grad(), ExitStack() as stack:
        for at, block in enumerate(model.blocks):
            stack.callback(hook(block.output, lambda z, at=at: freeze(at, z)))
        seen = model.record(inputs_of(model, pair.clean))
    block = model.blocks[target]
    reader = column - graph.attention_columns(target).start
    online = block.split([module(block.attend_inputs(seen.resid_pre[target])) for module in block.projections])
    values = block.split(clean.projected[target], copy=True)
    values[:, positions, reader] = online[:, positions, reader]
    with torch.no_grad(), ExitStack() as stack:  # what is in front of the receiver is clean
        for module, value in zip(block.projections, block.merge(values), strict=True):
            stack.callback(module.register_forward_hook(lambda m, a, o, value=value: value).remove)
        logits = model.hf(torch.tensor([pair.clean])).logits[:, -1]
    return TASK.score(logits, [row])[0]


EDGES = [("a0.h1", "a2.h2.q"), ("a0.h3", "a1.kv1.k"), ("a1.h0", "a2.kv0.v")]
QUICK = [("llama", EDGES[1]), ("gpt2", EDGES[0])]
CASES = [(name, edge) for name in ("gpt2", "neox-parallel", "llama") for edge in EDGES]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "edge"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_path_patching_is_the_published_four_passes(name, edge):
    model = tiny(name)
    sender, receiver = edge
    effects = path_patch(model, TASK, receiver, senders=[sender], receiver_positions="end")
    all_positions = path_patch(model, TASK, receiver, senders=[sender], receiver_positions="all")
    for row, pair in enumerate(TASK.pairs):
        for found, positions in ((effects, [len(pair.clean) - 1]), (all_positions, slice(None))):
            expected = four_passes(model, row, sender, receiver, positions) - found.clean[row]
            layer, head = int(sender[1]), int(sender[-1])
            torch.testing.assert_close(found.samples[row, layer + 1, head], expected, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gemma2",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "neox-parallel", "olmo2", "opt")),
    ],
)
def test_with_mlps_frozen_one_path_is_one_edge(name):
    model = tiny(name)
    full = Circuit.full(model.graph)
    for sender, receiver in [
        ("embed", "a1.h0.q"),
        ("a0.h1", "a2.kv0.k"),
        ("m0", "a1.kv1.v"),
        ("a1.h2", "m2.in"),
        ("m1", "logits"),
        ("a2.h3", "logits"),
    ]:
        where = None if receiver == "logits" else "all"
        found = path_patch(model, TASK, receiver, senders=[sender], receiver_positions=where, freeze_mlps=True)
        mask = full.mask.clone()
        mask[model.graph.row(sender), model.graph.column(receiver)] = False
        without = TASK.score(run_circuit(model, TASK, Circuit(model.graph, mask)), range(len(TASK)))
        effect = found.samples.flatten(1)[:, ~found.samples[0].flatten().isnan()][:, 0]
        torch.testing.assert_close(effect, without - found.clean, atol=2e-5, rtol=2e-5)


def test_senders_together_into_all_inputs_of_the_last_block_are_the_set_of_edges():
    model = tiny("llama")
    graph = model.graph
    receivers = [graph.readers[c] for c in range(graph.attention_columns(2).start, graph.attention_columns(2).stop)]
    senders = ["embed", "a0.h0", "a0.h2", "m1"]
    found = path_patch(
        model, TASK, receivers, senders=senders, receiver_positions="all", freeze_mlps=True, together=True
    )
    mask = graph.mask.clone()
    for sender in senders:
        mask[graph.row(sender), graph.attention_columns(2)] = False
    without = TASK.score(run_circuit(model, TASK, Circuit(graph, mask)), range(len(TASK)))
    torch.testing.assert_close(found.samples[:, 0, 0], without - found.clean, atol=2e-5, rtol=2e-5)
    assert found.samples.shape == (3, 1, 1)


def test_a_sender_that_comes_later_does_nothing_and_positions_restrict():
    model = tiny("gpt2")
    late = path_patch(model, TASK, "a1.h0.q", senders=["a2.h0", "m1"])
    assert float(late.samples.nan_to_num().abs().max()) == 0.0
    nowhere = path_patch(model, TASK, "a2.h0.v", senders=["a0.h0"], sender_positions=-1, receiver_positions=-2)
    assert float(nowhere.samples.nan_to_num().abs().max()) < 1e-5  # what is left is rounding


def test_one_prompt_has_no_interval_so_that_sizes_decide():
    model = tiny("gpt2")
    for prompts in (1, 3):
        trace = trace_back(model, random_task(prompts), depth=1, width=2, threshold=0.0)
        assert trace.certain == (prompts > 1)
    alone = trace_back(model, random_task(1), depth=1, width=3, threshold=0.0)
    effects = alone.levels[0][0]
    assert {edge.split("->")[0] for edge in alone.circuit} == {name for name, _ in effects.top(3)}
    (_, first), (_, second) = effects.top(2)
    between = (abs(first.value) + abs(second.value)) / 2 / abs(effects.gap)
    assert len(trace_back(model, random_task(1), depth=1, threshold=between).circuit) == 1


@pytest.mark.slow
def test_trace_back_ends_as_a_circuit_whose_edges_lead_to_the_logits():
    model, task = tiny("gpt2"), random_task(1)  # sizes alone decide; no effect of a random model is certain
    trace = trace_back(model, task, depth=3, width=2, threshold=0.0)
    assert trace.receivers[0] == ("logits",)
    assert len(trace.circuit) > 2
    assert trace.circuit.without_dangling() == trace.circuit or len(trace.levels) == 3
    assert trace_back(model, task, depth=1, width=2, threshold=1e9).circuit == Circuit.empty(model.graph)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"receivers": []}, InputError, "none"),
        ({"receivers": ["logits", "m1.in"]}, InputError, "either the logits"),
        ({"receivers": "a9.h0.q"}, UnknownNameError, "a9.h0.q"),
        ({"senders": ["h3"]}, UnknownNameError, "h3"),
        ({"receivers": "a1.h0.q", "receiver_positions": "S9"}, InputError, "S9"),
        ({"receivers": "a1.h0.q", "receiver_positions": 40}, InputError, "outside"),
        ({"receiver_positions": "all"}, InputError, "the end"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        path_patch(tiny("gpt2"), TASK, **options)
