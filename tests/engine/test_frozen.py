"""Frozen attention patterns: nothing changes with the model's own, and a head switched off moves nobody's attention."""

import pytest
import torch
from families import CONFIGS, tiny

from circuitome.engine.frozen_attention import frozen_patterns, recorded_patterns
from circuitome.heads.atlas.repeated import repeated_tokens
from circuitome.models.loading import load

SOME = ["gemma2", "gpt2", "known-induction"]
ALL = [*SOME, *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name not in SOME)]


def prepared(name):
    model = load(name) if name.startswith("known") else tiny(name)
    inputs = repeated_tokens(model, n=3, period=6).inputs
    return model, inputs, recorded_patterns(model, lambda: model.logits(inputs))


@pytest.mark.parametrize("name", ALL)
def test_the_models_own_patterns_give_its_own_logits(name):
    model, inputs, patterns = prepared(name)
    with torch.no_grad():
        plain = model.every_logits(inputs)
        with frozen_patterns(model, patterns):
            again = model.every_logits(inputs)
        after = model.every_logits(inputs)
    torch.testing.assert_close(again, plain, atol=1e-4, rtol=0)
    assert torch.equal(after, plain)


@pytest.mark.parametrize("name", ALL)
def test_a_head_switched_off_writes_nothing_and_later_layers_read_that(name):
    """Against the slow form: the head's z set to zero at the output projection, patterns put in layer by layer."""
    model, inputs, patterns = prepared(name)
    layer, head, width = 0, 1, model.heads.width
    keep = torch.ones(len(model.blocks), model.heads.q)
    keep[layer, head] = 0

    def zeroed(module, args):
        z = args[0].clone()
        z[..., head * width : (head + 1) * width] = 0
        return (z,)

    with torch.no_grad():
        with frozen_patterns(model, patterns, keep):
            fast = model.every_logits(inputs)
        handle = model.blocks[layer].output.register_forward_pre_hook(zeroed)
        with frozen_patterns(model, patterns):
            slow = model.every_logits(inputs)
        moving = model.every_logits(inputs)
        handle.remove()
        plain = model.every_logits(inputs)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    if not name.startswith("known"):
        assert float((fast - plain).abs().max()) > 1e-3
        assert float((fast - moving).abs().max()) > 1e-4  # there, later heads look elsewhere


def test_another_pattern_moves_the_head_that_has_it():
    model, inputs, patterns = prepared("known-induction")
    still = [pattern.clone() for pattern in patterns]
    still[1][:, 0] = torch.eye(still[1].shape[-1])  # the induction head looks at the token itself
    with torch.no_grad(), frozen_patterns(model, still):
        said = model.every_logits(inputs).argmax(-1)
    assert torch.equal(said[:, 1:], inputs.ids[:, 1:])
