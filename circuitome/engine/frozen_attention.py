"""Forward passes in which every head looks where it is told to: what is changed can act through values only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.models.attention import mix
from circuitome.models.block import Block
from circuitome.models.hooks import replaced
from circuitome.models.model import Model

Pattern = Float[Tensor, "batch head query key"]


@contextmanager
def frozen_patterns(
    model: Model, patterns: Sequence[Pattern], keep: Float[Tensor, "layer head"] | None = None
) -> Iterator[None]:
    """Inside, a head's output is z_q = keep * sum over k of pattern[q, k] v_k, with v of the pass itself.

    `patterns` are of each layer, as `recorded_patterns` gives them, for the batch that then runs (without a cache).
    `keep` multiplies each head's z, 1 for all by default; 0 is Olsson's pattern-preserving ablation: what the head
    writes is gone, and no head further on looks elsewhere because of that. Biases of the output projection stay.
    Source: Olsson et al. 2022, arXiv:2209.11895, section on ablations.
    """
    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            factors = None if keep is None else keep[layer].to(model.device)[:, None]
            forward = _attention(model, block, patterns[layer], factors)
            stack.enter_context(replaced(block.attention, forward))
        yield


def recorded_patterns(model: Model, run: Callable[[], Any]) -> list[Pattern]:
    """The attention probabilities of every layer in the one forward pass that `run` makes."""
    patterns: list[Tensor] = []
    with torch.no_grad(), model.watching_attention(lambda layer, pattern: patterns.append(pattern)):
        run()
    return patterns


def _attention(model: Model, block: Block, pattern: Pattern, factors: Tensor | None) -> Callable[..., Any]:
    heads, first = model.heads, model.heads.q + model.heads.kv

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        hidden = args[0] if args else kwargs["hidden_states"]
        if block.fused:
            values = block.split([module(hidden) for module in block.projections])[:, :, first:]
        else:
            values = block.projections[2](hidden).unflatten(-1, (heads.kv, heads.width))
        z = mix(pattern.to(values.dtype), values.transpose(1, 2)).transpose(1, 2)
        z = z if factors is None else z * factors.to(z.dtype)
        return block.output(z.flatten(-2)), None

    return forward
