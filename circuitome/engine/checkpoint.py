"""What a long search has done so far, in one file: written whole or not at all, and refused by any other search."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuitome.errors import RunError


class Checkpoint:
    """The file of one search; without a path nothing is kept."""

    def __init__(self, path: Path | None, search: str, *key: Any) -> None:
        """`search` names the method; `key` is everything that decides its result, plain JSON."""
        self.path, self.search, self.key = path, search, json.dumps([search, *key])

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and state of the last `write`; None where there is no file.

        Raises `RunError` if the file belongs to another search or is damaged.
        """
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                notes = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise RunError(f"{self.path} is damaged ({error}). Remove it to start afresh.") from None
        notes = json.loads(notes.get("notes", "{}"))
        if notes.get("key") != self.key:
            raise RunError(
                f"{self.path} belongs to another {self.search} run (other prompts, model or settings). Repeat that "
                "command to resume it, or choose another folder."
            )
        return tensors, notes["state"]

    def write(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace what was kept, all of it or nothing."""
        if self.path is None:
            return
        part = self.path.with_name(self.path.name + ".part")
        save_file(
            {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()},
            part,
            {"notes": json.dumps({"key": self.key, "state": state})},  # one entry: several would lie in random order
        )
        os.replace(part, self.path)
