"""Many parts of one circuit at a time: what a question costs is what lies behind the edges that it leaves out.

A circuit is run once, with every reader's input at hand. A part of it, the circuit without some edges, then differs
only behind these; several parts are carried on together.
"""

from collections.abc import Iterable

from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.batches import DEFAULT_MEMORY
from circuitome.engine.circuit_run import Baseline
from circuitome.engine.incremental import MOST_COPIES, IncrementalCircuit
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Model


class Subcircuits(IncrementalCircuit):
    """The parts of one circuit on one batch of prompts."""

    def __init__(self, model: Model, base: Baseline, circuit: Circuit) -> None:
        """Run `circuit` once. What leads nowhere in it never runs."""
        super().__init__(model, base, circuit, 0)

    def at_once(self, max_memory: int | None) -> int:
        """How many parts to carry on together: all that moves in them has to fit into `max_memory` bytes."""
        budget = 2 * DEFAULT_MEMORY if max_memory is None else max_memory
        return max(1, min(MOST_COPIES, budget // max(1, 2 * self.delta.numel() * self.delta.element_size())))

    def final(self, gone: Bool[Tensor, "copies writers readers"]) -> Float[Tensor, "copies batch d_model"]:
        """Residual in front of the final norm, at the position read, in each part: the circuit without edges `gone`.

        The same as a circuit run of each part. Edges in `gone` that are not in the circuit do not matter.
        """
        graph, copies = self.graph, len(gone)
        moved: dict[int, Tensor] = {}
        for layer in range(graph.n_layers):
            span = graph.attention_columns(layer)
            if inputs := self._inputs(range(span.start, span.stop), gone, moved):
                moved |= self.written(layer, inputs, self.moved_heads(layer, inputs, copies)[1])
            for column, x in self._inputs([graph.mlp_column(layer)], gone, moved).items():
                moved[graph.mlp_row(layer)] = self.moved_mlp(layer, column, x)
        logits = len(graph.readers) - 1
        final = self._inputs([logits], gone, moved)
        return final[logits] if final else self.inputs[logits].expand(copies, -1, -1)

    def _inputs(
        self, columns: Iterable[int], gone: Bool[Tensor, "copies writers readers"], moved: dict[int, Tensor]
    ) -> dict[int, Float[Tensor, "copies rows d_model"]]:
        """What those of the readers see that see something else in any part.

        Summed from scratch: subtracting what is gone would leave rounding in place of a stream that is 0, and norms
        would blow that up.
        """
        found = {}
        for column in columns:
            parents = [row for row in self.parents.get(column, ()) if row in self.ran and column in self.inputs]
            kept = ~gone[:, parents, column].to(self.delta.device)
            if bool(kept.all()) and not any(row in moved for row in parents):
                continue
            still = [k for k, row in enumerate(parents) if row not in moved]
            differences = self.at(column, self.delta[[self.slot[parents[k]] for k in still]])
            x = (kept[:, still].to(differences) @ differences.flatten(1)).unflatten(1, differences.shape[1:])
            x += self.base_of(column)
            wide = self.everywhere_at(column)
            for k, row in enumerate(parents):
                if row in moved:
                    new = moved[row] if wide or not self.wide[row] else moved[row][:, self.last]
                    x += new if bool(kept[:, k].all()) else new * kept[:, k, None, None]
            found[column] = x
        return found
