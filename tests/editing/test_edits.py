"""Edits: in force as the interventions they stand for, written into checkpoints that plain transformers loads."""

import pytest
import torch
from by_hand import PROMPTS, close, padded, run
from families import CONFIGS, tiny
from transformers import AutoModelForCausalLM

import circuitome as cm
from circuitome.editing.changes import Scaled
from circuitome.editing.checkpoint import written_into
from circuitome.errors import InputError, NumericsError, RunError, UnknownNameError

QUICK = ("gpt2", "llama", "gemma2")
FAMILIES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
INPUTS = padded("right")


def vector(model, seed=3):
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))


def edits(model):
    """Every change that weights of some family can hold."""
    last = len(model.blocks) - 1
    return {
        "head off": cm.Edit.ablate(model, ["a1.h0", "a0.h1"]),
        "head scaled": cm.Edit.scale(model, "a1.h1", -1.5),
        "neurons": cm.Edit.ablate(model, ["m0.n3", "m1.n0"]) + cm.Edit.scale(model, "m1.n5", 4.0),
        "mlp off": cm.Edit.ablate(model, "m1"),
        "mlp scaled": cm.Edit.scale(model, ["m0", "m1"], 0.5),
        "mean head": cm.Edit.ablate(model, "a1.h0", value="mean", prompts=PROMPTS),
        "mean neurons": cm.Edit.ablate(model, ["m0.n3", "m1.n1"], value="mean", prompts=PROMPTS),
        "mean mlp": cm.Edit.ablate(model, "m1", value="mean", prompts=PROMPTS),
        "added": cm.Edit.add(model, "m0.resid_post", vector(model)) + cm.Edit.add(model, "final", vector(model, 4)),
        "added before": cm.Edit.add(model, f"a{last}.resid_pre", vector(model)),
        "removed": cm.Edit.remove(model, vector(model)),
    }


BEHIND_ATTENTION = ("mean head",)
BEHIND_MLP = ("mean neurons", "mean mlp", "added", "added before")
UNDER_POST_NORMS = ("neurons", "mlp off", "mlp scaled")
"""Changes that need a bias; all that weights hold where there are post-norms."""


def is_held(model, label):
    block, config = model.blocks[0], model.hf.config
    if block.attention_post or block.mlp_post:
        return label in UNDER_POST_NORMS
    if label in BEHIND_ATTENTION:
        return block.output.bias is not None or getattr(config, "attention_bias", None) is False
    return label not in BEHIND_MLP or block.mlp_writer.bias is not None or hasattr(config, "mlp_bias")


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpoints_give_the_edited_models_logits(name, tmp_path):
    model = tiny(name)
    plain = {key: value.clone() for key, value in model.hf.state_dict().items()}
    with torch.no_grad():
        before = run(model, INPUTS)
        for label, edit in edits(model).items():
            if not is_held(model, label):
                with pytest.raises(InputError, match=r"model\.edited"):
                    edit.save(model, tmp_path / label)
                assert not (tmp_path / label).exists()
                continue
            folder = edit.save(model, tmp_path / label)
            with model.edited(edit):
                expected = run(model, INPUTS)
            assert not torch.allclose(expected, before, atol=1e-4), label
            saved = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
            places = (INPUTS["attention_mask"].cumsum(1) - 1).clamp(min=0)
            found = saved(**INPUTS, position_ids=places).logits[INPUTS["attention_mask"].bool()]
            close(found, expected, 1e-5)
    assert torch.equal(run(model, INPUTS), before)
    assert all(torch.equal(value, plain[key]) for key, value in model.hf.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_removed_direction_is_nowhere_in_the_stream(name):
    model, r = tiny(name), vector(tiny(name))
    with model.edited(cm.Edit.remove(model, r)):
        values = cm.activations(model, PROMPTS, ["m0.resid_post", "final", "embed"])
    for value in values.values():
        along = (value[~value.isnan().any(-1)] @ (r / r.norm())).abs().max()
        assert float(along) < 1e-4 * float(value.nan_to_num().norm(dim=-1).max())


def test_a_clamped_feature_has_the_value_and_its_own_value_changes_nothing():
    model = tiny("llama")
    width = model.d_model
    encoder = torch.eye(width)[:, :2] / 3
    dictionary = cm.features.Dictionary(
        place=cm.features.Place("resid", 0),
        W_enc=encoder,
        b_enc=torch.full((2,), -0.01),
        W_dec=torch.eye(width)[:2] * 3,
        b_dec=torch.zeros(width),
    )
    with torch.no_grad():
        plain = run(model, INPUTS)
        untouched = cm.activations(model, PROMPTS, "m0.resid_post")["m0.resid_post"]
        with model.edited(cm.Edit.clamp(dictionary, 1, 2.0)):
            assert not torch.allclose(run(model, INPUTS), plain, atol=1e-4)
            values = cm.activations(model, PROMPTS, "m0.resid_post")["m0.resid_post"]
        change = (values - untouched)[~values.isnan()].view(-1, width)
        assert not change[:, 2:].any() and not change[:, 0].any() and change[:, 1].any()  # the error term stays
        active = [bool((untouched[i, : len(row), 0] / 3 - 0.01 > 0).any()) for i, row in enumerate(PROMPTS)]
        for row, prompt in enumerate(PROMPTS):
            alone = {"input_ids": torch.tensor([prompt])}
            with model.edited(cm.Edit.clamp(dictionary, 0, 0.0)):
                same = model.hf(**alone).logits
            assert torch.equal(same, model.hf(**alone).logits) is not active[row]
        assert set(active) == {True, False}
    with pytest.raises(InputError, match="depends on the activations"):
        written_into(cm.Edit.clamp(dictionary, 0, 1.0), model)


def test_an_edit_says_what_it_is_and_acts_where_it_should():
    model = tiny("llama")
    edit = cm.Edit.scale(model, ["a0.h1", "m1"], 0.0) + cm.Edit.add(model, "m0.resid_post", vector(model), at="end")
    assert str(edit).startswith("a0.h1, m1 times 0; a vector of norm") and isinstance(edit.changes[0], Scaled)
    assert str(cm.Edit()) == "nothing"
    with torch.no_grad():
        plain = cm.activations(model, PROMPTS, "m0.resid_post")["m0.resid_post"]
        with model.edited(cm.Edit.add(model, "m0.resid_post", vector(model), at="end")):
            moved = cm.activations(model, PROMPTS, "m0.resid_post")["m0.resid_post"]
    for row, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(moved[row, len(prompt) - 1], plain[row, len(prompt) - 1] + vector(model))
        assert torch.equal(moved[row, : len(prompt) - 1], plain[row, : len(prompt) - 1])
    with pytest.raises(InputError, match="weights act at every position"):
        written_into(edit, model)


def test_changes_that_do_not_go_into_weights_together_are_found_out():
    model = tiny("gpt2")
    both = cm.Edit.ablate(model, "a1.h0", value="mean", prompts=PROMPTS) + cm.Edit.scale(model, "a1.h0", 3.0)
    with pytest.raises(InputError, match="give other logits than in force"):
        written_into(both, model)


BAD = [
    (lambda m: cm.Edit.ablate(m, "a0.h0", value="corrupted"), UnknownNameError, "no value of an edit 'corrupted'"),
    (lambda m: cm.Edit.ablate(m, "a0.h0", value="mean"), InputError, "give prompts=... or task"),
    (lambda m: cm.Edit.ablate(m, "a9.h0"), UnknownNameError, "a9.h0"),
    (lambda m: cm.Edit.scale(m, "m0", float("nan")), NumericsError, "finite"),
    (lambda m: cm.Edit.add(m, "m0.out", vector(m)), InputError, "not in the residual stream"),
    (lambda m: cm.Edit.add(m, "m0.resid_post", torch.ones(3)), InputError, r"shape \[3\]"),
    (lambda m: cm.Edit.remove(m, torch.zeros(m.d_model)), InputError, "vector of zeros"),
    (lambda m: cm.Edit.remove(m, torch.full((m.d_model,), torch.nan)), NumericsError, "NaN"),
    (lambda m: cm.Edit.add(m, "embed", vector(m)).save(m, "nowhere"), InputError, "in front of block 0"),
    (lambda m: cm.Edit.ablate(m, "embed").save(m, "nowhere"), InputError, "unembedding as well"),
]


@pytest.mark.parametrize(("make", "error", "match"), BAD)
def test_bad_input(make, error, match):
    with pytest.raises(error, match=match):
        make(tiny("llama"))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty"):
        cm.Edit.ablate(tiny("gpt2"), "a0.h0").save(tiny("gpt2"), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
