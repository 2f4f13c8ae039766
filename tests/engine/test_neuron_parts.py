"""Single neurons ablated, scaled and patched by hand, and changes that act on prompts or on generated tokens alone."""

import contextlib

import pytest
import torch
from by_hand import PROMPTS, close, padded, run
from families import CONFIGS, tiny

import circuitome as cm
from circuitome.errors import InputError

QUICK = ("gemma2", "opt", "gpt2")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
WRITERS = {"gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h", "opt": "fc2"}


@contextlib.contextmanager
def raw(model, layer, edits):
    """Raw hooks in front of the module that the family's code calls last in its MLP."""
    block = model.blocks[layer].layer
    name = WRITERS.get(model.hf.config.model_type, "mlp.down_proj")

    def before(_, args):
        hidden = args[0].clone()
        for index, edit in edits.items():
            hidden[..., index] = edit(hidden[..., index])
        return (hidden,)

    handle = block.get_submodule(name).register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_neurons_are_zeroed_and_scaled_in_front_of_the_last_projection(name):
    model, inputs = tiny(name), padded("left")
    with torch.no_grad():
        plain = run(model, inputs)
        with cm.ablate(model, ["m1.n3", "m0.n5", "m1.n0"]), cm.scale(model, "m0.n2", -3.0):
            found = run(model, inputs)
        zero = dict.fromkeys((3, 0), torch.zeros_like)
        with raw(model, 1, zero), raw(model, 0, {5: torch.zeros_like, 2: lambda a: -3 * a}):
            expected = run(model, inputs)
        close(found, expected)
        assert not torch.allclose(found, plain, atol=1e-6)
        assert torch.equal(run(model, inputs), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_values_of_neurons_come_from_prompts(name):
    model, inputs = tiny(name), padded("right")
    hidden = cm.activations(model, PROMPTS, "m1.hidden")["m1.hidden"]
    mean = hidden[..., 3][~hidden[..., 3].isnan()].mean()
    with torch.no_grad():
        with cm.ablate(model, "m1.n3", value="mean", prompts=PROMPTS):
            close(run(model, inputs), *_run_with(model, inputs, {3: lambda a: mean.expand_as(a)}))
        with cm.ablate(model, "m1.n3", value=torch.tensor(1.5)):
            close(run(model, inputs), *_run_with(model, inputs, {3: lambda a: torch.full_like(a, 1.5)}))
        source = cm.activations(model, [PROMPTS[1]], "m1.hidden")["m1.hidden"][0, -1, 7]
        with cm.patch_in(model, ["m1.n7"], PROMPTS[1], at="end", source_at="end"):
            seen = cm.activations(model, PROMPTS, "m1.hidden")["m1.hidden"]
    for row, prompt in enumerate(PROMPTS):
        assert float(seen[row, len(prompt) - 1, 7]) == pytest.approx(float(source), rel=1e-5)
        torch.testing.assert_close(seen[row, : len(prompt) - 1], hidden[row, : len(prompt) - 1])


def _run_with(model, inputs, edits):
    with raw(model, 1, edits):
        return (run(model, inputs),)


@pytest.mark.parametrize("part", ["a1.h0", "m1", "m1.n3"])
def test_prompts_and_generated_tokens_can_be_changed_alone(part):
    model, inputs = tiny("llama"), padded("left", [PROMPTS[0]] * 2)
    model.hf.generation_config.eos_token_id = None
    seen = []

    def changed(at, factor=-40.0):
        seen.clear()
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        with cm.scale(model, part, factor, at=at), cm.hook(model, "m1.out", lambda v: seen.append(v.detach().clone())):
            model.hf.generate(**inputs, **options)
        return list(seen)

    plain = changed("all", 1.0)
    whole, prompt, generated = (changed(at) for at in ("all", "prompt", "generated"))
    assert [v.shape[1] for v in plain] == [7, 1, 1, 1]
    torch.testing.assert_close(prompt[0], whole[0])
    torch.testing.assert_close(generated[0], plain[0])
    assert not torch.allclose(whole[0], plain[0]) and not torch.allclose(generated[1], plain[1])


def test_neurons_that_are_not_there_and_places_without_generated_tokens():
    model = tiny("llama")
    with pytest.raises(InputError, match="has neurons 0 to"), cm.ablate(model, "m0.n9999"):
        pass
    given = {"source_at": "generated"}
    with pytest.raises(InputError, match="no generated tokens"), cm.patch_in(model, "m0.n1", PROMPTS[0], **given):
        pass
    with pytest.raises(InputError, match=r"\[prompts, positions, 1\]"), cm.ablate(model, "m0.n1", value=torch.ones(3)):
        pass
