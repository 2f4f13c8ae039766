"""Attribution patching of nodes (AtP), with the fix for attention that is saturated in queries or keys (from AtP*).

score(n) = mean over prompts of sum over positions of < ablated(n) - clean(n), gradient at n on the clean run >, the
first-order change of the metric when node n carries its ablated value. Negative: the node helps.
A softmax that is nearly one-hot has nearly no gradient, though another query may turn it round. With the fix
q and k are therefore judged by the probabilities A' that their ablated value gives, linear only from there on:

    sum over query and key positions of (A' - A) dm/dA  =  sum over positions of < z' - z, dm/dz >,

since z = A v at clean v. So one call of the model's own attention with ablated q gives all q scores of a block, one
with ablated k all k scores, whatever rotary, windows, soft caps or norms lie in front of the softmax.
Source: Kramár et al. 2024, arXiv:2403.00745, sections 3.1 and 3.1.1. Departures: a node is q, k or v of a head at *all*
positions (the paper scores positions apart, then adds them up: the same for q and v); no GradDrop.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.edges import eap
from circuitome.engine.circuit_run import Baseline
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method
from circuitome.graph.node_scores import NodeScores
from circuitome.models.model import Model
from circuitome.tasks.task import Task


@method
def atp(setting: Setting, *, qk_fix: bool = True) -> NodeScores:
    """Scores of all writers and readers, in units of the metric; `.edges()` makes edge scores of them.

    An ablated q, k or v is what that reader makes of a residual stream in which every writer is ablated. The score of
    a writer is the sum of its edges' scores in `eap`, that of `m7.in` the one of `m7`. The score at the logits is the
    exact effect of ablating everything.
    Raises `UnknownNameError` for another ablation, `NumericsError` at NaN, `MemoryBudgetError` where not even one
    prompt fits.
    """
    model, task, graph = setting.model, setting.task, setting.model.graph
    edges = eap(setting)
    writers, readers = edges.values.sum(1), torch.zeros(len(graph.readers))
    for layer in range(graph.n_layers):
        readers[graph.mlp_column(layer)] = writers[graph.mlp_row(layer)]
    done = 0
    for base in setting.baselines(gradients=True):
        readers += _reader_sums(model, task, base, qk_fix=qk_fix).cpu() / len(task)
        done += len(base.batch.rows)
        setting.progress("scoring nodes", done, len(task))
    return NodeScores(graph, writers, readers, task.unit, "atp with QK fix" if qk_fix else "atp")


def _reader_sums(model: Model, task: Task, base: Baseline, *, qk_fix: bool) -> Float[Tensor, " readers"]:
    """Scores of the q, k and v readers and of the logits, summed over the prompts of a batch."""
    inputs, rows = base.batch.clean, base.batch.rows
    with torch.enable_grad(), model.frozen_parameters():
        leaf = model.embeddings(inputs).detach().requires_grad_(True)
        with model.starting_from(leaf):
            activations = model.record(inputs, whole=False)
        assert activations.logits is not None
        metric = task.score(activations.logits, rows)
        check_numbers(metric, "metric")
        flat = [t for layer in activations.projected for t in layer]
        found = torch.autograd.grad(metric.sum(), [*flat, *activations.z], allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for t, g in zip([*flat, *activations.z], found, strict=True)]
    sums = torch.zeros(len(model.graph.readers), device=metric.device)
    per_layer = len(model.blocks[0].projections)
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            here = slice(layer * per_layer, (layer + 1) * per_layer)
            clean = block.split([t.detach() for t in activations.projected[layer]])
            ablated = _ablated_projections(model, base, layer)
            scores = ((ablated - clean).float() * block.split(grads[here]).float()).sum((0, 1, 3))
            if qk_fix:
                n = model.heads.q + model.heads.kv
                scores[:n] = _through_probabilities(model, base, layer, clean, ablated, grads[len(flat) + layer])
            sums[model.graph.attention_columns(layer)] = scores
        at_read = base.final[torch.arange(len(rows), device=base.final.device), inputs.read]
        sums[-1] = (task.score(model.unembed(at_read.to(model.dtype)), rows) - metric.detach()).sum()
    return sums


def _ablated_projections(model: Model, base: Baseline, layer: int) -> Float[Tensor, "batch pos reader d_head"]:
    """What q, k and v readers of a block make of a stream with every writer ablated."""
    block = model.blocks[layer]
    if base.projected is not None:
        return block.split(base.projected[layer])
    normed = block.attend_inputs(base.resid_pre[layer].to(model.dtype))
    return torch.einsum("bpd,red->bpre", normed, block.reader_weights()) + block.reader_biases()


def _through_probabilities(
    model: Model,
    base: Baseline,
    layer: int,
    clean: Float[Tensor, "batch pos reader d_head"],
    ablated: Float[Tensor, "batch pos reader d_head"],
    grad: Float[Tensor, "batch pos heads_d_head"],
) -> Float[Tensor, " qk_reader"]:
    """Sums of (A' - A) dm/dA for the q readers of a block, then for its k readers; see the module's formula.

    No head's probabilities see another head's q, nor another key/value head's k, so all are replaced in one call.
    """
    heads, call = model.heads, base.calls[layer]
    z = model.attend(layer, clean, call)
    sums = []
    for part in (slice(0, heads.q), slice(heads.q, heads.q + heads.kv)):
        mixed = clean.clone()
        mixed[:, :, part] = ablated[:, :, part]
        change = (model.attend(layer, mixed, call) - z).float()
        by_head = (change * grad.unflatten(-1, (heads.q, heads.width)).float()).sum((0, 1, 3))
        sums.append(by_head.view(part.stop - part.start, -1).sum(1))
    return torch.cat(sums)
