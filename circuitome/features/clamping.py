"""Features set to a value while the model runs; what the dictionary does not describe stays as it is."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.interventions.hook_sites import hook
from circuitome.engine.interventions.positions import At
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, UnknownNameError
from circuitome.features.dictionary import Dictionary
from circuitome.features.dictionary_quality import check_width
from circuitome.models.model import Model

Clamp = float | Callable[[Float[Tensor, "batch pos"]], Float[Tensor, "batch pos"]]
"""A feature's new value, or a function that gives it from the present one."""


def check_features(dictionary: Dictionary, features: list[int]) -> None:
    """Raises `UnknownNameError` for a feature that the dictionary has not."""
    if wrong := [feature for feature in features if not 0 <= feature < len(dictionary)]:
        raise UnknownNameError(f"There is no feature {wrong[0]}; the dictionary has 0 to {len(dictionary) - 1}.")


@contextmanager
def clamped(model: Model, dictionary: Dictionary, values: Mapping[int, Clamp], *, at: At = "all") -> Iterator[None]:
    """Inside, features have the given `values` in every forward pass of `model.hf`, `generate` included.

    The values x at the dictionary's site become x + (c - f_i) W_dec,i for each feature i with the value c in place of
    f_i: that is decode(f with f_i := c) + (x - decode(f)), so the dictionary's error is kept, and a feature that is set
    to what it is anyway changes nothing, bit for bit (Templeton et al. 2024). `at` says at which positions; see
    `cm.ablate`.

    >>> model = cm.load("known-ioi")
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=4)
    >>> prompt = torch.tensor([model.encode("Ann and Bob met then Bob gave to")])
    >>> with cm.features.clamped(model, dictionary, {3: lambda present: present}):
    ...     same = model.hf(prompt).logits
    >>> bool((same == model.hf(prompt).logits).all())
    True

    Raises `UnknownNameError` for a feature that there is not, `InputError` where the dictionary does not fit the model
    and for token-by-token scaling.
    """
    check_width(Setting(model), dictionary)
    check_features(dictionary, list(values))
    if dictionary.scaling != "none":
        raise InputError(
            f"A feature of a dictionary with scaling {dictionary.scaling!r} has no one direction to clamp."
        )
    own, which, seen = dictionary.to(model.device), list(values), list[Tensor]()

    def look(given: Tensor) -> None:
        seen[:] = [given]

    def put(target: Tensor) -> Tensor:
        given = target if own.place.one_site else seen.pop()
        features = own.encode(given.detach().flatten(0, 1)).view(*given.shape[:2], -1)[..., which]
        new = [
            value(features[..., i]) if callable(value) else torch.full_like(features[..., i], value)
            for i, value in enumerate(values.values())
        ]
        change = (torch.stack(new, -1) - features) @ own.W_dec[which]
        return (target + change.to(target.dtype)) if change.any() else target

    with ExitStack() as stack:
        if not own.place.one_site:
            stack.enter_context(hook(model, own.place.reads, look, at=at))
        stack.enter_context(hook(model, own.place.describes, put, at=at))
        yield
