"""What every head does in one forward pass, block after block, so that a method keeps only what it needs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.models.block import Block
from circuitome.models.model import Model

Look = Callable[[int, Float[Tensor, "batch head query key"], Float[Tensor, "batch query head d_head"]], None]
"""Called with layer, pattern and z of every head in a block; z over the scale of a post-norm where there is one."""


@dataclass
class Seen:
    """The residual stream of the pass at the places where heads' writing is judged; None before it got there."""

    embedded: Float[Tensor, "batch pos d_model"] | None = None
    """In front of block 0."""
    first: Float[Tensor, "batch pos d_model"] | None = None
    """Behind block 0."""
    scale: Float[Tensor, "batch pos 1"] | None = None
    """What the final norm divides by."""


@contextmanager
def watching_heads(model: Model, look: Look) -> Iterator[Seen]:
    """Inside, every forward pass shows pattern and z of each block's heads, and the stream at its ends.

    A head adds z @ weight to the stream, with weight as `Block.head_weights` gives it.
    Raises `UnsupportedModelError` for a model that shows no attention probabilities.
    """
    seen, latest = Seen(), dict[int, Tensor]()

    def shown(layer: int, pattern: Tensor) -> None:
        look(layer, pattern, latest.pop(layer))

    with torch.no_grad(), ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            stack.callback(block.output.register_forward_hook(_noting_z(model, layer, block, latest)).remove)
        for module, note in _ends(model, seen):
            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        stack.enter_context(model.watching_attention(shown))
        yield seen


def _noting_z(model: Model, layer: int, block: Block, latest: dict[int, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        z = args[0].float().unflatten(-1, (model.heads.q, model.heads.width))
        latest[layer] = z / block.attention_post.sigma(output)[..., None] if block.attention_post else z

    return hook


def _ends(model: Model, seen: Seen) -> list[tuple[nn.Module, Callable[..., None]]]:
    """Modules whose inputs are noted, and how."""

    def embedded(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.embedded = _hidden(args, kwargs)

    def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.first = _hidden(args, kwargs)

    def final(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.scale = model.final_norm.sigma(_hidden(args, kwargs))

    behind = model.blocks[1].layer if len(model.blocks) > 1 else model.final_norm.module
    return [(model.blocks[0].layer, embedded), (behind, first), (model.final_norm.module, final)]


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
