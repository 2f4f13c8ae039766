"""Patching against Hugging Face's own forward with a hook that overwrites one activation."""

import pytest
import torch
from families import random_task, tiny
from referee import inputs_of, writer_outputs

from circuitome.discovery.patching.activation import patch
from circuitome.errors import InputError, UnknownNameError
from circuitome.models.hooks import hooked

TASK = random_task(3, lengths=(5, 6))
NAMES = ["gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "neox-parallel", "olmo2"))]


def both(pair, direction):
    return (pair.clean, pair.corrupted) if direction == "noise" else (pair.corrupted, pair.clean)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["noise", pytest.param("denoise", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_patched_heads_are_the_models_own_pass_with_one_heads_share_replaced(name, direction):
    """The share is changed behind the post-norm where there is one, whose divisor stays."""
    model = tiny(name)
    found = patch(model, TASK, "heads", direction=direction)
    placed = patch(model, TASK, "heads", direction=direction, by_position=True)
    for row, pair in enumerate(TASK.pairs):
        base, donor = both(pair, direction)
        plain = TASK.score(model.record(inputs_of(model, base)).logits, [row])
        for layer, head, offset in [(0, 1, None), (1, 3, None), (2, 0, None), (1, 2, -1), (2, 2, 0)]:
            writer = model.graph.row(f"a{layer}.h{head}")
            change = writer_outputs(model, donor)[writer] - writer_outputs(model, base)[writer]
            if offset is not None:
                change[torch.arange(len(base)) != len(base) - 1 + offset] = 0
            end = model.blocks[layer].attention_end
            with hooked(end.register_forward_hook, lambda m, args, out, change=change: out + change), torch.no_grad():
                logits = model.hf(torch.tensor([base])).logits[:, -1]
            expected = TASK.score(logits, [row]) - plain
            cell = (layer, head) if offset is None else (layer * 4 + head, placed.columns.index(str(offset)))
            got = (found if offset is None else placed).samples[row][cell]
            torch.testing.assert_close(got, expected[0], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_patching_the_stream_everywhere_later_swaps_the_prompts_and_mlps_are_patched_alone(name):
    model = tiny(name)
    resid, mlps = patch(model, TASK, "resid"), patch(model, TASK, "mlps")
    assert resid.columns[-1] == "0"
    for row, pair in enumerate(TASK.pairs):
        activations = model.record(inputs_of(model, pair.corrupted))
        plain = TASK.score(model.record(inputs_of(model, pair.clean)).logits, [row])

        def at_end(x, activations=activations):
            x = x.clone()
            x[:, -1] = activations.resid_pre[1][:, -1]
            return x

        handle = model.blocks[1].layer.register_forward_pre_hook(lambda m, args: (at_end(args[0]), *args[1:]))
        with torch.no_grad():
            expected = TASK.score(model.hf(torch.tensor([pair.clean])).logits[:, -1], [row]) - plain
        handle.remove()
        torch.testing.assert_close(resid.samples[row][1, -1], expected[0], atol=2e-5, rtol=2e-5)
        with torch.no_grad(), model.writing_mlp(1, activations.mlp_out[1]):
            expected = TASK.score(model.hf(torch.tensor([pair.clean])).logits[:, -1], [row]) - plain
        torch.testing.assert_close(mlps.samples[row][1, 0], expected[0], atol=2e-5, rtol=2e-5)


def test_the_map_names_its_cells_and_gives_intervals():
    found = patch(tiny("gpt2"), TASK, "heads")
    name, estimate = found.top(1)[0]
    layer, head = name[1:].split(".h")
    assert int(found.mean.abs().argmax()) == int(layer) * found.mean.shape[1] + int(head)
    assert estimate.value == pytest.approx(float(found.mean[int(layer), int(head)]), abs=1e-6)
    assert estimate.low <= estimate.value <= estimate.high
    assert found.to_dict()["rows"] == ["a0", "a1", "a2"]


@pytest.mark.parametrize(
    ("what", "options", "error", "message"),
    [
        ("head", {}, UnknownNameError, "heads"),
        ("heads", {"direction": "noising"}, UnknownNameError, "noise"),
        ("resid", {"by_position": False}, InputError, "by position"),
    ],
)
def test_bad_input(what, options, error, message):
    with pytest.raises(error, match=message):
        patch(tiny("gpt2"), TASK, what, **options)
