"""The heads of a circuit with their roles, and everything that these rest on."""

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
from circuitome.heads.atlas.head_score import HeadScore
from circuitome.heads.roles import rules
from circuitome.heads.roles.ablations import HeadAblations
from circuitome.heads.roles.features import intervals
from circuitome.heads.roles.measure import Measurements
from circuitome.heads.roles.positions import END, FIRST
from circuitome.heads.roles.rules import Features, Interval, RoleVerdict, title
from circuitome.results import Shown

MOST_CHANGED = 3
"""Other heads that are named as those whose attention changes most when a head is ablated."""


@dataclass(frozen=True, eq=False)
class Explanation(Shown):
    """The heads of a circuit with their roles, and what these rest on."""

    circuit: Circuit
    """The circuit."""
    measurements: Measurements
    """What heads attend to, what they write, and their direct effects."""
    ablations: HeadAblations
    """What ablating them does."""
    random_tokens: Mapping[str, HeadScore] | None
    """Their patterns on repeated random tokens; None where the model is too small for those."""
    features: tuple[Features, ...]
    """By head: the numbers that decide its role."""
    verdicts: tuple[RoleVerdict, ...]
    """By head: its role."""

    def __repr__(self) -> str:
        given = ", ".join(f"{self.title(role)} {len(names)}" for role, names in self.by_role.items())
        return f"Explanation({len(self.heads)} heads: {given})"

    def __getitem__(self, head: str) -> RoleVerdict:
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
        return tuple(str(Node.head(*head)) for head in self.measurements.heads)

    @cached_property
    def effects(self) -> dict[str, Float[Tensor, "prompts head"]]:
        """Change of the metric on each prompt when a head is ablated, in the metric's unit; negative: it helps.

        direct: only its path to the logits; last_position: at the answer position, everything after it reacting;
        all_positions: everywhere, on the first few prompts.
        """
        return {
            "direct": self.measurements.direct,
            "last_position": self.ablations.last_position,
            "all_positions": self.ablations.all_positions,
        }

    @cached_property
    def importance(self) -> Float[Tensor, " head"]:
        """The largest size of a head's three mean effects, in the metric's unit."""
        return torch.stack([effect.mean(0).abs() for effect in self.effects.values()]).amax(0)

    @cached_property
    def ranked(self) -> tuple[int, ...]:
        """Places on the head axis, the most important head first."""
        return tuple(self.importance.argsort(descending=True, stable=True).tolist())

    @cached_property
    def by_role(self) -> dict[str, tuple[str, ...]]:
        """The heads of each role that was given, in the order of `ROLES`, strongest first; "unclear" last."""
        given = {self.verdicts[i].role for i in self.ranked}
        return {
            role: tuple(self.heads[i] for i in self.ranked if self.verdicts[i].role == role)
            for role in (*rules.ROLES, rules.UNCLEAR)
            if role in given
        }

    @cached_property
    def attends_to(self) -> tuple[str, ...]:
        """By head: the role that it attends to most from the end, if more than evenly; else "first" or "end"."""
        even, names = self.measurements.even_from_end.nanmean(0), self.measurements.places.targets
        resting = [self.measurements.target(name) for name in (FIRST, END)]
        targets = []
        for attention, main in zip(self.measurements.attention_from_end.nanmean(0), self._main_targets, strict=True):
            above = attention[main] > even[main]
            targets.append(names[main if above else max(resting, key=lambda i: float(attention[i]))])
        return tuple(targets)

    @cached_property
    def _main_targets(self) -> list[int]:
        return self.measurements.main_target().tolist()

    def title(self, role: str) -> str:
        """A role as the task calls it: "name mover" for "mover" in indirect object identification."""
        return title(role, self.measurements.places.names)

    def reads(self, place: int) -> str:
        """The token that an answer head reads, in words: the changed token, the last token."""
        features = self.features[place]
        role = self.attends_to[place] if features.to_role >= features.to_end else END
        return "the last token" if role == END else f"the {role} token"

    def label(self, place: int) -> str:
        """Role of a head; with the token that it reads for an answer head."""
        role = self.verdicts[place].role
        reads_a_token = role in (rules.ANSWER_HEAD, rules.NEGATIVE_ANSWER_HEAD)
        return f"{role} that reads {self.reads(place)}" if reads_a_token else self.title(role)

    def feeds(self, head: str) -> dict[str, tuple[str, ...]]:
        """Whose q, k and v, and which MLPs or logits, the circuit's edges lead to from a head."""
        graph = self.circuit.graph
        fed: dict[str, list[str]] = {}
        for column in self.circuit.mask[graph.row(head)].nonzero().flatten().tolist():
            node = graph.reader_nodes[column]
            fed.setdefault("mlp" if node.kind == "mlp" else node.input or node.kind, []).append(str(node.whole))
        return {kind: tuple(fed[kind]) for kind in ("q", "k", "v", "mlp", "logits") if kind in fed}

    @cached_property
    def copying_correlation(self) -> Float[Tensor, " head"]:
        """Correlation of attention from the end to a role's token with what the head adds to that token's logit.

        Over prompts and roles; near 1 for heads that copy, near -1 for negative ones (Wang et al. 2022, figure 3).
        """
        places = self.measurements.places
        used = [i for i, name in enumerate(places.names) if name not in (FIRST, END)]
        attention = self.measurements.attention_from_end[..., used]
        logits = self.measurements.role_logits[..., used]
        known = ~(logits.isnan() | (places.at[:, None, used] < 0))
        return torch.stack([_correlation(attention[:, i], logits[:, i], known[:, i]) for i in range(len(self.heads))])

    def attention_changes(self, place: int) -> list[tuple[str, str, float]]:
        """Whose attention from the end to its main target changes most when a head is ablated: name, target, change."""
        changes = self.ablations.attention_changes[place].tolist()
        order = sorted(range(len(changes)), key=lambda i: -abs(changes[i]))[:MOST_CHANGED]
        names = self.measurements.places.targets
        return [(self.heads[i], names[self._main_targets[i]], changes[i]) for i in order if abs(changes[i]) >= 0.005]

    def to_dict(self) -> dict[str, Any]:
        """Roles and features of every head, strongest first, as plain JSON values; effects in the metric's unit."""
        effects = {name: intervals(samples) for name, samples in self.effects.items()}
        return {
            "unit": self.measurements.unit,
            "scale": self.measurements.scale,
            "roles": {self.title(role): list(names) for role, names in self.by_role.items()},
            "heads": [self._head(i, {name: of_heads[i] for name, of_heads in effects.items()}) for i in self.ranked],
        }

    def _head(self, place: int, effects: Mapping[str, Interval]) -> dict[str, Any]:
        verdict, measured, target = self.verdicts[place], self.measurements, self.attends_to[place]
        role_logits = measured.role_logits[:, place].nanmean(0).tolist()
        return {
            "head": self.heads[place],
            "role": self.label(place),
            "score": verdict.score if verdict.role != rules.UNCLEAR else None,
            "best": self.title(verdict.best),
            "best_score": verdict.score,
            "runner_up": self.title(verdict.runner_up),
            "runner_up_score": verdict.runner_up_score,
            "attends_to": target,
            "attention": float(measured.attention_from_end[:, place, measured.target(target)].nanmean()),
            "effects": {name: asdict(effect) for name, effect in effects.items()},
            "features": _plain(asdict(self.features[place])),
            "role_logits": dict(zip(measured.places.names, role_logits, strict=True)),
            "copying_correlation": float(self.copying_correlation[place]),
            "feeds": {kind: list(names) for kind, names in self.feeds(self.heads[place]).items()},
            "attention_changes": [
                {"head": name, "to": to, "change": change} for name, to, change in self.attention_changes(place)
            ],
        }


def _correlation(a: Tensor, b: Tensor, known: Tensor) -> Float[Tensor, ""]:
    a, b = a[known] - a[known].mean(), b[known] - b[known].mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return (a * b).sum() / torch.where(size > 0, size, torch.nan)


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what is not known."""
    items = {name: _plain(item) if isinstance(item, Mapping) else item for name, item in value.items()}
    return {name: item for name, item in items.items() if item != {} and item == item}  # NaN is not itself
