"""What each head and MLP contributes to the metric by itself: straight to the logits, and in all.

contribution = metric with the part as it is - metric with it ablated, per prompt: positive helps. Direct: only its path
to the logits is ablated, nothing else reacts, the final norm is computed anew; one unembedding a part and no pass of
the model. Total: it is ablated for everything behind it. Sources: Wang et al. 2022, arXiv:2211.00593, section 3.1
(direct effects); McGrath et al. 2023, arXiv:2307.15771 (direct and total).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablate_outputs import AblatedOutputs, replace_outputs
from circuitome.engine.ablation import WriterValues, writer_vectors
from circuitome.engine.circuit_run import Baseline
from circuitome.engine.readout import Readout
from circuitome.graph.model_graph import Graph
from circuitome.validation.faithfulness.evaluator import Evaluator

NUMBERS = 24_000_000
"""Numbers held at once in the vectors of writers: about 100 MB."""


@dataclass(frozen=True, eq=False)
class Direct:
    """Metric and direct contributions of all writers, on every prompt."""

    graph: Graph
    """Labels: `graph.writers`."""
    metric: Float[Tensor, " prompts"]
    """Of the run that was looked at."""
    samples: Float[Tensor, "prompts writers"]
    """Each writer's direct contribution."""

    def strongest(self, k: int, least: float = 0.0) -> list[str]:
        """Up to `k` heads with the largest mean direct contribution, of those where it is above `least`."""
        mean, nodes = self.samples.mean(0).tolist(), self.graph.writer_nodes
        heads = [row for row, node in enumerate(nodes) if node.kind == "head" and mean[row] > least]
        return [self.graph.writers[row] for row in sorted(heads, key=lambda row: -mean[row])[:k]]


@dataclass(frozen=True, eq=False)
class Knocked:
    """A knock-out seen from the logits."""

    after: Direct
    """Direct contributions with the knock-out in force."""
    frozen: Direct
    """Direct contributions when only the knocked-out parts' own paths to the logits are ablated and nobody reacts. They
    differ from those of the intact run because the final norm divides by less, and the metric may be curved."""


def direct_contributions(evaluator: Evaluator) -> Direct:
    """Direct contributions of all writers in the intact model. Costs a pass over the clean prompts."""
    metric, samples = _empty(evaluator)
    with torch.no_grad():
        for base in evaluator.bases():
            rows = list(base.batch.rows)
            metric[rows], samples[rows] = _paths(evaluator, rows, *_run(evaluator, base))
    return Direct(evaluator.model.graph, metric, samples)


def knocked_contributions(evaluator: Evaluator, knocked: Sequence[int]) -> Knocked:
    """Direct contributions of all writers while the rows `knocked` are out, with and without the others' reaction.

    Costs two passes over the clean prompts.
    """
    model, frozen, after = evaluator.model, _empty(evaluator), _empty(evaluator)
    with torch.no_grad():
        for base in evaluator.bases():
            rows = list(base.batch.rows)
            frozen[0][rows], frozen[1][rows] = _paths(evaluator, rows, *_run(evaluator, base), gone=knocked)
            with replace_outputs(model, AblatedOutputs.of(model, base.ablated, knocked)):
                after[0][rows], after[1][rows] = _paths(evaluator, rows, *_run(evaluator, base))
    for _, samples in (frozen, after):
        samples[:, list(knocked)] = 0.0
    return Knocked(Direct(model.graph, *after), Direct(model.graph, *frozen))


def _empty(evaluator: Evaluator) -> tuple[Tensor, Tensor]:
    """Room for the metric and the contributions."""
    n = len(evaluator.task)
    return torch.empty(n), torch.empty(n, len(evaluator.model.graph.writers))


def _run(evaluator: Evaluator, base: Baseline) -> tuple[Tensor, WriterValues]:
    """Final residual at the position read [batch, d_model], and there ablated minus online outputs of all writers."""
    model, clean = evaluator.model, base.batch.clean
    activations = model.record(clean, logits=False, whole=False)
    assert activations.final is not None
    at = torch.arange(len(clean.read), device=clean.read.device), clean.read
    change = base.ablated.minus(WriterValues.of(model, activations)).at(*at)
    return activations.final[at].float(), change


def _paths(
    evaluator: Evaluator, rows: Sequence[int], final: Tensor, change: WriterValues, gone: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """Metric [batch] of a run and every writer's direct contribution to it [batch, writers].

    The paths of the writers `gone` are ablated first.
    """
    model, writers = evaluator.model, len(evaluator.model.graph.writers)
    step = max(1, NUMBERS // (writers * model.d_model))
    metric, samples = torch.empty(len(rows)), torch.empty(len(rows), writers)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        vectors = writer_vectors(model, change.rows(part))[:, :, 0]
        readout = Readout(model, evaluator.task, rows[part], "metric")
        width = model.d_model if readout.tokens is not None else int(model.hf.config.vocab_size)
        stream = final[part] + vectors[list(gone)].sum(0)
        metric[part] = -readout(stream[None])[0].cpu()
        copies = max(1, NUMBERS // (vectors.shape[1] * width))
        without = torch.cat([-readout(stream + some).cpu() for some in vectors.split(copies)])
        samples[part] = (metric[part] - without).T
    return metric, samples
