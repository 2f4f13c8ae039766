"""What explaining a circuit costs, in forward passes over all prompts: most of it are parts ablated one by one."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import circuitome as cm

ONCE = 5.0
"""Passes that do not depend on how many parts there are: clean and corrupted prompts, attention, random tokens."""
COPY = 1.1
"""What a copy of a prompt costs behind a change, in the share of a pass that is left to run; measured on SmolLM2."""
NAMING = 0.035
"""Passes over the prompts on which MLPs are ablated that the changed probabilities of all tokens cost, by MLP."""
TOKEN_BY_TOKEN = 0.5
"""Share of the MLPs that are ablated token by token; measured on SmolLM2."""


def passes(circuit: "cm.Circuit", heads: Sequence[str], task: "cm.Task", *, aligned: bool) -> float:
    """Passes over all prompts: once, for every head at the last position, for every part on the first prompts.

    `aligned` says whether ablated parts write what they do on the corrupted prompts, so that only tokens behind the
    prefix that both prompts share run.
    """
    from circuitome.graph.node import Node
    from circuitome.heads.roles.ablations import ABLATED_EVERYWHERE

    layers = circuit.graph.n_layers
    mlps = [name for name in circuit.nodes if Node.parse(name).kind == "mlp"]
    some = replace(task, pairs=task.pairs[:ABLATED_EVERYWHERE])
    share, roles = suffix(some, aligned)
    copies = rest(heads, layers) + rest(mlps, layers) * (2 + TOKEN_BY_TOKEN * roles)
    last = COPY * rest(heads, layers) / max(len(pair.clean) for pair in task.pairs)
    return ONCE + last + (COPY * share * copies + NAMING * len(mlps)) * len(some) / len(task)


def rest(parts: Iterable[str], layers: int) -> float:
    """The share of a pass that is left to run from each part on, summed over parts."""
    from circuitome.graph.node import Node

    return sum(1 - Node.parse(name).layer / layers for name in parts)


def suffix(task: "cm.Task", aligned: bool) -> tuple[float, int]:
    """The share of tokens that run, and how many roles tokens among them have, but for the last one's."""
    from circuitome.engine.batches import first_difference
    from circuitome.heads.roles.positions import END, places

    pairs = task.pairs
    cuts = [min(first_difference(pair), pair.answer_position) if aligned else 0 for pair in pairs]
    where = places(task)
    columns = zip(where.names, where.at.T.tolist(), strict=True)
    roles = sum(
        name != END and any(at >= cut for at, cut in zip(column, cuts, strict=True)) for name, column in columns
    )
    run = max(len(pair.clean) - cut for pair, cut in zip(pairs, cuts, strict=True))
    return run / max(len(pair.clean) for pair in pairs), roles
