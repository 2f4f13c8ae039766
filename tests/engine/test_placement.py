"""Models in pieces, on several devices or offloaded to the CPU or disk: results are those of the model in one piece."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from each_method import FIRST, METHODS, results, same
from families import random_task, tiny
from other_device import DEVICE, other_device, to_other_device
from torch import Tensor

import circuitome as cm
from circuitome.errors import InputError
from circuitome.models.loading import weights_hash
from circuitome.models.placement import state


def in_pieces(name: str, how: str, folder: Path) -> cm.Model:
    """A tiny model whose weights are loaded for one module at a time."""
    hf = tiny(name).hf
    if how == "cpu":
        accelerate.cpu_offload(hf, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(hf, str(folder), execution_device=torch.device("cpu"))
    return cm.load(hf)


SLOW = pytest.mark.slow
EACH = [pytest.param(name, FIRST, marks=SLOW) for name in ("gpt2", "neox-parallel", "phi3", "olmo2", "opt")]


@pytest.mark.parametrize(
    ("name", "names"), [("llama-bias", ("eap",)), pytest.param("llama", tuple(METHODS), marks=SLOW), *EACH]
)
def test_offloaded_weights_give_the_same(name: str, names: tuple[str, ...]) -> None:
    expected, model = results(tiny(name), names), in_pieces(name, "cpu", Path())
    assert {p.device.type for p in model.hf.parameters()} == {"meta"}
    same(results(model, names), expected)
    assert {p.device.type for p in model.hf.parameters()} == {"meta"}
    assert weights_hash(model) == weights_hash(tiny(name))


@pytest.mark.parametrize("name", ["llama-bias", pytest.param("gemma2", marks=SLOW), pytest.param("phi3", marks=SLOW)])
def test_weights_on_disk_give_the_same(name: str, tmp_path: Path) -> None:
    expected, model = results(tiny(name), ("eap", "run_circuit")), in_pieces(name, "disk", tmp_path)
    assert list(tmp_path.glob("*.dat"))
    same(results(model, ("eap", "run_circuit")), expected)


def test_the_backward_pass_keeps_no_weights() -> None:
    model, shapes = in_pieces("llama", "cpu", Path()), list[tuple[int, ...]]()

    def note(saved: Tensor) -> Tensor:
        shapes.append(tuple(saved.shape))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        cm.eap(model, random_task())
    assert shapes
    weights = {tuple(t.shape) for _, t in state(model.hf) if t.ndim == 2}
    assert not weights & {*shapes, *(shape[::-1] for shape in shapes)}


SPREAD = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}


def test_a_map_is_followed(tmp_path: Path) -> None:
    tiny("llama").hf.save_pretrained(tmp_path)
    model = cm.load(tmp_path, device_map={**SPREAD, "lm_head": "cpu"})
    assert model.hf.model.layers[0].mlp.up_proj.weight.device.type == "meta"  # type: ignore[attr-defined, union-attr]
    assert torch.equal(cm.eap(model, random_task()).values, cm.eap(tiny("llama"), random_task()).values)
    with pytest.raises(InputError, match="is spread over devices by its device_map, so it cannot be moved to cpu"):
        cm.load(model.hf, device="cpu")
    with pytest.raises(InputError, match=r"Training changes weights .* are spread over devices or offloaded"):
        model.check_open("Training")
    assert model.in_one_piece().blocks[0].mlp_writer.weight.device.type == "cpu"  # type: ignore[union-attr]


def test_models_that_are_made_here_follow_a_map_too() -> None:
    task = cm.ground_truth.task("known-ioi", 8)
    names = [name for name, _ in cm.load("known-ioi").hf.named_children()]
    model = cm.load("known-ioi", device_map=dict.fromkeys(names, "cpu") | {"layers": "disk"})
    assert torch.equal(cm.eap(model, task).values, cm.eap(cm.load("known-ioi"), task).values)
    assert cm.load("known-ioi", device="auto").device.type == "cpu"


@pytest.mark.parametrize("live", [False, True])
def test_wrong_maps_are_refused(live: bool, tmp_path: Path) -> None:
    tiny("llama").hf.save_pretrained(tmp_path)
    model = tiny("llama").hf if live else tmp_path
    with pytest.raises(InputError, match=r"The device_map leaves modules of \S+ out: lm_head.weight"):
        cm.load(model, device_map=SPREAD)
    with pytest.raises(InputError, match=r"There is no module 'lm_heat'\. Did you mean 'lm_head'\?"):
        cm.load(model, device_map={**SPREAD, "lm_heat": "cpu"})
    with pytest.raises(InputError, match="The device 'cuda:9' cannot be used"):
        cm.load(model, device_map={**SPREAD, "lm_head": "cuda:9"})


@contextmanager
def on_two_devices(name: str, home: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[cm.Model]:
    """A tiny model whose second block, last norm and unembedding are on one device, all else on the other, `home`."""
    with other_device(cm.load, monkeypatch):
        hf = tiny(name).hf
        model = cm.Model(hf, None, "whole")
        there = [model.blocks[1].layer, model.final_norm.module, hf.lm_head]
        for module in hf.modules():
            away = any(module in part.modules() for part in there) != (home == "other")
            if away:
                to_other_device(module, whole=False)
            if len(module.state_dict()):
                hook = AlignDevicesHook(DEVICE if away else torch.device("cpu"), io_same_device=module is hf)
                monkeypatch.setattr(hook, "init_hook", lambda module: module)  # the weights are there already
                add_hook_to_module(module, hook)
        yield cm.Model(hf, None, f"tiny-{name}")


@pytest.mark.parametrize(
    ("name", "names", "home"),
    [
        ("llama", ("eap",), "cpu"),
        pytest.param("llama", FIRST, "other", marks=SLOW),
        pytest.param("gemma2", tuple(METHODS), "other", marks=SLOW),
        *(pytest.param(*case.values, "cpu", marks=SLOW) for case in EACH),
    ],
)
def test_two_devices_give_the_same(
    name: str, names: tuple[str, ...], home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = results(tiny(name), names)
    with on_two_devices(name, home, monkeypatch) as model:
        assert {p.device.type for p in model.hf.parameters()} == {"cpu", "meta"}
        assert model.device.type == {"cpu": "cpu", "other": "meta"}[home]
        found = results(model, names)
    same(found, expected, 2e-5)  # torch has another kernel for attention on the stand-in
