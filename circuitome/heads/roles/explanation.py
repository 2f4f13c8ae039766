"""What every head of a circuit does: measure, name the movers, take heads out, name all roles."""

from collections.abc import Sequence

from circuitome.engine.ablation import Ablation
from circuitome.engine.circuit_run import check_graph
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.heads.atlas.patterns import PatternScores, pattern_scores
from circuitome.heads.atlas.repeated import repeated_tokens, usual_period
from circuitome.heads.roles.ablations import knock
from circuitome.heads.roles.context import Head, Progress, Subject
from circuitome.heads.roles.features import facts, movers
from circuitome.heads.roles.measure import measure
from circuitome.heads.roles.result import Explanation
from circuitome.heads.roles.rules import verdict
from circuitome.models.model import Model
from circuitome.tasks.task import Task

SEQUENCES = 8
"""Sequences of repeated random tokens."""


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
    heads = {name: graph.head(name) for name in circuit.nodes if Node.parse(name).kind == "head"}
    if not heads:
        raise InputError(f"The circuit of {len(circuit)} edges holds no heads, so there is nothing to name.")
    for name in names or ():
        if name not in heads:
            raise unknown_name("head of the circuit", name, heads)
    return sorted(heads[name] for name in dict.fromkeys(names or heads))


def _generic(model: Model, seed: int, max_memory: int | None) -> PatternScores | None:
    try:
        repeated = repeated_tokens(model, n=SEQUENCES, period=usual_period(model), seed=seed)
    except InputError:  # too few positions or tokens
        return None
    return pattern_scores(model, repeated, max_memory=max_memory)
