"""What every run has in common: which model, and the part of the manifest that says on what it ran and how."""

import hashlib
import json
import platform
import resource
import shlex
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

import circuitome
from circuitome.models.loading import DEFAULT_MODEL, weights_hash
from circuitome.models.model import Model


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which model, and what every run is told beside it."""

    model: str = DEFAULT_MODEL
    """Name, folder or file of the model."""
    seed: int = 0
    """Seed of everything that is drawn."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        raise NotImplementedError

    def model_words(self) -> list[str]:
        """Its options for model, seed and memory."""
        words = ["--model", self.model, "--seed", str(self.seed)]
        return words + (["--max-memory", str(self.max_memory)] if self.max_memory else [])

    def command(self) -> str:
        """The command line as one text, quoted for a shell."""
        return shlex.join(self.words)

    def folder_name(self, kind: str) -> str:
        """A readable folder name for the run."""
        digest = hashlib.sha256(self.command().encode()).hexdigest()[:6]
        return f"{Path(self.model).stem}-{kind}-{digest}"

    def model_manifest(self, kind: str, model: Model, *, data: str = "", command: str | None = None) -> dict[str, Any]:
        """What was run on which model, as plain JSON; `key` identifies command, `data` (a hash) and weights together.

        `command` is given where it is not that of this spec.
        """
        model_hash = weights_hash(model)
        command = self.command() if command is None else command
        text = json.dumps([command, data, model_hash])
        return {
            "kind": kind,
            "key": hashlib.sha256(text.encode()).hexdigest()[:16],
            "circuitome": circuitome.__version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "model": _describe_model(model, self.model, model_hash),
            "seed": self.seed,
            "peak_memory_bytes": peak_memory(),
        }


def _describe_model(model: Model, asked: str, model_hash: str) -> dict[str, Any]:
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


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
