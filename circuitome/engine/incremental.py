"""A circuit in which edges into one reader after another are switched off, last reader first.

Each state that is asked about differs from the present one in one reader's input. What follows from that is computed
through the kept edges behind the reader alone, for many states at a time: the cost of a question is that of the circuit
found so far, not of the model.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.batches import DEFAULT_MEMORY, Batch
from circuitome.engine.circuit_run import Baseline, CircuitRun
from circuitome.errors import MemoryBudgetError
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Call, Model

MOST_COPIES = 16
"""States that are computed together at most; more are no faster."""


def copies_within(model: Model, batches: Sequence[Batch], max_memory: int | None) -> int:
    """How many states of live circuits on `batches` to compute together: a power of two.

    Raises `MemoryBudgetError` where the live circuits themselves do not fit into `max_memory` bytes.
    """
    tokens = [batch.clean.ids.numel() for batch in batches]
    writer = 4 * model.d_model
    need = sum(tokens) * len(model.graph.writers) * writer
    if max_memory is not None and need > max_memory:
        raise MemoryBudgetError(
            f"Live circuits on these prompts take {need / 1e9:.1f} GB beside the weights, the budget is "
            f"{max_memory / 1e9:.1f} GB. Raise --max-memory, or take fewer prompts (--n)."
        )
    spare = (2 * DEFAULT_MEMORY if max_memory is None else max_memory) - need
    prefix = max(batch.clean.mask.numel() for batch in batches) * 2 * model.heads.kv * model.heads.width * 4
    each = max(tokens) * 2 * len(model.blocks) * writer + prefix * len(model.blocks)
    fits = max(1, min(MOST_COPIES, spare // each))
    return 1 << (fits.bit_length() - 1)


class IncrementalCircuit(CircuitRun):
    """A circuit on one batch of prompts, with every reader's input and every writer's difference at hand.

    Readers are settled from the last to the first; a question about a reader needs all later ones settled.
    """

    def __init__(self, model: Model, base: Baseline, circuit: Circuit, settled: int) -> None:
        """Run `circuit` once. Columns from `settled` on are settled already."""
        super().__init__(model, base, circuit)
        self.values: dict[int, Tensor] = {}
        self.changes: dict[int, Tensor] = {}
        self.calls: dict[int, list[Call]] = {1: base.calls}
        self.children: dict[int, list[int]] = {}
        self.wide: dict[int, bool] = {}
        for layer in range(len(model.blocks)):
            self.attention(layer)
            self.mlp(layer)
        self.inputs: dict[int, Tensor] = {}
        for column in reversed(range(settled, len(self.graph.readers))):
            self.settle(column)

    def note(self, layer: int, values: Tensor, change: Tensor) -> None:
        """Keep what later questions start from."""
        self.values[layer], self.changes[layer] = values, change

    def alive(self, column: int) -> bool:
        """Whether a reader can matter: its node, or with post-norms any head beside it, has a settled reader."""
        return column == len(self.graph.readers) - 1 or bool(self.owners(column))

    def owners(self, column: int) -> list[int]:
        """Rows of the writers that depend on a reader and are read by a settled one."""
        rows = self.graph.rows_of[column]
        if self.coupled and len(self.graph.inputs_of[rows[0]]) > 1:
            heads = self.graph.head_rows(self.graph.layer_of[rows[0]])
            rows = tuple(range(heads.start, heads.stop))
        return [row for row in rows if row in self.children]

    def everywhere_at(self, column: int) -> bool:
        """Whether a reader matters at positions before the one whose logits are read."""
        if column == len(self.graph.readers) - 1:
            return False
        return self.graph.reader_nodes[column].kind == "kv" or any(self.wide[row] for row in self.owners(column))

    def settle(self, column: int) -> None:
        """Note that the edges into `column` will not change any more; those into a reader that cannot matter go."""
        if not self.alive(column):
            self.parents.pop(column, None)
            return
        wide = self.everywhere_at(column)
        for row in self.parents.get(column, ()):
            self.children.setdefault(row, []).append(column)
            self.wide[row] = self.wide.get(row, False) or wide
        self.inputs[column] = self.input_of(column)

    def input_of(self, column: int) -> Float[Tensor, "rows d_model"]:
        """What a reader sees now, at the positions where it matters."""
        return self.at(column, self.seen(self.stream_at(column), [column])[0])

    def base_of(self, column: int) -> Float[Tensor, "rows d_model"]:
        """What a reader sees where every writer is ablated, at the positions where it matters."""
        return self.at(column, self.stream_at(column).flatten(0, 1))

    def stream_at(self, column: int) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream with every writer ablated, where a reader reads it."""
        base, graph = self.base, self.graph
        layer = graph.reader_layer[column]
        if column == len(graph.readers) - 1:
            return base.final
        return (base.resid_mid if column == graph.mlp_column(layer) else base.resid_pre)[layer]

    def at(self, column: int, full: Tensor) -> Tensor:
        """Rows [..., rows, d_model] of all positions, or of the one read where a reader matters only there."""
        return full if self.everywhere_at(column) else full[..., self.last, :]

    def difference(self, row: int, column: int) -> Float[Tensor, "rows d_model"]:
        """How a writer differs from its ablated self, where `column` matters."""
        return self.at(column, self.delta[self.slot[row]]) if row in self.slot else self.inputs[column].new_zeros(())

    def without(self, column: int, gone: Sequence[Sequence[int]]) -> Float[Tensor, "copies rows d_model"]:
        """What a reader sees in several states, the edges from the rows in `gone` off in each."""
        upto = self._upto(column)
        weights = self.delta.new_zeros(len(gone), upto)
        for state, rows in enumerate(gone):
            weights[state, [self.slot[row] for row in rows if row in self.slot]] = -1.0
        change = (weights @ self.delta[:upto].flatten(1)).view(len(gone), *self.delta.shape[1:])
        return self.inputs[column] + self.at(column, change)

    def products(
        self, column: int, rows: Sequence[int], gradient: Float[Tensor, "rows d_model"]
    ) -> Float[Tensor, " edges"]:
        """Inner products of the differences of writers `rows`, where `column` matters, with a gradient there."""
        spread = gradient
        if not self.everywhere_at(column):
            spread = torch.zeros_like(self.delta[0]).index_copy_(0, self.last, gradient)
        upto = self._upto(column)
        found = self.delta[:upto].flatten(1) @ spread.flatten()
        return torch.stack([found[self.slot[row]] if row in self.slot else found.new_zeros(()) for row in rows])

    def _upto(self, column: int) -> int:
        """How many of the writers that ran lie in front of a reader."""
        limit = int(self.graph.mask[:, column].sum())
        return sum(row < limit for row in self.slot)

    def outcome(
        self, column: int, states: Float[Tensor, "copies rows d_model"]
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the position read, in each of several states that differ in what `column` sees."""
        return self._follow({column: states}, len(states), commit=False)

    def change(self, column: int, dropped: Sequence[int]) -> None:
        """Switch off the edges from the rows `dropped` into `column`, and bring everything behind it up to date."""
        self.parents[column] = [row for row in self.parents[column] if row not in set(dropped)]
        self._follow({column: self.input_of(column)[None]}, 1, commit=True)

    def _follow(self, moved: dict[int, Tensor], copies: int, *, commit: bool) -> Tensor:
        """Carry changed inputs to the logits. With `commit` there is one copy, and it becomes the present state."""
        graph, shifts = self.graph, dict[int, Tensor]()
        first = graph.reader_layer[next(iter(moved))]
        for layer in range(first, graph.n_layers):
            span = graph.attention_columns(layer)
            inputs = self._moved_inputs(range(span.start, span.stop), moved, shifts, commit)
            if inputs:
                shifts |= self._heads_shift(layer, inputs, copies, commit)
            inputs = self._moved_inputs([graph.mlp_column(layer)], moved, shifts, commit)
            for column, x in inputs.items():
                shifts |= self._mlp_shift(layer, column, x, commit)
        logits = len(graph.readers) - 1
        final = self._moved_inputs([logits], moved, shifts, commit)
        return final[logits] if final else self.inputs[logits].expand(copies, -1, -1)

    def _moved_inputs(
        self, columns: Sequence[int], moved: dict[int, Tensor], shifts: dict[int, Tensor], commit: bool
    ) -> dict[int, Tensor]:
        """What those readers see that matter and whose input has moved."""
        inputs = {}
        for column in columns:
            if column in moved:
                inputs[column] = moved[column]
            elif column in self.inputs and (rows := [r for r in self.parents.get(column, ()) if r in shifts]):
                if commit:  # from scratch, so that rounding does not pile up
                    self.inputs[column] = self.input_of(column)
                    inputs[column] = self.inputs[column][None]
                else:
                    wide = self.everywhere_at(column)
                    parts = [shifts[r] if wide or not self.wide[r] else shifts[r][:, self.last] for r in rows]
                    inputs[column] = self.inputs[column] + sum(parts[1:], parts[0])
        return inputs

    def _heads_shift(self, layer: int, inputs: dict[int, Tensor], copies: int, commit: bool) -> dict[int, Tensor]:
        """How far the heads of a block move from their present outputs."""
        values, change = self.moved_heads(layer, inputs, copies)
        shifts = self.written(layer, inputs, change - self.changes[layer])
        if commit:
            for row, new in self.written(layer, inputs, change).items():
                self._store(row, new[0])
            self.values[layer], self.changes[layer] = values[0], change[0]
        return shifts

    def moved_heads(self, layer: int, inputs: dict[int, Tensor], copies: int) -> tuple[Tensor, Tensor]:
        """Q, k and v of a block some of whose readers see `inputs`, and how its heads differ from their ablated selves.

        Both begin [copies, batch, pos]; what follows is reader or head, and d_head.
        """
        batch, pos = self.shape[:2]
        first = self.graph.attention_columns(layer).start
        values = self.values[layer].expand(copies, -1, -1, -1, -1).clone()
        for column, x in inputs.items():
            online = self.project(layer, [column - first], x.flatten(0, 1)[None])[0].unflatten(0, (copies, -1))
            if self.everywhere_at(column):
                values[:, :, :, column - first] = online.unflatten(1, (batch, pos))
            else:
                values.flatten(1, 2)[:, self.last, column - first] = online
        z = self.heads(layer, values.flatten(0, 1), self.calls_for(copies)[layer]).unflatten(0, (copies, batch))
        return values, z - self.base.ablated.heads[layer]

    def written(
        self, layer: int, columns: Iterable[int], z: Float[Tensor, "copies batch pos head d_head"]
    ) -> dict[int, Float[Tensor, "copies rows d_model"]]:
        """What the heads that depend on `columns` write for `z`, by row, at the positions where they matter."""
        start = self.graph.head_rows(layer).start
        rows = sorted({row for column in columns for row in self.owners(column)})
        weights = self.model.blocks[layer].head_weights([row - start for row in rows])
        found = {}
        for row, weight in zip(rows, weights, strict=True):
            one = z[..., row - start, :].flatten(1, 2)
            found[row] = (one if self.wide[row] else one[:, self.last]) @ weight
        return found

    def _store(self, row: int, new: Float[Tensor, "rows d_model"]) -> None:
        if self.wide[row]:
            self.delta[self.slot[row]] = new
        else:
            self.delta[self.slot[row]][self.last] = new

    def _mlp_shift(self, layer: int, column: int, x: Tensor, commit: bool) -> dict[int, Tensor]:
        """How far the MLP of a block moves from its present output."""
        row = self.graph.mlp_row(layer)
        new = self.moved_mlp(layer, column, x)
        shift = new - self.difference(row, column)
        if commit:
            self._store(row, new[0])
        return {row: shift}

    def moved_mlp(self, layer: int, column: int, x: Float[Tensor, "copies rows d_model"]) -> Tensor:
        """How the MLP of a block that sees `x` differs from its ablated self, where it matters."""
        ablated = self.at(column, self.base.ablated.mlps[layer].flatten(0, 1))
        return self.model.blocks[layer].run_mlp(x.to(self.model.dtype)).float() - ablated

    def calls_for(self, copies: int) -> list[Call]:
        """How each block calls its attention on several copies of the prompts."""
        if copies not in self.calls:
            clean = self.base.batch.clean
            self.calls[copies] = self.model.attention_calls(clean.joined(*[clean] * (copies - 1)))
        return self.calls[copies]
