"""What `circuitome doctor` looks at."""

import os
import platform
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version

from circuitome.errors import CircuitomeError

Row = dict[str, str]


def examine() -> list[Row]:
    """One row a check: what was looked at, its state (ok, missing), and what was found or what to do."""
    return [
        _row("python", lambda: platform.python_version()),
        *(_row(name, partial(version, name)) for name in ("torch", "transformers", "safetensors", "gguf")),
        _row("processor", _processor),
        _row("cache folder", _cache),
        _row("smollm2-135m", _bundled_model),
    ]


def _row(what: str, find: Callable[[], str]) -> Row:
    try:
        return {"what": what, "state": "ok", "found": find()}
    except PackageNotFoundError:
        return {"what": what, "state": "missing", "found": f"not installed: pip install {what}"}
    except (CircuitomeError, OSError) as error:
        return {"what": what, "state": "missing", "found": str(error)}


def _processor() -> str:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU, which is fine"
    return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}"


def _cache() -> str:
    from circuitome.models.gguf import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return f"{folder} can be written"


def _bundled_model() -> str:
    from circuitome.models.loading import load

    model = load("smollm2-135m")
    return f"loads and passes its check: {model.graph.n_edges:,} edges"
