"""The features of a transcoder in the place of an MLP's neurons, and its error, which nothing makes.

On the prompt a feature f = W_enc . x + b_enc is held active or not, so that it is a straight line in what the MLP
reads, with the norm's divisor held; what is left of the MLP's output, the transcoder's error and its linear part, is a
constant source at each token (Ameisen et al. 2025). It is one more unit for each token, which reads nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.attribution_graphs.units import Reads
from circuitome.errors import InputError
from circuitome.models.block import Block
from circuitome.models.described import Encoder
from circuitome.models.norms import Norm

SITES = ("transcoder", "stream-transcoder")
"""Sites of dictionaries whose features can stand in a graph: those that read what an MLP reads."""


@dataclass(frozen=True, eq=False)
class FeatureUnits:
    """The features of one MLP's transcoder and its error at each token, on one prompt; see `Units`."""

    block: Block
    """The block."""
    dictionary: Encoder
    """The transcoder, on the model's device."""
    scale: Float[Tensor, "pos 1"]
    """One over the divisor of the norm in front; 1 where the transcoder reads the stream itself."""
    values: Float[Tensor, "pos unit"]
    """Activations of the features, then 1 for each token's own error."""
    errors: Float[Tensor, "pos d_model"]
    """What the features and the bias leave of what the MLP adds to the stream."""
    kind: str = "feature"
    """What its nodes are."""

    @classmethod
    def of(
        cls,
        block: Block,
        dictionary: Encoder,
        scale: Float[Tensor, "pos 1"],
        x: Float[Tensor, "pos d_model"],
        out: Float[Tensor, "pos d_model"],
    ) -> "FeatureUnits":
        """From the stream `x` that the MLP reads and what it adds to the stream."""
        normed = dictionary.place.site == "transcoder" and block.mlp_norm is not None
        given = block.mlp_norm(x) if normed and block.mlp_norm is not None else x
        features = dictionary.encode(given.float())
        errors = out.float() - features @ dictionary.W_dec - dictionary.b_dec
        values = torch.cat([features, torch.eye(len(x), device=x.device)], 1)
        return cls(block, dictionary, scale if normed else torch.ones_like(scale), values, errors)

    @property
    def expandable(self) -> int:
        """The features come first; errors have no inputs."""
        return len(self.dictionary.W_dec)

    @property
    def shares(self) -> Float[Tensor, "pos unit"]:
        """The same as `values`: a decoder writes behind a post-norm."""
        return self.values

    @property
    def constant(self) -> Float[Tensor, "#pos d_model"]:
        """The decoder's bias."""
        return self.dictionary.b_dec[None]

    def writes(self) -> Float[Tensor, "unit d_model"]:
        """Decoder rows, then the error of each token."""
        return torch.cat([self.dictionary.W_dec, self.errors])

    def reads(self, positions: Sequence[int], units: Sequence[int]) -> Reads:
        """Encoder columns of features that are active, through the norm in front; all else reads nothing."""
        at, dictionary = list(positions), self.dictionary
        own = [unit if unit < self.expandable else 0 for unit in units]
        active = torch.tensor([unit < self.expandable for unit in units], device=self.values.device)
        active = (active & (self.values[at, own] > 0)).float()[:, None]
        vectors = dictionary.W_enc.T[own].float() * active
        constants = dictionary.b_enc[own] * active[:, 0]
        if dictionary.b_in is not None:
            constants = constants - vectors @ dictionary.b_in
        errors = torch.tensor([float(unit == self.expandable + p) for p, unit in zip(at, units, strict=True)])
        constants = constants + errors.to(constants)
        if (norm := self._norm) is None:
            return Reads(vectors, constants)
        if norm.bias is not None:
            constants = constants + vectors @ norm.bias
        return Reads(norm.centre(vectors * norm.gain) * self.scale[at], constants)

    def back(self, gradient: Float[Tensor, "pos unit"]) -> Float[Tensor, "pos d_model"]:
        """Through the encoder of the active features and the norm in front."""
        features = slice(0, self.expandable)
        read = gradient[:, features] * (self.values[:, features] > 0) @ self.dictionary.W_enc.T
        norm = self._norm
        return read if norm is None else norm.centre(read * norm.gain) * self.scale

    def written(self, values: Float[Tensor, "pos unit"]) -> Float[Tensor, "pos d_model"]:
        """What the MLP adds to the stream where its units have some values."""
        return values @ self.writes() + self.constant

    def read_from(self, x: Float[Tensor, "pos d_model"], position: int, unit: int) -> float:
        """What a feature reads, without constants, of a stream that goes through the model's own norm."""
        if unit >= self.expandable or not float(self.values[position, unit]) > 0:
            return 0.0
        norm = self._norm
        given = x if norm is None else norm.module(x[None])[0]
        return float(given[position].float() @ self.dictionary.W_enc[:, unit])

    @property
    def _norm(self) -> Norm | None:
        return self.block.mlp_norm if self.dictionary.place.site == "transcoder" else None


def check_transcoder(dictionary: Encoder, layers: int) -> None:
    """Raises `InputError` for a dictionary whose features cannot stand in a graph."""
    place = dictionary.place
    if place.site not in SITES:
        raise InputError(
            f"Only transcoders can stand in a graph in an MLP's place; this dictionary is of {place.words}. Features "
            "of other sites can be nodes of circuits: circuitome find --nodes DICT."
        )
    if not 0 <= place.layer < layers:
        raise InputError(f"The transcoder is of layer {place.layer}; the model has layers 0 to {layers - 1}.")
