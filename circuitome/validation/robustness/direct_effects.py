"""The direct effect of each head and MLP: the change of the metric when only its path to the logits is ablated.

effect = metric with the path ablated - metric as it is, per prompt: negative helps. Nothing else reacts, and the final
norm is computed anew; one unembedding a part and no pass of the model. Sources: Wang et al. 2022, arXiv:2211.00593,
section 3.1; McGrath et al. 2023, arXiv:2307.15771 (direct and total effects).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablate_outputs import AblatedOutputs, replace_outputs
from circuitome.engine.ablation import WriterValues, writer_vectors
from circuitome.engine.circuit_run import Baseline
from circuitome.engine.readout import NUMBERS, Readout
from circuitome.graph.model_graph import Graph
from circuitome.validation.faithfulness.evaluator import Evaluator


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """Metric and direct effects of all writers, on every prompt."""

    graph: Graph
    """Labels: `graph.writers`."""
    metric: Float[Tensor, " prompts"]
    """Of the run that was looked at."""
    samples: Float[Tensor, "prompts writers"]
    """Each writer's direct effect; negative helps."""

    @classmethod
    def empty(cls, evaluator: Evaluator) -> "DirectEffects":
        """Room for the numbers of all prompts."""
        graph, n = evaluator.model.graph, len(evaluator.task)
        return cls(graph, torch.empty(n), torch.empty(n, len(graph.writers)))

    def most_helpful(self, k: int, least: float = 0.0) -> list[str]:
        """Up to `k` heads with the lowest mean direct effect, of those where it is below -`least`."""
        mean, nodes = self.samples.mean(0).tolist(), self.graph.writer_nodes
        heads = [row for row, node in enumerate(nodes) if node.kind == "head" and mean[row] < -least]
        return [self.graph.writers[row] for row in sorted(heads, key=lambda row: mean[row])[:k]]


@dataclass(frozen=True, eq=False)
class EffectsWithout:
    """Direct effects of all writers while some are ablated."""

    after: DirectEffects
    """With the others reacting to the ablation."""
    frozen: DirectEffects
    """With only the ablated parts' own paths to the logits gone and nobody reacting. These differ from those of the
    intact run because the final norm divides by less, and the metric may be curved."""


def direct_effects(evaluator: Evaluator) -> DirectEffects:
    """Direct effects of all writers in the intact model. Costs a pass over the clean prompts."""
    effects = DirectEffects.empty(evaluator)
    with torch.no_grad():
        for base in evaluator.bases():
            _fill(effects, evaluator, base)
    return effects


def direct_effects_without(evaluator: Evaluator, ablated: Sequence[int]) -> EffectsWithout:
    """Direct effects of all writers while the rows `ablated` are, with and without the others' reaction.

    Costs two passes over the clean prompts.
    """
    model, effects = evaluator.model, EffectsWithout(DirectEffects.empty(evaluator), DirectEffects.empty(evaluator))
    with torch.no_grad():
        for base in evaluator.bases():
            _fill(effects.frozen, evaluator, base, gone=ablated)
            with replace_outputs(model, AblatedOutputs.of(model, base.ablated, ablated)):
                _fill(effects.after, evaluator, base)
    for part in (effects.after, effects.frozen):
        part.samples[:, list(ablated)] = 0.0
    return effects


def _fill(effects: DirectEffects, evaluator: Evaluator, base: Baseline, gone: Sequence[int] = ()) -> None:
    """Write the metric and the effects of one batch, the paths of the writers `gone` ablated first."""
    model, clean, rows = evaluator.model, base.batch.clean, list(base.batch.rows)
    activations = model.record(clean, logits=False, whole=False)
    assert activations.final is not None
    at = torch.arange(len(clean.read), device=clean.read.device), clean.read
    final = activations.final[at].float()
    change = base.ablated.minus(WriterValues.of(model, activations)).at(*at)
    step = max(1, NUMBERS // (len(model.graph.writers) * model.d_model))
    for start in range(0, len(rows), step):
        part, some = slice(start, start + step), rows[start : start + step]
        vectors = writer_vectors(model, change.rows(part))[:, :, 0]
        readout = Readout(model, evaluator.task, some, "metric")
        metric, changed = readout.effects(final[part] + vectors[list(gone)].sum(0), vectors)
        effects.metric[some], effects.samples[some] = metric.cpu(), changed.T.cpu()
