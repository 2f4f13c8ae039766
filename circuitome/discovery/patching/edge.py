"""Every edge patched by itself: what attribution estimates, and the referee of all estimates.

Source: Conmy et al. 2023, arXiv:2304.14997, section 3 (a single edge's effect).
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from circuitome.engine.ablation import WriterValues, writer_vectors
from circuitome.engine.batches import Batch
from circuitome.engine.block_step import stream_read
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.readout import Readout
from circuitome.engine.setting import Setting, method
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
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
        readout = Readout(model, self.task, batch.rows, self.loss, logits)
        run = PartialForward(model, batch.clean, activations)
        plain = -readout(batch.clean.at_read(activations.final)[None])[0]
        copies = dense_copies(model, batch.clean, self.setting.max_memory)
        for column in range(len(self.graph.readers)):
            senders = self.wanted[:, column].nonzero().flatten()
            known = self.samples[rows][:, :, column]
            if not bool(known[:, senders].isnan().any()):
                yield column, known
                continue
            effects = torch.full((len(rows), len(self.graph.writers)), torch.nan)
            for some in senders.split(copies):
                seen = stream_read(activations, self.graph, column) + vectors[some]
                if column == len(self.graph.readers) - 1:
                    final = batch.clean.at_read(seen)
                else:
                    final = run.seen({column: seen.flatten(1, 2)}, {column: slice(None)})
                effects[:, some] = (-readout(final) - plain).T.cpu()
            yield column, effects
