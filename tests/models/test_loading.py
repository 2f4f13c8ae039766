"""Names and places of models."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from families import tiny
from transformers import AutoConfig

from circuitome.errors import InputError, UnknownNameError
from circuitome.models import gguf, loading

UNKNOWN = {
    "smolm2-135m": (UnknownNameError, "Did you mean 'smollm2-135m'"),
    "gtp2": (UnknownNameError, "Did you mean 'gpt2'"),
    "tracr-revers": (UnknownNameError, "Did you mean 'tracr-reverse'"),
    "no-such-thing": (UnknownNameError, "named with its owner, such as HuggingFaceTB/SmolLM2-135M"),
    "./nowhere": (InputError, r"There is no folder \./nowhere"),
    "/no/such/folder": (InputError, "There is no folder /no/such/folder"),
    "a/b/c": (InputError, "There is no folder a/b/c"),
    "nowhere.gguf": (InputError, r"There is no file nowhere\.gguf"),
}


@pytest.mark.parametrize(("name", "error"), UNKNOWN.items(), ids=UNKNOWN)
def test_names_that_are_no_models_are_refused_without_the_hub(
    name: str, error: tuple[type[Exception], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(AutoConfig, "from_pretrained", asked)
    with pytest.raises(error[0], match=error[1]):
        loading.load(name)


def test_a_hub_that_cannot_be_reached_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", unreachable)
    start = time.perf_counter()
    with pytest.raises(UnknownNameError, match="and the hub did not give it"):
        loading.load("nobody/nothing")
    assert time.perf_counter() - start < 5


@pytest.mark.slow
def test_a_gguf_file_is_dequantised_silently_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIRCUITOME_CACHE", str(tmp_path))
    told: list[tuple[str, int, int]] = []
    file = loading.smollm2_file()
    folder = gguf.dequantised(file, lambda *at: told.append(at))
    assert told[-1] == ("dequantising the GGUF file", 272, 272)
    assert capfd.readouterr() == ("", "")
    assert gguf.dequantised(file, lambda *at: pytest.fail("made again")) == folder


def test_a_saved_folder_loads_under_its_name(tmp_path: Path) -> None:
    tiny("llama").hf.save_pretrained(tmp_path / "mine")
    assert loading.load(tmp_path / "mine").name == "mine"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        loading.load(tmp_path / "empty")
