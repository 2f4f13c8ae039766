"""Completeness: whether circuit and model become alike when the same parts of both are ablated.

Source: Wang et al. 2022, arXiv:2211.00593, section 4 and appendix; K are sets of the circuit's nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.graph.circuits import Circuit
from circuitome.results import Estimate, bootstrap
from circuitome.validation.faithfulness.evaluator import Evaluator
from circuitome.validation.faithfulness.share import SHARE
from circuitome.validation.tests.minimality import node_rows, random_half, writers_mask

CANDIDATES = 10
"""Nodes among which a greedy step chooses."""


@dataclass(frozen=True, eq=False)
class Completeness:
    """F(C without K) beside F(M without K): equal where the circuit holds all that does the task."""

    sets: tuple[tuple[str, ...], ...]
    """Each K."""
    kinds: tuple[str, ...]
    """How each was chosen: random, the name of a group, or greedy."""
    samples: Float[Tensor, "2 sets prompts"]
    """Metric of the circuit without K, and of the model without K, on each prompt."""
    gap: float
    """F(M) - F(0), the unit of `scores`."""
    groups: tuple[int, ...] = ()
    """Each prompt's template, over which intervals are taken."""

    @property
    def circuit(self) -> Float[Tensor, " sets"]:
        """F(C without K), mean metric."""
        return self.samples[0].mean(1)

    @property
    def model(self) -> Float[Tensor, " sets"]:
        """F(M without K)."""
        return self.samples[1].mean(1)

    @property
    def scores(self) -> Float[Tensor, " sets"]:
        """|F(C without K) - F(M without K)| as a share of F(M) - F(0): 0 is complete."""
        return (self.circuit - self.model).abs() / abs(self.gap)

    @property
    def worst(self) -> int:
        """Index of the K with the largest score."""
        return int(self.scores.argmax())

    def to_dict(self) -> list[dict[str, Any]]:
        """What is measured of each K, as plain JSON values."""
        names = ("nodes", "kind", "circuit", "model", "score")
        columns = (map(list, self.sets), self.kinds, self.circuit.tolist(), self.model.tolist(), self.scores.tolist())
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def mean(self, kind: str, seed: int = 0) -> Estimate:
        """Mean score over the sets of one kind, with its interval over prompts; NaN where there are none."""
        chosen = [i for i, k in enumerate(self.kinds) if k == kind]
        if not chosen:
            nan = float("nan")
            return Estimate(nan, nan, nan, SHARE, self.samples.shape[-1])
        missing = (self.samples[0] - self.samples[1])[chosen].T
        return bootstrap(
            missing, lambda means: means.abs().mean(1) / abs(self.gap), SHARE, seed=seed, groups=self.groups
        )


def completeness(
    evaluator: Evaluator,
    circuit: Circuit,
    *,
    draws: int = 30,
    greedy: int = 5,
    groups: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Completeness:
    """Compare circuit and model without K: `draws` random K (each node with chance 1/2), groups, and the worst K found.

    `groups` are sets of nodes by name, such as the heads of each role; by default the heads and the MLPs of each third
    of the layers. The worst K is built in `greedy` steps, each adding the one of ten nodes that widens
    |F(C without K) - F(M without K)| most.
    Raises `InputError` for a circuit without nodes that could be ablated, `UnknownNameError` for a group's node that
    the graph has not.
    """
    graph, nodes, tell = circuit.graph, node_rows(circuit), evaluator.setting.tell("completeness")
    generator = torch.Generator().manual_seed(seed)
    named = layer_groups(circuit) if groups is None else groups
    sets = [random_half(circuit, generator) for _ in range(draws)]
    sets += [writers_mask(circuit, [graph.row(member) for member in members]) for members in named.values()]
    kinds = [*["random"] * draws, *named]
    total = len(sets) + greedy * min(CANDIDATES, len(nodes))
    samples = _both(evaluator, circuit, torch.stack(sets)) if sets else torch.empty(2, 0, len(evaluator.task))
    tell(len(sets), total)
    worst: list[int] = []
    for step in range(min(greedy, len(nodes))):
        rest = [row for row in nodes if row not in worst]
        candidates = [rest[i] for i in torch.randperm(len(rest), generator=generator)[:CANDIDATES].tolist()]
        tried = torch.stack([writers_mask(circuit, [*worst, row]) for row in candidates])
        both = _both(evaluator, circuit, tried)
        best = int((both[0] - both[1]).mean(1).abs().argmax())
        worst.append(candidates[best])
        sets.append(tried[best])
        kinds.append("greedy")
        samples = torch.cat([samples, both[:, best, None]], 1)
        tell(min(total, len(sets) + (step + 1) * CANDIDATES), total)
    names = tuple(tuple(graph.writers[row] for row in mask.nonzero().flatten().tolist()) for mask in sets)
    return Completeness(names, tuple(kinds), samples, evaluator.gap, evaluator.task.groups)


KINDS = {"mlp": "MLPs", "neuron": "neurons", "feature": "features", "stream_feature": "features"}
KINDS["resid_pre"] = "errors of dictionaries"
"""By kind of node what a group of them is called; heads besides."""


def layer_groups(circuit: Circuit) -> dict[str, list[str]]:
    """A circuit's heads, MLPs, neurons and features of the first, middle and last third of the layers."""
    graph = circuit.graph
    groups: dict[str, list[str]] = {}
    for row in node_rows(circuit):
        layer = graph.layer_of[row]
        kind = KINDS.get(graph.writer_nodes[row].kind, "heads")
        third = ("first", "middle", "last")[3 * min(layer, graph.n_layers - 1) // graph.n_layers]
        groups.setdefault(f"{kind} of the {third} third", []).append(graph.writers[row])
    return groups


def _both(
    evaluator: Evaluator, circuit: Circuit, sets: Bool[Tensor, "sets writers"]
) -> Float[Tensor, "2 sets prompts"]:
    """The metric of circuit and model without each K."""
    of_circuit = evaluator.parts(circuit, sets[:, :, None].expand(-1, -1, circuit.mask.shape[1]))
    return torch.stack([of_circuit, evaluator.ablate(sets)])
