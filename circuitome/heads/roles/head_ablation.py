"""Runs with single heads ablated, and what the later heads then attend to.

With the answer position alone as input, everything before it in a cache, a head is ablated at that position only: what
it wrote earlier stays. The keys that later heads attend to stay too, so their attention can change only through their
queries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitome.engine.ablation import WriterValues
from circuitome.engine.partial_forward import PartialForward
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model

SeePatterns = Callable[[int, Float[Tensor, "copies batch head query key"]], None]
"""Called with a layer and the attention patterns of its heads, in each of several runs."""


class HeadRun:
    """One batch of prompts, run once as it is; then again from any layer on, with heads of that layer ablated."""

    def __init__(self, model: Model, inputs: Inputs, activations: ActivationCache, ablated: WriterValues) -> None:
        """`activations` is a pass over `inputs`, and `ablated` what ablated writers write there."""
        self.model, self.inputs, self.activations = model, inputs, activations
        self.clean = WriterValues.of(model, activations)
        self.ablated = ablated
        self.at_read = torch.arange(len(inputs.read), device=inputs.read.device), inputs.read

    @property
    def final(self) -> Float[Tensor, "batch d_model"]:
        """Residual in front of the final norm at the answer position."""
        assert self.activations.final is not None
        return self.activations.final[self.at_read].float()

    def change(self, layer: int, heads: Sequence[int]) -> Float[Tensor, "head batch pos d_model"]:
        """What each head writes when it is ablated, minus what it wrote."""
        z = (self.ablated.heads[layer] - self.clean.heads[layer])[:, :, list(heads)]
        return torch.einsum("bphe,hed->hbpd", z, self.model.blocks[layer].head_weights(list(heads)))

    def direct_path_ablated(self, layer: int, heads: Sequence[int]) -> Float[Tensor, "head batch d_model"]:
        """Final residual when only the logits see each head ablated, and no other part does."""
        return self.final + self.change(layer, heads)[:, *self.at_read]

    def each_ablated(
        self, layer: int, heads: Sequence[int], see: SeePatterns | None = None
    ) -> Float[Tensor, "head batch d_model"]:
        """Final residual with each head ablated by itself, everything after it reacting; `see` gets later patterns."""
        change, copies = self.change(layer, heads), len(heads)
        rest = PartialForward(self.model, self.inputs)
        middle = (self._middle(layer).float() + change).to(self.model.dtype)
        mlp_out = self.activations.mlp_out[layer] if self.model.graph.parallel else None
        with _shown(self.model, see, copies, lambda: rest.calls_for(copies)):
            return rest.from_middle(layer, middle, mlp_out).float()

    def _middle(self, layer: int) -> Float[Tensor, "batch pos d_model"]:
        """The stream behind a block's attention, without what its MLP writes."""
        activations, after = self.activations, layer + 1
        if not self.model.graph.parallel:
            return activations.resid_mid[layer]
        assert activations.final is not None
        return (
            activations.resid_pre[after] if after < len(activations.resid_pre) else activations.final
        ) - activations.mlp_out[layer]

    def all_ablated(self, heads: Mapping[int, Sequence[int]], see: SeePatterns | None = None) -> "HeadRun":
        """The same prompts with some heads, by layer, ablated together, as a run of its own."""
        with ExitStack() as stack:
            for layer, some in heads.items():
                stack.callback(self._put_ablated(layer, list(some)))
            if see is not None:
                stack.enter_context(self.model.watching_attention(lambda layer, pattern: see(layer, pattern[None])))
            activations = self.model.record(self.inputs, logits=False)
        return HeadRun(self.model, self.inputs, activations, self.ablated)

    def _put_ablated(self, layer: int, heads: list[int]) -> Callable[[], None]:
        """Make some heads of a block put out their ablated z, on the scale of the clean run; gives the undoing."""
        block = self.model.blocks[layer]
        ablated = self.ablated.heads[layer][:, :, heads]
        if block.attention_post is not None:
            ablated = ablated * block.attention_post.sigma(self.activations.attention_out[layer])[..., None]

        def put(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = args[0].unflatten(-1, (self.model.heads.q, -1)).clone()
            z[:, :, heads] = ablated.to(z.dtype)
            return (z.flatten(-2), *args[1:])

        return block.output.register_forward_pre_hook(put, prepend=True).remove


@contextmanager
def _shown(model: Model, see: SeePatterns | None, copies: int, prepare: Callable[[], object]) -> Iterator[None]:
    """Inside, `see` gets all attention patterns; `prepare` runs before, with attention as it will be."""
    if see is None:
        yield
        return
    with model.eager_attention():
        prepare()
        with model.watching_attention(lambda layer, pattern: see(layer, pattern.unflatten(0, (copies, -1)))):
            yield
