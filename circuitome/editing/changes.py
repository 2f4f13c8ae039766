"""Single changes of a model's behaviour: parts at other values, directions added, removed or set, features clamped.

Each is applied inside of a `with` block by the interventions of the engine; those that are linear can be written into
weights (`circuitome.editing.checkpoint`).
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from circuitome.engine.interventions.hook_sites import hook
from circuitome.engine.interventions.positions import At
from circuitome.engine.interventions.replace_parts import replace_each, scale
from circuitome.features.clamping import clamped
from circuitome.features.dictionary import Dictionary
from circuitome.models.model import Model


@dataclass(frozen=True, eq=False)
class Replaced:
    """What parts write is replaced by constants: zeros, means, numbers."""

    values: Mapping[str, Tensor]
    """By part what it writes instead, of the shape that `cm.ablate` takes: [d_head], [1] or [d_model], or a number."""
    at: At = "all"
    """Where, as in `cm.ablate`."""

    def applied(self, model: Model) -> AbstractContextManager[None]:
        """Inside, the parts write the constants."""
        return replace_each(model, self.values, at=self.at)

    def __str__(self) -> str:
        return f"{_some(self.values)} replaced"


@dataclass(frozen=True, eq=False)
class Scaled:
    """What parts write is multiplied by a number."""

    parts: tuple[str, ...]
    """The parts."""
    factor: float
    """The number; 0 switches them off."""
    at: At = "all"
    """Where, as in `cm.ablate`."""

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Inside, the parts write `factor` times what they would."""
        with scale(model, self.parts, self.factor, at=self.at):
            yield

    def __str__(self) -> str:
        return f"{_some(self.parts)} times {self.factor:g}"


@dataclass(frozen=True, eq=False)
class Added:
    """A vector is added to the residual stream."""

    site: str
    """A place of the stream, such as m15.resid_post."""
    vector: Float[Tensor, " d_model"]
    """What is added."""
    at: At = "all"
    """Where, as in `cm.ablate`."""

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Inside, the vector is added."""
        with hook(model, self.site, lambda values: values + self.vector.to(values), at=self.at):
            yield

    def __str__(self) -> str:
        return f"a vector of norm {float(self.vector.norm()):.3g} added at {self.site}"


@dataclass(frozen=True, eq=False)
class Removed:
    """Nothing is written along a direction, by the embedding, any attention or any MLP: x - r (r . x), r of norm 1."""

    direction: Float[Tensor, " d_model"]
    """The direction, of any norm."""
    at: At = "all"
    """Where, as in `cm.ablate`."""

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Inside, the stream has nothing along the direction."""
        unit = self.direction / self.direction.norm()

        def without(values: Tensor) -> Tensor:
            r = unit.to(values)
            return values - (values @ r)[..., None] * r

        layers = range(len(model.blocks))
        mlps = [f"m{layer}.out" for layer in layers] if model.graph.mlps else []
        with ExitStack() as stack:
            for site in ("embed", *(f"a{layer}.out" for layer in layers), *mlps):
                stack.enter_context(hook(model, site, without, at=self.at))
            yield

    def __str__(self) -> str:
        return "a direction removed from all that is written"


@dataclass(frozen=True, eq=False)
class Clamped:
    """A feature of a dictionary is held at a value: x + (value - f(x)) d, so that the error term stays as it is."""

    dictionary: Dictionary
    """The dictionary."""
    feature: int
    """The feature's number."""
    value: float
    """What its activation is held at; in units of the dictionary's features."""
    at: At = "all"
    """Where, as in `cm.ablate`."""

    def applied(self, model: Model) -> AbstractContextManager[None]:
        """Inside, the activations are as if the feature had the value."""
        return clamped(model, self.dictionary, {self.feature: self.value}, at=self.at)

    def __str__(self) -> str:
        return f"feature {self.feature} of {self.dictionary.place} held at {self.value:g}"


Change = Replaced | Scaled | Added | Removed | Clamped


def _some(parts: "Mapping[str, Tensor] | tuple[str, ...]") -> str:
    """Names, or how many there are."""
    names = list(parts)
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} parts"
