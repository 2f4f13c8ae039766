"""First-order estimates of path patching: which senders of a receiver are worth patching.

To first order, what a sender u does to receiver v through no other head changes the metric by
    sum over positions of < corrupted(u) - clean(u), J^T g >,
g the mean gradient of the metric at v's input on the way from the corrupted to the clean embeddings (as in EAP-IG: the
clean run alone has none behind a saturated softmax), and J the Jacobian of the MLPs between u and v (the identity
and their own slopes, one block after another; nothing but the identity where MLPs are frozen). A receiver costs one
backward pass through MLPs, for all of its senders together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.contraction import ReaderGradients, reader_gradients, reader_vectors
from circuitome.engine.ablation import WriterValues, corrupted_values, writer_vectors
from circuitome.engine.batches import Batch
from circuitome.engine.setting import Setting
from circuitome.models.activations import ActivationCache


def path_estimates(
    setting: Setting, receivers: Sequence[str], *, freeze_mlps: bool
) -> Float[Tensor, "receivers writers"]:
    """Estimated effect of every sender on every receiver, at all of its positions; mean over prompts."""
    graph = setting.model.graph
    columns = [graph.column(name) for name in receivers]
    totals = torch.zeros(len(columns), len(graph.writers))
    for batch in setting.but(ablation="corrupted").batches(gradients=True):
        run = _Gradients.of(setting, batch)
        for total, column in zip(totals, columns, strict=True):
            total += run.estimates(column, freeze_mlps=freeze_mlps).cpu()
    return totals / len(setting.task)


STEPS = 5
"""Points between corrupted and clean embeddings at which the gradient is taken."""


@dataclass(frozen=True)
class _Gradients:
    """A clean run of one batch, the gradients at all readers, and how corruption changes the writers."""

    setting: Setting
    clean: ActivationCache
    gradients: ReaderGradients
    vectors: Float[Tensor, "writers batch pos d_model"]

    @classmethod
    def of(cls, setting: Setting, batch: Batch) -> "_Gradients":
        model = setting.model
        rows, corrupted = list(batch.rows), corrupted_values(model, batch)
        with torch.no_grad():
            clean = model.record(batch.clean, logits=False)
            values = WriterValues.of(model, clean)
        parts = (
            reader_gradients(
                model,
                batch.clean,
                (corrupted.embed + (step + 0.5) / STEPS * (values.embed - corrupted.embed))[None],
                lambda logits: setting.task.score(logits, rows),
            )[0].times(1 / STEPS)
            for step in range(STEPS)
        )
        return cls(setting, clean, ReaderGradients.sum(parts), writer_vectors(model, corrupted.minus(values)))

    def estimates(self, column: int, *, freeze_mlps: bool) -> Float[Tensor, " writers"]:
        """Estimated effect of every writer on the reader of a column, summed over prompts."""
        estimates = self.vectors.new_zeros(len(self.vectors))
        for rows, gradient in self._back(column, freeze_mlps=freeze_mlps):
            estimates[rows] = self.vectors[rows].flatten(1) @ gradient.flatten()
        return estimates

    def _back(self, column: int, *, freeze_mlps: bool) -> Iterator[tuple[slice, Tensor]]:
        """Writers with the gradient at what they write, from the reader back to the embedding."""
        graph, layer = self.setting.model.graph, self.setting.model.graph.reader_layer[column]
        gradient = reader_vectors(self.setting.model, self.gradients, column)
        if column == graph.mlp_column(min(layer, graph.n_layers - 1)) and layer < graph.n_layers and not graph.parallel:
            yield graph.head_rows(layer), gradient
        for before in reversed(range(layer)):
            row = graph.mlp_row(before)
            yield slice(row, row + 1), gradient
            through = gradient if freeze_mlps else gradient + self._through_mlp(before, gradient)
            yield graph.head_rows(before), gradient if graph.parallel else through
            gradient = through
        yield slice(0, len(graph.embeds)), gradient

    def _through_mlp(self, layer: int, gradient: Tensor) -> Tensor:
        """Gradient at what an MLP reads, given the one at what it writes."""
        model = self.setting.model
        x = self.clean.resid_mid[layer].detach().requires_grad_(True)
        with torch.enable_grad(), model.frozen_parameters():
            out = model.blocks[layer].run_mlp(x)
        return torch.autograd.grad(out, x, gradient.to(out.dtype))[0].float()
