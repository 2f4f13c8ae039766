"""Models written as ordinary Hugging Face checkpoints, whole or not at all."""

import shutil
from pathlib import Path

from circuitome.errors import RunError
from circuitome.models.gguf import quiet
from circuitome.models.model import Model


def write_checkpoint(model: Model, folder: Path, *, replace: bool = False) -> Path:
    """The folder of a checkpoint that `AutoModelForCausalLM` loads: weights, configuration, tokenizer.

    It is written beside and renamed. Raises `RunError` where something is there already, unless it may be replaced.
    """
    if not replace:
        check_empty(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with quiet():
            model.hf.save_pretrained(partial)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def check_empty(folder: Path) -> None:
    """Raises `RunError` for a folder that holds something already: before the work whose result goes there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists already and is not empty. Choose another folder for the checkpoint.")
