"""Completeness and minimality: what becomes of a circuit when parts of it are knocked out.

Source: Wang et al. 2022, arXiv:2211.00593, section 4 and appendix; K are sets of the circuit's nodes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.results import Estimate, bootstrap
from circuitome.validation.faithfulness.evaluator import Evaluator

CANDIDATES = 10
"""Nodes among which a greedy step chooses."""
GAP_SHARE = "share of the clean-ablated gap"


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

    def mean(self, kind: str, seed: int = 0) -> Estimate:
        """Mean score over the sets of one kind, with its interval over prompts; NaN where there are none."""
        chosen = [i for i, k in enumerate(self.kinds) if k == kind]
        if not chosen:
            nan = float("nan")
            return Estimate(nan, nan, nan, GAP_SHARE, self.samples.shape[-1])
        missing = (self.samples[0] - self.samples[1])[chosen].T
        return bootstrap(
            missing, lambda means: means.abs().mean(1) / abs(self.gap), GAP_SHARE, seed=seed, groups=self.groups
        )


@dataclass(frozen=True, eq=False)
class Minimality:
    """How much the circuit loses without each of its parts."""

    names: tuple[str, ...]
    """The parts: nodes but `embed` ("a9.h6", "m3"), and readers with all edges into them ("a9.h6.q", "m3.in")."""
    changes: Float[Tensor, "sets parts prompts"]
    """For each K, F(C without K and the part) - F(C without K) on each prompt; 0 where K holds the part."""
    gap: float
    """F(M) - F(0), the unit of `scores`."""
    groups: tuple[int, ...] = ()
    """Each prompt's template, over which intervals are taken."""

    @property
    def scores(self) -> Float[Tensor, " parts"]:
        """Max over K of |mean change|, as a share of F(M) - F(0)."""
        return self.changes.mean(2).abs().amax(0) / abs(self.gap)

    @property
    def nodes(self) -> dict[str, float]:
        """Scores of the nodes alone."""
        scores = zip(self.names, self.scores.tolist(), strict=True)
        return {name: score for name, score in scores if not is_reader(name)}

    def useless(self, least: float = 0.01) -> tuple[str, ...]:
        """Parts that the circuit can do without, each by itself: score below `least`."""
        return tuple(name for name, score in zip(self.names, self.scores.tolist(), strict=True) if score < least)

    def useless_share(self, least: float = 0.01, seed: int = 0) -> Estimate:
        """Share of the nodes whose score is below `least`, with its interval over prompts."""
        chosen = [i for i, name in enumerate(self.names) if not is_reader(name)]
        shape = self.changes[:, chosen].shape[:2]

        def share(means: Tensor) -> Tensor:
            scores = means.unflatten(1, shape).abs().amax(1) / abs(self.gap)
            return (scores < least).double().mean(1)

        changes = self.changes[:, chosen].flatten(0, 1).T
        return bootstrap(changes, share, "share of the nodes", seed=seed, groups=self.groups)


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
    Raises `InputError` for a circuit without nodes that could be knocked out, `UnknownNameError` for a group's node
    that the graph has not.
    """
    graph, nodes = circuit.graph, _rows(circuit)
    generator = torch.Generator().manual_seed(seed)
    sets, kinds = [], []
    for _ in range(draws):
        sets.append(_set(circuit, [r for r in nodes if torch.rand((), generator=generator) < 0.5]))
        kinds.append("random")
    named = layer_groups(circuit) if groups is None else groups
    for name, members in named.items():
        sets.append(_set(circuit, [graph.row(member) for member in members]))
        kinds.append(name)
    total = len(sets) + greedy * min(CANDIDATES, len(nodes))
    samples = _both(evaluator, circuit, torch.stack(sets)) if sets else torch.empty(2, 0, len(evaluator.task))
    evaluator.setting.progress("completeness", len(sets), total)
    chosen: list[int] = []
    for step in range(min(greedy, len(nodes))):
        rest = [row for row in nodes if row not in chosen]
        picked = [rest[i] for i in torch.randperm(len(rest), generator=generator)[:CANDIDATES].tolist()]
        tried = torch.stack([_set(circuit, [*chosen, row]) for row in picked])
        both = _both(evaluator, circuit, tried)
        best = int((both[0] - both[1]).mean(1).abs().argmax())
        chosen.append(picked[best])
        sets.append(tried[best])
        kinds.append("greedy")
        samples = torch.cat([samples, both[:, best, None]], 1)
        evaluator.setting.progress("completeness", min(total, len(sets) + (step + 1) * CANDIDATES), total)
    names = tuple(tuple(graph.writers[i] for i in one.nonzero().flatten().tolist()) for one in sets)
    return Completeness(names, tuple(kinds), samples, evaluator.gap, evaluator.task.groups)


def minimality(
    evaluator: Evaluator,
    circuit: Circuit,
    *,
    sets: int = 1,
    readers: bool = True,
    seed: int = 0,
) -> Minimality:
    """For each part of the circuit, the largest change that leaving it out makes, over K = nothing and random halves.

    Parts are its nodes and, with `readers`, the edges into each reader together. A part that changes nothing alone may
    matter once its backups are gone: hence the `sets` random K. Raises as `completeness`.
    """
    names, gone = parts_of(circuit, readers=readers)
    generator = torch.Generator().manual_seed(seed)
    nodes = _rows(circuit)
    halves = [[r for r in nodes if torch.rand((), generator=generator) < 0.5] for _ in range(sets)]
    changes = []
    for done, half in enumerate([[], *halves]):
        base = Circuit(circuit.graph, circuit.mask & ~_set(circuit, half)[:, None])
        touched = torch.tensor([bool((base.mask & one).any()) for one in gone])
        what = f"minimality, {done + 1} of {1 + sets}"
        found = evaluator.parts(base, torch.cat([torch.zeros_like(gone[:1]), gone]), what)
        changes.append((found[1:] - found[0]) * touched[:, None])
    return Minimality(names, torch.stack(changes), evaluator.gap, evaluator.task.groups)


def parts_of(circuit: Circuit, *, readers: bool) -> tuple[tuple[str, ...], Bool[Tensor, "parts writers readers"]]:
    """Names of a circuit's parts, latest first, and the edges that go with each.

    Latest first, since neighbours that lie alike are evaluated together.
    """
    graph = circuit.graph
    found: list[tuple[int, str, Tensor]] = []
    for row in _rows(circuit):
        mask = torch.zeros_like(circuit.mask)
        mask[row] = circuit.mask[row]
        found.append((2 * graph.layer_of[row] + 1, graph.writers[row], mask))
    for column in circuit.mask.any(0).nonzero().flatten().tolist() if readers else []:
        mask = torch.zeros_like(circuit.mask)
        mask[:, column] = circuit.mask[:, column]
        found.append((2 * graph.reader_layer[column], graph.readers[column], mask))
    found.sort(key=lambda part: -part[0])
    return tuple(name for _, name, _ in found), torch.stack([mask for _, _, mask in found])


def is_reader(name: str) -> bool:
    """Whether a part's name is that of a reader, not of a node."""
    return name == "logits" or name.rsplit(".", 1)[-1] in ("q", "k", "v", "in")


def without(circuit: Circuit, parts: Sequence[str]) -> Circuit:
    """The circuit without the edges of `parts` (nodes or readers), and without what then leads nowhere."""
    mask = circuit.mask.clone()
    for part in parts:
        if is_reader(part):
            mask[:, circuit.graph.column(part)] = False
        else:
            mask[circuit.graph.row(part)] = False
    return Circuit(circuit.graph, mask).without_dangling()


def shrink(
    evaluator: Evaluator, circuit: Circuit, found: Minimality, *, loss: float = 0.02
) -> tuple[Circuit, tuple[str, ...]]:
    """The circuit without the parts it can do without together, and their names, least needed first.

    As many as can go such that the metric changes by no more than `loss` of F(M) - F(0): a search by halves over the
    parts in the order of their scores, each circuit on the way measured.
    """
    order = [found.names[i] for i in found.scores.argsort(stable=True).tolist()]
    own = float(evaluator.circuits([circuit])[0].mean())
    fits, exceeds = 0, len(order) + 1
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        smaller = float(evaluator.circuits([without(circuit, order[:middle])])[0].mean())
        if abs(smaller - own) <= loss * abs(found.gap):
            fits = middle
        else:
            exceeds = middle
    return (without(circuit, order[:fits]) if fits else circuit), tuple(order[:fits])


def layer_groups(circuit: Circuit) -> dict[str, list[str]]:
    """Heads and MLPs of the first, middle and last third of the layers, those that the circuit has."""
    graph = circuit.graph
    groups: dict[str, list[str]] = {}
    for row in _rows(circuit):
        layer = graph.layer_of[row]
        kind = "MLPs" if graph.writer_nodes[row].kind == "mlp" else "heads"
        third = ("first", "middle", "last")[3 * layer // graph.n_layers]
        groups.setdefault(f"{kind} of the {third} third", []).append(graph.writers[row])
    return groups


def _both(
    evaluator: Evaluator, circuit: Circuit, sets: Bool[Tensor, "sets writers"]
) -> Float[Tensor, "2 sets prompts"]:
    """The metric of circuit and model without each K."""
    own = evaluator.parts(circuit, sets[:, :, None].expand(-1, -1, circuit.mask.shape[1]))
    return torch.stack([own, evaluator.ablate(sets)])


def _rows(circuit: Circuit) -> list[int]:
    rows = [row for row in circuit.mask.any(1).nonzero().flatten().tolist() if row > 0]
    if not rows:
        raise InputError("The circuit has no head or MLP that could be knocked out; it needs at least one.")
    return rows


def _set(circuit: Circuit, rows: Sequence[int]) -> Bool[Tensor, " writers"]:
    chosen = torch.zeros(len(circuit.graph.writers), dtype=torch.bool)
    chosen[list(rows)] = True
    return chosen
