"""Interchange at one place: bases run with the values that one or several sites have on their sources."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import Interchanged, Put
from circuitome.causal.suffixes import Passes, Replace, Suffixes
from circuitome.causal.trials import LEAST, Trials, trials
from circuitome.engine.setting import Setting, method
from circuitome.results import Estimate, mean

UNIT = "share of pairs"
"""Unit of an interchange accuracy."""


@method
def interchange(
    setting: Setting,
    causal: CausalModel,
    place: str,
    *,
    variables: Sequence[str] = (),
    subspace: Interchanged | None = None,
    least: float = LEAST,
) -> dict[str, Estimate]:
    """The interchange accuracy of each variable at one place, on the prompts of the setting.

    A place is x14@end, mid3@S2, a5.h1@S2, m5@end, a5.h1.q@end, a5.kv1.k@S2, some neurons of an MLP m5.n3,n17@end, all
    of them m5.n*@end, all heads a5.h*@end, or several of these at once, joined by +. Several sites are set one after
    another, each to the source's value whatever those before it did. With a `subspace` of the place, only the values'
    parts in it are interchanged: directions (`das`), or features of a dictionary (`cm.features.as_subspace`).
    Raises `InputError` for a place that does not exist or stands in front of a variable's inputs; see `align`.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> found = cm.causal.interchange(model, task, cm.causal.ready("known-ioi"), "a1.h0@end")
    >>> found["repeated"].value
    1.0
    """
    where = Place.parse(place, setting.model)
    pairs = trials(setting, causal, variables, least=least)
    for variable in variables:
        pairs.check_place(where, variable)
    said = answers_at(pairs, where, subspace)
    return {variable: shares(pairs, right_at(pairs, variable, said)) for variable in pairs.variables}


def answers_at(pairs: Trials, place: Place, subspace: Interchanged | None = None) -> Int[Tensor, " pairs"]:
    """What the model answers, as the number of a token, with the source's value, or its part, at one place."""
    said = torch.empty(len(pairs.base), dtype=torch.long)
    puts = None if subspace is None else subspace.puts
    with torch.no_grad():
        for chunk in pairs.chunks():
            rest = bases_from(pairs, [place], chunk)
            said[chunk] = logits_at(pairs, rest, place, chunk, puts).argmax(-1).cpu()
    return said


def bases_from(
    pairs: Trials, places: Sequence[Place], chunk: Int[Tensor, " some"], run: Passes | None = None
) -> Suffixes:
    """The bases of some pairs from the first of some places on; `run` is their pass where there is one already."""
    whole = Place(tuple(part for place in places for part in place.parts))
    view, at = whole.view(pairs.model), torch.cat([pairs.at(chunk, role) for role in whole.roles], 1)
    return Suffixes(view, run or pairs.bases(chunk, view), at, [whole.first])


def logits_at(
    pairs: Trials,
    rest: Suffixes,
    place: Place,
    chunk: Int[Tensor, " some"],
    puts: Sequence[Put] | None = None,
) -> Float[Tensor, "some tokens"]:
    """Logits of the answers for some pairs, with bases `rest` and the source's values, or their parts, at a place."""
    source = pairs.source[chunk]
    wanted = [values[source] for values in pairs.values_of(place)]
    return logits_with(pairs, rest, [(place, wanted, puts)], chunk)


def logits_with(
    pairs: Trials,
    rest: Suffixes,
    placed: Sequence[tuple[Place, Sequence[Tensor], Sequence[Put] | None]],
    chunk: Int[Tensor, " some"],
) -> Float[Tensor, "some tokens"]:
    """Logits of the answers for some pairs when the parts of some places are set to values [some, most, width]."""
    changes = [
        (part.site, rest.slots(pairs.at(chunk, part.role)), towards(value, None if puts is None else puts[i]))
        for place, values, puts in placed
        for i, (part, value) in enumerate(zip(place.parts, values, strict=True))
    ]
    return pairs.logits(rest.changed(changes)[None])[0]


def towards(value: Float[Tensor, "batch most width"], put: Put | None) -> Replace:
    """What is to be added to a site's value so that it, or a part of it, becomes `value`."""
    return lambda current: value - current if put is None else put(value, current)


def right_at(pairs: Trials, variable: str, said: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """1.0 for pairs whose answer is what the causal model says after the interchange of a variable."""
    return right(pairs.expected[pairs.index(variable)], said[:, None])[:, 0]


def right(expected: Bool[Tensor, "pairs tokens"], said: Int[Tensor, "pairs cells"]) -> Float[Tensor, "pairs cells"]:
    """1.0 for answers that are expected ones."""
    return expected.cpu().gather(1, said).float()


def unchanged_right(pairs: Trials, variable: str) -> Float[Tensor, " pairs"]:
    """1.0 for pairs in which the base's own answer is what the causal model says after the interchange."""
    return (pairs.expected[pairs.index(variable)] & pairs.before).any(1).float()


def shares(pairs: Trials, right: Float[Tensor, " pairs"]) -> Estimate:
    """The share of pairs that came out right, with its interval over templates."""
    return mean(right, UNIT, seed=pairs.setting.seed, groups=pairs.groups)
