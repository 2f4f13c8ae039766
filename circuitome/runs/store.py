"""A run on disk: manifest.json, tensors.safetensors, report.html. Written beside, then renamed: never half a run."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitome.errors import RunError

fcntl: Any = import_module("fcntl") if find_spec("fcntl") else None
"""What locks files; None on a system without it."""
MANIFEST, TENSORS, REPORT = "manifest.json", "tensors.safetensors", "report.html"
GROUPS = "groups.json"
"""What somebody added to the run by hand: it stays when the same command makes the run anew."""
LARGEST = 200_000_000
"""Bytes of a manifest that is read."""


@dataclass(frozen=True)
class Run:
    """What a run found, and exactly how."""

    manifest: dict[str, Any]
    """What was done and the numbers that came out; plain JSON. `manifest["key"]` identifies what was asked for."""
    tensors: dict[str, Tensor]
    """Scores, circuit and per-prompt metrics."""


def save_run(run: Run, folder: Path, pages: Mapping[str, str | bytes]) -> None:
    """Write `run` and `pages` (file name, folders in it, -> content) to `folder`; a run of this key there goes.

    Groups that somebody made by hand stay.

    Raises `RunError` if the folder holds another run or something else.
    """
    check_free(folder, run.manifest["key"])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise RunError(
            f"The run cannot be written to {folder}: {error.strerror or error}. Choose another --out."
        ) from error
    try:
        save_file({k: run.tensors[k].contiguous() for k in sorted(run.tensors)}, staging / TENSORS)
        (staging / TENSORS).chmod(0o666 & ~_umask())  # it is made for its owner alone
        (staging / MANIFEST).write_text(to_json(run.manifest) + "\n", encoding="utf-8")
        for name, text in pages.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_bytes(text.encode() if isinstance(text, str) else text)
        if (folder / GROUPS).is_file() and not (folder / GROUPS).is_symlink():
            shutil.copyfile(folder / GROUPS, staging / GROUPS)
        staging.chmod(0o777 & ~_umask())
        _replace(staging, folder)
        shutil.rmtree(partial_of(folder), ignore_errors=True)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _replace(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`; what was there is removed only when the new run stands."""
    if not folder.exists():
        staging.rename(folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    folder.rename(old / "run")
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_free(folder: Path, key: str) -> None:
    """Raises `RunError` unless `folder` is absent, empty, or holds a run with this key."""
    if folder.is_file():
        raise RunError(f"{folder} is a file; a run needs a folder. Choose another --out.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MANIFEST).is_file():
        raise RunError(f"{folder} is not empty and holds no run; nothing was written. Choose another --out.")
    other = read_manifest(folder)
    if other.get("key") != key:
        raise RunError(
            f"{folder} already holds another run: {other.get('command', 'unknown command')}. Nothing was written. "
            "Choose another --out, or remove that folder."
        )


def open_partial(folder: Path, command: str, *, resume: bool) -> Path:
    """The folder beside `folder` in which a long run keeps what is done so far; `save_run` removes it.

    Raises `RunError` if a stopped run is there already and is another one, or `resume` does not say to go on with it.
    """
    partial = partial_of(folder)
    note = partial / "command.txt"
    if note.is_file():
        other = note.read_text(encoding="utf-8")
        if other != command:
            raise RunError(
                f"{partial} holds a stopped run of another command: {other}. Repeat that with --resume, choose another "
                "--out, or remove the folder."
            )
        if not resume:
            raise RunError(
                f"This run was stopped before, and {partial} holds what it had done. Add --resume to go on from there, "
                "or remove the folder to start afresh."
            )
    try:
        partial.mkdir(parents=True, exist_ok=True)
        note.write_text(command, encoding="utf-8")
    except OSError as error:
        raise RunError(f"Nothing can be kept in {partial}: {error.strerror or error}. Choose another --out.") from error
    return partial


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Inside, no other process makes the run of this folder; one that was killed holds nothing.

    Where another one does, `wait` for it, or raise `RunError`. Systems without `fcntl` lock nothing.
    """
    if fcntl is None:
        yield
        return
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(f"The run cannot be written to {folder}: {error.strerror}. Choose another --out.") from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):  # the one before removed it, or another made it anew
                if os.path.samestat(os.stat(path), os.fstat(held)):
                    break
        except BlockingIOError:
            os.close(held)
            raise RunError(f"Another process is at work on {folder}. Wait for it, or choose another --out.") from None
        os.close(held)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(held)


def partial_of(folder: Path) -> Path:
    """Where a run that goes to `folder` keeps what is done so far."""
    return folder.with_name(folder.name + ".partial")


def load_run(folder: Path) -> Run:
    """The run in `folder`. Raises `RunError` where there is none or a file is missing or damaged."""
    if not folder.is_dir():
        raise RunError(f"There is no run folder {folder}. Give the folder that `circuitome find` printed.")
    manifest = read_manifest(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except FileNotFoundError as error:
        raise RunError(f"{folder} is damaged: {TENSORS} is missing. Run it again: {manifest.get('command')}") from error
    except SafetensorError as error:
        raise RunError(
            f"{folder} is damaged: {TENSORS} cannot be read ({error}). Run it again: {manifest.get('command')}"
        ) from error
    return Run(manifest, tensors)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the run in `folder`. Raises `RunError` where there is none, or it is damaged or too large."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > LARGEST:
            raise RunError(f"The manifest of {folder} has over {LARGEST:,} bytes and is not read.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder} holds no {MANIFEST}, so it is not a run folder.") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{folder} is damaged: {MANIFEST} is not valid JSON ({error}).") from error
    if not isinstance(manifest, dict) or "key" not in manifest:
        raise RunError(f"{folder} is damaged: {MANIFEST} is not the manifest of a run.")
    return manifest


def to_json(value: Any) -> str:
    """JSON text; NaN and infinity become null, since JSON has no such numbers."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """A copy of plain data as JSON can hold it: None for every NaN and infinity, texts for keys, lists for tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
