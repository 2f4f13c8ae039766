"""A circuit: a set of edges of one graph, with set algebra, removal of dangling parts, and a text form."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph import exchange
from circuitome.graph.model_graph import Graph
from circuitome.results import Shown


@dataclass(frozen=True, eq=False)
class Circuit(Shown):
    """A set of edges. `len` counts edges; `|`, `&`, `-`, `^`, `~`, `<=` and `in` work as on sets.

    >>> model = cm.load("known-ioi")
    >>> circuit = cm.Circuit.of(model.graph, ["embed->a0.h0.q", "a2.h0->logits"])
    >>> len(circuit), "a2.h0->logits" in circuit, circuit <= cm.Circuit.full(model.graph)
    (2, True, True)

    Raises `InputError` for a mask of another shape or with edges that the graph lacks, and for circuits of two graphs.
    """

    graph: Graph
    """The graph that the edges belong to."""
    mask: Bool[Tensor, "writers readers"]
    """True where an edge is in the circuit."""

    def __post_init__(self) -> None:
        if self.mask.shape != self.graph.mask.shape:
            raise InputError(
                f"The mask has shape {tuple(self.mask.shape)}; this graph needs {tuple(self.graph.mask.shape)}."
            )
        stray = self.mask & ~self.graph.mask
        if bool(stray.any()):
            row, column = stray.nonzero()[0].tolist()
            raise InputError(f"The graph has no edge {self.graph.edge_name(row, column)}.")

    @classmethod
    def of(cls, graph: Graph, edges: Iterable[str]) -> "Circuit":
        """The circuit that holds the named edges. Raises as `Graph.edge` for names that are no edges of `graph`."""
        mask = torch.zeros_like(graph.mask)
        for name in edges:
            mask[graph.edge(name)] = True
        return cls(graph, mask)

    @classmethod
    def full(cls, graph: Graph) -> "Circuit":
        """Every edge: the whole model."""
        return cls(graph, graph.mask.clone())

    @classmethod
    def empty(cls, graph: Graph) -> "Circuit":
        """No edge: everything ablated."""
        return cls(graph, torch.zeros_like(graph.mask))

    @classmethod
    def from_text(cls, graph: Graph, text: str) -> "Circuit":
        """The circuit written by `str`: one edge a line; blank lines and lines that start with # do not count."""
        lines = [line.strip() for line in text.splitlines()]
        return cls.of(graph, [line for line in lines if line and not line.startswith("#")])

    def __str__(self) -> str:
        return "\n".join(self)

    def __repr__(self) -> str:
        return f"Circuit({len(self)} of {self.graph.n_edges} edges, {len(self.nodes)} nodes)"

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __iter__(self) -> Iterator[str]:
        """Names of the edges, in order of their readers, then their writers."""
        for column, row in self.mask.T.nonzero().tolist():
            yield self.graph.edge_name(row, column)

    def __contains__(self, edge: str) -> bool:
        return bool(self.mask[self.graph.edge(edge)])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.graph == other.graph and torch.equal(self.mask, other.mask)

    def __hash__(self) -> int:
        return hash((self.graph, self.mask.numpy().tobytes()))

    def __or__(self, other: "Circuit") -> "Circuit":
        return Circuit(self.graph, self.mask | self._same(other))

    def __and__(self, other: "Circuit") -> "Circuit":
        return Circuit(self.graph, self.mask & self._same(other))

    def __sub__(self, other: "Circuit") -> "Circuit":
        return Circuit(self.graph, self.mask & ~self._same(other))

    def __xor__(self, other: "Circuit") -> "Circuit":
        return Circuit(self.graph, self.mask ^ self._same(other))

    def __invert__(self) -> "Circuit":
        return Circuit(self.graph, self.graph.mask & ~self.mask)

    def __le__(self, other: "Circuit") -> bool:
        return not bool((self.mask & ~self._same(other)).any())

    def _same(self, other: "Circuit") -> Tensor:
        if self.graph != other.graph:
            raise InputError(f"The circuits belong to different graphs: {self.graph} and {other.graph}.")
        return other.mask

    @property
    def nodes(self) -> tuple[str, ...]:
        """Writers that touch an edge of the circuit (as writer, or through one of their readers)."""
        touched = self.mask.any(1) | (self.graph.inputs & self.mask.any(0)).any(1)
        return tuple(name for name, on in zip(self.graph.writers, touched.tolist(), strict=True) if on)

    def with_whole_mlps(self) -> "Circuit":
        """The circuit in the graph without neurons: an edge of a neuron is there one of its MLP.

        >>> model = cm.load("tracr-reverse").with_neurons(["m0.n3"])
        >>> print(cm.Circuit.of(model.graph, ["embed->m0.n3.in", "m0.n3->logits"]).with_whole_mlps())
        embed->m0.in
        m0->logits
        """
        graph = self.graph.with_neurons([])
        rows, columns = (torch.tensor(places) for places in self.graph.places_in(graph))
        mask = torch.zeros_like(graph.mask)
        mask[rows[self.mask.nonzero()[:, 0]], columns[self.mask.nonzero()[:, 1]]] = True
        return Circuit(graph, mask)

    def without_dangling(self) -> "Circuit":
        """The edges that lie on a path from an embedding to the logits inside the circuit.

        A head is reached if any of its q, k, v inputs has an edge, and an input is needed if a head that reads it is
        needed. Under corrupted ablation the edges that are dropped carry no difference, or one that nothing reads.
        """
        inputs = self.graph.inputs
        mask = self.mask
        while True:
            reached = (inputs & mask.any(0)).any(1)
            reached[: len(self.graph.embeds)] = True
            needed = (inputs & mask.any(1, keepdim=True)).any(0)
            needed[-1] = True
            kept = mask & reached[:, None] & needed[None, :]
            if torch.equal(kept, mask):
                return Circuit(self.graph, kept)
            mask = kept

    def save(self, path: str | Path) -> None:
        """Write the circuit to a safetensors file, with the shape of its graph."""
        exchange.save_on_graph(path, self.graph, "circuit", {"circuit": self.mask}, {})

    @classmethod
    def load(cls, path: str | Path) -> "Circuit":
        """The circuit that `save` wrote. Raises `InputError` for a missing, damaged or other file."""
        graph, tensors, _ = exchange.load_on_graph(path, "circuit")
        return cls(graph, tensors["circuit"])

    def to_networkx(self, scores: Float[Tensor, "writers readers"] | None = None) -> nx.MultiDiGraph:
        """A graph of heads, MLPs, embed and logits; each edge has `input` (q, k, v, in, logits) and `score` if given.

        An edge into a key/value head stands once for each query head that reads it.
        """
        return exchange.to_networkx(self.graph, self.mask, scores)

    def to_graphml(self, path: str | Path, scores: Float[Tensor, "writers readers"] | None = None) -> None:
        """Write GraphML of `to_networkx`."""
        nx.write_graphml(self.to_networkx(scores), path)

    def to_json(
        self,
        path: str | Path,
        scores: Float[Tensor, "writers readers"] | None = None,
        tokens: Sequence[str] = (),
    ) -> None:
        """Write the attribution-graph JSON that Neuronpedia reads; a link's weight is its score, or 1.

        `tokens` are those of a prompt to show below the graph. An edge of a circuit stands for all positions; nodes are
        drawn at the last token, where the answer is read, and embeddings at the first.
        """
        network = exchange.attribution_graph(self.graph, self.mask, scores, Path(path).stem, tokens)
        Path(path).write_text(json.dumps(network, indent=1), encoding="utf-8")

    def to_csv(self, path: str | Path, scores: Float[Tensor, "writers readers"] | None = None) -> None:
        """Write one line an edge: from, to, score."""
        exchange.write_csv(path, self.graph, self.mask, scores)
