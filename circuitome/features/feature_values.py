"""Every activation of a few features on texts: quantiles, and examples at them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.features.activations import passes
from circuitome.features.clamping import check_features
from circuitome.features.dictionary import Dictionary
from circuitome.features.dictionary_quality import check_width
from circuitome.neurons.text_windows import Windows
from circuitome.results import Shown


@dataclass(frozen=True, eq=False)
class Fired(Shown):
    """All tokens on which a feature is active."""

    feature: int
    """The feature."""
    values: Float[Tensor, " token"]
    """Its activations, smallest first."""
    places: Int[Tensor, "token 2"]
    """Window and position of each."""

    def __repr__(self) -> str:
        return f"Fired(feature {self.feature}, {len(self.values):,} tokens)"

    def at(self, share: float) -> tuple[int, int, float]:
        """Window, position and activation of the token behind which a share of the activations lies; 1: the largest."""
        row = min(len(self.values) - 1, int(share * len(self.values)))
        window, position = self.places[row].tolist()
        return window, position, float(self.values[row])

    def histogram(self, bins: int) -> tuple[list[float], list[int]]:
        """Where bins of equal width from 0 to the largest activation begin, and activations in each."""
        top = float(self.values[-1]) if len(self.values) else 1.0
        counts = torch.histc(self.values, bins, 0.0, top).long().tolist()
        return [top * i / bins for i in range(bins)], counts


@method
def fired(setting: Setting, dictionary: Dictionary, texts: Windows, features: Sequence[int]) -> list[Fired]:
    """By feature, every token of `texts` on which it is active; one pass over them.

    >>> model = cm.load("known-ioi")
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=4)
    >>> texts = cm.neurons.packed([model.encode("Ann and Bob met then Bob gave to")])
    >>> cm.features.fired(model, dictionary, texts, [3])
    [Fired(feature 3, 2 tokens)]

    Raises `UnknownNameError` for a feature that there is not, `InputError` where the dictionary does not fit.
    """
    check_width(setting, dictionary)
    check_features(dictionary, list(features))
    own, parts = dictionary.to(setting.model.device), list[tuple[Tensor, Tensor]]()
    tell = setting.tell("reading texts again")
    for part in passes(setting, dictionary.place, texts):
        if len(part):
            places = torch.stack([part.window, part.position], 1).cpu()
            parts.append((own.encode(part.given)[:, list(features)].cpu(), places))
            tell(int(part.window[-1]) + 1, len(texts))
    values, places = (torch.cat(some) for some in zip(*parts, strict=True))
    found = []
    for column, feature in enumerate(features):
        active = (values[:, column] > 0).nonzero()[:, 0]
        order = active[values[active, column].argsort(stable=True)]
        found.append(Fired(feature, values[order, column], places[order]))
    return found
