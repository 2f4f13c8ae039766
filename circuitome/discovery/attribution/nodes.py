"""Attribution patching of nodes (AtP), with the two corrections that make it AtP*.

    score(n) = mean over prompts of sum over positions of < ablated(n) - clean(n), gradient at n on the clean run >,

the first-order change of the metric when node n carries its ablated value. Negative: the node helps.

QK fix. A softmax that is nearly one-hot has nearly no gradient, though another query may turn it round. So q and k are
judged by the probabilities A' that their ablated value gives, linear only from there on:

    sum over query and key positions of (A' - A) dm/dA  =  sum over positions of < z' - z, dm/dz >,

since z = A v at clean v. One call of the model's own attention with ablated q gives all q scores of a block, one
with ablated k all k scores, whatever rotary, windows, soft caps or norms lie in front of the softmax.

GradDrop. A direct effect and one through a later block may cancel in the gradient and not in the model. So the
gradient is taken once a block with that block's attention and MLP out of its way, and the sizes are averaged:

    |score(n)| = mean over prompts of 1 / (L - 1) sum over dropped blocks of | the formula above |

(the drop of n's own block gives 0, which is why L - 1 divides; `embed` has no block and L divides).

Source: Kramár et al. 2024, arXiv:2403.00745, sections 3.1, 3.1.1 and 3.1.2. Departures: a node is q, k or v of a head
at *all* positions (the paper scores positions apart, then adds them up: the same for q and v); GradDrop's scores,
which have no sign there, get that of the sum over passes, with and without a dropped block.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.contraction import gradients_at
from circuitome.engine.ablation import WriterValues
from circuitome.engine.backward_rules import PLAIN, Rules, backward_rules, rules_of
from circuitome.engine.circuit_run import Baseline
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.graph.node_scores import NodeScores
from circuitome.models.activations import ActivationCache
from circuitome.models.hooks import hooked
from circuitome.models.model import Model


@method
def atp(setting: Setting, *, qk_fix: bool = True, grad_drop: bool = False, rules: str | Rules = "plain") -> NodeScores:
    """Attribution patching of nodes: scores of all writers and readers; `.edges()` makes edge scores of them.

    See the formulas of the module. Scores are in the metric's unit; negative: the node helps. With both `qk_fix` and
    `grad_drop` this is AtP*. Costs two forward passes and one backward, with `grad_drop` one more backward a block.
    An ablated q, k or v is what that reader makes of a residual stream in which every writer is ablated. The score of
    a writer is the sum of its edges' scores in `eap`, that of `m7.in` the one of `m7`. The score at the logits is the
    exact effect of ablating everything. `rules` as in `eap`; a fixed q or k score has only its gradient at z by them.

    Raises `InputError` for `grad_drop` in a model of one block, for a metric that has no gradient at the clean
    model, and for `qk_fix` under rules inside attention (gim), since both say what a pattern's change is worth;
    `UnknownNameError` for another ablation or rules, as `backward_rules` where rules cannot act,
    `NumericsError` where the metric is not finite, `MemoryBudgetError` where not even one prompt fits.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.atp(model, task)
    >>> round(scores["a2.h0"], 1), round(scores["a2.h0.q"], 1), len(scores.edges().top(10))
    (-10.0, -13.3, 10)
    """
    setting.check_slope("atp")
    rules, graph = rules_of(rules), setting.model.graph
    if qk_fix and rules.attention:
        raise InputError(
            f"The rules {rules} say how queries and keys get their gradient, and so does the QK fix. Use qk_fix=False."
        )
    if grad_drop and graph.n_layers < 2:
        raise InputError(
            f"GradDrop leaves out one block after another, and {setting.model.name} has only one. Use atp without it."
        )
    count = len(graph.writers) + len(graph.readers) - 1
    scores, sizes, whole = torch.zeros(count), torch.zeros(count), torch.zeros(1)  # sums over prompts
    for base in setting.baselines("scoring nodes", gradients=True):
        run = _run(setting, base, rules)
        scores += _scores(run, None, qk_fix=qk_fix).sum(0).cpu()
        for drop in range(graph.n_layers) if grad_drop else ():
            dropped = _scores(run, drop, qk_fix=qk_fix).cpu()
            scores, sizes = scores + dropped.sum(0), sizes + dropped.abs().sum(0)
        whole += _whole_effect(setting, base, run.metric).sum().cpu()
    if grad_drop:
        sizes[0] *= (graph.n_layers - 1) / graph.n_layers
        scores = scores.sign() * sizes / (graph.n_layers - 1)
    writers, readers = (torch.cat([scores, whole]) / len(setting.task)).split([len(graph.writers), len(graph.readers)])
    fixes = " and ".join(["QK fix"] * qk_fix + ["GradDrop"] * grad_drop)
    name = f"atp with {fixes}" if fixes else "atp"
    name += "" if rules == PLAIN else f", rules {rules}"
    return NodeScores(graph, writers, readers, setting.task.unit, name)


@dataclass(frozen=True)
class _Run:
    """A clean run that can be differentiated, and how ablation changes its nodes; all of one batch."""

    model: Model
    metric: Float[Tensor, " batch"]
    """With its graph."""
    cache: ActivationCache
    """What the run showed."""
    written: list[Tensor]
    """What the run's writers added to the stream: the embeddings, the attentions, the MLPs."""
    dropped: list[int]
    """Blocks whose attention and MLP pass no gradient on."""
    delta: WriterValues
    """Ablated minus clean of all writers."""
    projected: list[Float[Tensor, "batch pos reader d_head"]]
    """Ablated minus clean of q, k and v, block by block."""
    through: list[tuple[Tensor, Tensor]]
    """Change of z [batch, pos, head, d_head] through the probabilities of ablated q, and of ablated k."""


def _run(setting: Setting, base: Baseline, rules: Rules) -> _Run:
    """The clean run of a batch, whose gradients follow `rules`."""
    model, inputs = setting.model, base.batch.clean
    dropped: list[int] = []
    ruled, frozen = backward_rules(model, rules), model.frozen_parameters()
    with ruled, torch.enable_grad(), frozen, _writing(model, dropped) as written:
        leaf = model.embeddings(inputs).detach().requires_grad_(True)
        with model.starting_from(leaf):
            cache = model.record(inputs, whole=False)
        assert cache.logits is not None
        metric = setting.task.score(cache.logits, base.batch.rows)
    check_numbers(metric, "metric")
    with torch.no_grad():
        delta = base.ablated.minus(WriterValues.of(model, cache))
        projected, through = [], []
        for layer, block in enumerate(model.blocks):
            clean, ablated = block.split(cache.projected[layer]), _ablated_projections(model, base, layer)
            projected.append((ablated - clean).float())
            through.append(_through_probabilities(model, base, layer, clean, ablated))
    return _Run(model, metric, cache, [leaf, *written], dropped, delta, projected, through)


@contextmanager
def _writing(model: Model, dropped: list[int]) -> Iterator[list[Tensor]]:
    """Inside, a run notes what attentions and MLPs add to the stream; no gradient passes those of `dropped` blocks."""
    written: list[Tensor] = []

    def note(layer: int, out: Tensor) -> None:
        written.append(out)
        out.register_hook(lambda grad: torch.zeros_like(grad) if layer in dropped else grad)

    with ExitStack() as stack:
        for layer, block in enumerate(model.blocks):
            for module in (block.attention_end, block.mlp_ends[1]):
                hook = module.register_forward_hook
                stack.enter_context(hooked(hook, lambda module, args, out, layer=layer: note(layer, out)))
        yield written


def _scores(run: _Run, drop: int | None, *, qk_fix: bool) -> Float[Tensor, "batch nodes"]:
    """The module's formula for every writer, then every reader but the logits, with one block's gradient dropped."""
    model, graph, cache, delta = run.model, run.model.graph, run.cache, run.delta
    run.dropped[:] = [] if drop is None else [drop]
    projections = [p for layer in cache.projected for p in layer]
    grads = gradients_at(run.metric.sum(), [*run.written, *projections, *cache.z], keep_graph=True)
    at_written = [grad.view_as(delta.embed).float() for grad in grads[: len(run.written)]]
    at_projected, at_z = grads[len(run.written) : -graph.n_layers], grads[-graph.n_layers :]
    scores = delta.embed.new_zeros(len(run.metric), len(graph.writers) + len(graph.readers) - 1)
    writers, readers = scores.split([len(graph.writers), len(graph.readers) - 1], 1)
    writers[:, 0] = (delta.embed * at_written[0]).sum((1, 2))
    per_layer, heads = len(model.blocks[0].projections), model.heads
    for layer, block in enumerate(model.blocks):
        at_heads = torch.einsum("hed,bpd->bphe", block.head_weights(), at_written[2 * layer + 1])
        writers[:, graph.head_rows(layer)] = (delta.heads[layer] * at_heads).sum((1, 3))
        of_mlp = (delta.mlps[layer] * at_written[2 * layer + 2]).sum((1, 2))
        writers[:, graph.mlp_row(layer)] = readers[:, graph.mlp_column(layer)] = of_mlp
        at_readers = block.split(at_projected[layer * per_layer : (layer + 1) * per_layer]).float()
        by_reader = (run.projected[layer] * at_readers).sum((1, 3))
        if qk_fix:
            at_heads = at_z[layer].unflatten(-1, (heads.q, heads.width)).float()
            of_q, of_k = ((change * at_heads).sum((1, 3)) for change in run.through[layer])
            of_k = of_k.unflatten(1, (heads.kv, -1)).sum(2)
            by_reader[:, : heads.q + heads.kv] = torch.cat([of_q, of_k], 1)
        readers[:, graph.attention_columns(layer)] = by_reader
    return scores


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
) -> tuple[Float[Tensor, "batch pos head d_head"], Float[Tensor, "batch pos head d_head"]]:
    """How z changes with the probabilities of ablated q, and with those of ablated k; see the module's formula.

    No head's probabilities see another head's q, nor another key/value head's k, so all are replaced in one call.
    """
    heads, call = model.heads, base.calls[layer]
    z = model.attend(layer, clean, call)

    def change(readers: slice) -> Tensor:
        mixed = clean.clone()
        mixed[:, :, readers] = ablated[:, :, readers]
        return (model.attend(layer, mixed, call) - z).float()

    return change(slice(0, heads.q)), change(slice(heads.q, heads.q + heads.kv))


def _whole_effect(setting: Setting, base: Baseline, clean: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Change of the metric when every writer is ablated."""
    at_read = base.final[torch.arange(len(clean), device=base.final.device), base.batch.clean.read]
    with torch.no_grad():
        logits = setting.model.unembed(at_read.to(setting.model.dtype))
        return setting.task.score(logits, base.batch.rows) - clean
