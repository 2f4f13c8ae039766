"""GGUF files: dequantised once, and kept as safetensors so that the next load is fast."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from circuitome.errors import InputError
from circuitome.progress import Progress, silent


def cache_folder() -> Path:
    """Where dequantised models are kept: $CIRCUITOME_CACHE, else circuitome under the user's cache folder."""
    base = os.environ.get("CIRCUITOME_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuitome"


def dequantised(gguf: Path, progress: Progress = silent) -> Path:
    """A folder with the float32 weights and the tokenizer of a GGUF file; made on the first call, in one rename.

    Raises `InputError` for a file that cannot be read.
    """
    stat = gguf.resolve().stat()
    key = hashlib.sha256(f"{gguf.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / f"{gguf.stem}-{key}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with quiet(progress):
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


@contextmanager
def quiet(progress: Progress = silent) -> Iterator[None]:
    """Inside, transformers and the hub draw no progress bars and log errors only; `progress` is told instead."""

    def told(tensors: Sequence[Any], **_: Any) -> Iterable[Any]:
        for done, tensor in enumerate(tensors):
            progress("dequantising the GGUF file", done, len(tensors))
            yield tensor
        progress("dequantising the GGUF file", len(tensors), len(tensors))

    loggers: list[tuple[Callable[[int], None], int]] = [
        (logging.set_verbosity, logging.get_verbosity()) for logging in (transformers_logging, hub_logging)
    ]
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for set_verbosity, _ in loggers:
        set_verbosity(transformers_logging.ERROR)
    bar: Any = modeling_gguf_pytorch_utils.tqdm
    setattr(modeling_gguf_pytorch_utils, "tqdm", told)  # noqa: B010, its stub has no such name
    try:
        yield
    finally:
        setattr(modeling_gguf_pytorch_utils, "tqdm", bar)  # noqa: B010
        for set_verbosity, before in loggers:
            set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
