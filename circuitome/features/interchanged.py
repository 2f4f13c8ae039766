"""Features of a dictionary as the part of a place in which a variable of a causal model is interchanged."""

from collections.abc import Sequence
from dataclasses import dataclass

from circuitome.causal.subspaces import Put
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.features.clamping import check_features
from circuitome.features.dictionary import Dictionary
from circuitome.features.dictionary_quality import check_width
from circuitome.models.model import Model


@dataclass(frozen=True, eq=False, repr=False)
class FeatureSubspace:
    """Some features of a dictionary at a named position."""

    dictionary: Dictionary
    """The dictionary, where the model is."""
    features: tuple[int, ...]
    """Numbers of the features."""
    place: str
    """Where in the model and in the prompt: x14@end."""

    def __repr__(self) -> str:
        return f"FeatureSubspace({len(self.features)} features at {self.place})"

    @property
    def puts(self) -> list[Put]:
        """What is added to the value x of the place: (f(x_source) - f(x)) W_dec, over these features."""
        which = list(self.features)
        encode, weights = self.dictionary.encode, self.dictionary.W_dec[which]
        return [lambda value, current: (encode(value)[..., which] - encode(current)[..., which]) @ weights]


def as_subspace(model: Model, dictionary: Dictionary, features: Sequence[int], at: str) -> FeatureSubspace:
    """Features of a dictionary at the role `at`, for `cm.causal.interchange` and `cm.causal.joint` as a subspace.

        x_new = x_base + sum over features i of (f_i(x_source) - f_i(x_base)) W_dec,i

    so that the dictionary's error, and all other features, stay those of the base (Templeton et al. 2024).
    Raises `UnknownNameError` for a feature that there is not, `InputError` for a dictionary that does not fit the
    model, that is of another kind of site, or that scales from token to token.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 1), model.d_model, 40, k=4)
    >>> some = cm.features.as_subspace(model, dictionary, [3, 7], "end")
    >>> cm.causal.interchange(model, task, cm.causal.ready("known-ioi"), some.place, subspace=some)["name"].value
    0.5
    """
    check_width(Setting(model), dictionary)
    check_features(dictionary, list(features))
    letters = {"resid": f"x{dictionary.place.layer + 1}", "mlp": f"m{dictionary.place.layer}"}
    if dictionary.place.site not in letters or dictionary.scaling != "none":
        raise InputError(
            f"Features are interchanged of dictionaries of {' or '.join(letters)} without scaling from token to token; "
            f"this one is of {dictionary.place} with scaling {dictionary.scaling!r}."
        )
    return FeatureSubspace(dictionary.to(model.device), tuple(features), f"{letters[dictionary.place.site]}@{at}")
