"""Every edge patched by itself: what attribution estimates, and the referee of all estimates.

Source: Conmy et al. 2023, arXiv:2304.14997, section 3 (a single edge's effect).
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from circuitome.engine.ablation import WriterValues, writer_vectors
from circuitome.engine.batches import Batch
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting, method
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.activations import ActivationCache
from circuitome.tasks.losses import loss_unit


@method
def exact(setting: Setting, *, edges: Circuit | None = None, loss: str = "metric") -> EdgeScores:
    """The change of the metric when one edge carries its ablated value and the rest of the model reacts, edge by edge.

    `edges` restricts the work to some edges; the others score 0. Costs a part of a forward pass for every edge: only
    what comes after the edge runs again. `loss`, a name in `LOSSES`, may stand for the metric: with "kl" a score is
    minus the divergence from the clean model. Work is kept in the setting's checkpoint, from which the same call goes
    on. Raises `RunError` if the checkpoint belongs to another run, `UnknownNameError` for another loss or
    ablation, `NumericsError` at NaN.
    """
    with torch.no_grad():
        return _Exact(setting, setting.model.graph.mask if edges is None else edges.mask, loss).run()


class _Exact:
    def __init__(self, setting: Setting, wanted: Tensor, loss: str) -> None:
        self.setting, self.wanted, self.loss = setting, wanted, loss
        self.model, self.task, self.graph = setting.model, setting.task, setting.model.graph
        self.checkpoint = setting.kept("exact", loss, hashlib.sha256(wanted.numpy().tobytes()).hexdigest())
        self.samples = torch.full((len(self.task), *wanted.shape), torch.nan)
        if before := self.checkpoint.read():
            self.samples = before[0]["samples"]

    def run(self) -> EdgeScores:
        """All batches, all readers."""
        total, done = int(self.wanted.sum()) * len(self.task), 0
        for batch in self.setting.batches():
            rows = list(batch.rows)
            for column, effects in self._columns(batch, rows):
                self.samples[rows, :, column] = effects
                done += int(self.wanted[:, column].sum()) * len(rows)
                self.setting.progress("patching edges", done, total)
                if self.graph.reader_nodes[column].kind == "mlp":
                    self.checkpoint.write({"samples": self.samples}, {})
        samples = self.samples.nan_to_num()[:, self.graph.mask]
        values = torch.zeros(self.graph.mask.shape)
        values[self.graph.mask] = samples.mean(0)
        method = "exact" if self.loss == "metric" else f"exact, loss {self.loss}"
        return EdgeScores(self.graph, values, loss_unit(self.task, self.loss), method, samples)

    def _columns(self, batch: Batch, rows: list[int]) -> Iterator[tuple[int, Tensor]]:
        """Reader by reader, the effects [batch, writers] of its edges."""
        model = self.model
        activations = model.record(batch.clean, logits=False)
        assert activations.final is not None
        clean = WriterValues.of(model, activations)
        ablated = self.setting.ablated_values(batch, clean)
        vectors = writer_vectors(model, ablated.minus(clean))
        logits = None if self.loss == "metric" else model.logits(batch.clean)
        readout, run = Readout(model, self.task, batch.rows, self.loss, logits), PartialForward(model, batch.clean)
        read = torch.arange(len(rows)), batch.clean.read
        plain = -readout(activations.final[read][None])[0]
        copies = dense_copies(model, batch.clean, self.setting.max_memory)
        for column in range(len(self.graph.readers)):
            senders = self.wanted[:, column].nonzero().flatten()
            known = self.samples[rows][:, :, column]
            if not bool(known[:, senders].isnan().any()):
                yield column, known
                continue
            effects = torch.full((len(rows), len(self.graph.writers)), torch.nan)
            for some in senders.split(copies):
                final = self._final(activations, run, column, vectors[some], read)
                effects[:, some] = (-readout(final) - plain).T.cpu()
            yield column, effects

    def _final(
        self,
        activations: ActivationCache,
        run: PartialForward,
        column: int,
        change: Tensor,
        read: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Final residual [sender, batch, d_model] with what a reader sees changed."""
        assert activations.final is not None
        layer = self.graph.reader_layer[column]
        if layer == self.graph.n_layers:
            return (activations.final + change)[:, *read]
        block, dtype = self.model.blocks[layer], self.model.dtype
        if column == self.graph.mlp_column(layer):
            after = activations.resid_pre[layer + 1] if layer + 1 < self.graph.n_layers else activations.final
            written = block.run_mlp((activations.resid_mid[layer] + change).to(dtype).flatten(0, 1)).view_as(change)
            return run.from_block(layer + 1, after + written - activations.mlp_out[layer])
        reader = column - self.graph.attention_columns(layer).start
        weight, bias = block.reader_weights([reader])[0], block.reader_biases()[reader]
        values = block.split(activations.projected[layer]).expand(len(change), -1, -1, -1, -1).clone()
        values[:, :, :, reader] = (
            block.attend_inputs((activations.resid_pre[layer] + change).to(dtype)) @ weight.T + bias
        )
        z = self.model.attend(layer, values.flatten(0, 1), run.calls_for(len(change))[layer])
        z = z.flatten(-2).unflatten(0, (len(change), -1))
        return run.from_z(layer, activations.resid_pre[layer], activations.mlp_out[layer], z)
