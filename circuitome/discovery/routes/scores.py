"""Edge scores from information flow routes: no corrupted prompt, no gradient, one forward pass.

The residual stream that reader v sees at position p is the sum of what all writers before it wrote there. With
importance(u, v, p) the share of writer u's proximity to it (`proximity.py`; the output and MLP biases are parts, too),

    score(u -> v) = sum over p of flow(v, p) * importance(u, v, p),        flow(logits, read position) = 1.

What flows into a reader flows on to where it comes from: a writer's flow is the sum over readers. An MLP hands it on to
its input at the same position. A head hands a third each to its query there, to its keys and to its values, the latter
two at the positions it attends to, by what each adds to the head's output (proximity again). So the edges into the
logits, and all that leaves the embeddings and biases, sum to 1 each.
Source: Ferrando and Voita 2024, arXiv:2403.00824, on the edge graph as in the IFR of the mechanistic interpretability
benchmark (hannamw/eap-ig). Departure: that code takes the mean of the importances over positions, whatever the route;
here edges are weighted by the route, so that queries, keys and values differ.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.routes.forward import RoutePass
from circuitome.discovery.routes.proximity import importances, proximity
from circuitome.engine.ablation import WriterValues, writer_vectors
from circuitome.engine.batches import batches
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method
from circuitome.errors import UnsupportedModelError
from circuitome.graph.edge_scores import EdgeScores

PIECE = 600_000
"""Numbers of writers' vectors that are compared with the stream at once."""


@method
def route_scores(setting: Setting, *, norm: str = "l1") -> EdgeScores:
    """How much of the route to the prediction each edge carries on the clean prompts, mean over prompts; from 0 to 1.

    It has no sign and sees no contrast: edges that any prediction needs (previous-token heads, the last MLPs) rank as
    high as those that tell the right answer from the wrong one.
    Raises `UnsupportedModelError` for a model without attention probabilities or that is not causal.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.route_scores(model, task)
    >>> list(scores.top(1)), round(scores["a2.h0->logits"],2)
    (['embed->logits'], 0.25)
    """
    model, task = setting.model, setting.task
    if not model.causal:
        raise UnsupportedModelError(f"{model.name} is not causal; routes as edge scores are made for causal models.")
    graph = model.graph
    samples = torch.empty(len(task), graph.n_edges)
    done = 0
    for batch in batches(model, task, shared_prefix=False, corrupted=False, max_memory=setting.max_memory):
        seen = RoutePass.of(model, batch.clean)
        with model.eager_attention():
            scores = _Flow(seen, norm).run()
        check_numbers(scores, "share of the route")
        samples[list(batch.rows)] = scores.cpu()[:, graph.mask]
        done += len(batch.rows)
        setting.progress("tracing routes", done, len(task))
    values = torch.zeros(graph.mask.shape)
    values[graph.mask] = samples.mean(0)
    return EdgeScores(graph, values, "share of the route", f"routes, {norm}", samples)


class _Flow:
    """One batch's flow, handed from the logits down."""

    def __init__(self, seen: RoutePass, norm: str) -> None:
        model = seen.model
        self.seen, self.norm, self.graph = seen, norm, model.graph
        with torch.no_grad():
            self.vectors = writer_vectors(model, WriterValues.of(model, seen.activations))
            for layer in range(self.graph.n_layers):
                self.vectors[self.graph.mlp_row(layer)] = seen.mlp(layer)
        batch, pos = seen.inputs.ids.shape
        self.flow = self.vectors.new_zeros(len(self.graph.writers), batch, pos)
        self.scores = self.vectors.new_zeros(batch, len(self.graph.writers), len(self.graph.readers))

    @torch.no_grad()
    def run(self) -> Float[Tensor, "batch writers readers"]:
        """Scores of every edge on every prompt."""
        graph, seen = self.graph, self.seen
        rows = torch.arange(len(seen.inputs.ids), device=self.flow.device)
        last = torch.zeros_like(self.flow[0])
        last[rows, seen.inputs.read] = 1
        end, logits = graph.n_layers, len(graph.readers) - 1
        self._into(seen.pre(end), len(graph.writers), end, end, {logits: last})
        for layer in reversed(range(graph.n_layers)):
            into_mlp = {graph.mlp_column(layer): self.flow[graph.mlp_row(layer)]}
            before = seen.pre(layer) if graph.parallel else seen.mid(layer)
            self._into(before, graph.upstream_of_mlp(layer), layer + (not graph.parallel), layer, into_mlp)
            self._into(seen.pre(layer), graph.upstream_of_attention(layer), layer, layer, self._heads(layer))
        return self.scores

    def _into(
        self, stream: Tensor, count: int, attention_biases: int, mlp_biases: int, readers: dict[int, Tensor]
    ) -> None:
        """Share out the flow [batch, pos] of readers of one stream among the first `count` writers and the biases."""
        shares = self._shares(stream, count, attention_biases, mlp_biases)
        for column, flow in readers.items():
            self.scores[:, :count, column] = torch.einsum("ubp,bp->bu", shares, flow)
        self.flow[:count] += shares * torch.stack(list(readers.values())).sum(0)

    def _shares(self, stream: Tensor, count: int, attention_biases: int, mlp_biases: int) -> Tensor:
        """Importances [writer, batch, pos] of writers in a stream; biases take their part."""
        seen = self.seen
        step = max(1, PIECE // stream.numel())
        near = torch.cat([proximity(part, stream, self.norm) for part in self.vectors[:count].split(step)])
        biases = [seen.attention_bias(layer) for layer in range(attention_biases)]
        biases += [seen.mlp_bias(layer) for layer in range(mlp_biases)]
        present = [bias for bias in biases if bool(bias.any())]
        rest = torch.stack([torch.zeros_like(near[0]), *(proximity(bias, stream, self.norm) for bias in present)])
        flat = [part.flatten(1).T for part in (near, rest)]
        return importances(*flat)[0].T.reshape(near.shape)

    def _heads(self, layer: int) -> dict[int, Tensor]:
        """By column, the flow [batch, pos] into queries, keys and values of a block, a third of a head's each."""
        seen, heads = self.seen, self.seen.model.heads
        columns = self.graph.attention_columns(layer)
        flow = self.flow[self.graph.head_rows(layer)].permute(1, 2, 0) / 3  # batch, query, head
        values, pattern = seen.values(layer), seen.pattern(layer)
        by_key = torch.einsum("bqh,bqhk->bhk", flow, self._keys(layer, pattern, values))
        readers = {columns.start + head: flow[..., head] for head in range(heads.q)}
        for kv in range(heads.kv):
            own = [head for head in range(heads.q) if self.graph.kv_head(head) == kv]
            for part in range(2):
                readers[columns.start + heads.q + part * heads.kv + kv] = by_key[:, own].sum(1)
        return readers

    def _keys(self, layer: int, pattern: Tensor, values: Tensor) -> Tensor:
        """Shares [batch, query, head, key] of keys in what a head gives: proximity to z, in the head's own space."""
        z = torch.einsum("bqhk,bhke->bqhe", pattern, values)
        by_prompt = zip(pattern.transpose(1, 2), values, z.transpose(1, 2), strict=True)
        near = torch.stack(
            [
                torch.stack([proximity(a[..., None] * v, y[:, None], self.norm) for a, v, y in zip(*one, strict=True)])
                for one in by_prompt
            ]
        )  # batch, head, query, key
        sums = near.sum(-1, keepdim=True)
        even = pattern.transpose(1, 2)
        shares = torch.where(sums > 0, near / sums.clamp(min=1e-38), even / even.sum(-1, keepdim=True).clamp(min=1e-38))
        return shares.transpose(1, 2)
