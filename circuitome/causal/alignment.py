"""Interchange interventions: a base prompt runs with the value that a place in the model has on a source prompt.

If the place holds a variable of the causal model, the answer is the one that the causal model gives when that variable
has its value from the source. The share of pairs in which this is so is the interchange accuracy (IIA).
Source: Geiger et al. 2021, arXiv:2106.02997; Geiger et al. 2023, arXiv:2301.04709.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.sites import Place, added, sites
from circuitome.causal.suffixes import Suffixes
from circuitome.causal.trials import Trials, trials
from circuitome.engine.partial_forward import dense_copies
from circuitome.engine.setting import Setting, method
from circuitome.models.model import Model
from circuitome.results import Estimate, Samples, mean, plain_fields

UNIT = "share of pairs"
"""Unit of an interchange accuracy."""
AS_GOOD = 0.05
"""Accuracies that differ by less count as equal where a place is chosen."""
Project = Callable[[Float[Tensor, "batch d_model"]], Float[Tensor, "batch d_model"]]
"""What of a change of the stream is made; all of it, or its part in a subspace."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AccuracyMap(Samples):
    """Interchange accuracy of one variable at every site and position; samples are 1.0 for pairs that are right."""

    variable: str
    """The variable."""
    changed: float
    """Share of pairs in which the variable's value from the source changes the causal model's answer."""
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
    setting: Setting, causal: CausalModel, *, variables: Sequence[str] = (), kind: str = "resid", at: Sequence[str] = ()
) -> Alignment:
    """The interchange accuracy of every variable at every site of a `kind` and every position.

    IIA = share of pairs (base, source) in which the likeliest of all answers, when the base runs with the source's
    value at that place, is what the causal model answers with the source's value of the variable. Pairs are drawn so
    that this is another answer in half of them; prompts that the model gets wrong are left out.
    `kind` is resid (the stream in front of each block, and behind the last one), mid (between attention and MLP), heads
    or mlps; `at` are roles, all that every prompt has by default; source and base may hold them at different positions.
    All variables are judged on the same passes. A change runs on from its block, at its position and those behind it.

    Raises `UnknownNameError` for a variable, kind or role that is none, `InputError` where the model does not do what
    the causal model says on half of the prompts, for an answer of several tokens, and for roles that are no inputs.
    Source: Geiger et al. 2021, arXiv:2106.02997.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> cm.causal.align(model, task, cm.causal.ready("known-ioi"), kind="heads")
    repeated: IIA 1.000 [1.000, 1.000] at a0.h0@S2, 0.500 by chance
    name: IIA 1.000 [1.000, 1.000] at a2.h0@end, 0.500 by chance
    """
    return align_trials(trials(setting, causal, variables), kind, at)


@method
def interchange(
    setting: Setting, causal: CausalModel, place: str, *, variables: Sequence[str] = (), project: Project | None = None
) -> dict[str, Estimate]:
    """The interchange accuracy of each variable at one place, x14@end or a5.h1@S2, on the prompts of the setting.

    `project` makes of a change of the stream [batch, d_model] what is put in, such as `Subspace.project`; all of it by
    default. Raises `InputError` for a place that does not exist; see `align` for the rest.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 32)
    >>> found = cm.causal.interchange(model, task, cm.causal.ready("known-ioi"), "a1.h0@end")
    >>> found["repeated"].value
    1.0
    """
    pairs = trials(setting, causal, variables)
    said = answers_at(pairs, Place.parse(place, setting.model.graph), project)
    return {variable: shares(pairs, right_at(pairs, variable, said)) for variable in pairs.variables}


def align_trials(pairs: Trials, kind: str = "resid", at: Sequence[str] = ()) -> Alignment:
    """The maps of all variables over given pairs; see `align`."""
    columns = [pairs.column(role) for role in at] or range(len(pairs.roles))
    rows = sites(pairs.model.graph, kind)
    said = answers(pairs, kind, columns)
    axes = (tuple(map(str, rows)), tuple(pairs.roles[column] for column in columns))
    maps = {}
    for number, variable in enumerate(pairs.variables):
        samples = _right(pairs.expected[number], said.flatten(1)).view(said.shape)
        maps[variable] = AccuracyMap(
            samples=samples,
            axes=axes,
            unit=UNIT,
            groups=pairs.groups,
            variable=variable,
            changed=pairs.changed(variable),
            unchanged=unchanged(pairs, variable),
            majority=pairs.majority(variable),
        )
    return Alignment(maps, pairs.base_accuracy, len(pairs.task), len(pairs.base))


def unchanged(pairs: Trials, variable: str) -> Estimate:
    """The accuracy where nothing is interchanged: every base is one that the model does."""
    return shares(pairs, unchanged_right(pairs, variable))


def unchanged_right(pairs: Trials, variable: str) -> Float[Tensor, " pairs"]:
    """1.0 for pairs in which the base's own answer is what the causal model says after the interchange."""
    return (pairs.expected[pairs.index(variable)] & pairs.before).any(1).float()


def answers(pairs: Trials, kind: str, columns: Sequence[int]) -> Int[Tensor, "pairs sites roles"]:
    """What the model answers, as the number of a token, with the source's value at each site and position."""
    graph, layers = pairs.model.graph, range(len(pairs.model.blocks) + (kind == "resid"))
    heads = graph.n_heads if kind == "heads" else 1
    said = torch.empty(len(pairs.base), len(layers) * heads, len(columns), dtype=torch.long)
    done, tell = 0, pairs.setting.tell(f"interchanging {kind}")
    with torch.no_grad():
        for chunk in pairs.chunks():
            run = pairs.bases(chunk)
            for number, column in enumerate(columns):
                rest = Suffixes(pairs.model, run, pairs.positions[pairs.base[chunk], column])
                for layer in layers:
                    change = pairs.differences(kind, layer, column, chunk)
                    best = _answers(pairs, rest, kind, layer, added(pairs.model, kind, layer, change))
                    said[chunk, layer * heads : (layer + 1) * heads, number] = best.T.cpu()
                done += len(chunk)
                tell(done, len(columns) * len(pairs.base))
    return said


def _answers(
    pairs: Trials, rest: Suffixes, kind: str, layer: int, change: Float[Tensor, "batch head d_model"]
) -> Int[Tensor, "head batch"]:
    """What the model answers with each of a block's changes by itself."""
    copies = dense_copies(pairs.model, rest.rest.steps.inputs, pairs.setting.max_memory)
    parts = change.transpose(0, 1).split(copies)
    return torch.cat([pairs.logits(rest.final(kind, layer, part)).argmax(-1) for part in parts])


def answers_at(pairs: Trials, place: Place, project: Project | None = None) -> Int[Tensor, " pairs"]:
    """What the model answers, as the number of a token, with the source's value, or its part, at one place."""
    said = torch.empty(len(pairs.base), dtype=torch.long)
    with torch.no_grad():
        for chunk in pairs.chunks():
            rest = bases_from(pairs, place, chunk)
            said[chunk] = logits_at(pairs, rest, place, chunk, project).argmax(-1).cpu()
    return said


def bases_from(pairs: Trials, place: Place, chunk: Int[Tensor, " some"]) -> Suffixes:
    """The bases of some pairs from a place on."""
    at = pairs.positions[pairs.base[chunk], pairs.column(place.role)]
    return Suffixes(pairs.model, pairs.bases(chunk), at, [place.site.layer])


def logits_at(
    pairs: Trials, rest: Suffixes, place: Place, chunk: Int[Tensor, " some"], project: Project | None = None
) -> Float[Tensor, "some tokens"]:
    """Logits of the answers for some pairs, with bases `rest` and the source's value, or its part, at a place."""
    site, column = place.site, pairs.column(place.role)
    change = added(pairs.model, site.kind, site.layer, pairs.differences(site.kind, site.layer, column, chunk))
    change = change[:, site.head]
    return pairs.logits(rest.final(site.kind, site.layer, (change if project is None else project(change))[None]))[0]


def right_at(pairs: Trials, variable: str, said: Int[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """1.0 for pairs whose answer is what the causal model says after the interchange of a variable."""
    return _right(pairs.expected[pairs.index(variable)], said[:, None])[:, 0]


def shares(pairs: Trials, right: Float[Tensor, " pairs"]) -> Estimate:
    """The share of pairs that came out right, with its interval over templates."""
    return mean(right, UNIT, seed=pairs.setting.seed, groups=pairs.groups)


def _right(expected: Tensor, said: Int[Tensor, "pairs cells"]) -> Float[Tensor, "pairs cells"]:
    return expected.cpu().gather(1, said).float()


def random_weights(model: Model, seed: int = 0) -> Model:
    """A model of the same architecture with weights drawn as before training; nobody's seed is changed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        make: Any = type(model.hf)
        hf = make(model.hf.config)
    return Model(hf.to(device=model.device, dtype=model.dtype).eval(), model.tokenizer, f"random {model.name}")
