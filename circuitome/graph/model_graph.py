"""The edge graph of a decoder: writers, readers, and which writer can reach which reader. No model, no weights."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import override

from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import EMBEDDINGS, IN_MLP, IN_STREAM, Edge, Node, split_edge


@dataclass(frozen=True)
class Stage:
    """Nodes that read the stream at one place and write behind it: one for what is left, then neurons or features."""

    layer: int
    """Their block."""
    stream: bool
    """Whether they are the stream behind the block instead of its MLP."""
    described: bool
    """Whether they are features of a dictionary instead of neurons."""
    rows: slice
    """Rows of what they write."""
    columns: slice
    """Columns of what they read."""
    upstream: int
    """Rows [0, this) can reach them."""


@dataclass(frozen=True)
class Graph:
    """Writers and readers of the residual stream of one model shape.

    A writer is a node whose output is added to the stream: `embed`, each head `a5.h1`, each MLP `m7`.
    A reader is an input that reads the stream: a head's query `a9.h6.q`, a key/value head's `a9.kv2.k` and `a9.kv2.v`,
    an MLP's `m7.in`, and `logits`. Under grouped-query attention k and v belong to the key/value head, so a graph has
    `3` times `n_heads` attention readers a layer only where `n_kv_heads == n_heads`.
    Order of both axes: layer by layer, heads before the MLP; readers of a layer are all q, then all k, then all v.

    >>> cm.Graph(n_layers=2, n_heads=4, n_kv_heads=2).n_edges
    82
    """

    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Query heads of a block."""
    n_kv_heads: int
    """Key/value heads of a block; query head h reads key/value head h * n_kv_heads // n_heads."""
    mlps: bool = True
    """False for attention-only models."""
    parallel: bool = False
    """True where attention and MLP of a block read the same residual (GPT-NeoX), so no head reaches its own MLP."""
    embeds: tuple[str, ...] = ("embed",)
    """Kinds of the nodes that write before block 0."""
    neurons: tuple[tuple[int, ...], ...] = ()
    """By block, the neurons of its MLP that are nodes of their own, m5.n123, ascending; m5 is then what the others
    write together. Empty where no neuron is a node."""
    apart: tuple[int, ...] = ()
    """Blocks in whose MLP these neurons are the only nodes: m5 has no edges, the others are in no circuit."""
    streams: tuple[tuple[int, ...], ...] = ()
    """By block, the features of the stream behind it that are nodes, x6.f12 behind block 5; x6 is then what they leave
    of the stream, and no edge passes these nodes by. Empty where there are none."""
    dictionaries: tuple[tuple[str, str], ...] = ()
    """Node and fingerprint of every dictionary: of ("m5", ...) the nodes in `neurons` are features, m5.f123."""

    def with_neurons(self, neurons: Iterable[str | Node], apart: Iterable[int] = ()) -> "Graph":
        """The same graph with some neurons as nodes; see `Model.with_neurons`.

        Raises `InputError` for a node that is no neuron, and for a block that the graph has not.
        """
        chosen: list[set[int]] = [set() for _ in range(self.n_layers)]
        for name in neurons:
            node = Node.neuron(name)
            if node.layer >= self.n_layers:
                raise InputError(f"There is no {node}; there are layers 0 to {self.n_layers - 1}.")
            chosen[node.layer].add(node.index)
        if missing := [layer for layer in apart if not 0 <= layer < self.n_layers]:
            raise InputError(f"There is no MLP in layer {missing[0]}; there are layers 0 to {self.n_layers - 1}.")
        nodes = tuple(tuple(sorted(layer)) for layer in chosen) if any(chosen) else ()
        return replace(self, neurons=nodes, apart=tuple(sorted(set(apart))), streams=(), dictionaries=())

    def with_features(self, node: Node, features: Iterable[int], fingerprint: str) -> "Graph":
        """The same graph with features of a dictionary as nodes beside `node`: an MLP, or the stream before a block.

        Raises `InputError` for an MLP whose neurons are nodes.
        """
        stream = node.kind == "resid_pre"
        layer = node.layer - stream
        before = self.streams if stream else self.neurons
        by_block = list(before or ((),) * self.n_layers)
        if by_block[layer] or layer in self.apart:
            raise InputError(f"Neurons or features of {node} are nodes already; give the model without them.")
        by_block[layer] = tuple(sorted(set(features)))
        dictionaries = (*self.dictionaries, (str(node), fingerprint))
        if stream:
            return replace(self, streams=tuple(by_block), dictionaries=dictionaries)
        return replace(self, neurons=tuple(by_block), dictionaries=dictionaries)

    @property
    def has_parts(self) -> bool:
        """Whether neurons or features are nodes."""
        return bool(self.neurons or self.streams)

    @cached_property
    def described(self) -> frozenset[int]:
        """Blocks whose MLP has features of a dictionary as nodes."""
        nodes = (Node.parse(name) for name, _ in self.dictionaries)
        return frozenset(node.layer for node in nodes if node.kind == "mlp")

    def part_nodes(self, layer: int, *, stream: bool = False) -> tuple[Node, ...]:
        """The neurons or features of a block's MLP, or of the stream behind it, that are nodes."""
        if stream:
            return tuple(Node("stream_feature", layer + 1, i) for i in self.features_behind(layer))
        kind = "feature" if layer in self.described else "neuron"
        return tuple(Node(kind, layer, i) for i in self.neurons_of(layer))

    def features_behind(self, layer: int) -> tuple[int, ...]:
        """The features of the stream behind block `layer` that are nodes."""
        return self.streams[layer] if self.streams else ()

    @cached_property
    def stages(self) -> tuple[tuple[Stage, ...], ...]:
        """By block, behind its attention: the MLP with its nodes, and the stream behind it where features are nodes."""
        by_block: list[tuple[Stage, ...]] = []
        for layer in range(self.n_layers):
            rows, columns = self.mlp_rows(layer), self.mlp_columns(layer)
            mlp = Stage(layer, False, layer in self.described, rows, columns, self.upstream_of_mlp(layer))
            if features := self.features_behind(layer):
                size = 1 + len(features)
                behind = slice(rows.stop, rows.stop + size), slice(columns.stop, columns.stop + size)
                by_block.append((mlp, Stage(layer, True, True, *behind, rows.stop)))
            else:
                by_block.append((mlp,))
        return tuple(by_block)

    def places_in(self, whole: "Graph") -> tuple[list[int], list[int]]:
        """Row of each writer and column of each reader in the same graph without neurons: those of a neuron's MLP.

        Raises `InputError` where the stream is taken apart into features: no edge of the graph without passes there.
        """
        if self.streams:
            raise InputError("Circuits of features of the stream have no form in which MLPs and heads alone are nodes.")

        def of(node: Node) -> Node:
            return Node("mlp", node.layer, input=node.input) if node.kind in IN_MLP else node

        return [whole.row(of(node)) for node in self.writer_nodes], [
            whole.column(of(node)) for node in self.reader_nodes
        ]

    @cached_property
    def writer_nodes(self) -> tuple[Node, ...]:
        """The writers, row by row."""
        nodes = [Node(name) for name in self.embeds]
        for layer in range(self.n_layers):
            nodes += [Node.head(layer, head) for head in range(self.n_heads)]
            nodes += [Node.mlp(layer)] * self.mlps
            nodes += self.part_nodes(layer)
            if features := self.part_nodes(layer, stream=True):
                nodes += [Node("resid_pre", layer + 1), *features]
        return tuple(nodes)

    @cached_property
    def reader_nodes(self) -> tuple[Node, ...]:
        """The readers, column by column."""
        nodes: list[Node] = []
        for layer in range(self.n_layers):
            nodes += [Node("head", layer, head, "q") for head in range(self.n_heads)]
            nodes += [Node("kv", layer, head, part) for part in "kv" for head in range(self.n_kv_heads)]
            nodes += [Node("mlp", layer, input="in")] * self.mlps
            parts = list(self.part_nodes(layer))
            if features := self.part_nodes(layer, stream=True):
                parts += [Node("resid_pre", layer + 1), *features]
            nodes += [node.reads("in") for node in parts]
        return (*nodes, Node("logits"))

    @override
    def __str__(self) -> str:
        text = f"a graph of {self.n_layers} blocks, {self.n_heads} heads and {self.n_kv_heads} key/value heads a block"
        kind = "features and neurons" if self.dictionaries else "neurons"
        count = sum(map(len, (*self.neurons, *self.streams)))
        nodes = f", {count} {kind} as nodes" if self.has_parts or self.apart else ""
        return text + (", attention and MLP in parallel" if self.parallel else "") + nodes

    def matrix(self, values: Float[Tensor, " edges"]) -> Float[Tensor, "writers readers"]:
        """One number an edge, in the order of `mask.nonzero()`, as a matrix; 0 where no edge exists."""
        return torch.zeros(self.mask.shape, device=values.device, dtype=values.dtype).masked_scatter(
            self.mask.to(values.device), values
        )

    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Names of the writers, the row labels of every score matrix."""
        return tuple(map(str, self.writer_nodes))

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Names of the readers, the column labels of every score matrix."""
        return tuple(map(str, self.reader_nodes))

    @property
    def attention_readers(self) -> int:
        """Readers of one block's attention: n_heads + 2 * n_kv_heads."""
        return self.n_heads + 2 * self.n_kv_heads

    def head_rows(self, layer: int) -> slice:
        """Rows of the heads of `layer`."""
        start = len(self.embeds) + layer * (self.n_heads + self.mlps) + self._neurons_before[layer]
        return slice(start, start + self.n_heads)

    def mlp_row(self, layer: int) -> int:
        """Row of the MLP of `layer`."""
        return self.head_rows(layer).stop

    def mlp_rows(self, layer: int) -> slice:
        """Rows of the MLP of `layer` and of its neurons, if any are nodes."""
        row = self.mlp_row(layer)
        return slice(row, row + self.mlps + len(self.neurons_of(layer)))

    def attention_columns(self, layer: int) -> slice:
        """Columns of the q, k and v readers of `layer`."""
        start = layer * (self.attention_readers + self.mlps) + self._neurons_before[layer]
        return slice(start, start + self.attention_readers)

    def mlp_column(self, layer: int) -> int:
        """Column of the MLP input of `layer`."""
        return self.attention_columns(layer).stop

    def mlp_columns(self, layer: int) -> slice:
        """Columns of the inputs of the MLP of `layer` and of its neurons, if any are nodes."""
        column = self.mlp_column(layer)
        return slice(column, column + self.mlps + len(self.neurons_of(layer)))

    def neurons_of(self, layer: int) -> tuple[int, ...]:
        """The neurons of the MLP of `layer` that are nodes."""
        return self.neurons[layer] if self.neurons else ()

    @cached_property
    def _neurons_before(self) -> tuple[int, ...]:
        """Number of neuron and feature nodes before each block, and at the end of all."""
        counts = [len(self.neurons_of(layer)) for layer in range(self.n_layers)]
        for layer in range(self.n_layers):
            counts[layer] += 1 + len(self.features_behind(layer)) if self.features_behind(layer) else 0
        return tuple(accumulate(counts, initial=0))

    def upstream_of_attention(self, layer: int) -> int:
        """Number of writers before the attention of `layer`: rows [0, this) can reach it."""
        return self.head_rows(layer).start

    def upstream_of_mlp(self, layer: int) -> int:
        """Number of writers before the MLP of `layer`; its own heads only where the block is sequential."""
        rows = self.head_rows(layer)
        return rows.start if self.parallel else rows.stop

    @cached_property
    def mask(self) -> Bool[Tensor, "writers readers"]:
        """True where an edge exists: where the writer has written before the reader reads.

        Of a stream taken apart into features nothing but its nodes is read behind it.
        """

        def half(node: Node) -> float:
            return 0.5 * (node.kind in IN_STREAM)

        written = torch.tensor([2 * n.layer + (n.kind in IN_MLP) - half(n) for n in self.writer_nodes])
        written[: len(self.embeds)] = -1
        late = 0 if self.parallel else 1
        read = torch.tensor([2 * n.layer + late * (n.kind in IN_MLP) - half(n) for n in self.reader_nodes])
        read[-1] = 2 * self.n_layers
        mask = written[:, None] < read
        for layer, features in enumerate(self.streams):
            if features:
                cut = 2 * (layer + 1) - 0.5
                mask &= ~((written[:, None] < cut) & (read > cut))
        for layer in self.apart:
            mask[self.mlp_row(layer)] = mask[:, self.mlp_column(layer)] = False
        return mask

    @cached_property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.mask.sum())

    @cached_property
    def inputs_of(self) -> tuple[tuple[int, ...], ...]:
        """By row: the columns of the writer's own inputs, `a9.h6.q`, `a9.kv2.k` and `a9.kv2.v` of `a9.h6`."""

        def inputs(node: Node) -> tuple[Node, ...]:
            if node.kind == "head":
                kv = Node("kv", node.layer, self.kv_head(node.index))
                return node.reads("q"), kv.reads("k"), kv.reads("v")
            return (node.reads("in"),) if node.kind in (*IN_MLP, *IN_STREAM) else ()

        return tuple(tuple(map(self.column, inputs(node))) for node in self.writer_nodes)

    @cached_property
    def inputs(self) -> Bool[Tensor, "writers readers"]:
        """True where the reader is an input of the writer: `inputs_of` as a matrix."""
        inputs = torch.zeros_like(self.mask)
        for row, columns in enumerate(self.inputs_of):
            inputs[row, list(columns)] = True
        return inputs

    @cached_property
    def rows_of(self) -> tuple[tuple[int, ...], ...]:
        """By column: the rows of the writers whose input it is; none for the logits."""
        return tuple(tuple(column.nonzero().flatten().tolist()) for column in self.inputs.T)

    @cached_property
    def reader_layer(self) -> tuple[int, ...]:
        """By column: the block of each reader, `n_layers` for the logits; the stream in front of a block is its."""
        return (*(node.layer for node in self.reader_nodes[:-1]), self.n_layers)

    @cached_property
    def layer_of(self) -> tuple[int, ...]:
        """By row: the block of each writer, -1 for embeddings."""
        return tuple(-1 if node.kind in EMBEDDINGS else node.layer for node in self.writer_nodes)

    def kv_head(self, head: int) -> int:
        """The key/value head that query head `head` reads."""
        return head * self.n_kv_heads // self.n_heads

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.writers)}

    @cached_property
    def _columns(self) -> dict[str, int]:
        columns = {name: i for i, name in enumerate(self.readers)}
        if self.n_kv_heads == self.n_heads:
            kv = [node for node in self.reader_nodes if node.kind == "kv"]
            columns |= {str(replace(node, kind="head")): columns[str(node)] for node in kv}
        return columns

    def row(self, writer: str | Node) -> int:
        """Row of a writer. Raises `UnknownNameError`."""
        name = str(writer)
        if name not in self._rows:
            raise unknown_name("writer", name, self.writers, "Writers look like embed, a5.h1, m7.")
        return self._rows[name]

    def column(self, reader: str | Node) -> int:
        """Column of a reader; where every head has its own keys, `a9.h6.k` also names `a9.kv6.k`.

        Raises `UnknownNameError`.
        """
        name = str(reader)
        if name not in self._columns:
            raise unknown_name("reader", name, self.readers, "Readers look like a9.h6.q, a9.kv2.k, m7.in, logits.")
        return self._columns[name]

    def head(self, name: str | Node) -> tuple[int, int]:
        """Layer and index of a head such as a5.h1.

        Raises `UnknownNameError` for a name that is no writer, `InputError` for a writer of another kind.
        """
        node = self.writer_nodes[self.row(name)]
        if node.kind != "head":
            raise InputError(f"{node} is no attention head; give one such as a0.h0.")
        return node.layer, node.index

    def edge(self, edge: "str | Edge") -> tuple[int, int]:
        """Row and column of an edge such as `a5.h1->a9.h6.q`.

        Raises `UnknownNameError` for a node that does not exist, `InputError` for text that is no edge and for a
        writer that does not come before its reader.
        """
        writer, reader = split_edge(str(edge))
        row, column = self.row(writer), self.column(reader)
        if not self.mask[row, column]:
            raise InputError(f"There is no edge {str(edge)!r}: {writer} does not come before {reader}.")
        return row, column

    def edge_name(self, row: int, column: int) -> str:
        """Name of the edge at `row`, `column`."""
        return str(Edge(self.writer_nodes[row], self.reader_nodes[column]))
