"""The heads of a circuit with their roles, and everything that these rest on."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.heads.atlas.patterns import PatternScores
from circuitome.heads.roles.ablations import Knocks
from circuitome.heads.roles.features import effects
from circuitome.heads.roles.measure import Evidence, focus_targets
from circuitome.heads.roles.positions import END, FIRST
from circuitome.heads.roles.rules import NEGATIVE_WRITER, ROLES, UNCLEAR, WRITER, Facts, Verdict, title

MOVED = 3
"""Other heads that are named as moved most when a head is taken out."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The heads of a circuit with their roles, and what these rest on."""

    circuit: Circuit
    """The circuit."""
    evidence: Evidence
    """Where heads look and what they write."""
    knocks: Knocks
    """What taking them out does."""
    generic: PatternScores | None
    """Their patterns on repeated random tokens; None where the model is too small for those."""
    facts: tuple[Facts, ...]
    """By head: the numbers that decide its role."""
    verdicts: tuple[Verdict, ...]
    """By head: its role."""

    def __repr__(self) -> str:
        given = ", ".join(f"{self.title(role)} {len(names)}" for role, names in self.by_role.items())
        return f"Explanation({len(self.heads)} heads: {given})"

    def __getitem__(self, head: str) -> Verdict:
        """The role of a head by its name. Raises `UnknownNameError`."""
        return self.verdicts[self.place(head)]

    def place(self, head: str) -> int:
        """Where a head is on every head axis. Raises `UnknownNameError`."""
        if head not in self.heads:
            raise unknown_name("explained head", head, self.heads)
        return self.heads.index(head)

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, in the order of every head axis."""
        return tuple(str(Node.head(*head)) for head in self.evidence.heads)

    @cached_property
    def importance(self) -> Float[Tensor, " head"]:
        """The largest of a head's mean |effects|: taken out everywhere, at the end, or directly; metric's unit."""
        found = (self.knocks.everywhere, self.knocks.at_end, self.evidence.direct)
        return torch.stack([effect.mean(0).abs() for effect in found]).amax(0)

    @cached_property
    def ranked(self) -> tuple[int, ...]:
        """Places on the head axis, the most important head first."""
        return tuple(self.importance.argsort(descending=True, stable=True).tolist())

    @cached_property
    def by_role(self) -> dict[str, tuple[str, ...]]:
        """The heads of each role that was given, in the order of `ROLES`, strongest first; "unclear" last."""
        given = {
            role: tuple(self.heads[i] for i in self.ranked if self.verdicts[i].role == role)
            for role in (*ROLES, UNCLEAR)
        }
        return {role: names for role, names in given.items() if names}

    @cached_property
    def looks_at(self) -> tuple[str, ...]:
        """By head: the role that it looks at most from the end, if more than evenly; else "first" or "end"."""
        even, own = self.evidence.even_targets.nanmean(0), focus_targets(self.evidence)
        names = self.evidence.places.targets
        resting = [self.evidence.target(name) for name in (FIRST, END)]
        found = []
        for mean, target in zip(self.evidence.targets.nanmean(0), own.tolist(), strict=True):
            chosen = target if mean[target] > even[target] else max(resting, key=lambda i: float(mean[i]))
            found.append(names[chosen])
        return tuple(found)

    def title(self, role: str) -> str:
        """A role as the task calls it: "name mover" for "mover" in indirect object identification."""
        return title(role, self.evidence.places.names)

    def label(self, place: int) -> str:
        """Role of a head, with where a writer reads."""
        role = self.verdicts[place].role
        facts = self.facts[place]
        if role not in (WRITER, NEGATIVE_WRITER):
            return self.title(role)
        return f"{role} from {END if not facts.to_role >= facts.to_end else self.looks_at[place]}"

    def feeds(self, head: str) -> dict[str, tuple[str, ...]]:
        """Whose q, k and v, and which MLPs or logits, the circuit's edges lead to from a head."""
        graph = self.circuit.graph
        found: dict[str, list[str]] = {}
        for column in self.circuit.mask[graph.row(head)].nonzero().flatten().tolist():
            node = graph.reader_nodes[column]
            found.setdefault("mlp" if node.kind == "mlp" else node.input or node.kind, []).append(str(node.whole))
        return {kind: tuple(found[kind]) for kind in ("q", "k", "v", "mlp", "logits") if kind in found}

    @cached_property
    def agreement(self) -> Float[Tensor, " head"]:
        """Correlation of attention from the end to a role's token with what the head adds to that token's logit.

        Over prompts and roles; near 1 for heads that copy, near -1 for negative ones (Wang et al. 2022, figure 3).
        """
        names = self.evidence.places.names
        used = [i for i, name in enumerate(names) if name not in (FIRST, END)]
        looks, writes = self.evidence.targets[..., used], self.evidence.writes[..., used]
        known = ~(writes.isnan() | (self.evidence.places.at[:, None, used] < 0))
        return torch.stack([_correlation(looks[:, i], writes[:, i], known[:, i]) for i in range(len(self.heads))])

    def moved(self, place: int) -> list[tuple[str, str, float]]:
        """Whose attention from the end to what they look at changes most without a head: name, target, change."""
        shift = self.knocks.shifts[place]
        order = shift.abs().argsort(descending=True)[:MOVED].tolist()
        names, own = self.evidence.places.targets, focus_targets(self.evidence).tolist()
        return [(self.heads[i], names[own[i]], float(shift[i])) for i in order if abs(float(shift[i])) >= 0.005]

    def to_dict(self) -> dict[str, Any]:
        """Roles and evidence of every head, strongest first, as plain JSON values; effects in the metric's unit."""
        return {
            "unit": self.evidence.unit,
            "scale": self.evidence.scale,
            "roles": {self.title(role): list(names) for role, names in self.by_role.items()},
            "heads": [self._head(place) for place in self.ranked],
        }

    def _head(self, place: int) -> dict[str, Any]:
        one = self.verdicts[place]
        return {
            "head": self.heads[place],
            "role": self.label(place),
            "score": one.score if one.role != UNCLEAR else None,
            "best": self.title(one.best),
            "best_score": one.score,
            "runner_up": self.title(one.runner_up),
            "runner_up_score": one.runner_up_score,
            "looks_at": self.looks_at[place],
            "looks": float(self.evidence.targets[:, place, self.evidence.target(self.looks_at[place])].nanmean()),
            "effects": {name: asdict(values[place]) for name, values in self._effects.items()},
            "facts": _plain(asdict(self.facts[place])),
            "writes": dict(
                zip(self.evidence.places.names, self.evidence.writes[:, place].nanmean(0).tolist(), strict=True)
            ),
            "agreement": float(self.agreement[place]),
            "feeds": {kind: list(names) for kind, names in self.feeds(self.heads[place]).items()},
            "moves": [{"head": name, "to": target, "change": change} for name, target, change in self.moved(place)],
        }

    @cached_property
    def _effects(self) -> dict[str, Any]:
        found = {"direct": self.evidence.direct, "at_end": self.knocks.at_end, "everywhere": self.knocks.everywhere}
        return {name: effects(samples) for name, samples in found.items()}


def _correlation(a: Tensor, b: Tensor, known: Tensor) -> Float[Tensor, ""]:
    a, b = a[known] - a[known].mean(), b[known] - b[known].mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return (a * b).sum() / torch.where(size > 0, size, torch.nan)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what is not known."""
    found = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            item = _plain(item)
        if item != {} and not (isinstance(item, float) and math.isnan(item)):
            found[name] = item
    return found
