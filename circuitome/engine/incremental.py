"""A circuit that has run, and what changes where some of its edges are switched off: many such states at a time.

What follows from a change is computed through the kept edges behind it alone, so that the cost of a question is that of
the circuit found so far, not of the model.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.batches import Batch, memory_budget
from circuitome.engine.block_step import stream_read
from circuitome.engine.circuit_run import Baseline, CircuitRun, Reach, ablated_parts, is_coupled
from circuitome.engine.partial_forward import most_copies, prefix_bytes
from circuitome.errors import MemoryBudgetError, memory_option
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Stage
from circuitome.models.model import Model


def copies_within(model: Model, batches: Sequence[Batch], max_memory: int | None) -> int:
    """How many states of live circuits on `batches` to compute together: a power of two.

    Raises `MemoryBudgetError` where the live circuits themselves do not fit into `max_memory` bytes.
    """
    tokens = [batch.clean.ids.numel() for batch in batches]
    writer = 4 * model.d_model
    need = sum(tokens) * len(model.graph.writers) * writer
    budget = memory_budget(model, max_memory)
    if max_memory is not None and need > budget:
        raise MemoryBudgetError(
            f"Live circuits on these prompts take {need / 1e9:.1f} GB beside the weights, the budget leaves "
            f"{budget / 1e9:.1f} GB for that. Raise {memory_option(need)}, or take fewer prompts (--n)."
        )
    spare = (2 if max_memory is None else 1) * budget - need
    prefix = max(prefix_bytes(model, batch.clean) for batch in batches)
    each = max(tokens) * 2 * len(model.blocks) * writer + prefix
    fits = max(1, min(most_copies(model), spare // each))
    return 1 << (fits.bit_length() - 1)


class IncrementalCircuit:
    """A circuit on one batch of prompts, with every reader's input and every writer's difference at hand.

    Readers are settled from the last to the first: the edges into them will not change any more. `outcome` and `drop`
    ask about one reader whose successors are all settled, `final_without` about all edges of a settled circuit.
    """

    def __init__(self, model: Model, base: Baseline, circuit: Circuit, settled: int = 0) -> None:
        """Run `circuit` once. Columns from `settled` on are settled already. What leads nowhere never runs."""
        self.model, self.base, self.graph = model, base, model.graph
        self.values: dict[int, Tensor] = {}
        run = CircuitRun(model, base, circuit.mask.float(), self.values.__setitem__)
        run.final()
        self.steps, self.delta, self.shape, self.at_read = run.steps, run.delta, run.shape, run.at_read
        self.slot = {row: i for i, row in enumerate(run.used.tolist()) if run.ran[i]}
        self.open = circuit.mask.clone()
        self.open[[row for row in range(len(self.open)) if row not in self.slot]] = False
        self.parents = {column: rows.nonzero().flatten().tolist() for column, rows in enumerate(self.open.T)}
        self.inputs: dict[int, Tensor] = {}
        """By column, what readers that matter see, at the positions where they do."""
        self.reached: list[bool] = []
        """By row, whether a writer has a settled reader that matters."""
        self.wide: list[bool] = []
        """By row, whether it matters at positions before the one whose logits are read."""
        self.alive: list[bool] = []
        """By column, whether a reader can matter: its node, or with post-norms any head beside it, is reached."""
        self.everywhere: list[bool] = []
        """By column, whether it matters at positions before the one whose logits are read."""
        self.settle(settled)

    def settle(self, first: int) -> None:
        """Note that edges into the readers from column `first` on will not change; those that lead nowhere go."""
        settled = self.open.clone()
        settled[:, :first] = False
        reach = Reach.of(self.graph, settled, coupled=is_coupled(self.model))
        self.reached, self.wide = reach.rows.tolist(), reach.wide.tolist()
        self.alive, self.everywhere = reach.columns.tolist(), reach.everywhere.tolist()
        for column in {*range(first, len(self.graph.readers)), len(self.graph.readers) - 1}:
            if not self.alive[column]:
                self._set_edges(column, ())
            elif column not in self.inputs:
                self.inputs[column] = self.input_of(column)

    def input_of(self, column: int) -> Float[Tensor, "rows d_model"]:
        """What a reader sees now, at the positions where it matters."""
        return self._summed(column, self.parents[column])

    def without(self, column: int, gone: Sequence[Sequence[int]]) -> Float[Tensor, "copies rows d_model"]:
        """What a reader sees in several states, the edges from the rows in `gone` off in each."""
        upto = self._upto(column)
        weights = self.delta.new_zeros(len(gone), upto)
        for state, rows in enumerate(gone):
            weights[state, [self.slot[row] for row in rows if row in self.slot]] = -1.0
        change = (weights @ self.delta[:upto].flatten(1)).view(len(gone), *self.delta.shape[1:])
        return self.inputs[column] + self._at(column, change)

    def products(
        self, column: int, rows: Sequence[int], gradient: Float[Tensor, "rows d_model"]
    ) -> Float[Tensor, " edges"]:
        """Inner products of the differences of writers `rows`, where `column` matters, with a gradient there."""
        spread = gradient
        if not self.everywhere[column]:
            spread = torch.zeros_like(self.delta[0]).index_copy_(0, self.at_read, gradient)
        upto = self._upto(column)
        products = self.delta[:upto].flatten(1) @ spread.flatten()
        return torch.stack([products[self.slot[row]] if row in self.slot else products.new_zeros(()) for row in rows])

    def outcome(
        self, column: int, states: Float[Tensor, "copies rows d_model"]
    ) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the position read, in each of several states that differ in what `column` sees."""
        return self._carry(_Change(len(states), {column: states}))

    def drop(self, column: int, rows: Sequence[int]) -> None:
        """Switch off the edges from `rows` into `column`, and bring everything behind it up to date."""
        dropped = set(rows)
        self._set_edges(column, [row for row in self.parents[column] if row not in dropped])
        self.inputs[column] = self.input_of(column)
        self._carry(_Change(1, {column: self.inputs[column][None]}, for_good=True))

    def final_without(self, gone: Bool[Tensor, "copies writers readers"]) -> Float[Tensor, "copies batch d_model"]:
        """Final residual at the position read, in each part of the circuit: the circuit without edges `gone`.

        The same as a circuit run of each part. Edges in `gone` that are not in the circuit do not matter.
        """
        gone = gone.cpu() & self.open
        return self._carry(_Change(len(gone), {}, gone, gone.any(0).any(0).tolist()))

    def at_once(self, max_memory: int | None) -> int:
        """How many parts to carry on together: all that moves in them has to fit into `max_memory` bytes."""
        model, inputs = self.model, self.base.batch.clean
        live = self.delta.nbytes
        each = 2 * live + prefix_bytes(model, inputs)
        budget = (2 if max_memory is None else 1) * memory_budget(model, max_memory)
        if max_memory is not None:
            seen = sum(x.nbytes for x in (*self.inputs.values(), *self.values.values()))
            budget -= live + seen + inputs.ids.numel() * model.bytes_per_token(gradients=False)
        return max(1, min(most_copies(model), budget // max(1, each)))

    def _carry(self, change: "_Change") -> Float[Tensor, "copies batch d_model"]:
        """Carry a change to the logits."""
        graph, logits = self.graph, len(self.graph.readers) - 1
        for layer in range(min((graph.reader_layer[column] for column in change.given), default=0), graph.n_layers):
            span = graph.attention_columns(layer)
            if inputs := self._moved_inputs(range(span.start, span.stop), change):
                self._move(self._moved_heads(layer, inputs, change), change)
            for stage in graph.stages[layer]:
                span = stage.columns
                if inputs := self._moved_inputs(range(span.start, span.stop), change):
                    self._move(self._moved_stage(stage, inputs, change), change)
        final = self._moved_inputs([logits], change)
        return final[logits] if final else self.inputs[logits].expand(change.copies, -1, -1)

    def _moved_inputs(self, columns: Iterable[int], change: "_Change") -> dict[int, Tensor]:
        """What those of the readers see in each copy, [copies, rows, d_model], that see something new."""
        inputs = {}
        for column in columns:
            if column in change.given:
                inputs[column] = change.given[column]
            elif column in self.inputs:
                news = [row for row in self.parents[column] if row in change.moved]
                if news or change.touches(column):
                    inputs[column] = self._moved_input(column, news, change)
        return inputs

    def _moved_input(self, column: int, news: Sequence[int], change: "_Change") -> Float[Tensor, "copies rows d_model"]:
        """What a reader sees in each copy where its writers `news` have moved, or edges into it are gone.

        Where edges are gone it is summed from scratch: subtracting them would leave rounding in place of a stream that
        is 0, and norms would blow that up. So it is where it changes for good, so that rounding does not pile up.
        """
        if change.for_good:
            self.inputs[column] = self.input_of(column)
            return self.inputs[column][None]
        wide = self.everywhere[column]
        new = {r: change.moved[r] if wide or not self.wide[r] else change.moved[r][:, self.at_read] for r in news}
        if change.gone is None:
            return self.inputs[column] + sum(new.values())
        rows = self.parents[column]
        kept = ~change.gone[:, rows, column].to(self.delta.device)
        still = [k for k, row in enumerate(rows) if row not in new]
        x = self._at(column, self.delta[[self.slot[rows[k]] for k in still]])
        x = (kept[:, still].to(x) @ x.flatten(1)).unflatten(1, x.shape[1:]) + self._summed(column, ())
        for k, row in enumerate(rows):
            if row in new:
                x += new[row] if bool(kept[:, k].all()) else new[row] * kept[:, k, None, None]
        return x

    def _moved_heads(
        self, layer: int, inputs: Mapping[int, Tensor], change: "_Change"
    ) -> dict[int, Float[Tensor, "copies rows d_model"]]:
        """By row, how the heads of a block some of whose readers see `inputs` differ from their ablated selves."""
        columns, rows = self.graph.attention_columns(layer), self.graph.head_rows(layer)
        values = self.values[layer].expand(change.copies, -1, -1, -1, -1).clone()
        for column, x in inputs.items():
            online = self.steps.read(layer, [column - columns.start], x.flatten(0, 1)[None])[0]
            online = online.unflatten(0, (change.copies, -1))
            if self.everywhere[column]:
                values[:, :, :, column - columns.start] = online.unflatten(1, self.shape[:2])
            else:
                values.flatten(1, 2)[:, self.at_read, column - columns.start] = online
        if change.for_good:
            self.values[layer] = values[0]
        z = self.steps.heads(layer, values.flatten(0, 1)).unflatten(0, (change.copies, -1))
        z = (z - self.base.ablated.heads[layer]).flatten(1, 2)
        depend = range(rows.start, rows.stop) if is_coupled(self.model) else self._owners(inputs)
        heads = [row - rows.start for row in depend if self.reached[row]]
        weights = self.model.blocks[layer].head_weights(heads)
        return {
            rows.start + head: (z if self.wide[rows.start + head] else z[:, self.at_read])[..., head, :] @ weight
            for head, weight in zip(heads, weights, strict=True)
        }

    def _moved_stage(
        self, stage: Stage, inputs: Mapping[int, Tensor], change: "_Change"
    ) -> dict[int, Float[Tensor, "copies rows d_model"]]:
        """By row, how the nodes of a stage, some of which see `inputs`, differ from their ablated selves."""
        span, first = stage.columns, stage.rows.start
        if self.model.blocks[stage.layer].mlp_post is not None and not stage.described:  # its divisor is that of all
            there = [column for column in range(span.start, span.stop) if column in self.inputs]
            inputs = {c: inputs.get(c, self.inputs[c].expand(change.copies, -1, -1)) for c in there}
        moved = dict[int, Tensor]()
        for wide in (True, False):  # those that matter everywhere, and those that do where the logits are read
            parts = [column - span.start for column in sorted(inputs) if self.everywhere[column] is wide]
            if not parts:
                continue
            x = torch.stack([inputs[span.start + part] for part in parts]).flatten(1, 2)
            ablated = ablated_parts(self.model, self.base, stage, parts)
            ablated = ablated if wide else ablated[:, self.at_read]
            online = self.steps.parts(stage, parts, x).unflatten(1, (change.copies, -1)) - ablated[:, None]
            for i, part in enumerate(parts):
                if self.reached[first + part]:
                    narrow = (
                        wide and not self.wide[first + part]
                    )  # under a post-norm, beside one that matters everywhere
                    moved[first + part] = online[i][:, self.at_read] if narrow else online[i]
        return moved

    def _owners(self, columns: Iterable[int]) -> list[int]:
        """Rows of the writers whose inputs `columns` are."""
        return sorted({row for column in columns for row in self.graph.rows_of[column]})

    def _move(self, new: Mapping[int, Float[Tensor, "copies rows d_model"]], change: "_Change") -> None:
        """Note how writers now differ from their ablated selves; where no edge is gone, by how much that has moved."""
        for row, difference in new.items():
            where = slice(None) if self.wide[row] else self.at_read
            present = self.delta[self.slot[row]]
            if change.for_good:
                present[where] = difference[0]
            change.moved[row] = difference if change.gone is not None else difference - present[where]

    def _set_edges(self, column: int, rows: Sequence[int]) -> None:
        """Make `rows` the writers of a reader."""
        self.parents[column] = list(rows)
        self.open[:, column] = False
        self.open[self.parents[column], column] = True

    def _summed(self, column: int, rows: Sequence[int]) -> Float[Tensor, "rows d_model"]:
        """What a reader sees of some writers: the ablated stream and their differences, where it matters."""
        x = self._at(column, stream_read(self.base, self.graph, column).flatten(0, 1)).clone()
        for row in rows:
            x += self._at(column, self.delta[self.slot[row]])
        return x

    def _at(self, column: int, full: Tensor) -> Tensor:
        """Rows [..., rows, d_model] of all positions, or of the one read where a reader matters only there."""
        return full if self.everywhere[column] else full[..., self.at_read, :]

    def _upto(self, column: int) -> int:
        """How many of the writers that ran lie in front of a reader."""
        limit = 1 + max(self.graph.mask[:, column].nonzero().flatten().tolist(), default=-1)
        return sum(row < limit for row in self.slot)


@dataclass
class _Change:
    """What differs from the present state of a circuit, in several copies of its prompts."""

    copies: int
    """How many."""
    given: Mapping[int, Float[Tensor, "copies rows d_model"]]
    """By column, what readers see."""
    gone: Bool[Tensor, "copies writers readers"] | None = None
    """The edges that are switched off."""
    gone_into: Sequence[bool] = ()
    """By column, whether any edge into it is in `gone`."""
    for_good: bool = False
    """Whether the change, in one copy, becomes the present state."""
    moved: dict[int, Float[Tensor, "copies rows d_model"]] = field(default_factory=dict)
    """By row, how the writers behind the change differ from their ablated selves, or by how much that has moved."""

    def touches(self, column: int) -> bool:
        """Whether any edge into a reader is switched off."""
        return bool(self.gone_into) and self.gone_into[column]
