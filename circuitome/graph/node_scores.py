"""Node scores: one number for every writer and one for every reader, and the edge scores that follow from them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.errors import unknown_name
from circuitome.graph import exchange
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph
from circuitome.results import Shown


@dataclass(frozen=True, eq=False)
class NodeScores(Shown):
    """One number a node: the change of the *metric* when it is corrupted, mean over prompts. Negative: it helps.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.atp(model, task)
    >>> round(scores["a2.h0"], 1), scores.ranked()[0][0], scores.unit
    (-10.0, 'a2.h0.q', 'logits')
    """

    graph: Graph
    """Labels: `graph.writers` and `graph.readers`."""
    writers: Float[Tensor, " writers"]
    """Scores of what each writer adds to the stream, float32."""
    readers: Float[Tensor, " readers"]
    """Scores of what each reader makes of the stream: q, k, v, an MLP's output; last the whole effect, at logits."""
    unit: str = "logits"
    """Unit of the metric."""
    method: str = ""
    """Name of the method that made them, with its settings."""

    def __repr__(self) -> str:
        return f"NodeScores({self.method}, {len(self.writers)} writers, {len(self.readers)} readers, unit {self.unit})"

    def __getitem__(self, node: str) -> float:
        """The score of a writer or reader by its name. Raises `UnknownNameError`."""
        if node in self.graph.writers:
            return float(self.writers[self.graph.row(node)])
        try:
            return float(self.readers[self.graph.column(node)])
        except LookupError as error:
            raise unknown_name("node", node, [*self.graph.writers, *self.graph.readers]) from error

    def ranked(self) -> list[tuple[str, float]]:
        """All nodes but the logits with their scores, largest |score| first."""
        names = [*self.graph.writers, *self.graph.readers[:-1]]
        values = torch.cat([self.writers, self.readers[:-1]]).tolist()
        return sorted(zip(names, values, strict=True), key=lambda item: -abs(item[1]))

    def edges(self) -> EdgeScores:
        """Scores of edges: score(u -> v) = sign(v) min(|u|, |v|), as an edge carries no more than either of its ends.

        A heuristic: it cannot tell two edges apart whose weaker end is the same. Unit: that of the metric.
        """
        strength = torch.minimum(self.writers.abs()[:, None], self.readers.abs()[None])
        values = strength * self.readers.sign() * self.graph.mask.to(strength.device)
        return EdgeScores(self.graph, values, self.unit, f"{self.method}, weaker end of each edge")

    def save(self, path: str | Path) -> None:
        """Write the scores to a safetensors file, with the shape of the graph."""
        tensors = {"writers": self.writers, "readers": self.readers}
        exchange.save_on_graph(path, self.graph, "node scores", tensors, {"unit": self.unit, "method": self.method})

    @classmethod
    def load(cls, path: str | Path) -> "NodeScores":
        """The scores that `save` wrote. Raises `InputError` for a missing, damaged or other file."""
        graph, tensors, notes = exchange.load_on_graph(path, "node scores")
        return cls(graph, tensors["writers"], tensors["readers"], notes["unit"], notes["method"])
