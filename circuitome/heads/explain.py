"""What every head of a circuit does: its role with the evidence for it, and the circuit in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError, unknown_name
from circuitome.graph import Circuit
from circuitome.heads.evidence import Evidence, measure
from circuitome.heads.facts import facts, movers
from circuitome.heads.knocks import Knocks, knock
from circuitome.heads.patterns import PatternScores, pattern_scores
from circuitome.heads.repeated import repeated_tokens, usual_period
from circuitome.heads.roles import ROLES, UNCLEAR, Facts, Verdict, verdict
from circuitome.heads.scores import head_name
from circuitome.heads.subject import Head, Progress, Subject
from circuitome.interventions import Ablation, check_graph
from circuitome.models import Model
from circuitome.tasks import Task

SEQUENCES = 8
"""Sequences of repeated random tokens."""


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

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, in the order of every head axis."""
        return tuple(head_name(*head) for head in self.evidence.heads)

    @cached_property
    def importance(self) -> Float[Tensor, " head"]:
        """The largest of a head's mean |effects|, taken out at all positions, at the end, and directly; metric's unit."""
        effects = (self.knocks.everywhere, self.knocks.at_end, self.evidence.direct)
        return torch.stack([effect.mean(0).abs() for effect in effects]).amax(0)

    @cached_property
    def ranked(self) -> tuple[int, ...]:
        """Places on the head axis, the most important head first."""
        return tuple(self.importance.argsort(descending=True, stable=True).tolist())

    def __getitem__(self, head: str) -> Verdict:
        """The role of a head by its name. Raises `UnknownNameError`."""
        if head not in self.heads:
            raise unknown_name("head of the circuit", head, self.heads)
        return self.verdicts[self.heads.index(head)]

    @cached_property
    def by_role(self) -> dict[str, tuple[str, ...]]:
        """The heads of each role that was given, in the order of `ROLES`, strongest first; "unclear" last."""
        given = {
            role: tuple(self.heads[i] for i in self.ranked if self.verdicts[i].role == role)
            for role in (*ROLES, UNCLEAR)
        }
        return {role: names for role, names in given.items() if names}

    def feeds(self, head: str) -> dict[str, tuple[str, ...]]:
        """Whose q, k and v, and which MLPs or logits, the circuit's edges lead to from a head."""
        graph = self.circuit.graph
        found: dict[str, list[str]] = {}
        for column in self.circuit.mask[graph.row(head)].nonzero().flatten().tolist():
            name, _, kind = graph.readers[column].rpartition(".")
            found.setdefault({"": "logits", "in": "mlp"}.get(kind, kind) if name else "logits", []).append(name or kind)
        return {kind: tuple(found[kind]) for kind in ("q", "k", "v", "mlp", "logits") if kind in found}


def explain(
    model: Model,
    circuit: Circuit,
    task: Task,
    *,
    heads: Sequence[str] | None = None,
    ablation: Ablation = "corrupted",
    seed: int = 0,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """The role of every head of a circuit (or of some of its `heads`), with the evidence.

    Two rounds: where heads look, what they write and their direct effects name the movers; then every head is taken out
    by itself, and the name movers together, which shows who steers them and who backs them up. `ablation` is what a
    head writes when it is taken out. `seed` draws the repeated random tokens.
    Raises `InputError` for a circuit of another model or without heads, or a model that is not causal;
    `UnknownNameError` for heads that are not in the circuit; `TaskError` for pairs that cannot be swapped.
    Source of the tests: Wang et al. 2022, arXiv:2211.00593, sections 3 and appendix; Olsson et al. 2022,
    arXiv:2209.11895. Scores, thresholds and the order of the rounds are ours.
    """
    check_graph(model, circuit)
    subject = Subject(model, task, _chosen(circuit, heads), ablation=ablation, max_memory=max_memory, progress=progress)
    evidence, parts = measure(subject)
    generic = _generic(model, seed, max_memory)
    knocks = knock(subject, evidence, parts, *movers(evidence, facts(evidence, generic)))
    known = tuple(facts(evidence, generic, knocks))
    return Explanation(circuit, evidence, knocks, generic, known, tuple(map(verdict, known)))


def _chosen(circuit: Circuit, names: Sequence[str] | None) -> list[Head]:
    graph = circuit.graph
    own = {
        name: (
            graph.layer_of[graph.row(name)],
            graph.row(name) - graph.head_rows(graph.layer_of[graph.row(name)]).start,
        )
        for name in circuit.nodes
        if name.startswith("a")
    }
    if not own:
        raise InputError(f"The circuit of {len(circuit)} edges holds no heads, so there is nothing to name.")
    for name in names or ():
        if name not in own:
            raise unknown_name("head of the circuit", name, own)
    return sorted(own[name] for name in dict.fromkeys(names or own))


def _generic(model: Model, seed: int, max_memory: int | None) -> PatternScores | None:
    try:
        repeated = repeated_tokens(model, n=SEQUENCES, period=usual_period(model), seed=seed)
    except InputError:  # too few positions or tokens
        return None
    return pattern_scores(model, repeated, max_memory=max_memory)
