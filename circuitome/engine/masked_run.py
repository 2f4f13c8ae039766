"""Run a model whose edges are partly open, with the gradient of every open edge.

Reader v sees base_v + sum over writers u of z[u, v] (online(u) - ablated(u)), base being the residual stream with every
writer ablated and online values those of the masked run itself. With z of 0 and 1 this is `run_circuit`.

Differences of writers are rows of one buffer, gradients with respect to them rows of another. Each block keeps only its
own small graph, from its readers' inputs to its writers' differences; between blocks both directions are matrix
products of the mask with a buffer. Closed edges cost nothing where whole readers or writers fall away with them.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.ablation import scaled_heads
from circuitome.engine.circuit_run import Baseline
from circuitome.graph.model_graph import Graph
from circuitome.models.model import Model


def masked_final(model: Model, base: Baseline, z: Float[Tensor, "writers readers"]) -> Float[Tensor, "batch d_model"]:
    """Residual in front of the final norm at the position read, float32, every edge open as far as `z` says.

    Differentiable in `z`; an edge at exactly 0 is not in the run, so its gradient is 0 (as behind the clamp of a hard
    concrete mask). Entries of `z` where the graph has no edge must be 0. Parameters must take no gradients
    (`Model.frozen_parameters`): they would fill memory.
    """
    return _Masked.apply(z, SoftRun(model, base, z.detach()))


class _Masked(torch.autograd.Function):
    """`SoftRun` as one operation of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, run: "SoftRun") -> Tensor:
        ctx.run = run
        return run.forward(keep=ctx.needs_input_grad[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.run.backward(grads[0]), None


@dataclass(frozen=True)
class Reach:
    """What of a soft circuit the logits of the position read depend on."""

    columns: Bool[Tensor, " readers"]
    """Readers whose input matters."""
    rows: Bool[Tensor, " writers"]
    """Writers whose output matters."""
    wide: Bool[Tensor, " writers"]
    """Whether it matters at positions before the one read: keys and values are read everywhere, queries and MLP inputs
    only where their own output is."""

    @classmethod
    def of(cls, graph: Graph, open_edges: Bool[Tensor, "writers readers"], *, coupled: bool) -> "Reach":
        """Go back from the logits, block by block. `coupled`: heads share a post-norm, so each needs all inputs."""
        columns, everywhere = (torch.zeros(len(graph.readers), dtype=torch.bool) for _ in range(2))
        rows, wide = (torch.zeros(len(graph.writers), dtype=torch.bool) for _ in range(2))
        columns[-1] = True

        def visit(part: slice) -> None:
            rows[part] = (open_edges[part] & columns).any(1)
            wide[part] = (open_edges[part] & everywhere).any(1)

        for layer in reversed(range(graph.n_layers)):
            row, column = graph.mlp_row(layer), graph.mlp_column(layer)
            heads, span = graph.head_rows(layer), graph.attention_columns(layer)
            visit(slice(row, row + 1))
            columns[column], everywhere[column] = rows[row], wide[row]
            visit(heads)
            inputs = graph.inputs[heads, span]
            if coupled:
                rows_used = rows[heads].any().expand(graph.n_heads)
                wide_used = wide[heads].any().expand(graph.n_heads)
            else:
                rows_used, wide_used = rows[heads], wide[heads]
            columns[span] = (inputs & rows_used[:, None]).any(0)
            everywhere[span] = (inputs & wide_used[:, None]).any(0)
            keys = slice(span.start + graph.n_heads, span.stop)
            everywhere[keys] = columns[keys]
        visit(slice(0, len(graph.embeds)))
        return cls(columns, rows, wide)


@dataclass
class _Part:
    """One block's heads, or its MLP, in the run: a graph from what its readers see to how its writers differ."""

    columns: list[int]
    """Its open readers."""
    slots: list[int]
    """Rows of its writers in the buffers."""
    upto: int
    """Writers before it in the buffers."""
    seen: Float[Tensor, "reader rows d_model"]
    """What its readers see."""
    out: Float[Tensor, "writer rows d_model"]
    """How its writers differ from their ablated selves, with the graph that leads there."""
    last: bool
    """Whether rows are the prompts, at the position read, instead of all positions of all prompts."""


@dataclass
class SoftRun:
    """One run of a soft circuit on one batch, forwards and then backwards."""

    model: Model
    """The model."""
    base: Baseline
    """The batch, and its residual stream with every writer ablated."""
    z: Float[Tensor, "writers readers"]
    """How far each edge is open."""
    parts: list[_Part] = field(default_factory=list)
    """What ran, in order; filled by `forward`."""

    def __post_init__(self) -> None:
        self.graph, base = self.model.graph, self.base
        self.coupled = self.model.blocks[0].attention_post is not None
        open_edges = (self.z != 0).cpu()
        self.reach = Reach.of(self.graph, open_edges, coupled=self.coupled)
        self.used = self.reach.rows.nonzero().flatten()
        self.before = torch.cat([torch.zeros(1, dtype=torch.long), self.reach.rows.long().cumsum(0)]).tolist()
        self.weights = self.z.float()[self.used.to(self.z.device)]
        self.open = open_edges[self.used]
        self.ran = torch.zeros(len(self.used), dtype=torch.bool)
        batch, pos, d_model = base.clean_embed.shape
        self.delta = base.clean_embed.new_zeros(len(self.used), batch * pos, d_model)
        read = base.batch.clean.read
        self.at_read = torch.arange(batch, device=read.device) * pos + read

    def forward(self, *, keep: bool) -> Float[Tensor, "batch d_model"]:
        """The final residual at the position read; with `keep`, what `backward` needs stays."""
        base = self.base
        if self.reach.rows[0]:
            self._store([0], (base.clean_embed - base.ablated.embed).flatten(0, 1)[None])
        for layer in range(self.graph.n_layers):
            for part in (self._heads(layer, keep), self._mlp(layer, keep)):
                if part is not None and keep:
                    self.parts.append(part)
        return self._seen(base.final, [len(self.graph.readers) - 1], len(self.used), last=True)[0]

    def backward(self, grad: Float[Tensor, "batch d_model"]) -> Float[Tensor, "writers readers"]:
        """Gradient with respect to the mask, given the one with respect to the final residual."""
        delta_grad = torch.zeros_like(self.delta)
        z_grad = torch.zeros_like(self.weights)
        self._spread(z_grad, delta_grad, [len(self.graph.readers) - 1], len(self.used), grad[None], last=True)
        while self.parts:
            part = self.parts.pop()  # its graph is free as soon as it has been used
            wanted = delta_grad[part.slots]
            wanted = wanted[:, self.at_read] if part.last else wanted
            (seen,) = torch.autograd.grad(part.out, part.seen, wanted)
            self._spread(z_grad, delta_grad, part.columns, part.upto, seen.float(), last=part.last)
        full = torch.zeros_like(self.z)
        full[self.used.to(full.device)] = (z_grad * self.open.to(z_grad.device)).to(full.dtype)
        return full

    def _seen(self, stream: Tensor, columns: list[int], upto: int, *, last: bool) -> Tensor:
        """What some readers see: the ablated stream, and the open part of every writer's difference before them."""
        stream, delta = stream.flatten(0, 1), self.delta[:upto]
        if last:
            stream, delta = stream[self.at_read], delta[:, self.at_read]
        mixed = self.weights[:upto, columns].T @ delta.flatten(1)
        return mixed.view(len(columns), *stream.shape) + stream

    def _spread(
        self, z_grad: Tensor, delta_grad: Tensor, columns: list[int], upto: int, grad: Tensor, *, last: bool
    ) -> None:
        """Carry the gradient at what readers see to mask and differences; the reverse of `_seen`."""
        delta, flat, weights = self.delta[:upto], grad.flatten(1), self.weights[:upto, columns]
        if last:
            z_grad[:upto, columns] = delta[:, self.at_read].flatten(1) @ flat.T
            delta_grad[:upto, self.at_read] += (weights @ flat).view(upto, *grad.shape[1:])
        else:
            z_grad[:upto, columns] = delta.flatten(1) @ flat.T
            delta_grad[:upto].flatten(1).addmm_(weights, flat)

    def _store(self, slots: list[int], difference: Tensor, *, last: bool = False) -> None:
        if last:
            self.delta[slots[0] : slots[-1] + 1, self.at_read] = difference
        else:
            self.delta[slots[0] : slots[-1] + 1] = difference
        self.ran[slots] = True

    def _active(self, columns: range, upto: int) -> list[int]:
        """Those of some readers that matter and can differ from their ablated selves."""
        span = slice(columns.start, columns.stop)
        moved = self.reach.columns[span]
        if self.base.cached:
            moved = moved & (self.open[:upto, span] & self.ran[:upto, None]).any(0)
        return [columns.start + i for i in moved.nonzero().flatten().tolist()]

    def _heads(self, layer: int, keep: bool) -> _Part | None:
        """Run the heads of a block that open edges leave; the same steps as `CircuitRun.attention`."""
        base, block = self.base, self.model.blocks[layer]
        rows, span = self.graph.head_rows(layer), self.graph.attention_columns(layer)
        heads = self.reach.rows[rows].nonzero().flatten().tolist()
        upto = self.before[rows.start]
        columns = self._active(range(span.start, span.stop), upto)
        if not heads or not columns:
            return None
        seen = self._seen(base.resid_pre[layer], columns, upto, last=False).requires_grad_(keep)
        with torch.set_grad_enabled(keep):
            readers = [column - span.start for column in columns]
            weights, biases = block.reader_weights(readers), block.reader_biases()[readers]
            normed = block.attend_inputs(seen.to(self.model.dtype))
            online = torch.baddbmm(biases[:, None], normed, weights.transpose(1, 2)).transpose(0, 1)
            online = online.unflatten(0, base.clean_embed.shape[:2])
            if base.projected is None:  # then every needed reader is active, and the rest is nobody's business
                values = online.new_zeros(*online.shape[:2], self.model.heads.readers, online.shape[-1])
            else:
                values = block.split(base.projected[layer], copy=True)
            values = values.index_copy(2, torch.tensor(readers, device=values.device), online)
            z = self.model.attend(layer, values, base.calls[layer]).flatten(-2)
            out = block.output(z) if self.coupled else None
            change = scaled_heads(self.model, layer, z, out) - base.ablated.heads[layer]
            difference = torch.bmm(change.flatten(0, 1)[:, heads].transpose(0, 1), block.head_weights(heads))
        slots = list(range(upto, upto + len(heads)))
        self._store(slots, difference.detach())
        return _Part(columns, slots, upto, seen, difference, last=False)

    def _mlp(self, layer: int, keep: bool) -> _Part | None:
        """Run the MLP of a block if an open edge leaves it, only at the position read if no other one matters."""
        base, row, column = self.base, self.graph.mlp_row(layer), self.graph.mlp_column(layer)
        upto = self.before[row]
        if not self.reach.rows[row] or not self._active(range(column, column + 1), self._upstream(layer)):
            return None
        last = not bool(self.reach.wide[row])
        upstream = self._upstream(layer)
        seen = self._seen(base.resid_mid[layer], [column], upstream, last=last).requires_grad_(keep)
        ablated = base.ablated.mlps[layer].flatten(0, 1)
        with torch.set_grad_enabled(keep):
            out = self.model.blocks[layer].run_mlp(seen.to(self.model.dtype)).float()
            difference = out - (ablated[self.at_read] if last else ablated)
        self._store([upto], difference.detach(), last=last)
        return _Part([column], [upto], upstream, seen, difference, last=last)

    def _upstream(self, layer: int) -> int:
        """Writers in the buffers that the MLP of a block can see."""
        return self.before[self.graph.upstream_of_mlp(layer)]
