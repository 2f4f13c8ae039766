"""Models of real shapes without numbers, on the meta device, and the memory that a piece of work on them takes.

Nothing is computed, but every tensor that would be made is counted from when it is made until it is freed.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from circuitome.models.model import Model
from circuitome.tasks.task import Pair, Task

LLAMA = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 131_072}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "8B": {
        **LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "70B": {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
}
"""SmolLM2-135M, Llama-3-8B and Llama-3-70B."""
SHAPES |= {f"135M of {n} blocks": SHAPES["135M"] | {"num_hidden_layers": n} for n in (9, 15)}


def on_meta(name: str, dtype: torch.dtype) -> Model:
    """A model of one of these shapes, without numbers."""
    with torch.device("meta"):
        hf = tf.AutoModelForCausalLM.from_config(tf.LlamaConfig(**SHAPES[name]), dtype=dtype)
    return Model(hf.eval(), None, f"Llama of {name}")


def pairs(count: int, tokens: int) -> Task:
    """Prompt pairs that differ in their first token."""
    return Task(
        "meta", tuple(Pair((5, *range(6, 5 + tokens)), (6, *range(6, 5 + tokens)), (1,), (2,)) for _ in range(count))
    )


@contextmanager
def without_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, nothing looks at numbers that are not there."""
    monkeypatch.setattr("transformers.masking_utils.fast_all", lambda mask: True)
    monkeypatch.setattr("circuitome.discovery.attribution.contraction.check_numbers", lambda *_: None)
    yield


class Peak(TorchDispatchMode):
    """In force, the bytes of all tensors that are made count until they are freed; `peak` is the most at once.

    With the type of a `device`, only those there do.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self.known = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                elsewhere = self.device is not None and tensor.device.type != self.device
                if not elsewhere and storage._cdata not in given and storage._cdata not in self.known:
                    self._count(storage)
        return out

    def _count(self, storage: Any) -> None:
        size, key = storage.nbytes(), storage._cdata
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed() -> None:
            self.known.discard(key)
            self.now -= size

        weakref.finalize(storage, freed)
