"""What every head does in one forward pass, block after block, so that a method keeps only what it needs."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.models.block import Block
from circuitome.models.hooks import hooked
from circuitome.models.model import Model

WatchHeads = Callable[[int, Float[Tensor, "batch head query key"], Float[Tensor, "batch query head d_head"]], None]
"""Called with layer, pattern and z of every head in a block; z over the scale of a post-norm where there is one."""


@contextmanager
def watching_heads(model: Model, watch: WatchHeads) -> Iterator[dict[str, Tensor]]:
    """Inside, every forward pass shows pattern and z of each block's heads to `watch`, block after block.

    Gives the residual stream [batch, pos, d_model] at the places where heads' writing is judged, filled by the pass:
    "embedded", in front of block 0; "first", behind it; "final", in front of the final norm.
    A head adds z @ weight to the stream, with weight as `Block.head_weights` gives it.
    Raises `UnsupportedModelError` for a model that shows no attention probabilities.

    >>> model, last = cm.load("known-induction"), {}
    >>> with cm.heads.watching_heads(model, lambda layer, pattern, z: last.update({layer: z})) as stream:
    ...     logits = model.logits(cm.heads.repeated_tokens(model, n=2, period=4).inputs)
    >>> tuple(stream["final"].shape[:2]), sorted(last)
    ((2, 9), [0, 1])
    """
    stream, latest = dict[str, Tensor](), dict[int, Tensor]()

    def shown(layer: int, pattern: Tensor) -> None:
        watch(layer, pattern, latest.pop(layer))

    final = model.final_norm.module
    behind = model.blocks[1].layer if len(model.blocks) > 1 else final
    with torch.no_grad(), ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            stack.enter_context(hooked(block.output.register_forward_hook, _noting_z(model, layer, block, latest)))
        for name, module in (("embedded", model.blocks[0].layer), ("first", behind), ("final", final)):
            stack.enter_context(hooked(module.register_forward_pre_hook, _noting_input(stream, name), with_kwargs=True))
        stack.enter_context(model.watching_attention(shown))
        yield stream


def _noting_z(model: Model, layer: int, block: Block, latest: dict[int, Tensor]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        z = args[0].float().unflatten(-1, (model.heads.q, model.heads.width))
        latest[layer] = z / block.attention_post.sigma(output)[..., None] if block.attention_post else z

    return hook


def _noting_input(stream: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream[name] = args[0] if args else kwargs["hidden_states"]

    return hook
