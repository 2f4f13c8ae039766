"""What a manifest says of how a run was made: command, versions, model, prompts."""

import hashlib
import json
import platform
import resource
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import circuitome
from circuitome.models.loading import weights_hash
from circuitome.models.model import Model
from circuitome.tasks.task import Task

PROMPTS = 20
"""Prompts that a manifest shows."""


def recorded(kind: str, command: str, *, model: Model | None = None, asked: str = "", data: str = "") -> dict[str, Any]:
    """The part of a manifest that all runs have, as plain JSON values.

    `asked` is the name by which the model was asked for, `data` a hash of what it ran on. `key` identifies command,
    data and weights together.
    """
    model_hash = "" if model is None else weights_hash(model)
    return {
        "kind": kind,
        "key": hashlib.sha256(json.dumps([command, data, model_hash]).encode()).hexdigest()[:16],
        "circuitome": circuitome.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **({} if model is None else {"model": described(model, asked or model.name, model_hash)}),
        "peak_memory_bytes": peak_memory(),
    }


def described(model: Model, asked: str, model_hash: str) -> dict[str, Any]:
    """A model as plain JSON values: name, shape, weights, dtype, device, and what its tokenizer adds."""
    graph = model.graph
    return {
        "name": asked,
        "architecture": model.hf.config.model_type,
        "layers": graph.n_layers,
        "heads": graph.n_heads,
        "kv_heads": graph.n_kv_heads,
        "d_model": model.d_model,
        "parallel": graph.parallel,
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "weights_hash": model_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "attention": model.hf.config._attn_implementation,
        "tokens_added_by_tokenizer": (model.decode(model.encode("")) if model.tokenizer else "") or "none",
    }


def described_task(model: Model, task: Task) -> dict[str, Any]:
    """A task as plain JSON values: name, metric, size, hash, and its first prompts."""
    return {
        "task": {
            "name": task.name,
            "n": len(task),
            **{name: getattr(task, name) for name in ("seed", "source", "unit")},
            "metric": task.measure.name,
            "data_hash": task.data_hash(),
        },
        "prompts": described_pairs(model, task),
    }


def described_pairs(model: Model, task: Task) -> list[dict[str, Any]]:
    """The first prompt pairs of a task with their answers, as plain JSON values."""
    return [
        {
            "clean": pair.clean_text,
            "corrupted": pair.corrupted_text,
            "answers": tuple(model.decode([token]) for token in pair.answers[:10]),
            "wrongs": tuple(model.decode([token]) for token in pair.wrongs[:10]),
        }
        for pair in task.pairs[:PROMPTS]
    ]


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    From Linux itself where it tells: what getrusage says includes what the process was forked from.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
