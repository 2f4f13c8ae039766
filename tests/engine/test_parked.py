"""Recorded activations that wait on the CPU or on disk: results are the same, and one block is held at a time."""

import gc
import os
import tempfile
from pathlib import Path

import pytest
import torch
from each_method import FIRST, METHODS, results, same
from families import random_task, tiny
from meta_models import Peak, on_meta, pairs, without_numbers
from other_device import moved, other_device

import circuitome as cm
from circuitome.discovery.attribution import contraction, edges
from circuitome.engine.backward_rules import PLAIN
from circuitome.engine.batches import make_batch
from circuitome.engine.setting import Setting
from circuitome.errors import USED, InputError, MemoryBudgetError, NumericsError, UnknownNameError
from circuitome.models import parked
from circuitome.models.inputs import Inputs

SLOW = pytest.mark.slow
EACH = [pytest.param(name, FIRST, marks=SLOW) for name in ("gpt2", "neox-parallel", "phi3", "olmo2", "opt")]


@pytest.fixture(autouse=True)
def nothing_is_too_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(parked, "SMALL", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("llama-bias", ("eap", "run_circuit")),
        *(pytest.param(name, tuple(METHODS), marks=SLOW) for name in ("llama", "gemma2")),
        *EACH,
    ],
)
def test_on_disk_results_are_the_same(name: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Up to rounding where numbers lie otherwise in a file: parts of fused projections, means that stand for many."""
    model = tiny(name)
    tolerance = 1e-5 if name in ("phi3", "gemma2") else 0.0
    same(results(model.with_activations_on("disk"), names), results(model, names), tolerance)
    assert not list(tmp_path.iterdir()), "files are left"


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean-position"])
def test_every_ablation_on_disk(ablation: str) -> None:
    model, task = tiny("gemma2"), random_task(6)
    expected = cm.eap_ig(model, task, steps=2, ablation=ablation).values
    assert torch.equal(cm.eap_ig(model.with_activations_on("disk"), task, steps=2, ablation=ablation).values, expected)


@pytest.mark.parametrize("options", [{"variant": "activations"}, {"path": "conductance"}, {"rules": "gim"}], ids=str)
def test_every_path_on_disk(options: dict[str, str]) -> None:
    model, task = tiny("llama"), random_task()
    expected = cm.eap_ig(model, task, steps=2, **options).values
    assert torch.equal(cm.eap_ig(model.with_activations_on("disk"), task, steps=2, **options).values, expected)


@pytest.mark.slow
def test_several_batches_and_points_apart() -> None:
    model, task = tiny("llama"), random_task()
    need = round(max(len(pair.clean) for pair in task.pairs) * model.bytes_per_token(gradients=True) / USED) + 1
    found = [
        cm.eap_ig(view, task, steps=3, max_memory=need).values for view in (model, model.with_activations_on("disk"))
    ]
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_on_the_cpu_for_a_model_elsewhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with other_device(cm.load, monkeypatch):
        model = moved(tiny(name))
        names: tuple[str, ...] = ("eap", "gim", "eap_ig", "run_circuit", "mean", "route_scores", "patch", "neurons")
        expected = results(model, names)
        kept, store = list[str](), parked._store

        def noted(tensor: torch.Tensor, place: str) -> parked.Stored:
            kept.append(tensor.device.type)
            return store(tensor, place)

        monkeypatch.setattr(parked, "_store", noted)
        same(results(model.with_activations_on("cpu"), names), expected)
    assert kept and set(kept) != {"cpu"}


def parked_peak(points: int, name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes a token that the device holds at most in EAP-IG on one prompt, and what is planned."""
    monkeypatch.setattr(edges, "contract", lambda *_: torch.zeros(()))

    def store(tensor: torch.Tensor, place: str) -> torch.Tensor:
        return torch.empty(
            tensor.shape, dtype=tensor.dtype, device="cpu"
        )  # there are no numbers, and no page is touched

    monkeypatch.setattr(parked, "_store", store)
    monkeypatch.setattr(parked, "SMALL", 100_000)
    model, tokens = on_meta(name, dtype).with_activations_on("cpu"), 192
    setting = Setting(model, pairs(1, tokens), max_memory=tokens * model.bytes_per_token(gradients=True) // 2)
    with without_numbers(monkeypatch), Peak("meta") as memory, model.reserved():
        batch = make_batch(model, setting.task, range(1), shared_prefix=False, corrupted=True)
        metric = lambda logits: logits.float()[:, 0] - logits.float()[:, 1]  # noqa: E731
        edges._along_inputs(setting, batch, metric, [(k + 0.5) / points for k in range(points)], PLAIN)
    return memory.peak // tokens, model.least_bytes_per_token(gradients=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("8B", torch.bfloat16, marks=SLOW),
        pytest.param("70B", torch.bfloat16, marks=SLOW),
    ],
)
def test_the_device_holds_one_block(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    found, planned = parked_peak(5, name, dtype, monkeypatch)
    assert planned == pytest.approx(found, rel=0.1)
    assert found < on_meta(name, dtype).bytes_per_token(gradients=True) / 10


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_otherwise_is_taken() -> None:
    model, task = tiny("llama", layers=12), random_task()
    longest = max(len(pair.clean) for pair in task.pairs)
    budget = int(longest * model.bytes_per_token(gradients=True, points=0) / USED) - 1
    with pytest.raises(MemoryBudgetError, match=r"or let activations wait elsewhere \(--activations cpu or disk\)"):
        cm.eap(model, task, max_memory=budget)
    with pytest.raises(MemoryBudgetError, match=r"Raise --max-memory to [1-9]\d*MB, or shorten the prompts\.$"):
        cm.eap(model.with_activations_on("cpu"), task, max_memory=budget)  # which is where the model is
    found = {"eap": cm.eap(model.with_activations_on("disk"), task, max_memory=budget).values}
    same(found, {"eap": cm.eap(model, task).values}, 2e-5)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(tempfile, "mkstemp", lambda prefix: (os.open(full, os.O_WRONLY), "nowhere/file"))
    with pytest.raises(MemoryBudgetError, match=r"files of nowhere, and .*No space left.*set TMPDIR"):
        cm.eap(tiny("llama").with_activations_on("disk"), random_task())


def test_another_place_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="place for activations"):
        tiny("llama").with_activations_on("tape")


def test_exact_patching_on_disk() -> None:
    model, task = tiny("llama"), random_task()
    expected = cm.exact(model, task).values
    assert torch.equal(cm.exact(model.with_activations_on("disk"), task).values, expected)


def test_a_pass_that_stops_leaves_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where what is too small to be parked is among the outputs that operations keep."""
    monkeypatch.setattr(parked, "SMALL", 600)

    def stop(*_: object) -> None:
        assert list(tmp_path.iterdir()), "nothing is parked"
        raise NumericsError("not finite")

    monkeypatch.setattr(contraction, "check_numbers", stop)
    with pytest.raises(NumericsError) as told:
        cm.eap(tiny("llama").with_activations_on("disk"), random_task())
    told.value.__traceback__ = None
    del told
    gc.collect()
    assert not list(tmp_path.iterdir()), "files are left"


def test_a_tensor_that_cannot_be_copied_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        parked._store(torch.ones(3, device="meta"), "disk")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("small", [0, 100_000])
def test_a_change_in_place_is_told(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch does without: what waits in the memory of the model itself is changed with it."""
    monkeypatch.setattr(parked, "SMALL", small)
    x = torch.ones(3, requires_grad=True)
    with parked.saved_elsewhere("cpu", []):
        y = x.exp()
        total = y.add_(1.0).sum()
    with pytest.raises(RuntimeError, match="changed in place"):
        total.backward()


def test_views_share_who_uses_the_model() -> None:
    """One made while a method runs is in evaluation mode in its own passes, and knows which prompts run."""
    model = tiny("gpt2")
    with model.reserved():
        view = model.with_activations_on("disk")
    model.hf.train()
    inputs = Inputs.whole(torch.tensor([[3, 1, 4, 1, 5]]))
    with torch.no_grad():
        assert torch.equal(view.logits(inputs), model.logits(inputs))
    task = random_task(3)
    for other in (view, model.with_neurons(["m0.n1"])):
        with cm.ablate(model, "a0.h0", at=[[0], [1], [2]]), pytest.raises(InputError, match="order of their own"):
            cm.run_circuit(other, task, cm.Circuit.full(other.graph))
