"""Several variables set at once, each at its place and from a source of its own: is the alignment right as a whole?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.interchanges import bases_from, logits_with, right, shares
from circuitome.causal.sites import Place
from circuitome.causal.subspaces import Interchanged
from circuitome.causal.trials import LEAST, Trials, trials
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.results import Estimate, plain_fields

MOST_SETS = 11
"""Sets of variables that are all tried; of more, pairs and the set of all."""


@dataclass(frozen=True, eq=False, repr=False)
class Joint:
    """How often the model answers as the causal model does when several variables are set at once."""

    accuracy: Estimate
    """Share of pairs, over all sets of variables."""
    sets: dict[str, Estimate]
    """By set of variables, position+name: the same."""
    unchanged: Estimate
    """Share of pairs in which the base's own answer is right: without any interchange."""
    majority: float
    """The largest share of pairs in which one answer is right, mean over sets."""
    above: Estimate
    """`accuracy` minus `unchanged`, pair by pair."""
    places: dict[str, str]
    """By variable: its place."""

    @property
    def holds(self) -> bool:
        """Whether the alignment predicts joint interventions better than no interchange and one answer for all."""
        return self.above.low > 0 and self.accuracy.low > self.majority

    def __repr__(self) -> str:
        return "\n".join(f"{names}: IIA {estimate}" for names, estimate in self.sets.items())

    def to_dict(self) -> dict[str, Any]:
        """All fields, and whether it holds, as plain JSON values."""
        names = ("accuracy", "unchanged", "majority", "above", "places", "holds")
        return {
            **plain_fields(self, *names),
            "sets": {name: estimate.to_dict() for name, estimate in self.sets.items()},
        }


@method
def joint(
    setting: Setting, causal: CausalModel, places: Mapping[str, str | Interchanged], *, least: float = LEAST
) -> Joint:
    """The interchange accuracy of several variables at once, each set at its place to its value on a source of its own.

    `places` gives each variable's place, or a subspace of one. Every set of two variables or more is tried (of five
    variables and more, pairs and all of them), with sources drawn for each variable by itself. In the model, places are
    set in the order of its blocks; in the causal model a variable that is set has its value, whatever it is computed
    from. Pairs for which the causal model then has no answer do not count.
    Raises `InputError` for fewer than two variables, and as `interchange`.
    Source: Geiger et al. 2021, arXiv:2106.02997, section 3.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> cm.causal.joint(model, task, cm.causal.ready("known-ioi"), {"repeated": "a1.h0@end", "name": "a2.h0@end"})
    repeated+name: IIA 1.000 [1.000, 1.000]
    """
    if len(places) < 2:
        raise InputError(f"A joint interchange takes two variables or more, got {', '.join(places) or 'none'}.")
    pairs = trials(setting, causal, list(places), least=least)
    where = {name: _place(pairs, name, place) for name, place in places.items()}
    sources = _sources(pairs)
    columns, before, answers, majorities = list[Tensor](), list[Tensor](), dict[str, Estimate](), list[float]()
    for chosen in _sets(pairs.variables):
        expected = _expected(pairs, chosen, sources)
        said = _said(pairs, {name: where[name] for name in chosen}, places, sources)
        came, kept = right(expected, said[:, None])[:, 0], (expected & pairs.before).any(1).float()
        nothing = ~expected.any(1)
        came[nothing] = kept[nothing] = torch.nan
        answers["+".join(chosen)] = _share(pairs, came)
        majorities.append(float(expected[~nothing].float().mean(0).max()))
        columns.append(came)
        before.append(kept)
    came, kept = torch.stack(columns).nanmean(0), torch.stack(before).nanmean(0)
    return Joint(
        accuracy=_share(pairs, came),
        sets=answers,
        unchanged=_share(pairs, kept),
        majority=sum(majorities) / len(majorities),
        above=_share(pairs, came - kept),
        places={name: str(place) for name, place in where.items()},
    )


def _place(pairs: Trials, variable: str, place: str | Interchanged) -> Place:
    parsed = Place.parse(place if isinstance(place, str) else place.place, pairs.model)
    pairs.check_place(parsed, variable)
    return parsed


def _sets(variables: Sequence[str]) -> list[tuple[str, ...]]:
    """The sets of variables that are tried, smallest first."""
    every = [some for size in range(2, len(variables) + 1) for some in combinations(variables, size)]
    return every if len(every) <= MOST_SETS else [*combinations(variables, 2), tuple(variables)]


def _sources(pairs: Trials) -> dict[str, Int[Tensor, " pairs"]]:
    """By variable a source for each base, drawn so that the variable's own answer changes in half of them."""
    base, seed = pairs.base.tolist(), pairs.setting.seed
    alone = {name: replace(pairs.draws, variables=(name,), compared={}) for name in pairs.variables}
    return {name: torch.tensor(draws.sources(base, seed + 1 + i)) for i, (name, draws) in enumerate(alone.items())}


def _expected(pairs: Trials, chosen: Sequence[str], sources: Mapping[str, Tensor]) -> Bool[Tensor, "pairs tokens"]:
    """What the causal model allows when these variables have their values from their sources."""
    rows, draws = [], pairs.draws
    for pair, base in enumerate(pairs.base.tolist()):
        given = {name: draws.alone[int(sources[name][pair])][name] for name in chosen}
        answer = pairs.causal.run(draws.inputs[base], set=given)[pairs.causal.output]
        allowed = draws.says.ids(answer, draws.inputs[base])
        rows.append([token in allowed for token in pairs.tokens])
    return torch.tensor(rows)


def _said(
    pairs: Trials, where: Mapping[str, Place], places: Mapping[str, str | Interchanged], sources: Mapping[str, Tensor]
) -> Int[Tensor, " pairs"]:
    """What the model answers when each variable's place has the value of the variable's source."""
    said = torch.empty(len(pairs.base), dtype=torch.long)
    with torch.no_grad():
        for chunk in pairs.chunks():
            rest = bases_from(pairs, list(where.values()), chunk)
            placed = []
            for name, place in where.items():
                values = [shown[sources[name][chunk]] for shown in pairs.values_of(place)]
                given = places[name]
                placed.append((place, values, None if isinstance(given, str) else given.puts))
            said[chunk] = logits_with(pairs, rest, placed, chunk).argmax(-1).cpu()
    return said


def _share(pairs: Trials, values: Float[Tensor, " pairs"]) -> Estimate:
    """The mean over pairs that have a value, with its interval over templates."""
    there = ~values.isnan()
    some = replace(pairs, base=pairs.base[there], source=pairs.source[there])
    return shares(some, values[there])
