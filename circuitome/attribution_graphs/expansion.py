"""Which neurons become nodes: greedily those with most influence on the explained logits, and their incoming edges.

With A[t, s] the edge from source s into target t, rows of sizes normalised, A'[t, s] = |A[t, s]| / sum over s of that,
and w the explained logits' probabilities, the influence of a source is B = sum over k >= 1 of w A'^k: the share of all
that it has by paths of any length whose every step is an expanded node. Edges go from earlier to later blocks, so one
sweep from the last block down gives B. Sources that were not expanded end paths, as error nodes do in graphs of
transcoder features. Source: the rules of circuit-tracer (Ameisen et al. 2025; Hanna et al. 2025), with neurons in
place of features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.attribution_graphs.frozen_model import FrozenModel
from circuitome.attribution_graphs.rows import Rows, Target, incoming
from circuitome.attribution_graphs.units import Reads

BATCH = 64
"""Nodes whose edges are found in one sweep."""
SMALLEST = 1e-5
"""Share of a row below which an edge is kept only as part of the sum over its MLP and token."""
LEAST = 1e-10
"""Below this a row's sum of sizes counts as it, so that empty rows stay empty."""


@dataclass(eq=False)
class Expansion:
    """Nodes whose incoming edges are known, and these edges: larger ones one by one, the rest by MLP and token."""

    frozen: FrozenModel
    """The model on the prompt."""
    logits: Reads
    """How the explained logits read the stream."""
    weights: Float[Tensor, " logit"]
    """Their probabilities, or what else they weigh."""
    targets: list[Target] = field(default_factory=list)
    """The nodes, explained logits first."""
    columns: list[Int[Tensor, " some"]] = field(default_factory=list)
    """By node, numbers of the sources of its larger edges, see `number`."""
    edges: list[Float[Tensor, " some"]] = field(default_factory=list)
    """Their edges."""
    tokens: list[Float[Tensor, " pos"]] = field(default_factory=list)
    """By node, edges from the tokens."""
    bias: list[float] = field(default_factory=list)
    """By node, the edge from all biases."""
    sums: list[Float[Tensor, "layer pos"]] = field(default_factory=list)
    """By node, sum of all edges from each MLP at each token."""
    parts: list[Float[Tensor, "layer pos"]] = field(default_factory=list)
    """By node, sum of the sizes of all edges from each MLP at each token."""
    sizes: list[float] = field(default_factory=list)
    """By node, sum of the sizes of all its edges."""

    def __post_init__(self) -> None:
        widths = [units.values.shape[1] for units in self.frozen.units]
        self.starts = torch.tensor([0, *widths]).cumsum(0) * self.frozen.tokens
        self.widths = torch.tensor(widths)

    def number(self, target: Target) -> int:
        """The number of a unit at a token among all sources: blocks, in them tokens, in them units."""
        width = int(self.widths[target.layer])
        return int(self.starts[target.layer]) + target.position * width + target.unit

    def target(self, number: int) -> Target:
        """The unit with a number."""
        layer = int(torch.searchsorted(self.starts, number, right=True)) - 1
        return Target(layer, *divmod(number - int(self.starts[layer]), int(self.widths[layer])))

    def close(self, influence: Float[Tensor, " source"], first: int) -> None:
        """Set the influence of what cannot be expanded to 0: units in front of a token, and errors."""
        for layer, units in enumerate(self.frozen.units):
            own = influence[int(self.starts[layer]) : int(self.starts[layer + 1])].view(-1, int(self.widths[layer]))
            own[:first] = own[:, units.expandable :] = 0.0

    def expand(self, targets: Sequence[Target]) -> None:
        """Find the edges into some more nodes."""
        rows = incoming(self.frozen, targets, self.logits)
        for i, target in enumerate(targets):
            self._keep(target, rows, i)

    def _keep(self, target: Target, rows: Rows, i: int) -> None:
        own = [(layer, units[i]) for layer, units in enumerate(rows.units) if units is not None]
        sums, parts = torch.zeros(2, len(rows.units), self.frozen.tokens)
        for layer, row in own:
            sums[layer], parts[layer] = row.sum(1), row.abs().sum(1)
        size = max(LEAST, float(rows.tokens[i].abs().sum() + rows.bias[i].abs() + parts.sum()))
        columns, edges = [], []
        for layer, row in own:
            large = (row.flatten().abs() > SMALLEST * size).nonzero()[:, 0]
            columns.append((large.cpu() + self.starts[layer]).int())
            edges.append(row.flatten()[large].cpu())
        self.targets.append(target)
        self.columns.append(torch.cat(columns) if columns else torch.zeros(0, dtype=torch.int32))
        self.edges.append(torch.cat(edges) if edges else torch.zeros(0))
        self.tokens.append(rows.tokens[i].cpu())
        self.bias.append(float(rows.bias[i]))
        self.sums.append(sums)
        self.parts.append(parts)
        self.sizes.append(size)

    def influence(self) -> tuple[Float[Tensor, " source"], Float[Tensor, " node"]]:
        """B of every unit at every token, and B + w of every node of `targets`."""
        influence = torch.zeros(int(self.starts[-1]))
        own = torch.zeros(len(self.targets))
        own[: len(self.weights)] = self.weights
        for layer in sorted({target.layer for target in self.targets}, reverse=True):
            here = [i for i, target in enumerate(self.targets) if target.layer == layer]
            if layer < len(self.widths):
                own[here] = influence[[self.number(self.targets[i]) for i in here]]
            columns = torch.cat([self.columns[i] for i in here]).long()
            shares = torch.cat([self.edges[i].abs() * (own[i] / self.sizes[i]) for i in here])
            influence.index_add_(0, columns, shares)
        return influence, own


def expanded(
    frozen: FrozenModel,
    logits: Reads,
    weights: Float[Tensor, " logit"],
    nodes: int,
    *,
    batch: int = BATCH,
    first: int = 1,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Expansion:
    """The explained logits and `nodes` neurons, `batch` at a time those with the largest influence so far.

    Neurons at tokens in front of `first` are not expanded.
    """
    expansion = Expansion(frozen, logits, weights)
    last, position = len(frozen.units), frozen.tokens - 1
    expansion.expand([Target(last, position, i) for i in range(len(weights))])
    while (done := len(expansion.targets) - len(weights)) < nodes:
        influence, _ = expansion.influence()
        expansion.close(influence, first)
        influence[[expansion.number(target) for target in expansion.targets[len(weights) :]]] = 0.0
        best = influence.topk(min(batch, nodes - done, len(influence)))
        chosen = best.indices[best.values > 0].tolist()
        if not chosen:
            break
        expansion.expand([expansion.target(number) for number in chosen])
        tell(done + len(chosen), nodes)
    return expansion
