"""Every edge patched by itself: what attribution estimates, and the ground truth of all estimates.

    score(u -> v) = mean over prompts of metric(v sees u's ablated value, all behind v reacts) - metric(clean).

Source: Conmy et al. 2023, arXiv:2304.14997, section 3 (a single edge's effect).
"""

import hashlib
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.ablation import WriterValues, writer_vectors
from circuitome.engine.batches import Batch
from circuitome.engine.block_step import stream_read
from circuitome.engine.partial_forward import PartialForward, dense_copies
from circuitome.engine.setting import Setting, method
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.tasks.losses import loss_unit


@method
def exact(setting: Setting, *, edges: Circuit | None = None, loss: str = "metric") -> EdgeScores:
    """The change of the metric when one edge carries its ablated value and the rest of the model reacts, edge by edge.

    Scores are in the metric's unit, per prompt and their mean; negative: the edge helps. `edges` restricts the work to
    some edges; the others score 0. Costs a part of a forward pass for every edge: only what comes after the edge runs
    again. `loss`, a name in `LOSSES`, may stand for the metric: with "kl" a score is minus the divergence from the
    clean model, in nats. Work is kept in the setting's checkpoint, from which the same call goes on.

    Raises `RunError` if the checkpoint belongs to another run, `UnknownNameError` for another loss or ablation,
    `NumericsError` where the metric is not finite.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.exact(model, task, edges=cm.eap(model, task).top(10))
    >>> round(scores["a2.h0->logits"], 1)
    -10.0
    """
    with torch.no_grad():
        return _Exact(setting, setting.model.graph.mask if edges is None else edges.mask, loss).run()


class _Exact:
    """The effects so far, edge by edge; NaN where an edge has not been patched yet."""

    def __init__(self, setting: Setting, wanted: Tensor, loss: str) -> None:
        self.setting, self.wanted, self.loss = setting, wanted, loss
        self.model, self.graph = setting.model, setting.model.graph
        self.checkpoint = setting.kept("exact", loss, hashlib.sha256(wanted.numpy().tobytes()).hexdigest())
        self.samples = torch.full((len(setting.task), *wanted.shape), torch.nan)
        if before := self.checkpoint.read():
            self.samples = before[0]["samples"]

    def run(self) -> EdgeScores:
        """All batches, all readers."""
        task, done = self.setting.task, 0
        for batch in self.setting.batches():
            rows = list(batch.rows)
            for column, effects in self._columns(batch):
                self.samples[rows, :, column] = effects
                done += int(self.wanted[:, column].sum()) * len(rows)
                self.setting.progress("patching edges", done, int(self.wanted.sum()) * len(task))
                if self.graph.reader_nodes[column].kind == "mlp":
                    self.checkpoint.write({"samples": self.samples}, {})
        samples = self.samples.nan_to_num()[:, self.graph.mask]
        method = "exact" if self.loss == "metric" else f"exact, loss {self.loss}"
        return EdgeScores.of(self.graph, samples, loss_unit(task, self.loss), method)

    def _columns(self, batch: Batch) -> Iterator[tuple[int, Float[Tensor, "batch writers"]]]:
        """Reader by reader, the effects of its edges."""
        model, rows = self.model, list(batch.rows)
        activations = model.record(batch.clean, logits=False)
        clean = WriterValues.of(model, activations)
        vectors = writer_vectors(model, self.setting.ablated_values(batch, clean).minus(clean))
        readout, run = self.setting.readout(batch, self.loss), PartialForward(model, batch.clean, activations)
        plain = -readout(batch.clean.at_read(activations.resid_post(self.graph.n_layers - 1))[None])[0]
        copies = dense_copies(model, batch.clean, self.setting.max_memory)
        for column in range(len(self.graph.readers)):
            senders = self.wanted[:, column].nonzero().flatten()
            effects = self.samples[rows, :, column]
            for some in senders.split(copies) if bool(effects[:, senders].isnan().any()) else ():
                inputs = stream_read(activations, self.graph, column) + vectors[some]
                if column == len(self.graph.readers) - 1:
                    final = batch.clean.at_read(inputs)
                else:
                    final = run.seen({column: inputs.flatten(1, 2)}, {column: slice(None)})
                effects[:, some] = (-readout(final) - plain).T.cpu()
            yield column, effects
