"""Edge attribution patching and its integrated-gradients variants: one number an edge from a few passes.

    score(u -> v) = mean over prompts of sum over positions of < ablated(u) - clean(u), mean gradient at v's input >,

the first-order change of the metric when v sees u's ablated value. Negative: the edge helps.
The variants differ only in where the gradient is taken, and `rules` in what a gradient is (`backward_rules`). With
conductance each step of the path has a gradient and a change of its own: along z_a = ablated + a / steps (clean -
ablated) of the embeddings, a from 0 to steps,

    score(u -> v) = mean over prompts of sum over k = 1..steps and positions of
                    < u(z_(k-1)) - u(z_k), gradient at v on the run from z_(k-1/2) >.

Sources: Syed et al. 2023, arXiv:2310.10348 (EAP); Hanna et al. 2024, arXiv:2403.17806 (EAP-IG); Wu, Tonin, Cevher 2026,
arXiv:2606.16920 (conductance).
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.contraction import Enter, ReaderGradients, contract, reader_gradients
from circuitome.engine.ablation import WriterValues
from circuitome.engine.backward_rules import Rules, rules_of, with_rules
from circuitome.engine.batches import Batch, tokens_within
from circuitome.engine.sample_rows import SampleRows
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.model import Model
from circuitome.tasks.losses import LOSSES, Loss, loss_of, loss_unit

VARIANTS = ("inputs", "activations", "clean-corrupted")
"""Which points the gradient of `eap_ig` is averaged over."""
PATHS = ("inputs", "conductance")
"""What `eap_ig` multiplies on its path over inputs: the mean gradient with the whole change, or step by step."""


@method
def eap(setting: Setting, *, loss: str = "metric", rules: str | Rules = "plain") -> EdgeScores:
    """Edge attribution patching: the scores of all edges, with the gradient taken on the clean run.

    See the formula of the module. Scores are in the metric's unit, per prompt and their mean; negative: the edge helps.
    Costs two forward passes and one backward. Blind to edges behind a saturated softmax; `eap_ig` is nearer to exact
    patching. Source: Syed et al. 2023, arXiv:2310.10348, equation 2, with its sign kept.

    `rules` names what takes the place of ordinary gradients: "norm" (divisors of norms passed over), "relp" (also
    secants of activation functions, half of the gradient for each factor of a gated MLP; Jafari et al. 2025,
    arXiv:2508.21258) or "gim" (norm, half, a warmer softmax, shares of q, k, v; Edin et al. 2025, arXiv:2505.17630);
    or `Rules` of one's own. Formulas: `circuitome.engine.backward_rules`.

    Raises `InputError` for a `loss` other than "metric" and for the metric "kl", since distances from the clean model
    have no gradient there, and for a metric that torch cannot differentiate;
    `UnknownNameError` for a loss, ablation or rules that do not exist; `NumericsError` where the metric is not finite;
    `MemoryBudgetError` where not even one prompt fits into `max_memory`; as `backward_rules` where rules cannot act.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.eap(model, task)
    >>> round(scores["a2.h0->logits"], 1), scores.unit, len(scores.top(100))
    (-10.0, 'logits', 100)
    """
    distance = loss if loss != "metric" and loss in LOSSES else ""
    setting.check_slope("EAP", distance)
    rules = rules_of(rules)
    return _attribute(setting, loss, with_rules("eap", rules), partial(_at_clean, rules=rules), no_path(setting.model))


@method
def eap_ig(
    setting: Setting,
    *,
    steps: int = 5,
    variant: str = "inputs",
    path: str = "inputs",
    rules: str | Rules = "plain",
    loss: str = "metric",
) -> EdgeScores:
    """Edge attribution patching with integrated gradients: scores of all edges, with the gradient averaged on the way.

    See the formula of the module. Scores are in the metric's unit, per prompt and their mean; negative: the edge helps.
    Costs two forward passes and `steps` forward-backwards. `variant` says over which points the gradient is averaged:

    - inputs: `steps` points between the ablated and the clean embeddings. Source: Hanna et al. 2024, arXiv:2403.17806,
      equation 3. That takes the points k / steps, k = 1..steps; this takes the midpoints (k - 1/2) / steps, whose error
      shrinks with the square of the steps.
    - activations: for the edges that leave one block's heads, `steps` points between the ablated and the clean output
      of that attention, the rest of the run being clean; likewise for each MLP and for `embed`. (2 layers + 1) times
      the passes. The published code instead averages all these passes for every edge.
    - clean-corrupted: the clean and the ablated embeddings alone; `steps` does not count.

    With many steps the scores of all edges that leave `embed` sum to metric(ablated) - metric(clean). With path
    "conductance", which multiplies each step's gradient by that step's change (formula of the module), so do those of
    all edges across any cut between input and logits, up to an error that shrinks with the square of the steps. It
    takes one more forward pass and one more product of writers and readers a step. Source: Wu, Tonin, Cevher 2026,
    arXiv:2606.16920, who take the gradient at a step's end, where the error shrinks with the steps themselves.
    `rules` as in `eap`; under rules other than plain, nothing sums up so.
    `loss`, a name in `LOSSES`, may stand for the metric: with "kl" a score is minus the divergence from the clean model
    that corrupting the edge causes, in nats.

    Raises `InputError` for steps < 1 and for clean-corrupted under zero ablation, whose gradient would be taken at an
    embedding of zeros, where norms divide by nothing; for conductance with another variant than inputs, or another
    ablation than corrupted, whose values no run on the path has; `UnknownNameError` for another variant, path, loss,
    ablation or rules; `NumericsError` where the metric is not finite; `MemoryBudgetError` where not even one prompt
    fits; as `backward_rules` where rules cannot act.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.eap_ig(model, task, steps=5)
    >>> round(scores["a2.h0->logits"], 1), "a1.h0->a2.h0.q" in scores.top(10)
    (-10.0, True)
    """
    rules = rules_of(rules)
    _check_variant(setting, steps, variant)
    check_path(path, setting.ablation, variant)
    name, scorer = _scorer(steps, variant, path, rules)
    return _attribute(setting, loss, with_rules(name, rules), scorer)


def _check_variant(setting: Setting, steps: int, variant: str) -> None:
    """Raises `InputError` and `UnknownNameError` as `eap_ig` says."""
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    if variant not in VARIANTS:
        raise unknown_name("variant of EAP-IG", variant, VARIANTS)
    if variant == "clean-corrupted" and setting.ablation == "zero":
        raise InputError(
            "clean-corrupted takes a gradient at the ablated embeddings, and under zero ablation a norm there divides "
            "by nothing: scores would be as large as 1e22. Use eap_ig's inputs, or another ablation."
        )


def check_path(path: str, ablation: str, variant: str = "inputs") -> None:
    """Raises `UnknownNameError` for another path, and `InputError` for conductance where `eap_ig` refuses it."""
    if path not in PATHS:
        raise unknown_name("path of EAP-IG", path, PATHS)
    if path == "conductance" and variant != "inputs":
        raise InputError(f"Conductance goes along the embeddings, so it is no path of the variant {variant}.")
    if path == "conductance" and ablation != "corrupted":
        raise InputError(
            "Conductance adds up what parts write on the way from the corrupted to the clean embeddings; under "
            f"{ablation} ablation no run writes what ablated parts do. Use path inputs, or corrupted ablation."
        )


def _scorer(steps: int, variant: str, path: str, rules: Rules) -> "tuple[str, Scorer]":
    """Name and scores of a variant of EAP-IG."""
    middles = tuple((k + 0.5) / steps for k in range(steps))
    if path == "conductance":
        return f"eap-ig, {steps} steps, conductance", partial(_conductance, steps=steps, rules=rules)
    if variant == "activations":
        return f"eap-ig-activations, {steps} steps", partial(_along_outputs, alphas=middles, rules=rules)
    if variant == "clean-corrupted":
        return "clean-corrupted", partial(_along_inputs, alphas=(1.0, 0.0), rules=rules)
    return f"eap-ig, {steps} steps", partial(_along_inputs, alphas=middles, rules=rules)


Metric = Callable[[Float[Tensor, "point_batch vocab"]], Float[Tensor, " point_batch"]]
"""What is differentiated, of logits of any number of points, one point's prompts behind the other's."""
Scorer = Callable[[Setting, Batch, Metric], Float[Tensor, "batch writers readers"]]
"""Scores of all edges on one batch."""


def no_path(model: Model) -> int:
    """Bytes of a token that EAP takes beside EAP-IG, below 0: no points of a path; 0 where activations are parked."""
    whole, least = model.bytes_per_token(gradients=True), model.least_bytes_per_token(gradients=True)
    return model.bytes_per_token(gradients=True, points=0) - whole if whole == least else 0


def _attribute(setting: Setting, loss: str, method: str, scorer: Scorer, beside: int = 0) -> EdgeScores:
    """Scores of every prompt by `scorer`, batch by batch, and their mean; `beside` as in `tokens_within`."""
    graph, task = setting.model.graph, setting.task
    measure = loss_of(task, loss)
    samples = SampleRows(len(task), graph.n_edges)
    for batch in setting.batches("scoring edges", gradients=True, beside=beside):
        metric = _metric(setting, batch, measure, needs_clean=loss != "metric")
        samples.put(batch.rows, scorer(setting, batch, metric).cpu()[:, graph.mask])
    method += "" if loss == "metric" else f", loss {loss}"
    return EdgeScores.of(graph, samples.read(), loss_unit(task, loss), method)


def _metric(setting: Setting, batch: Batch, measure: Loss, *, needs_clean: bool) -> Metric:
    """Minus the loss of logits: the task's metric, or minus the distance from the clean model."""
    with torch.no_grad():
        clean = setting.model.logits(batch.clean) if needs_clean else torch.empty(0)

    def minus_loss(logits: Tensor) -> Tensor:
        points = len(logits) // len(batch.rows)
        return -measure(logits, clean.repeat(points, 1), batch.rows * points)

    return minus_loss


def _at_clean(setting: Setting, batch: Batch, metric: Metric, rules: Rules) -> Tensor:
    """The gradient on the clean run, which shows the clean values on the way."""
    model = setting.model
    with torch.no_grad():
        starts = model.embeddings(batch.clean)[None]
    gradients, clean = reader_gradients(model, batch.clean, starts, metric, rules=rules)
    return contract(model, setting.ablated_values(batch, clean).minus(clean), gradients, setting.max_memory)


def _along_inputs(setting: Setting, batch: Batch, metric: Metric, alphas: Sequence[float], rules: Rules) -> Tensor:
    """The mean gradient over points ablated + alpha (clean - ablated) of the embeddings."""
    clean, ablated = _endpoints(setting, batch)
    starts = _between(ablated.embed, clean.embed, alphas)
    gradients = _mean_gradients(setting, batch, metric, starts, setting.model.starting_from, rules)
    return contract(setting.model, ablated.minus(clean), gradients, setting.max_memory)


def _conductance(setting: Setting, batch: Batch, metric: Metric, steps: int, rules: Rules) -> Tensor:
    """Each step's change of the writers times the gradient in its middle, added up over the steps."""
    model = setting.model
    clean, before = _endpoints(setting, batch)
    middles, ends = (_between(before.embed, clean.embed, [(k + at) / steps for k in range(steps)]) for at in (0.5, 1.0))
    scores = torch.zeros(())
    for k, (middle, end) in enumerate(zip(middles, ends, strict=True)):
        gradients, _ = reader_gradients(model, batch.clean, middle[None], metric, rules=rules)
        after = clean if k + 1 == steps else _values_from(model, batch, end)
        scores = scores + contract(model, before.minus(after), gradients, setting.max_memory)
        before = after
    return scores


def _values_from(model: Model, batch: Batch, embeddings: Float[Tensor, "batch pos d_model"]) -> WriterValues:
    """Outputs of all writers when the run starts from `embeddings`."""
    with torch.no_grad(), model.starting_from(embeddings.to(model.dtype)):
        return WriterValues.of(model, model.record(batch.clean, logits=False, whole=False))


def _along_outputs(setting: Setting, batch: Batch, metric: Metric, alphas: Sequence[float], rules: Rules) -> Tensor:
    """For each group of writers (embed, the heads of a block, an MLP), the mean gradient along that group's output."""
    model, graph = setting.model, setting.model.graph
    clean, ablated = _endpoints(setting, batch)
    delta = ablated.minus(clean)
    scores = _along_inputs(setting, batch, metric, alphas, rules)

    def fill(rows: slice, start: Tensor, end: Tensor, enter: Enter) -> None:
        gradients = _mean_gradients(setting, batch, metric, _between(start, end, alphas), enter, rules)
        scores[:, rows] = contract(model, delta, gradients, setting.max_memory)[:, rows]

    for layer, block in enumerate(model.blocks):
        start, end = (block.join_heads(values.heads[layer]) for values in (ablated, clean))
        fill(graph.head_rows(layer), start, end, partial(model.writing_attention, layer))
        row = graph.mlp_row(layer)
        fill(slice(row, row + 1), ablated.mlps[layer], clean.mlps[layer], partial(model.writing_mlp, layer))
    return scores


def _endpoints(setting: Setting, batch: Batch) -> tuple[WriterValues, WriterValues]:
    """Clean and ablated outputs of all writers."""
    model = setting.model
    with torch.no_grad():
        clean = WriterValues.of(model, model.record(batch.clean, logits=False, whole=False))
    return clean, setting.ablated_values(batch, clean)


def _between(start: Tensor, end: Tensor, alphas: Sequence[float]) -> Float[Tensor, "point batch pos d_model"]:
    return torch.stack([start + alpha * (end - start) for alpha in alphas])


def _mean_gradients(
    setting: Setting,
    batch: Batch,
    metric: Metric,
    points: Float[Tensor, "point batch pos d_model"],
    enter: Enter,
    rules: Rules,
) -> ReaderGradients:
    """Mean gradient over `points`, in as many passes as the memory budget asks for."""
    tokens = tokens_within(setting.model, setting.max_memory, gradients=True)
    at_once = max(1, tokens // batch.clean.ids.numel())

    def at(some: Tensor) -> ReaderGradients:
        gradients, _ = reader_gradients(setting.model, batch.clean, some, metric, enter, rules)
        return gradients.times(len(some) / len(points))

    return ReaderGradients.sum(map(at, points.chunk(-(-len(points) // at_once))))
