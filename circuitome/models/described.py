"""Features of a dictionary as nodes of a graph: what they read and write, and what they leave of what they describe.

    feature i   f_i(x_i) W_dec,i, with x_i what the feature itself reads of the residual stream
    the rest    y(x) - sum over nodes i of f_i(x) W_dec,i: the dictionary's error, its biases (a transcoder's linear
                part) and the features that are no nodes; y is the MLP's output, or the stream itself

With one x for all they sum to y. Source of the decomposition: Marks et al. 2024, arXiv:2403.19647, section 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.models.block import Block


@runtime_checkable
class Encoder(Protocol):
    """A sparse dictionary, as far as nodes need it."""

    @property
    def W_enc(self) -> Float[Tensor, "d_in feature"]:
        """Encoder."""

    @property
    def W_dec(self) -> Float[Tensor, "feature d_out"]:
        """Decoder."""

    @property
    def b_enc(self) -> Float[Tensor, " feature"]:
        """Encoder's bias."""

    @property
    def b_in(self) -> Float[Tensor, " d_in"] | None:
        """What is subtracted from the input."""

    @property
    def b_dec(self) -> Float[Tensor, " d_out"]:
        """Decoder's bias."""

    @property
    def place(self) -> Any:
        """Where it belongs: `site` and `layer`."""

    def encode(self, x: Tensor) -> Tensor:
        """All features of some values."""

    def encode_each(self, which: Sequence[int], x: Tensor) -> Tensor:
        """Some features, each for values of its own."""


@dataclass(frozen=True, eq=False)
class Described:
    """Some features of a dictionary on the model's device, as nodes of one stage."""

    dictionary: Encoder
    """The dictionary."""
    which: tuple[int, ...]
    """Its features that are nodes."""
    weights: Float[Tensor, "feature d_model"]
    """What each writes for an activation of 1."""

    @property
    def site(self) -> str:
        """Name of the kind of place that the dictionary belongs to."""
        return str(self.dictionary.place.site)

    def given(self, block: Block, x: Tensor, out: Tensor) -> Tensor:
        """What the dictionary reads where the MLP reads the residual `x` and adds `out` to the stream."""
        if self.site == "mlp":
            return out
        return block.mlp_norm(x) if self.site == "transcoder" and block.mlp_norm is not None else x

    def values(self, block: Block, x: Float[Tensor, "*rows d_model"], out: Tensor) -> Float[Tensor, "*rows feature"]:
        """Activations of all nodes that read the same residual."""
        return self.dictionary.encode(self.given(block, x, out))[..., list(self.which)]

    def parts(
        self, block: Block, parts: Sequence[int], x: Float[Tensor, "part rows d_model"]
    ) -> Float[Tensor, "part rows d_model"]:
        """What the rest (part 0) and the nodes (1, 2, ...) write, each for a residual of its own; float32."""
        vectors, stream = list[Tensor](), self.site == "resid"
        if parts[0] == 0:
            out = x[:1] if stream else block.run_mlp(x[:1])
            vectors.append((out.float() - self.values(block, x[:1], out) @ self.weights)[0])
        if numbers := [part - 1 for part in parts if part]:
            each = x[-len(numbers) :]
            read = self.given(block, each, block.run_mlp(each) if self.site == "mlp" else each)
            values = self.dictionary.encode_each([self.which[i] for i in numbers], read)
            vectors += list(values[..., None] * self.weights[numbers][:, None])
        return torch.stack(vectors)
