"""Runs with single heads ablated, and what the later heads then attend to.

With the answer position alone as input, everything before it in a cache, a head is ablated at that position only: what
it wrote earlier stays. The keys that later heads attend to stay too, so their attention can change only through their
queries.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablate_outputs import AblatedOutputs, replace_outputs
from circuitome.engine.ablation import WriterValues
from circuitome.engine.partial_forward import PartialForward
from circuitome.graph.node import Node
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

    @property
    def final(self) -> Float[Tensor, "batch d_model"]:
        """Residual in front of the final norm at the answer position."""
        assert self.activations.final is not None
        return self.inputs.at_read(self.activations.final).float()

    def change(self, layer: int, heads: Sequence[int]) -> Float[Tensor, "head batch pos d_model"]:
        """What each head writes when it is ablated, minus what it wrote."""
        z = (self.ablated.heads[layer] - self.clean.heads[layer])[:, :, list(heads)]
        return torch.einsum("bphe,hed->hbpd", z, self.model.blocks[layer].head_weights(list(heads)))

    def each_ablated(
        self, layer: int, heads: Sequence[int], see: SeePatterns | None = None
    ) -> Float[Tensor, "head batch d_model"]:
        """Final residual with each head ablated by itself, everything after it reacting; `see` gets later patterns."""
        rest, copies = PartialForward(self.model, self.inputs, self.activations), len(heads)
        with _shown(self.model, see, copies, lambda: rest.steps.calls(copies)):
            return rest.written(Node("attention", layer), self.change(layer, heads)).float()

    def all_ablated(self, heads: Mapping[int, Sequence[int]], see: SeePatterns | None = None) -> "HeadRun":
        """The same prompts with some heads, by layer, ablated together, as a run of its own."""
        ablated = {layer: (list(some), self.ablated.heads[layer][:, :, list(some)]) for layer, some in heads.items()}
        with ExitStack() as stack:
            stack.enter_context(replace_outputs(self.model, AblatedOutputs(ablated, {})))
            if see is not None:
                stack.enter_context(self.model.watching_attention(lambda layer, pattern: see(layer, pattern[None])))
            return HeadRun(self.model, self.inputs, self.model.record(self.inputs, logits=False), self.ablated)


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
