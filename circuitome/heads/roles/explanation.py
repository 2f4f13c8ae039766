"""What every head of a circuit does: measure, name the movers, ablate heads, name all roles."""

from collections.abc import Mapping, Sequence

from circuitome.engine.circuit_run import check_graph
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.circuits import Circuit
from circuitome.graph.node import Node
from circuitome.heads.atlas.head_score import HeadScore
from circuitome.heads.atlas.patterns import pattern_scores
from circuitome.heads.atlas.repeated import repeated_tokens, usual_period
from circuitome.heads.roles.ablations import ablate_heads
from circuitome.heads.roles.context import Head, HeadContext
from circuitome.heads.roles.features import head_features, movers
from circuitome.heads.roles.measure import measure
from circuitome.heads.roles.result import Explanation
from circuitome.heads.roles.rules import role_of

SEQUENCES = 8
"""Sequences of repeated random tokens."""


@method
def explain(setting: Setting, circuit: Circuit, *, heads: Sequence[str] | None = None) -> Explanation:
    """The role of every head of a circuit (or of some of its `heads`), with the measurements that it rests on.

    Two rounds. First, what heads attend to, what they write and their direct effects name the movers. Then every head
    is ablated by itself, and the name movers together, which shows who steers them and who backs them up. An ablated
    head writes what the setting's `ablation` says; `seed` draws the repeated random tokens. Effects are changes of the
    metric when a head is ablated, in the metric's unit: negative where it helps.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> cm.heads.explain(model, cm.ground_truth.true_circuit(model, task), task).by_role["mover"]
    ('a2.h0',)

    Raises `InputError` for a circuit of another model or without heads, or a model that is not causal;
    `UnknownNameError` for heads that are not in the circuit; `TaskError` for pairs that cannot be swapped;
    `NumericsError` where the metric is not finite.
    Source of the tests: Wang et al. 2022, arXiv:2211.00593, sections 3 and appendix; Olsson et al. 2022,
    arXiv:2209.11895. Scores, thresholds and the order of the rounds are ours.
    """
    check_graph(setting.model, circuit)
    context = HeadContext(setting, _chosen(circuit, heads))
    measurements, batches = measure(context)
    random_tokens = _random_tokens(setting)
    ablations = ablate_heads(
        context, measurements, batches, *movers(measurements, head_features(measurements, random_tokens))
    )
    features = tuple(head_features(measurements, random_tokens, ablations))
    return Explanation(circuit, measurements, ablations, random_tokens, features, tuple(map(role_of, features)))


def _chosen(circuit: Circuit, names: Sequence[str] | None) -> list[Head]:
    """The heads of a circuit, or those of `names`, first layer first."""
    graph = circuit.graph
    heads = {name: graph.head(name) for name in circuit.nodes if Node.parse(name).kind == "head"}
    if not heads:
        raise InputError(f"The circuit of {len(circuit)} edges holds no heads, so there is nothing to name.")
    for name in names or ():
        if name not in heads:
            raise unknown_name("head of the circuit", name, heads)
    return sorted(heads[name] for name in dict.fromkeys(names or heads))


def _random_tokens(setting: Setting) -> Mapping[str, HeadScore] | None:
    """Attention patterns of all heads on repeated random tokens; None for a model too small for them."""
    model = setting.model
    try:
        repeated = repeated_tokens(model, n=SEQUENCES, period=usual_period(model), seed=setting.seed)
    except InputError:  # too few positions or tokens
        return None
    return pattern_scores(setting, repeated)
