"""Runs that stream a text through a model: loss under three cache policies, and the attention sinks behind it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.batches import tokens_within
from circuitome.errors import InputError, MemoryBudgetError
from circuitome.heads.long_context.sinks import SinkMass, pieces, sink_mass
from circuitome.heads.long_context.streaming import (
    CHUNK,
    check_sizes,
    check_stream,
    dense_losses,
    learned_positions,
    stream_losses,
)
from circuitome.models.loading import load
from circuitome.models.model import Model
from circuitome.results import Estimate, mean
from circuitome.runs.spec import ModelSpec
from circuitome.runs.store import Run
from circuitome.runs.texts import OWN, read_text, text_hash

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

UNIT = "nats a token"
PIECE, PIECES = 128, 8
"""Tokens of a text whose attention is looked at, and how many such texts."""
BEFORE, AFTER = 4, 40
"""Stretches of positions before the first eviction, and at most after it."""


@dataclass(frozen=True, kw_only=True)
class StreamSpec(ModelSpec):
    """Everything that decides what `stream` computes."""

    text: str | None = None
    """A UTF-8 file; None for the package's own prose."""
    sinks: int = 4
    """First tokens that the cache keeps."""
    window: int = 256
    """Latest tokens that it keeps, the newest included."""
    tokens: int = 2048
    """Tokens of the text at most."""

    @property
    def words(self) -> list[str]:
        """The command line that repeats this run."""
        words = ["circuitome", "stream", "--sinks", str(self.sinks), "--window", str(self.window)]
        words += ["--tokens", str(self.tokens), *self.model_words()]
        return words + (["--text", self.text] if self.text else [])

    def check(self) -> None:
        """Raises `InputError` for sizes that cannot be."""
        check_sizes(self.sinks, self.window)
        if self.tokens < self.sinks + self.window + 2:
            raise InputError(
                f"--tokens {self.tokens} ends before anything is evicted from {self.sinks} sinks and a window of "
                f"{self.window}. Read at least {self.sinks + self.window + 2} tokens, or give a smaller --window."
            )


def _at_once(model: Model, max_memory: int | None) -> int:
    """Tokens that run at once. Raises `MemoryBudgetError` where not even one fits into the budget."""
    fits = tokens_within(model, max_memory, gradients=False)
    if fits < 1:
        need = model.bytes_per_token(gradients=False)
        raise MemoryBudgetError(
            f"One token takes about {need / 1e6:,.1f} MB beside the weights, the budget is "
            f"{(max_memory or 0) / 1e6:,.1f} MB. Raise --max-memory."
        )
    return min(CHUNK, fits)


def run_stream(spec: StreamSpec, progress: Progress | None = None) -> Run:
    """Losses of the dense cache, of a window, and of sinks and a window that hold as many tokens; sink mass."""
    start, tell = time.perf_counter(), progress or (lambda what, done, total: None)
    spec.check()
    text = read_text(spec.text)
    tell("loading", 0, 1)
    model = load(spec.model)
    ids = _tokens(spec, model, text)
    size = spec.sinks + spec.window
    chunk = _at_once(model, spec.max_memory)

    def streamed(what: str, sinks: int, window: int) -> Tensor:
        def named(_: str, done: int, total: int) -> None:
            tell(what, done, total)

        return stream_losses(model, ids, sinks=sinks, window=window, chunk=chunk, progress=named)

    losses = {
        "dense": dense_losses(model, ids, chunk=chunk, progress=tell),
        "window": streamed("window", 0, size),
        "sinks and window": streamed("sinks and window", spec.sinks, spec.window),
    }
    piece = min(PIECE, len(ids), learned_positions(model) or PIECE)
    masses = sink_mass(
        model,
        pieces(model, model.encode_answer(text), piece, PIECES),
        progress=tell,
    )
    manifest = {
        **spec.model_manifest("stream", model, data=text_hash(text)),
        "text": {
            "source": spec.text or OWN,
            "hash": text_hash(text),
            "tokens": len(ids),
            "sinks": [model.decode([token]) for token in ids[: spec.sinks].tolist()],
        },
        "cache": {"sinks": spec.sinks, "window": spec.window, "first_evicted_at": size},
        "sign": (
            "Loss is the negative log-likelihood of the next token, mean in nats; perplexity is its exponential. All "
            f"three caches hold the same up to token {size}; window and sinks and window then hold {size} tokens each. "
            "Intervals are over tokens, as if these were independent."
        ),
        "results": {
            "policies": {name: _policy(values, size) for name, values in losses.items()},
            "against_dense": {
                name: mean(values[size:] - losses["dense"][size:], UNIT).to_dict()
                for name, values in losses.items()
                if name != "dense"
            },
            "stretches": _stretches(losses, size),
            "sink_mass": _masses(masses),
        },
        "seconds": round(time.perf_counter() - start, 2),
    }
    tensors = {name.replace(" ", "_"): values.cpu() for name, values in losses.items()}
    return Run(manifest, {**tensors, "ids": ids, "sink_mass": masses.samples})


def _tokens(spec: StreamSpec, model: Model, text: str) -> Tensor:
    ids, size = torch.tensor(model.encode(text), dtype=torch.long)[: spec.tokens], spec.sinks + spec.window
    check_stream(model, ids, spec.sinks, spec.window)
    if len(ids) < size + 2:
        raise InputError(
            f"The text {spec.text or OWN} has {len(ids):,} tokens; {spec.sinks} sinks and a window of {spec.window} "
            f"hold the first {size:,}, so nothing would be evicted. Give a longer text, or a --window of at most "
            f"{max(1, len(ids) - 2 - spec.sinks):,}."
        )
    limit = learned_positions(model)
    if limit is not None and len(ids) - 1 > limit:
        raise InputError(
            f"{model.name} has learned positions for {limit} tokens, so its dense cache cannot hold {len(ids):,}. Read "
            f"fewer with --tokens {limit + 1}."
        )
    return ids


def _policy(losses: Tensor, size: int) -> dict[str, Any]:
    before, after = mean(losses[:size], UNIT), mean(losses[size:], UNIT)
    return {
        "before": before.to_dict(),
        "after": after.to_dict(),
        "perplexity_before": _perplexity(before),
        "perplexity_after": _perplexity(after),
    }


def _perplexity(loss: Estimate) -> float:
    return math.exp(min(loss.value, 700.0))


def _stretches(losses: dict[str, Tensor], size: int) -> list[dict[str, Any]]:
    """Mean loss by stretch of positions; one begins where the first token is evicted."""
    n = len(losses["dense"])
    after = max(1, min(AFTER, round((n - size) / max(1, size // BEFORE))))
    ends = [*torch.linspace(0, size, min(BEFORE, size) + 1).long().tolist()]
    ends += torch.linspace(size, n, after + 1).long().tolist()[1:]
    return [
        {"start": a, "end": b, **{name: mean(values[a:b], UNIT).to_dict() for name, values in losses.items()}}
        for a, b in pairwise(ends)
        if a < b
    ]


def _masses(found: SinkMass) -> dict[str, Any]:
    return {
        "first": list(found.first),
        "start": found.start,
        "texts": found.samples.shape[1],
        "uniform": found.uniform.tolist(),
        "heads": found.mean.tolist(),
        "layers": [
            [found.layer(index, layer).to_dict() for layer in range(found.samples.shape[2])]
            for index in range(len(found.first))
        ],
        "share_above_0.3": found.share_above(),
    }
