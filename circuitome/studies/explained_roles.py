"""The diagram of an explained circuit: classes of heads and of MLPs as boxes, and which feeds which."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import circuitome as cm
from circuitome.present import formats
from circuitome.present.blocks import RoleClass, Roles

Attention = Mapping[str, Sequence[Sequence[float]]]
"""By head: mean attention from the token of each role to that of each; NaN where there is none."""
RELATIONS = ("previous token", "duplicate token", "induction")
"""Roles that are a relation between tokens, at whatever position."""
CLEARLY = 0.25
"""Share of attention from which on a head says at which token its class acts."""
DRAWN = 1
"""Arrows into a class of MLPs, and out of it, that are drawn: more hide those between heads."""
LISTED = 40
"""Edges that are kept of an arrow."""

INPUTS = ("q", "k", "v", "in", "logits")
"""What arrows lead to, in the order in which they are named."""


@dataclass(frozen=True)
class Class:
    """A box, and how deep in the model its parts are."""

    role: RoleClass
    """The box."""
    layer: float
    """Mean layer of its parts."""
    mlps: bool
    """Whether its parts are MLPs."""


def diagram(
    named: "cm.heads.Explanation | None", mlps: "cm.heads.MlpExplanation | None", results: Mapping[str, Any]
) -> list[Roles]:
    """Classes of heads and of MLPs in the order of their layers, and which feeds which; nothing without any class."""
    heads = [] if named is None else head_classes(named, results)
    others = [] if mlps is None else mlp_classes(mlps, results["scale"])
    classes = sorted([*heads, *others], key=lambda some: some.layer)
    explained = named or mlps
    if not classes or explained is None:
        return []
    note = (
        "Earliest layers first; an arrow is as wide as many edges of the circuit lead from one class to another: into "
        "queries solid, into keys dashed, into values dotted."
    )
    if mlps is not None and mlps.names:
        drawn = sum(len(some.role.members) for some in others)
        note += (
            f" {drawn} of {len(mlps.names)} MLPs surely change the metric by 2 % of the gap or more when ablated: they "
            "stand by third of the model's layers and by the token at which they act, each box with the "
            "earlier class that feeds it most and the later one that it feeds most."
        )
    drawn_arrows = arrows(explained.circuit, classes)
    return [
        Roles(
            title="Roles",
            note=note,
            classes=tuple(some.role for some in classes),
            arrows=tuple(drawn_arrows),
            edges=edges_behind(explained.circuit, classes, drawn_arrows),
            positions=tuple(results["token_roles"]),
        )
    ]


def head_classes(named: "cm.heads.Explanation", results: Mapping[str, Any]) -> list[Class]:
    """The heads of each active role, what they do and where."""
    from circuitome.heads.roles.narrative import active, said

    heads, attention = {head["head"]: head for head in results["heads"]}, attention_of(named)
    classes = []
    for role in active(named):
        members = named.by_role[role]
        layers = [named.measurements.heads[named.place(head)][0] for head in members]
        position = acts_at([heads[name] for name in members], results["token_roles"], attention)
        box = RoleClass(name=named.title(role), members=members, about=said(named, role), position=position)
        classes.append(Class(box, sum(layers) / len(layers), mlps=False))
    return classes


def mlp_classes(mlps: "cm.heads.MlpExplanation", scale: float) -> list[Class]:
    """The MLPs that surely matter, by third of the model and by the token at which they act; shares of `scale`."""
    from circuitome.graph.node import Node

    effects = dict(zip(mlps.names, mlps.all_positions.mean(0).tolist(), strict=True))
    classes = []
    for (third, position), members in mlps.classes.items():
        name = f"{third} MLP{'s' if len(members) > 1 else ''}{' at ' + position if position else ''}"
        shares = ", ".join(f"{member} {formats.rounded(100 * effects[member] / scale, 0)} %" for member in members)
        about = f"ablating one everywhere changes the metric by, in % of the gap: {shares}"
        layers = [Node.parse(member).layer for member in members]
        box = RoleClass(name=name, members=members, about=about, position=position)
        classes.append(Class(box, sum(layers) / len(layers), mlps=True))
    return classes


def arrows(circuit: "cm.Circuit", classes: Sequence[Class]) -> list[tuple[str, str, str, float]]:
    """From class, to class, through which input, by how many edges: all between heads, the strongest of MLPs."""
    from circuitome.heads.roles.narrative import class_edges

    boxes = {some.role.name: some for some in classes}
    edges = class_edges(circuit, {part: name for name, some in boxes.items() for part in some.role.members})
    between_heads = [
        (start, end, through, float(number))
        for (start, through, end), number in edges.items()
        if start != end and not boxes[start].mlps and (end == "logits" or not boxes[end].mlps)
    ]
    joined: dict[tuple[str, str], dict[str, int]] = {}
    for (start, through, end), number in edges.items():
        upwards = end == "logits" or boxes[start].layer < boxes[end].layer
        if upwards and (boxes[start].mlps or (end != "logits" and boxes[end].mlps)):
            joined.setdefault((start, end), {})[through] = number
    strengths = {ends: sum(inputs.values()) for ends, inputs in joined.items()}
    ranked = sorted(strengths, key=lambda ends: -strengths[ends])
    kept = dict.fromkeys(
        ends
        for some in classes
        if some.mlps
        for side in (0, 1)
        for ends in [ends for ends in ranked if ends[side] == some.role.name][:DRAWN]
    )
    return [
        *between_heads,
        *((*ends, ", ".join(sorted(joined[ends], key=INPUTS.index)), float(strengths[ends])) for ends in kept),
    ]


def edges_behind(
    circuit: "cm.Circuit", classes: Sequence[Class], drawn: Sequence[tuple[str, str, str, float]]
) -> tuple[tuple[str, ...], ...]:
    """By arrow, the circuit's edges that it stands for, at most `LISTED`."""
    from circuitome.heads.roles.narrative import edges_by_class

    named = edges_by_class(circuit, {part: some.role.name for some in classes for part in some.role.members})
    return tuple(
        tuple(edge for kind in through.split(", ") for edge in named[start, kind, end])[:LISTED]
        for start, end, through, _ in drawn
    )


def attention_of(named: "cm.heads.Explanation") -> Attention:
    """Attention by head, of all heads that were explained."""
    return dict(zip(named.heads, named.measurements.attention_by_role.tolist(), strict=True))


def acts_at(heads: Sequence[Mapping[str, Any]], names: Sequence[str], attention: Attention) -> str:
    """The role of the token from which most heads of a class attend; nothing where none attends clearly from one."""
    attended_tokens = [attends(head, names, attention[head["head"]]) for head in heads]
    starts = Counter(start for start, _, share in attended_tokens if share is not None and share >= CLEARLY)
    return starts.most_common(1)[0][0] if starts else ""


def attends(
    head: Mapping[str, Any], names: Sequence[str], attention: Sequence[Sequence[float]]
) -> tuple[str, str, float | None]:
    """From the token of which role a head attends most to which: from the end, unless it acts by a relation."""
    if head["role"] not in RELATIONS:
        return names[-1], head["attends_to"], formats.finite(head["attention"])
    known = [
        (value, names[i], names[j])
        for i, shares in enumerate(attention)
        for j, share in enumerate(shares)
        if i != j > 0 and (value := formats.finite(share)) is not None
    ]
    value, start, end = max(known, default=(None, names[-1], names[0]))
    return start, end, value
