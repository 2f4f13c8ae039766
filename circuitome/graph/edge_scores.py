"""Edge scores and the ways from scores to a circuit: the n strongest, all above a threshold, greedy from the logits."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph import exchange
from circuitome.graph.circuits import Circuit
from circuitome.graph.model_graph import Graph
from circuitome.results import LEVEL, Shown, intervals


@dataclass(frozen=True, eq=False)
class EdgeScores(Shown):
    """One number an edge.

    Sign: a score is the change of the *metric* when the edge is corrupted, mean over prompts. An edge that helps has a
    negative score. (EAP-IG's published code scores the loss instead: there, helping edges are positive.)

    >>> model = cm.load("known-ioi")
    >>> scores = cm.EdgeScores(model.graph, model.graph.mask.float(), unit="edges")
    >>> scores["a2.h0->logits"], len(scores.above(0.5))
    (1.0, 172)
    """

    graph: Graph
    """Labels of both axes: `graph.writers` and `graph.readers`."""
    values: Float[Tensor, "writers readers"]
    """Scores in units of the metric, float32; 0 where no edge exists."""
    unit: str = "logits"
    """Unit of the metric."""
    method: str = ""
    """Name of the method that made them, with its settings."""
    samples: Float[Tensor, "prompts edges"] | None = None
    """Score of every edge on every prompt, edges in the order of `graph.mask.nonzero()`; None where not kept."""

    @classmethod
    def of(cls, graph: Graph, samples: Float[Tensor, "prompts edges"], unit: str, method: str) -> "EdgeScores":
        """The mean over prompts, with the samples that it is made of."""
        values = torch.zeros(graph.mask.shape)
        values[graph.mask] = samples.mean(0)
        return cls(graph, values, unit, method, samples)

    def __repr__(self) -> str:
        return f"EdgeScores({self.method}, {self.graph.n_edges} edges, unit {self.unit})"

    def __getitem__(self, edge: str) -> float:
        return float(self.values[self.graph.edge(edge)])

    def top(self, n: int, *, signed: bool = False) -> Circuit:
        """The `n` edges with the largest |score|; with `signed`, the `n` whose corruption lowers the metric most.

        Ties go to the earlier edge. Raises `InputError` unless 0 <= n <= number of edges.
        """
        self._check_size(n)
        strength = -self.values if signed else self.values.abs()
        flat = strength.masked_fill(~self.graph.mask, -torch.inf).flatten()
        order = torch.sort(flat, descending=True, stable=True).indices[:n]
        mask = torch.zeros_like(flat, dtype=torch.bool)
        mask[order] = True
        return Circuit(self.graph, mask.view_as(self.values))

    def above(self, threshold: float) -> Circuit:
        """The edges with |score| >= `threshold`."""
        return Circuit(self.graph, (self.values.abs() >= threshold) & self.graph.mask)

    def greedy(self, n: int) -> Circuit:
        """Grow a circuit of `n` edges from the logits: again and again the strongest edge into a node already in.

        Every edge has a path to the logits inside the circuit (Hanna et al. 2024, arXiv:2403.17806, section 3), which
        `top` does not ensure. Gives fewer than `n` edges only when no more can be reached.
        Raises `InputError` unless 0 <= n <= number of edges.
        """
        self._check_size(n)
        strength = self.values.abs().tolist()
        upstream = [column.nonzero().flatten().tolist() for column in self.graph.mask.T]
        mask = torch.zeros_like(self.graph.mask)
        opened: set[int] = set()
        heap: list[tuple[float, int, int]] = []

        def open_reader(column: int) -> None:
            if column not in opened:
                opened.add(column)
                for row in upstream[column]:
                    heapq.heappush(heap, (-strength[row][column], row, column))

        open_reader(len(self.graph.readers) - 1)
        for _ in range(n):
            if not heap:
                break
            _, row, column = heapq.heappop(heap)
            mask[row, column] = True
            for reader in self.graph.inputs_of[row]:
                open_reader(reader)
        return Circuit(self.graph, mask)

    def ranked(self, circuit: Circuit) -> list[tuple[str, float]]:
        """The edges of `circuit` with their scores, strongest |score| first."""
        rows = [(name, self[name]) for name in circuit]
        return sorted(rows, key=lambda item: -abs(item[1]))

    def intervals(
        self, circuit: Circuit, *, seed: int = 0, level: float = LEVEL, groups: Sequence[int] = ()
    ) -> Float[Tensor, "2 writers readers"]:
        """Low and high ends of the bootstrap interval of every edge in `circuit`; NaN elsewhere.

        Over prompts, or over templates where `groups` says which prompts share one (`Task.groups`).

        Raises `InputError` when the scores were made without keeping `samples`.
        """
        if self.samples is None:
            raise InputError("These scores hold no per-prompt samples, so there is no interval to take over prompts.")
        ends = torch.full((2, *self.values.shape), torch.nan)
        chosen = self.samples[:, circuit.mask[self.graph.mask]]
        if chosen.shape[1]:
            ends[:, circuit.mask] = intervals(chosen, groups=groups, seed=seed, resamples=1000, level=level)
        return ends

    def save(self, path: str | Path) -> None:
        """Write scores and per-prompt samples to a safetensors file, with the shape of the graph."""
        tensors = {"values": self.values} | ({} if self.samples is None else {"samples": self.samples})
        exchange.save_on_graph(path, self.graph, "scores", tensors, {"unit": self.unit, "method": self.method})

    @classmethod
    def load(cls, path: str | Path) -> "EdgeScores":
        """The scores that `save` wrote. Raises `InputError` for a missing, damaged or other file."""
        graph, tensors, notes = exchange.load_on_graph(path, "scores")
        return cls(graph, tensors["values"], notes["unit"], notes["method"], tensors.get("samples"))

    def _check_size(self, n: int) -> None:
        if not 0 <= n <= self.graph.n_edges:
            raise InputError(f"A circuit of {n} edges was asked for; this graph has {self.graph.n_edges} edges.")
