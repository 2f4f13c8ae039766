"""Quantised models: every method gives what it gives on the model of the dequantised weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from families import random_task, tiny

import circuitome as cm
from circuitome.errors import InputError
from circuitome.models.loading import weights_hash
from circuitome.models.placement import parameter, quantised, state

BITS = {"4 bit": {"load_in_4bit": True}, "8 bit": {"load_in_8bit": True}}


def by_bitsandbytes(name: str, bits: str, folder: Path, dtype: torch.dtype = torch.float32) -> cm.Model:
    """A tiny model, read in quantised form."""
    pytest.importorskip("bitsandbytes")
    tiny(name).hf.save_pretrained(folder)
    settings: Any = tf.BitsAndBytesConfig(**BITS[bits])
    return cm.load(tf.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=settings))


def by_torchao(name: str, kind: str) -> cm.Model:
    """A tiny model whose weights are replaced in place."""
    quantisation = pytest.importorskip("torchao.quantization")
    hf = tiny(name).hf
    quantisation.quantize_(hf, getattr(quantisation, kind)())
    return cm.load(hf)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads round by where the weights lie in memory."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def check_same(model: cm.Model) -> None:
    """What methods give is equal, to the last bit, on the model of the dequantised weights."""
    task, whole = random_task(), model.in_one_piece()
    assert any(map(quantised, model.hf.modules())) and not any(map(quantised, whole.hf.modules()))
    scores, expected = cm.eap_ig(model, task, steps=2), cm.eap_ig(whole, task, steps=2)
    assert torch.equal(scores.values, expected.values)
    assert torch.equal(*(cm.run_circuit(m, task, expected.top(60)) for m in (model, whole)))
    assert torch.equal(*(cm.route_scores(m, task).values for m in (model, whole)))
    assert torch.equal(*(cm.neurons.scores(m, task).values for m in (model, whole)))
    assert torch.equal(*(cm.weights.ov_circuit(m, "a1.h1").full() for m in (model, whole)))


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3"])
def test_bitsandbytes_gives_what_dequantised_weights_give(name: str, bits: str, tmp_path: Path) -> None:
    check_same(by_bitsandbytes(name, bits, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_torchao_gives_what_dequantised_weights_give(name: str, kind: str) -> None:
    check_same(by_torchao(name, kind))


@pytest.mark.slow
def test_weights_are_rounded_and_not_lost(tmp_path: Path) -> None:
    for bits, error in (("8 bit", 0.01), ("4 bit", 0.2)):
        exact, near = tiny("llama").blocks[1].mlp_writer.weight, by_bitsandbytes("llama", bits, tmp_path)
        read = parameter(near.blocks[1].mlp_writer)
        assert read is not None and read.shape == exact.shape and read.dtype == torch.float32
        assert 0 < float(((read - exact).norm() / exact.norm()).detach()) < error


def test_half_precision(tmp_path: Path) -> None:
    model = by_bitsandbytes("llama", "8 bit", tmp_path, torch.bfloat16)
    whole, task = model.in_one_piece(), random_task()
    assert whole.dtype == torch.bfloat16
    assert torch.equal(cm.eap(model, task).values, cm.eap(whole, task).values)


def test_what_changes_weights_is_refused(tmp_path: Path) -> None:
    model = by_bitsandbytes("llama", "8 bit", tmp_path)
    assert weights_hash(model) == weights_hash(model.in_one_piece())
    rows = lambda step, generator: torch.ones(2, 4).long()  # noqa: E731
    with pytest.raises(InputError, match=r"Training changes weights .* are quantised. Use .* model.in_one_piece\(\)"):
        cm.training.train(model, rows, cm.training.Schedule(steps=1, batch=2, length=4))
    with pytest.raises(InputError, match="An edited checkpoint changes weights"):
        model.copied("An edited checkpoint")


@pytest.mark.parametrize("name", ["llama", "llama-bias", "gpt2", "gemma2", "bert"])
def test_all_stored_tensors_are_read_in_their_order(name: str) -> None:
    hf = tiny(name).hf
    assert [n for n, _ in state(hf)] == list(hf.state_dict())
