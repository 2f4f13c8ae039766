"""Interchange interventions: a base prompt runs with the value that a place in the model has on a source prompt.

If the place holds a variable of the causal model, the answer is the one that the causal model gives when that variable
has its value from the source. The share of pairs in which this is so is the interchange accuracy (IIA).
Source: Geiger et al. 2021, arXiv:2106.02997; Geiger et al. 2023, arXiv:2301.04709.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.interchanges import UNIT, right, shares, unchanged_right
from circuitome.causal.sites import Part, Place, Site, added, sites, units
from circuitome.causal.suffixes import Suffixes
from circuitome.causal.trials import LEAST, Trials, trials
from circuitome.engine.partial_forward import dense_copies
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.results import Estimate, Samples, plain_fields

AS_GOOD = 0.05
"""Accuracies that differ by less count as equal where a place is chosen."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AccuracyMap(Samples):
    """Interchange accuracy of one variable at every site and position; samples are 1.0 for pairs that are right."""

    variable: str
    """The variable."""
    changed: float
    """Share of pairs in which, with the variable's value from the source, the model's own answer is right no longer."""
    unchanged: Estimate
    """The accuracy where nothing is interchanged."""
    majority: float
    """The accuracy of the one answer that is right most often."""

    @property
    def chance(self) -> float:
        """What a place without the variable reaches: without an interchange, or by one answer for all."""
        return max(self.unchanged.value, self.majority)

    @property
    def best(self) -> tuple[str, Estimate]:
        """The place of the highest accuracy, x14@end, or the first in front of it that is as good within `AS_GOOD`.

        Behind the place at which an answer is known, the whole stream at the last token holds it as well.
        """
        near = self.mean >= self.mean.max() - AS_GOOD
        row = int(near.any(1).nonzero()[0])
        column = int((self.mean[row] * near[row]).argmax())
        return self.label(row, column), self.estimate(row, column)

    @override
    def label(self, *cell: int) -> str:
        """Name of a cell: x14@end."""
        return "@".join(axis[index] for axis, index in zip(self.axes, cell, strict=True))

    @override
    def to_dict(self) -> dict[str, Any]:
        """Labels, means, intervals, and what chance gives, as plain JSON values."""
        about = plain_fields(self, "variable", "changed", "unchanged", "majority", "chance")
        return {"rows": list(self.axes[0]), "columns": list(self.axes[1]), **super().to_dict(), **about}


@dataclass(frozen=True, eq=False, repr=False)
class Alignment:
    """Where in a model variables of a causal model may be: a map for each."""

    maps: dict[str, AccuracyMap]
    """By variable: its accuracy at every site and position."""
    base_accuracy: Estimate
    """Share of all prompts on which model and causal model agree without any interchange."""
    prompts: int
    """Number of prompts."""
    pairs: int
    """Number of pairs: one for every prompt on which they agree."""

    def __repr__(self) -> str:
        return "\n".join(
            f"{name}: IIA {estimate} at {place}, {self.maps[name].chance:.3f} by chance"
            for name, (place, estimate) in self.best.items()
        )

    def __getitem__(self, variable: str) -> AccuracyMap:
        return self.maps[variable]

    @property
    def best(self) -> dict[str, tuple[str, Estimate]]:
        """By variable: the place of its highest accuracy, which was chosen on these very pairs, and that accuracy."""
        return {name: accuracy.best for name, accuracy in self.maps.items()}

    def to_dict(self) -> dict[str, Any]:
        """All maps and counts as plain JSON values."""
        return plain_fields(self)


@method
def align(
    setting: Setting,
    causal: CausalModel,
    *,
    variables: Sequence[str] = (),
    kind: str = "resid",
    at: Sequence[str] = (),
    only: Sequence[str] = (),
    least: float = LEAST,
) -> Alignment:
    """The interchange accuracy of every variable at every site of a `kind` and every position.

    IIA = share of pairs (base, source) in which the likeliest of all answers, when the base runs with the source's
    value at that place, is what the causal model answers with the source's value of the variable. Pairs are drawn so
    that in half of them it is another answer than the model gives without; prompts that the model gets wrong are left
    out, and it must do the share `least` of them.
    `kind` is resid (the stream in front of each block, and behind the last one), mid (between attention and MLP),
    heads, mlps, or q, k or v of each head; `at` are roles, by default all that every prompt has and at which a variable
    can be; source and base may hold them at different positions. `only` some heads and MLPs are looked at, by name.
    All variables are judged on the same passes. A change runs on from its block, at its position and those behind it.

    Raises `UnknownNameError` for a variable, kind or role that is none, `InputError` where the model does what the
    causal model says on fewer prompts, for an answer of several tokens, for roles that are no inputs or stand
    in front of the inputs of all variables, and where `only` leaves no site of the kind.
    Source: Geiger et al. 2021, arXiv:2106.02997.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> cm.causal.align(model, task, cm.causal.ready("known-ioi"), kind="heads")
    repeated: IIA 1.000 [1.000, 1.000] at a0.h0@S2, 0.500 by chance
    name: IIA 1.000 [1.000, 1.000] at a2.h0@end, 0.500 by chance
    """
    return align_trials(trials(setting, causal, variables, least=least), kind, at, only)


def align_trials(pairs: Trials, kind: str = "resid", at: Sequence[str] = (), only: Sequence[str] = ()) -> Alignment:
    """The maps of all variables over given pairs; see `align`."""
    columns, rows = _columns(pairs, at), _rows(pairs, kind, only)
    said = answers(pairs, rows, columns)
    axes = (tuple(map(str, rows)), tuple(pairs.roles[column] for column in columns))
    maps = {}
    for number, variable in enumerate(pairs.variables):
        samples = right(pairs.expected[number], said.flatten(1)).view(said.shape)
        maps[variable] = AccuracyMap(
            samples=samples,
            axes=axes,
            unit=UNIT,
            groups=pairs.groups,
            variable=variable,
            changed=pairs.changed(variable),
            unchanged=shares(pairs, unchanged_right(pairs, variable)),
            majority=pairs.majority(variable),
        )
    return Alignment(maps, pairs.base_accuracy, len(pairs.task), len(pairs.base))


def _columns(pairs: Trials, at: Sequence[str]) -> list[int]:
    """The roles `at`, or all at which a variable can be."""
    for role in at:
        pairs.column(role)
        if all(pairs.early(role, variable) for variable in pairs.variables):
            pairs.check_place(Place((Part(Site("resid", 0), role),)), pairs.variables[0])
    names = at or [role for role in pairs.roles if not all(pairs.early(role, name) for name in pairs.variables)]
    return [pairs.column(role) for role in names]


def _rows(pairs: Trials, kind: str, only: Sequence[str]) -> list[Site]:
    """The sites of a kind; those of some heads or MLPs alone where `only` names any."""
    graph = pairs.model.graph
    some = units(graph, only)
    rows = [site for site in sites(graph, kind) if not only or site.unit in some]
    if not rows:
        raise InputError(f"None of {', '.join(only)} has a site of the kind {kind}. Take heads or mlps.")
    return rows


def answers(pairs: Trials, rows: Sequence[Site], columns: Sequence[int]) -> Int[Tensor, "pairs sites roles"]:
    """What the model answers, as the number of a token, with the source's value at each site and position."""
    said = torch.empty(len(pairs.base), len(rows), len(columns), dtype=torch.long)
    kind, blocks = rows[0].kind, {site.layer: [s for s in rows if s.layer == site.layer] for site in rows}
    done, tell = 0, pairs.setting.tell(f"interchanging {kind}")
    with torch.no_grad():
        for chunk in pairs.chunks():
            run = pairs.bases(chunk)
            for number, column in enumerate(columns):
                rest = Suffixes(pairs.model, run, pairs.positions[pairs.base[chunk], column])
                for layer, here in blocks.items():
                    change = pairs.differences(kind, layer, column, chunk)
                    heads = [site.head for site in here]
                    best = _answers(pairs, rest, kind, layer, added(pairs.model, kind, layer, change), heads)
                    where = torch.tensor([rows.index(site) for site in here])
                    said[chunk[:, None], where, number] = best.T.cpu()
                done += len(chunk)
                tell(done, len(columns) * len(pairs.base))
    return said


def _answers(
    pairs: Trials,
    rest: Suffixes,
    kind: str,
    layer: int,
    change: Float[Tensor, "batch most every width"],
    heads: Sequence[int],
) -> Int[Tensor, "head batch"]:
    """What the model answers with each of a block's changes by itself."""
    copies = dense_copies(pairs.model, rest.rest.steps.inputs, pairs.setting.max_memory)
    parts, best = change[:, :, list(heads)].permute(2, 0, 1, 3).split(copies), list[Tensor]()
    for part in parts:
        these = heads[len(best) * copies :][: len(part)]
        best.append(pairs.logits(rest.final(kind, layer, part, these)).argmax(-1))
    return torch.cat(best)


def random_weights(model: Model, seed: int = 0) -> Model:
    """A model of the same architecture with weights drawn as before training; nobody's seed is changed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make: Any = type(model.hf)
        hf = make(model.hf.config)
    return Model(hf.to(device=model.device, dtype=model.dtype).eval(), model.tokenizer, f"random {model.name}")
