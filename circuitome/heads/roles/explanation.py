"""What every head of a circuit does: measure, name the movers, take heads out, name all roles."""

from collections.abc import Sequence

from circuitome.engine.circuit_run import check_graph
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.heads.atlas.patterns import PatternScores, pattern_scores
from circuitome.heads.atlas.repeated import repeated_tokens, usual_period
from circuitome.heads.roles.ablations import knock
from circuitome.heads.roles.context import Head, Subject
from circuitome.heads.roles.features import facts, movers
from circuitome.heads.roles.measure import measure
from circuitome.heads.roles.result import Explanation
from circuitome.heads.roles.rules import verdict

SEQUENCES = 8
"""Sequences of repeated random tokens."""


@method
def explain(setting: Setting, circuit: Circuit, *, heads: Sequence[str] | None = None) -> Explanation:
    """The role of every head of a circuit (or of some of its `heads`), with the evidence.

    Two rounds: where heads look, what they write and their direct effects name the movers; then every head is taken out
    by itself, and the name movers together, which shows who steers them and who backs them up. `ablation` is what a
    head writes when it is taken out. `seed` draws the repeated random tokens.
    Raises `InputError` for a circuit of another model or without heads, or a model that is not causal;
    `UnknownNameError` for heads that are not in the circuit; `TaskError` for pairs that cannot be swapped.
    Source of the tests: Wang et al. 2022, arXiv:2211.00593, sections 3 and appendix; Olsson et al. 2022,
    arXiv:2209.11895. Scores, thresholds and the order of the rounds are ours.
    """
    check_graph(setting.model, circuit)
    subject = Subject(setting, _chosen(circuit, heads))
    evidence, parts = measure(subject)
    generic = _generic(setting)
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


def _generic(setting: Setting) -> PatternScores | None:
    model = setting.model
    try:
        repeated = repeated_tokens(model, n=SEQUENCES, period=usual_period(model), seed=setting.seed)
    except InputError:  # too few positions or tokens
        return None
    return pattern_scores(setting, repeated)
