"""A dictionary: features with an encoder and a decoder, which say what a site's values are made of.

f = act((x - b_in) W_enc + b_enc)         features, at least 0: [token, feature]
y = f W_dec + b_dec (+ x W_skip)          what it makes of the values at its site

act is ReLU; with `k` only the k largest of a token stay (TopK, Gao et al. 2024, arXiv:2406.04093), with `threshold`
only what exceeds the feature's threshold (JumpReLU, Rajamanoharan et al. 2024, arXiv:2407.14435; BatchTopK as it is
used after training, Bussmann et al. 2024, arXiv:2412.06410). All weights are float32 and apply to the model's own
values: a scaling that a dictionary was trained with is folded in, unless it differs from token to token (`scaling`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.features.places import Place

SCALINGS = ("none", "layer_norm", "unit_norm")
"""What is done to each token's values before, and undone afterwards: nothing; mean 0 and deviation 1; norm sqrt(d)."""

CHUNK = 4096
"""Rows of all features that are computed at a time where single features are compared with them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Dictionary:
    """A sparse dictionary of one site (a sparse autoencoder), or from one site to another (a transcoder)."""

    place: Place
    """Where it belongs."""
    W_enc: Float[Tensor, "d_in feature"]
    """Encoder."""
    b_enc: Float[Tensor, " feature"]
    """Its bias."""
    W_dec: Float[Tensor, "feature d_out"]
    """Decoder: a feature's direction."""
    b_dec: Float[Tensor, " d_out"]
    """Its bias."""
    b_in: Float[Tensor, " d_in"] | None = None
    """What is subtracted from the input; None: nothing."""
    W_skip: Float[Tensor, "d_in d_out"] | None = None
    """A transcoder's linear part; None: none."""
    k: int | None = None
    """How many features of a token stay; None: all."""
    threshold: Float[Tensor, " feature"] | None = None
    """What a feature must exceed; None: 0."""
    scaling: str = "none"
    """A name in `SCALINGS`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: model, texts, training, as plain JSON values."""

    def __post_init__(self) -> None:
        features = len(self)
        if self.scaling != "none" and not self.place.one_site:
            raise InputError("A transcoder cannot scale its inputs token by token: its outputs have another scale.")
        if self.k is not None and not 0 < self.k <= features:
            raise InputError(f"k={self.k} of {features} features cannot stay active; k is at least 1 and at most all.")
        for name, value in self.tensors().items():
            if not value.isfinite().all():
                raise InputError(f"The dictionary's {name} holds NaN or infinity, so the file is damaged.")

    def __repr__(self) -> str:
        return f"Dictionary({len(self)} features, {self.place}, {self.kind})"

    def __len__(self) -> int:
        return int(self.W_enc.shape[1])

    @property
    def kind(self) -> str:
        """How features are made sparse: topk, jumprelu or relu."""
        return "topk" if self.k is not None else "relu" if self.threshold is None else "jumprelu"

    def tensors(self) -> dict[str, Tensor]:
        """Its weights by name."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in held.items() if isinstance(value, Tensor)}

    def described(self) -> dict[str, Any]:
        """Everything that is no tensor, as plain JSON values: with `tensors`, what `Dictionary.of` makes it from."""
        place = {"site": self.place.site, "layer": self.place.layer}
        return {**place, "k": self.k, "scaling": self.scaling, "facts": dict(self.facts)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> "Dictionary":
        """The dictionary whose `tensors` and `described` these are; other tensors beside them are left."""
        names = {field.name for field in fields(cls)}
        own: dict[str, Any] = {name: value for name, value in tensors.items() if name in names}
        rest = {name: described[name] for name in ("k", "scaling", "facts")}
        return checked(place=Place(described["site"], described["layer"]), **own, **rest)

    def to(self, device: torch.device) -> "Dictionary":
        """The same on a device."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self.tensors().items()}
        return replace(self, **moved)

    def scaled(self, x: Float[Tensor, "*token d_in"]) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs as the encoder takes them, and the shift and factor that undo it afterwards."""
        if self.scaling == "none":
            return x, x.new_zeros(()), x.new_ones(())
        if self.scaling == "layer_norm":
            shift = x.mean(-1, keepdim=True)
            factor = (x - shift).std(-1, keepdim=True)
            return (x - shift) / (factor + 1e-5), shift, factor
        shift, factor = x.new_zeros(()), x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return x / factor, shift, factor

    def before(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token feature"]:
        """What the activation function is given, for values x of the model."""
        x = self.scaled(x.float())[0]
        return (x if self.b_in is None else x - self.b_in) @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token feature"]:
        """The features of values x of the model: at least 0, most of them 0."""
        return activated(self.before(x), self.k, self.threshold)

    def encode_each(self, which: Sequence[int], x: Float[Tensor, "feature rows d_in"]) -> Float[Tensor, "feature rows"]:
        """Some features, each for values of its own, as `encode` gives them.

        Under TopK a feature that is above 0 is compared with all others, which are computed for such rows alone.
        """
        number = list(which)
        x = self.scaled(x.float())[0]
        x = x if self.b_in is None else x - self.b_in
        before = (x @ self.W_enc.T[number][..., None])[..., 0] + self.b_enc[number][:, None]
        active = before > (0 if self.threshold is None else self.threshold[number].clamp(min=0)[:, None])
        if self.k is not None and self.k < len(self):
            with torch.no_grad():
                places = active.nonzero()
                for some in places.split(CHUNK):
                    every = x[some[:, 0], some[:, 1]] @ self.W_enc + self.b_enc
                    own = every.gather(1, torch.tensor(number, device=x.device)[some[:, 0]][:, None])[:, 0]
                    active[some[:, 0], some[:, 1]] = own >= every.topk(self.k, dim=-1).values[:, -1]
        return before * active

    def decode(
        self, features: Float[Tensor, "*token feature"], x: Float[Tensor, "*token d_in"]
    ) -> Float[Tensor, "*token d_out"]:
        """What features say the values at the site are; `x` is what was encoded."""
        out = features @ self.W_dec + self.b_dec
        if self.W_skip is not None:
            out = out + x.float() @ self.W_skip
        _, shift, factor = self.scaled(x.float())
        return out * factor + shift

    def reconstruct(self, x: Float[Tensor, "*token d_in"]) -> Float[Tensor, "*token d_out"]:
        """What the dictionary makes of values x of the model.

        >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), 8, 32, k=2)
        >>> dictionary.reconstruct(torch.randn(3, 8)).shape, int(dictionary.encode(torch.randn(1, 8)).count_nonzero())
        (torch.Size([3, 8]), 2)
        """
        return self.decode(self.encode(x), x)

    def unit_norms(self) -> "Dictionary":
        """The same dictionary with decoder directions of norm 1, so that features are in the site's own units.

        Of a TopK dictionary this would change which features are largest; it stays as it is.
        """
        norms = self.W_dec.norm(dim=1).clamp(min=1e-12)
        if self.k is not None:
            return self
        threshold = None if self.threshold is None else self.threshold * norms
        scaled = {"W_enc": self.W_enc * norms, "b_enc": self.b_enc * norms, "W_dec": self.W_dec / norms[:, None]}
        return replace(self, **scaled, threshold=threshold)


def checked(*, W_enc: Any, W_dec: Any, **rest: Any) -> Dictionary:
    """A dictionary from parts that may not belong together, such as those of a file.

    Raises `InputError` where shapes do not agree, besides what `Dictionary` raises.
    """
    if W_enc.ndim != 2 or W_dec.ndim != 2:
        raise InputError(f"W_enc and W_dec must be matrices, got {list(W_enc.shape)} and {list(W_dec.shape)}.")
    (d_in, features), d_out = W_enc.shape, W_dec.shape[1]
    shapes = {"W_dec": (features, d_out), "b_enc": (features,), "b_dec": (d_out,), "b_in": (d_in,)}
    shapes |= {"W_skip": (d_in, d_out), "threshold": (features,)}
    for name, expected in shapes.items():
        value = W_dec if name == "W_dec" else rest.get(name)
        if value is not None and tuple(value.shape) != expected:
            raise InputError(
                f"The dictionary's {name} has shape {list(value.shape)}; with W_enc {list(W_enc.shape)} it must have "
                f"{list(expected)}."
            )
    return Dictionary(W_enc=W_enc, W_dec=W_dec, **rest)


def activated(
    before: Float[Tensor, "*token feature"], k: int | None, threshold: Float[Tensor, " feature"] | None
) -> Float[Tensor, "*token feature"]:
    """ReLU, where with `k` only the k largest of a token stay, and with `threshold` what exceeds it."""
    if k is not None:
        largest = before.topk(k, dim=-1, sorted=False)
        return torch.zeros_like(before).scatter(-1, largest.indices, largest.values.relu())
    return before.relu() if threshold is None else before.relu() * (before > threshold)


def random_dictionary(
    place: Place, width: int, features: int, *, k: int, centre: Tensor | None = None, seed: int = 0
) -> Dictionary:
    """Random directions of norm 1 that encode and decode, the k largest kept: what training has to beat.

    `centre` is subtracted before and added afterwards.

    >>> len(cm.features.random_dictionary(cm.features.Place("mlp", 3), 8, 32, k=2))
    32
    """
    directions = torch.randn(features, width, generator=torch.Generator().manual_seed(seed))
    directions = directions / directions.norm(dim=1, keepdim=True)
    centre = torch.zeros(width) if centre is None else centre
    return Dictionary(
        place=place,
        W_enc=directions.T.contiguous(),
        b_enc=torch.zeros(features),
        W_dec=directions,
        b_dec=centre,
        b_in=centre,
        k=k,
    )
