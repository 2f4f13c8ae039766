"""A setting is made from a model and a task, and gives what was asked for."""

import inspect

import pytest
from families import random_task, tiny

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, UnknownNameError


@method
def probe(setting: Setting, size: int, *, steps: int = 3) -> tuple:
    """What it was given."""
    return setting, size, steps


def test_a_method_takes_a_setting_or_a_model_with_its_prompts():
    model = tiny("llama")
    task = random_task()
    for args in ((model, task, 7), (model, 7, task)):
        setting, size, steps = probe(*args, steps=5, ablation="zero", seed=3)
        assert (setting.model, setting.prompts, size, steps) == (model, task, 7, 5)
        assert (setting.ablation, setting.seed, setting.max_memory) == ("zero", 3, None)
    assert probe(setting, 1) == (setting, 1, 3)
    assert list(inspect.signature(probe).parameters)[:4] == ["model", "task", "size", "steps"]
    assert "max_memory" in inspect.signature(probe).parameters


def test_what_cannot_be_is_refused():
    model = tiny("llama")
    with pytest.raises(InputError, match="needs prompts"):
        _ = Setting(model).task
    with pytest.raises(UnknownNameError, match="mean"):
        Setting(model, ablation="meen")
    with pytest.raises(TypeError, match="got str"):
        probe("smollm2-135m", 3)
    with pytest.raises(TypeError, match="unexpected"):
        probe(model, 3, stepz=1)


def test_baselines_follow_the_ablation():
    model = tiny("llama")
    setting = Setting(model, random_task())
    assert all(base.cached for base in setting.baselines())
    assert not any(base.cached for base in setting.but(ablation="mean").baselines())
