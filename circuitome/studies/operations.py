"""Arithmetic operations of passes: those of matrix products and of attention, two for a multiplication and addition.

A forward pass takes, a token of a prompt of T tokens, 2 for each weight inside the blocks, and 4 T z in each block
whose heads' outputs have z numbers: attention counts all T x T pairs, as its kernels' operations are counted, though
some kernels skip those that a causal mask hides. Left out are the last block's MLP and the unembedding, which most
passes need for one token a prompt. A backward pass to activations takes as much. What works element by element (norms,
softmax, proximities) is not counted; its time is in `Passes.rest`. tests/engine/test_flops.py compares with torch's own
count.
"""

from dataclasses import dataclass, fields

from circuitome.discovery.attribution.contraction import layers_at_once
from circuitome.graph.model_graph import Graph
from circuitome.models.model import Model
from circuitome.studies.study import Work

MLP_SHARE = 0.75
"""About the share of a block's weights that its MLP has."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """What a method takes, in passes over all prompts; fields as those of `Work`."""

    forward: float = 0.0
    """See `Work`; the same below."""
    backward: float = 0.0
    """Each as much as two forward passes."""
    products: float = 0.0
    """Products of all writers with all readers."""
    attention: float = 0.0
    """Every block's attention by itself."""
    rest: float = 0.0
    """Time of the rest."""

    def and_times(self, other: "Passes", times: float) -> "Passes":
        """These, and others so many times."""
        names = (field.name for field in fields(self))
        return Passes(**{name: getattr(self, name) + times * getattr(other, name) for name in names})


def forward_operations(model: Model, tokens: int) -> int:
    """Operations of a forward pass, a token of a prompt of so many tokens, without the unembedding."""
    heads = model.heads
    projections = len(model.blocks) * heads.width * model.d_model * (heads.readers + heads.q)
    neurons = sum(block.n_neurons * (2 + block.gated) for block in model.blocks[:-1]) if model.graph.mlps else 0
    return 2 * (projections + model.d_model * neurons) + attention_operations(model, tokens)


def attention_operations(model: Model, tokens: int) -> int:
    """Operations a token of the attention of all blocks: queries with keys, and values mixed."""
    return 4 * tokens * model.heads.q * model.heads.width * len(model.blocks)


def product_operations(model: Model) -> int:
    """Operations a token of the product of all writers with all readers, which edge attribution ends with.

    Each is a vector of the stream; readers of some blocks, and the writers before them, are multiplied together, edge
    or not. Q, k and v readers and heads' outputs become vectors by a product with their weights.
    """
    graph, heads, step = model.graph, model.heads, layers_at_once(model)
    pairs = len(graph.writers)
    for first in range(0, graph.n_layers, step):
        last = min(first + step, graph.n_layers) - 1
        pairs += graph.upstream_of_mlp(last) * (graph.mlp_column(last) + 1 - graph.attention_columns(first).start)
    return 2 * model.d_model * (pairs + heads.width * (heads.readers + heads.q) * graph.n_layers)


def mixing_operations(model: Model) -> int:
    """Operations a token of what a circuit of all edges adds to a forward pass: each reader's own sum of writers.

    Heads and MLPs run as in any pass, q, k and v on what each reader sees. Fewer edges cost less: heads and MLPs that
    none of them leaves do not run, and few edges are added up one by one.
    """
    return 2 * model.d_model * model.graph.n_edges


def passes_behind(graph: Graph) -> float:
    """Passes of running on from every edge by itself: of its reader's block and those behind it.

    About a third of a pass an edge, since late readers have the most writers. From the logits nothing runs.
    """
    whole = graph.n_layers - MLP_SHARE
    shares = [max(0.0, (whole - layer) / whole) for layer in graph.reader_layer]
    return sum(share * count for share, count in zip(shares, graph.mask.sum(0).tolist(), strict=True))


def operations(model: Model, work: Work) -> float:
    """About how many operations all passes of a study take, circuits counted as if all edges were open."""
    forward = forward_operations(model, work.tokens)
    varied = 2 * forward * work.backward + product_operations(model) * work.products
    varied += (forward + mixing_operations(model)) * work.circuit
    varied += attention_operations(model, work.tokens) * work.attention
    return work.texts * work.tokens * (forward * work.forward + varied * work.varied)
