"""Edge attribution patching and its integrated-gradients variants: one number an edge from a few passes.

score(u -> v) = mean over prompts of sum over positions of < ablated(u) - clean(u), mean gradient at v's input >,
the first-order change of the metric when v sees u's ablated value. Negative: the edge helps.
The variants differ only in where the gradient is taken.
Sources: Syed et al. 2023, arXiv:2310.10348 (EAP); Hanna et al. 2024, arXiv:2403.17806 (EAP-IG).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.contraction import ReaderGradients, contract, reader_gradients
from circuitome.engine.ablation import WriterValues
from circuitome.engine.batches import Batch, tokens_within
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, unknown_name
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.model import Model
from circuitome.tasks.losses import LOSSES, loss_of, loss_unit

VARIANTS = ("inputs", "activations", "clean-corrupted")


@method
def eap(setting: Setting, *, loss: str = "metric") -> EdgeScores:
    """Edge attribution patching: the gradient is taken on the clean run. Two forwards, one backward.

    Blind to edges behind a saturated softmax; `eap_ig` is nearer to exact patching.
    Source: Syed et al. 2023, arXiv:2310.10348, equation 2, with its sign kept.
    Raises `InputError` for a `loss` other than "metric": distances from the clean model have no gradient there.
    """
    if loss in LOSSES and loss != "metric":
        raise InputError(
            f"EAP takes its gradient at the clean model, where that of {loss} (its distance to the clean model) is "
            "zero, so every edge would score 0. Use eap_ig, whose gradients are taken on the way there, exact or acdc."
        )
    return _attribute(_Job(setting, loss), "eap", _at_clean)


@method
def eap_ig(setting: Setting, *, steps: int = 5, variant: str = "inputs", loss: str = "metric") -> EdgeScores:
    """Edge attribution patching with integrated gradients. Two forwards and `steps` forward-backwards.

    `variant` says over which points the gradient is averaged:

    - inputs: `steps` points between the ablated and the clean embeddings. Source: Hanna et al. 2024, arXiv:2403.17806,
      equation 3. That takes the points k / steps, k = 1..steps; this takes the midpoints (k - 1/2) / steps, whose error
      shrinks with the square of the steps.
    - activations: for the edges that leave one block's heads, `steps` points between the ablated and the clean output
      of that attention, the rest of the run being clean; likewise for each MLP and for `embed`. (2 layers + 1) times
      the passes. The published code instead averages all these passes for every edge.
    - clean-corrupted: the clean and the ablated embeddings alone; `steps` does not count.

    With many steps the scores of all edges that leave `embed` sum to metric(ablated) - metric(clean).
    `loss`, a name in `LOSSES`, may stand for the metric: with "kl" a score is minus the divergence from the clean model
    that corrupting the edge causes, in nats.
    Raises `InputError` for steps < 1 and for clean-corrupted under zero ablation, whose gradient would be taken at an
    embedding of zeros, where norms divide by nothing; `UnknownNameError` for another variant or loss.

        scores = cm.eap_ig(model, task, steps=5)
        scores["a5.h1->a9.h6.q"], scores.top(100)
    """
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    if variant not in VARIANTS:
        raise unknown_name("variant of EAP-IG", variant, VARIANTS)
    if variant == "clean-corrupted" and setting.ablation == "zero":
        raise InputError(
            "clean-corrupted takes a gradient at the ablated embeddings, and under zero ablation a norm there divides "
            "by nothing: scores would be as large as 1e22. Use eap_ig's inputs, or another ablation."
        )
    job = _Job(setting, loss)
    middles = tuple((k + 0.5) / steps for k in range(steps))
    if variant == "activations":
        return _attribute(job, f"eap-ig-activations, {steps} steps", partial(_along_outputs, alphas=middles))
    if variant == "clean-corrupted":
        return _attribute(job, "clean-corrupted", partial(_along_inputs, alphas=(1.0, 0.0)))
    return _attribute(job, f"eap-ig, {steps} steps", partial(_along_inputs, alphas=middles))


@dataclass(frozen=True)
class _Job:
    """What every variant is given."""

    setting: Setting
    loss: str

    @property
    def model(self) -> Model:
        return self.setting.model

    def metric(self, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The task's metric, or minus the loss, of logits [point * batch, vocab], for any number of points."""
        if self.loss == "metric":
            score = self.setting.task.score
            return lambda logits: score(logits, batch.rows * (len(logits) // len(batch.rows)))
        loss = loss_of(self.setting.task, self.loss)
        with torch.no_grad():
            clean = self.model.logits(batch.clean)

        def minus_loss(logits: Tensor) -> Tensor:
            points = len(logits) // len(batch.rows)
            return -loss(logits, clean.repeat(points, 1), batch.rows * points)

        return minus_loss

    def chunks(self, batch: Batch, points: Tensor) -> Iterator[Tensor]:
        """`points` in parts that fit into the memory budget, as even as can be."""
        tokens = tokens_within(self.model, self.setting.max_memory, gradients=True)
        at_once = max(1, tokens // batch.clean.ids.numel())
        return iter(points.chunk(-(-len(points) // at_once)))


Scorer = Callable[[_Job, Batch], Float[Tensor, "batch writers readers"]]


def _attribute(job: _Job, method: str, scorer: Scorer) -> EdgeScores:
    """Scores of every prompt by `scorer`, batch by batch, and their mean."""
    model, task = job.model, job.setting.task
    if job.loss not in LOSSES:
        raise unknown_name("loss", job.loss, LOSSES)
    samples = torch.empty(len(task), model.graph.n_edges)
    done = 0
    for batch in job.setting.batches(gradients=True):
        samples[list(batch.rows)] = scorer(job, batch).cpu()[:, model.graph.mask]
        done += len(batch.rows)
        job.setting.progress("scoring edges", done, len(task))
    values = torch.zeros(model.graph.mask.shape)
    values[model.graph.mask] = samples.mean(0)
    method += "" if job.loss == "metric" else f", loss {job.loss}"
    return EdgeScores(model.graph, values, loss_unit(task, job.loss), method, samples)


def _at_clean(job: _Job, batch: Batch) -> Tensor:
    """The gradient on the clean run, which shows the clean values on the way."""
    model = job.model
    with torch.no_grad():
        starts = model.embeddings(batch.clean)[None]
    gradients, clean = reader_gradients(model, batch.clean, starts, job.metric(batch))
    ablated = job.setting.ablated_values(batch, clean)
    return contract(model, ablated.minus(clean), gradients)


def _along_inputs(job: _Job, batch: Batch, alphas: Sequence[float]) -> Tensor:
    """The mean gradient over points ablated + alpha (clean - ablated) of the embeddings."""
    clean, ablated = _endpoints(job, batch)
    starts = _between(ablated.embed, clean.embed, alphas)
    return contract(job.model, ablated.minus(clean), _mean_gradients(job, batch, starts, job.model.starting_from))


def _along_outputs(job: _Job, batch: Batch, alphas: Sequence[float]) -> Tensor:
    """For each group of writers (embed, the heads of a block, an MLP), the mean gradient along that group's output."""
    model, graph = job.model, job.model.graph
    clean, ablated = _endpoints(job, batch)
    delta = ablated.minus(clean)
    scores = _along_inputs(job, batch, alphas)

    def fill(rows: slice, start: Tensor, end: Tensor, enter: Callable[[Tensor], AbstractContextManager[None]]) -> None:
        gradients = _mean_gradients(job, batch, _between(start, end, alphas), enter)
        scores[:, rows] = contract(model, delta, gradients)[:, rows]

    for layer, block in enumerate(model.blocks):
        start, end = (block.join_heads(values.heads[layer]) for values in (ablated, clean))
        fill(graph.head_rows(layer), start, end, partial(model.writing_attention, layer))
        row = graph.mlp_row(layer)
        fill(slice(row, row + 1), ablated.mlps[layer], clean.mlps[layer], partial(model.writing_mlp, layer))
    return scores


def _endpoints(job: _Job, batch: Batch) -> tuple[WriterValues, WriterValues]:
    """Clean and ablated outputs of all writers."""
    with torch.no_grad():
        clean = WriterValues.of(job.model, job.model.record(batch.clean, logits=False, whole=False))
    return clean, job.setting.ablated_values(batch, clean)


def _between(start: Tensor, end: Tensor, alphas: Sequence[float]) -> Float[Tensor, "point batch pos d_model"]:
    return torch.stack([start + alpha * (end - start) for alpha in alphas])


def _mean_gradients(
    job: _Job, batch: Batch, points: Tensor, enter: Callable[[Tensor], AbstractContextManager[None]]
) -> ReaderGradients:
    """Mean gradient over `points`, in as many passes as the memory budget asks for."""
    parts = []
    for some in job.chunks(batch, points):
        gradients, _ = reader_gradients(job.model, batch.clean, some, job.metric(batch), enter)
        parts.append(gradients.times(len(some) / len(points)))
    return ReaderGradients.sum(parts)
