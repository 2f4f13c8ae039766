"""Direct logit attribution sums to the model's logit difference, part by part like the slow form."""

from dataclasses import replace

import pytest
import torch
from families import CONFIGS, random_task
from referee import inputs_of, writer_outputs

from circuitome.engine.setting import Setting
from circuitome.errors import InputError, MemoryBudgetError, UnknownNameError
from circuitome.models.loading import load
from circuitome.weights.logits import direct_logit_attribution

QUICK = ("gpt2", "neox-parallel", "gemma2", "olmo2")
"""Families with what is special: fused, interleaved and parallel, sandwich norms and caps, norms on q and k."""


def uncapped(model, task):
    """Logit differences of the plain model, a soft cap undone."""
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    rows = []
    with torch.no_grad():
        for pair in task.pairs:
            logits = model.hf(torch.tensor([pair.clean])).logits[:, pair.answer_position]
            rows.append(torch.atanh(logits.double() / cap).float() * cap if cap else logits)
    return task.score(torch.cat(rows), range(len(task)))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_parts_sum_to_the_models_logit_difference(small, name):
    model, task = small(name), random_task(4)
    found = direct_logit_attribution(model, task)
    assert found.samples.shape == (4, len(model.graph.writers) + 1)
    expected = uncapped(model, task)
    torch.testing.assert_close(found.samples.sum(1), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logit_diff, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "olmo2"])
def test_each_part_is_its_vector_through_the_frozen_norm(small, name):
    model, task = small(name), random_task(1)
    pair = task.pairs[0]
    found = direct_logit_attribution(model, task)
    with torch.no_grad():
        final = model.record(inputs_of(model, pair.clean)).final[0, -1]
    norm, u = model.final_norm, model.unembedding.weight.detach()
    direction = norm.gain * (u[pair.answers[0]] - u[pair.wrongs[0]])
    for i, out in enumerate(writer_outputs(model, pair.clean)):
        expected = norm.centre(out[-1]) @ direction / norm.sigma(final)[0]
        torch.testing.assert_close(found.samples[0, i], expected, atol=1e-4, rtol=1e-4)


def test_batches_and_padding_change_nothing_and_any_position_may_be_read(small):
    model = small("llama")
    task = random_task(5)
    task = replace(
        task, pairs=tuple(replace(pair, answer_position=3) if i % 2 else pair for i, pair in enumerate(task.pairs))
    )
    one = model.bytes_per_token(gradients=False) * 11
    alone = direct_logit_attribution(model, task, max_memory=one)
    torch.testing.assert_close(direct_logit_attribution(model, task).samples, alone.samples, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone.samples.sum(1), uncapped(model, task), atol=1e-4, rtol=1e-4)


def test_several_answers_are_averaged_and_no_wrong_ones_leave_the_logit(small):
    model, task = small("opt"), random_task(2)
    task = replace(task, pairs=tuple(replace(pair, answers=(3, 4), wrongs=()) for pair in task.pairs))
    found = direct_logit_attribution(model, task)
    torch.testing.assert_close(found.samples.sum(1), uncapped(model, task), atol=1e-4, rtol=1e-4)


def test_a_model_without_a_final_norm_has_no_scale():
    model = load("known-ioi")
    from circuitome.validation import ground_truth

    task = ground_truth.task("known-ioi", 10)
    found = direct_logit_attribution(model, task)
    torch.testing.assert_close(found.samples.sum(1), uncapped(model, task), atol=1e-3, rtol=1e-4)
    assert found.scale.eq(1).all()


def test_estimates_and_what_is_refused(small):
    model, task = small("llama"), random_task(3)
    found = direct_logit_attribution(model, task)
    name, estimate = found.top(1)[0]
    assert abs(estimate.value) == pytest.approx(float(found.samples.mean(0).abs().max()))
    assert found[name] == estimate
    assert found.to_dict()["parts"][name]["value"] == estimate.value
    with pytest.raises(UnknownNameError, match=r"no part 'm9'\. Did you mean"):
        found["m9"]
    with pytest.raises(MemoryBudgetError, match="One prompt of 9 tokens needs about"):
        direct_logit_attribution(model, task, max_memory=100)


@pytest.mark.slow
def test_smollm2_parts_sum_to_its_logit_difference(smollm2, small_ioi):
    found = direct_logit_attribution(smollm2, small_ioi)
    torch.testing.assert_close(found.samples.sum(1), uncapped(smollm2, small_ioi), atol=1e-4, rtol=1e-4)


def test_a_setting_gives_the_same_and_says_where_prompts_are_missing(small):
    model, task = small("gpt2"), random_task(3)
    calls = []
    setting = Setting(model, task, progress=lambda *at: calls.append(at))
    torch.testing.assert_close(direct_logit_attribution(setting).samples, direct_logit_attribution(model, task).samples)
    assert calls[-1] == ("attributing logits", 3, 3)
    with pytest.raises(InputError, match="needs prompts: call it with a model and a task"):
        direct_logit_attribution(model)
