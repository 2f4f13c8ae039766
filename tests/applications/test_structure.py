"""Smaller models: equal to the model with the removed parts ablated, on every family; plain transformers load them."""

from contextlib import ExitStack

import pytest
import torch
from by_hand import PROMPTS, close, padded, run
from families import CONFIGS, tiny
from transformers import AutoModelForCausalLM

import circuitome as cm
from circuitome.applications.structure import BlockParts, cut, groups_allowed, heads_go, whole, without
from circuitome.editing.checkpoint import holds_mean
from circuitome.errors import InputError
from circuitome.models.hooks import hooked
from circuitome.models.loading import load
from circuitome.models.saving import write_checkpoint

INPUTS = padded("right")
QUICK = ("gpt2", "llama", "gemma2")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def some(model):
    """Other key/value heads and neurons go in each block."""
    kv = model.heads.kv
    return [
        BlockParts(
            layer,
            tuple(g for g in range(kv) if g != layer % kv),
            tuple(n for n in range(block.n_neurons) if n % 10 not in (layer, 9 - layer)),
        )
        for layer, block in enumerate(model.blocks)
    ]


def ablated_by_hand(model, kept, means):
    """The removed parts' inputs of the last projections set to constants, one hook a block."""
    stack = ExitStack()
    for parts in kept:
        block, gone = model.blocks[parts.layer], without(model, parts)
        for module, names, width in (
            (block.output, [n for n in gone.names(model) if ".h" in n], model.heads.width),
            (block.mlp_writer, [n for n in gone.names(model) if ".n" in n], 1),
        ):

            def constant(module, args, names=names, width=width):
                values = args[0].clone().unflatten(-1, (-1, width))
                for name in names:
                    values[..., cm.Node.parse(name).index, :] = means.get(name, torch.zeros(())).to(values)
                return (values.flatten(-2),)

            stack.enter_context(hooked(module.register_forward_pre_hook, constant))
    return stack


def logits_of(folder):
    saved = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    places = (INPUTS["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return saved(**INPUTS, position_ids=places).logits[INPUTS["attention_mask"].bool()]


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_removed_is_the_same_model(name, tmp_path):
    model = tiny(name)
    with torch.no_grad():
        same = cut(model, whole(model))
        assert torch.equal(run(same, INPUTS), run(model, INPUTS))
        close(logits_of(write_checkpoint(same, tmp_path / "same")), run(model, INPUTS), 1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_removed_parts_are_ablated_parts(name, tmp_path):
    model, kept = tiny(name), some(tiny(name))
    plain = {key: value.clone() for key, value in model.hf.state_dict().items()}
    gone = [part for parts in kept for part in without(model, parts).names(model)]
    edit = cm.Edit.ablate(model, gone, value="mean", prompts=PROMPTS)
    means = {n: v for n, v in edit.changes[0].values.items() if holds_mean(model, cm.Node.parse(n).kind)}
    with torch.no_grad():
        for label, constants in (("zero", {}), ("mean", means)):
            small = cut(model, kept, constants)
            with ablated_by_hand(model, kept, constants):
                expected = run(model, INPUTS)
            close(run(small, INPUTS), expected, 1e-5)
            close(logits_of(write_checkpoint(small, tmp_path / label)), expected, 1e-5)
            if not model.blocks[0].attention_post:  # elsewhere an ablated head leaves the post-norm's divisor
                value = "mean" if len(constants) == len(gone) else "zero"
                if value == "mean" or not constants:
                    with model.edited(cm.Edit.ablate(model, gone, value=value, prompts=PROMPTS)):
                        close(run(model, INPUTS), expected, 1e-5)
    assert small.heads.kv == model.heads.kv - heads_go(model)
    assert small.blocks[0].n_neurons < model.blocks[0].n_neurons
    assert sum(p.numel() for p in small.hf.parameters()) < sum(p.numel() for p in model.hf.parameters())
    assert all(torch.equal(value, plain[key]) for key, value in model.hf.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_removed_blocks_are_skipped_blocks(name, tmp_path):
    model = tiny(name)
    parts = whole(model)
    with torch.no_grad():
        small = cut(model, [parts[0], parts[2]])
        block = model.blocks[1].layer
        original, block.forward = block.forward, lambda hidden_states, *args, **kwargs: hidden_states
        expected = run(model, INPUTS)
        block.forward = original
        close(run(small, INPUTS), expected, 1e-5)
        close(logits_of(write_checkpoint(small, tmp_path / "small")), expected, 1e-5)
    assert load(tmp_path / "small").graph.n_layers == 2


def test_a_block_can_lose_everything():
    model = tiny("llama")
    kept = [BlockParts(layer, (), ()) for layer in range(3)]
    gone = [part for parts in kept for part in without(model, parts).names(model)]
    with torch.no_grad(), model.edited(cm.Edit.ablate(model, gone)):
        close(run(cut(model, kept), INPUTS), run(model, INPUTS), 1e-5)
    assert cut(model, kept).heads.kv == 1


def test_half_precision_is_kept(tmp_path):
    model = load(write_checkpoint(tiny("llama"), tmp_path / "read"), dtype=torch.bfloat16)
    small = cut(model, some(model))
    assert small.dtype == torch.bfloat16 and bool(run(small, INPUTS).isfinite().all())
    # what is no weight, such as frequencies of rotations, is not rounded
    for name, buffer in small.hf.named_buffers():
        assert torch.equal(buffer, model.hf.get_buffer(name)), name


def test_bad_input():
    model = tiny("llama")
    parts = whole(model)
    with pytest.raises(InputError, match="keep at least one"):
        cut(model, [])
    with pytest.raises(InputError, match="one number of key/value heads"):
        cut(model, [BlockParts(0, (0,), parts[0].neurons), *parts[1:]])
    with pytest.raises(InputError, match="no bias that could hold"):
        cut(tiny("mistral-window"), parts, {"a0.h0": torch.zeros(6)})
    assert groups_allowed(model, 1)
