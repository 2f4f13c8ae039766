"""Scores of every prompt, filled batch by batch; many wait in a file, so that memory does not grow with the prompts."""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

IN_MEMORY = 64_000_000
"""Bytes of scores that stay in memory while batches run; of more, none do."""


class SampleRows:
    """Rows of float32 numbers that are put one batch at a time and read once, when all are there."""

    def __init__(self, count: int, width: int) -> None:
        self.shape = count, width
        self.in_file = 4 * count * width > IN_MEMORY
        if self.in_file:
            self.descriptor, self.path = tempfile.mkstemp(prefix="circuitome-scores-")
            self.end = weakref.finalize(self, _remove, self.descriptor, self.path)
        self.rows = torch.empty(0 if self.in_file else count, width)

    def put(self, rows: Sequence[int], values: Float[Tensor, "row width"]) -> None:
        """Set some rows."""
        values = values.cpu()
        if not self.in_file:
            self.rows[list(rows)] = values
            return
        for row, own in zip(rows, values.contiguous().numpy(), strict=True):
            os.lseek(self.descriptor, 4 * row * self.shape[1], os.SEEK_SET)
            with open(self.descriptor, "wb", closefd=False) as file:
                file.write(own.data)

    def read(self) -> Float[Tensor, "count width"]:
        """All rows; those of a file are read from it as they are used."""
        if not self.in_file:
            return self.rows
        rows = torch.from_file(self.path, shared=False, size=self.shape[0] * self.shape[1]).view(self.shape)
        self.end()
        return rows


def _remove(descriptor: int, path: str) -> None:
    os.close(descriptor)
    with contextlib.suppress(OSError):  # some systems keep a file that is still mapped
        os.unlink(path)
