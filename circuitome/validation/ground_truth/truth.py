"""Which edges a model really uses: each ablated by itself, on every prompt of a task, and all outputs compared.

There are two truths. Zero ablation cuts all that an edge carries, also what is the same for every input (positions,
the first token); resampling from inputs of the same length cuts only what differs between them.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import AblationValues
from circuitome.engine.batches import batches
from circuitome.engine.circuit_run import baseline, circuit_logits
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Model
from circuitome.tasks.task import Task

TOLERANCE = 1e-3
"""Change of a logit that counts. Softmax lets a little through even where a head does not look (up to 1.5e-4 in the
compiled models); an edge that a program reads changes more than half a logit."""


def true_circuit(model: Model, task: Task, ablation: Literal["corrupted", "zero"] = "corrupted") -> Circuit:
    """The edges whose ablation alone changes any logit of any prompt by more than `TOLERANCE`.

    Two edges that carry the same thing twice are both left out, since neither is needed while the other is there.
    With "corrupted" the truth belongs to the task's corrupted prompts too: an edge matters only if some pair differs in
    what it carries.
    """
    return Circuit(model.graph, edge_effects(model, task, ablation) > TOLERANCE)


def edge_effects(
    model: Model, task: Task, ablation: Literal["corrupted", "zero"] = "corrupted"
) -> Float[Tensor, "writers readers"]:
    """The largest change of any logit of any prompt when one edge alone is ablated; 0 where no edge exists.

    In logits, float32, at the positions that the task reads. Takes one circuit run an edge and batch, so it is meant
    for small models.
    """
    graph = model.graph
    full = Circuit.full(graph)
    replacement = AblationValues.of(model, task, ablation)
    shared = replacement.from_prompts
    effects = torch.zeros(graph.mask.shape)
    for batch in batches(model, task, shared_prefix=shared, corrupted=shared):
        base = baseline(model, task, batch, replacement)
        clean = circuit_logits(model, base, full)
        for row, column in graph.mask.nonzero().tolist():
            kept = full.mask.clone()
            kept[row, column] = False
            change = (circuit_logits(model, base, Circuit(graph, kept)) - clean).abs().max()
            effects[row, column] = torch.maximum(effects[row, column], change.cpu())
    return effects
