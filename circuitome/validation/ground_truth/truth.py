"""Which edges a model really uses: each ablated by itself, on every prompt of a task, and all outputs compared.

There are two truths. Zero ablation cuts all that an edge carries, also what is the same for every input (positions,
the first token); resampling from inputs of the same length cuts only what differs between them.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.circuit_run import circuit_logits
from circuitome.engine.setting import Setting, method
from circuitome.graph.circuits import Circuit

TOLERANCE = 1e-3
"""Change of a logit that counts. Softmax lets a little through even where a head does not look (up to 1.5e-4 in the
compiled models); an edge that a program reads changes more than half a logit."""


@method
def true_circuit(setting: Setting) -> Circuit:
    """The edges whose ablation alone changes any logit of any prompt by more than `TOLERANCE`.

    Two edges that carry the same thing twice are both left out, since neither is needed while the other is there.
    With "corrupted" the truth belongs to the task's corrupted prompts too: an edge matters only if some pair differs in
    what it carries. Raises `TaskError` for pairs that cannot be swapped.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> len(cm.ground_truth.true_circuit(model, task))
    13
    """
    return Circuit(setting.model.graph, edge_effects(setting) > TOLERANCE)


@method
def edge_effects(setting: Setting) -> Float[Tensor, "writers readers"]:
    """The largest change of any logit of any prompt when one edge alone is ablated; 0 where no edge exists.

    In logits, float32, at the positions that the task reads. Takes one circuit run an edge and batch, so it is meant
    for small models. Raises `TaskError` for pairs that cannot be swapped.

    >>> cm.ground_truth.edge_effects(cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 4)).shape
    torch.Size([13, 31])
    """
    model, full = setting.model, Circuit.full(setting.model.graph)
    effects = torch.zeros(full.mask.shape)
    for base in setting.baselines():
        clean = circuit_logits(model, base, full)
        for row, column in full.mask.nonzero().tolist():
            kept = full.mask.clone()
            kept[row, column] = False
            change = (circuit_logits(model, base, Circuit(full.graph, kept)) - clean).abs().max()
            effects[row, column] = torch.maximum(effects[row, column], change.float().cpu())
    return effects
