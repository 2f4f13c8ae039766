"""Circuits by learning: masks on edges (Edge Pruning) or nodes (subnetwork probing), trained by gradient descent.

A mask is a hard-concrete variable (Louizos et al. 2018, arXiv:1712.01312): z = clamp(s (ZETA - GAMMA) + GAMMA, 0, 1),
s = sigmoid((logit(u) + log_alpha) / BETA), u uniform; so z is 0 or 1 with a chance above 0 and yet has a gradient.
    P(z > 0) = sigmoid(log_alpha - BETA ln(-GAMMA / ZETA)),
    P(z = 1) = sigmoid(log_alpha - BETA ln(-(1 - GAMMA) / (1 - ZETA))).
The model is frozen; all that is learned are the log_alpha.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.edges import eap_ig
from circuitome.engine.batches import DEFAULT_MEMORY, group_rows, make_batch
from circuitome.engine.checkpoint import Checkpoint
from circuitome.engine.circuit_run import Baseline, baseline
from circuitome.engine.masked_run import masked_final
from circuitome.engine.readout import check_numbers
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, MemoryBudgetError, unknown_name
from circuitome.graph.edge_scores import EdgeScores
from circuitome.models.model import Model
from circuitome.tasks.losses import kl
from circuitome.tasks.task import Task

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard-concrete distribution."""
OPEN_SHIFT = -BETA * math.log(-GAMMA / ZETA)
"""P(z > 0) is sigmoid(log_alpha + OPEN_SHIFT), and P(z = 1) sigmoid(log_alpha - OPEN_SHIFT)."""
LARGEST = 12.0
"""|log_alpha| stays below this, so that float32 still tells the chances of two masks apart."""

MASK_LOSSES = ("both", "kl", "metric")
METRIC_WEIGHT = 5.0
"""Weight of the squared difference of metrics, in units of the gap between clean and ablated, beside 1 nat of KL."""

LEARNING_RATE = 0.15
START = 4
"""Masks expected to be open at first, in units of those open at last."""
STEEPNESS = 4.0
"""The first log_alpha fall by this with every e-fold of the rank by EAP-IG."""
WARM_UP, SETTLE = 0.5, 0.25
"""Shares of the steps: the target falls to its final value in the first, sampled masks are hard in the last."""
JITTER = 0.3
"""Scale of the noise on log_alpha by which the edges of a hard mask are drawn in the last steps."""
PROMPTS = 8
"""Prompts a step."""
SAVE_EVERY = 10
"""Steps between two checkpoints."""
LISTENING = 1e-7
"""A closed mask of this size changes no output, but has the gradient that an open one would have."""

Spread = Callable[[Tensor], Tensor]
"""From one number a mask to [writers, readers]."""


def sample(log_alpha: Float[Tensor, " mask"], generator: torch.Generator) -> Float[Tensor, " mask"]:
    """One draw of every hard-concrete mask, in [0, 1], differentiable in `log_alpha`."""
    s = torch.sigmoid((_logistic(log_alpha, generator) + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def chance_open(log_alpha: Float[Tensor, " mask"]) -> Float[Tensor, " mask"]:
    """P(z > 0) of every mask."""
    return torch.sigmoid(log_alpha + OPEN_SHIFT)


def chance_whole(log_alpha: Float[Tensor, " mask"]) -> Float[Tensor, " mask"]:
    """P(z = 1) of every mask."""
    return torch.sigmoid(log_alpha - OPEN_SHIFT)


@method
def edge_pruning(setting: Setting, *, edges: int = 1000, steps: int = 240, loss: str = "both") -> EdgeScores:
    """Minus the chance that each edge is open, after learning: `.top(edges)` is the circuit that was trained.

    Every edge has a hard-concrete mask z; reader v sees the sum over u of z online(u) + (1 - z) ablated(u). Minimised
    over masks and minibatches of prompts: `loss`, "kl" (KL(clean || masked) in nats), "metric" (squared difference of
    the prompt's metric from the clean model's, which rewards no overshoot) or "both". Scores lie in [-1, 0]; as
    everywhere, negative helps. The same seed on the same machine gives the same scores.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> circuit = cm.edge_pruning(model, task, edges=12, steps=40).top(12)
    >>> len(circuit), len(circuit & cm.ground_truth.true_circuit(model, task)) > 6  # of 12
    (12, True)

    Source: Bhaskar et al. 2024, arXiv:2406.16778. Departures, for speed: masks start from the ranks of |EAP-IG| with a
    few times `edges` of them open, not from all open; the expected number of open edges meets its falling target
    exactly at each step (all log_alpha shift by one number, which is what the Lagrange multiplier aims at), and
    in the last quarter of the steps masks are hard: the `edges` strongest after some noise, with straight-through
    gradients, so that what is trained is what is returned. Nodes have no masks of their own. The state is kept in the
    setting's checkpoint, from which the same call goes on after it was stopped, with the same result.

    Raises `InputError` unless 1 <= edges <= edges of the graph and steps >= 1, `UnknownNameError` for another loss or
    ablation, `NumericsError` at NaN, `MemoryBudgetError` where not even one prompt fits,
    `RunError` if the checkpoint belongs to another run.
    """
    graph = setting.model.graph
    objective = _Objective(setting, loss)
    _check("edges", edges, graph.n_edges, steps)
    strength = eap_ig(setting).values[graph.mask].abs()
    rank = torch.empty(graph.n_edges)
    rank[strength.argsort(descending=True, stable=True)] = torch.arange(1.0, graph.n_edges + 1)

    def spread(masks: Tensor) -> Tensor:
        return torch.zeros(graph.mask.shape).masked_scatter(graph.mask, masks)

    kept = setting.kept("edge-pruning", setting.seed, loss, edges, steps)
    chances = _learn(objective, spread, -STEEPNESS * rank.log(), START * edges, edges, steps, kept)
    return EdgeScores(graph, -spread(chances), "chance of being open", f"edge-pruning, {edges} edges, {loss}")


@method
def subnetwork_probing(setting: Setting, *, nodes: int = 100, steps: int = 240, loss: str = "both") -> EdgeScores:
    """Edge scores from one mask a writer, after learning a circuit of `nodes` writers.

    A writer with mask m writes m online + (1 - m) ablated, for all its readers alike. An edge's score is minus the
    smaller chance of being open among its writer and the writers that its reader is an input of (the largest of these;
    1 for the logits), so in [-1, 0]. Everything else is as in `edge_pruning`, except that masks start at .9 each.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.subnetwork_probing(model, task, nodes=5, steps=40)
    >>> -1 <= scores["a2.h0->logits"] <= 0, len(scores.top(20))
    (True, 20)

    Source: Cao et al. 2021, arXiv:2104.03514, in ACDC's form (corrupted activations instead of zeros). Departure: the
    number of open masks follows a target instead of a weight on their sum. Raises as `edge_pruning`.
    """
    graph = setting.model.graph
    objective = _Objective(setting, loss)
    _check("nodes", nodes, len(graph.writers), steps)

    def spread(masks: Tensor) -> Tensor:
        return masks[:, None] * graph.mask

    start = torch.full((len(graph.writers),), math.log(0.9 / 0.1))
    kept = setting.kept("subnetwork-probing", setting.seed, loss, nodes, steps)
    chances = _learn(objective, spread, start, float(chance_open(start).sum()), nodes, steps, kept)
    reading = (graph.inputs * chances[:, None]).amax(0)
    reading[-1] = 1.0
    values = -torch.minimum(chances[:, None], reading) * graph.mask
    return EdgeScores(graph, values, "chance of being open", f"subnetwork-probing, {nodes} nodes, {loss}")


def _check(what: str, size: int, most: int, steps: int) -> None:
    if not 1 <= size <= most:
        raise InputError(f"A circuit of {size} {what} was asked for; this model has {most} {what}, choose 1 to {most}.")
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")


def _learn(
    objective: "_Objective",
    spread: Spread,
    start: Float[Tensor, " mask"],
    first: float,
    size: int,
    steps: int,
    kept: Checkpoint,
) -> Float[Tensor, " mask"]:
    """Chance of being open of every mask, summing to `size`; trained from `start`, shifted to sum to `first`.

    Where all masks are asked for there is nothing to learn: all are open.
    """
    if size == len(start):
        return torch.ones_like(start)
    first = max(float(size), min(first, 0.9 * len(start)))
    log_alpha = _meeting(start, first)
    average, square = torch.zeros_like(log_alpha), torch.zeros_like(log_alpha)
    soft_steps, done = round((1 - SETTLE) * steps), 0
    if before := kept.read():
        log_alpha, average, square = (before[0][name] for name in ("log_alpha", "average", "square"))
        objective.generator.set_state(before[0]["generator"])
        objective.order, done = before[1]["order"], before[1]["done"]
    for step in range(done, steps):
        target = first * (size / first) ** min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
        draw = sample if step < soft_steps else _hard(size)
        leaf = log_alpha.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(objective(spread(draw(leaf, objective.generator)), step), leaf)
        # The shift that meets the target depends on every mask: on the surface where it is met, masks compete.
        slope = chance_open(log_alpha) * (1 - chance_open(log_alpha))
        gradient = gradient - slope * (gradient.sum() / slope.sum())
        average, square = average.lerp(gradient, 0.1), square.lerp(gradient.square(), 0.05)
        unbiased = average / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
        rate = LEARNING_RATE * min(1.0, (steps - step) / max(1, steps - soft_steps))
        log_alpha = _meeting((log_alpha - rate * unbiased).clamp(-LARGEST, LARGEST), target)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            state = {"log_alpha": log_alpha, "average": average, "square": square}
            kept.write(
                state | {"generator": objective.generator.get_state()}, {"order": objective.order, "done": step + 1}
            )
        objective.setting.progress("learning masks", step + 1, steps)
    return chance_open(_meeting(log_alpha, size))


def _meeting(log_alpha: Float[Tensor, " mask"], target: float) -> Float[Tensor, " mask"]:
    """All log_alpha shifted by the one number for which `target` masks are expected to be open."""
    low, high = -4 * LARGEST - float(log_alpha.max()), 4 * LARGEST - float(log_alpha.min())
    for _ in range(50):
        middle = (low + high) / 2
        if float(chance_open(log_alpha + middle).sum()) > target:
            high = middle
        else:
            low = middle
    return log_alpha + low


def _logistic(like: Tensor, generator: torch.Generator) -> Tensor:
    """Logistic noise, logit(u) for u uniform."""
    u = torch.rand(like.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    return u.log() - (-u).log1p()


def _hard(size: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """A draw that opens exactly `size` masks, those with the largest log_alpha after some noise.

    Straight through: the gradient at each mask goes on to log_alpha as if the mask were its chance of being open. Twice
    as many closed masks listen, so that they can come back.
    """

    def draw(log_alpha: Tensor, generator: torch.Generator) -> Tensor:
        order = (log_alpha + JITTER * _logistic(log_alpha, generator)).argsort(descending=True, stable=True)
        mask = torch.zeros_like(log_alpha)
        mask[order[: 3 * size]] = LISTENING
        mask[order[:size]] = 1.0
        chance = chance_open(log_alpha)
        return torch.where(mask > 0, mask + (chance - chance.detach()), 0.0)

    return draw


@dataclass(frozen=True)
class _Clean:
    """What a run on one minibatch is compared with."""

    base: Baseline
    """The minibatch."""
    logits: Float[Tensor, "batch vocab"]
    """The clean model's logits."""
    metric: Float[Tensor, " batch"]
    """The clean model's metric."""


class _Objective:
    """The loss of a mask on one minibatch after another, in an order shuffled each time all have had their turn."""

    def __init__(self, setting: Setting, loss: str) -> None:
        """Prompts alike in length share a minibatch. Raises for an unknown loss or ablation or too little memory."""
        if loss not in MASK_LOSSES:
            raise unknown_name("loss", loss, MASK_LOSSES)
        self.setting, self.loss = setting, loss
        self.model, self.task = model, task = setting.model, setting.task
        self.generator = torch.Generator().manual_seed(setting.seed)
        budget = DEFAULT_MEMORY if setting.max_memory is None else setting.max_memory
        self.shared = setting.replacement.from_prompts
        groups = group_rows(model, task, shared_prefix=self.shared, max_memory=setting.max_memory)
        order = [row for rows in groups for row in rows]
        self.groups = _parts(order, _prompts_within(model, task, budget))
        tokens = sum(len(pair.clean) for pair in task.pairs)
        self.keeps = tokens * model.bytes_per_token(gradients=False) <= budget
        self.kept: dict[int, _Clean] = {}
        self.order: list[int] = []
        self.gap = self._gap()

    def __call__(self, z: Float[Tensor, "writers readers"], step: int) -> Float[Tensor, ""]:
        """Mean loss over the prompts of the next minibatch."""
        if step % len(self.groups) == 0:
            self.order = torch.randperm(len(self.groups), generator=self.generator).tolist()
        clean = self._clean(self.order[step % len(self.groups)])
        rows = clean.base.batch.rows
        with self.model.frozen_parameters():
            final = masked_final(self.model, clean.base, z.to(clean.metric.device))
            logits = self.model.unembed(final.to(self.model.dtype))
        total = torch.zeros(len(rows), device=logits.device)
        if self.loss != "metric":
            total = total + kl(clean.logits, logits)
        if self.loss != "kl":
            total = total + METRIC_WEIGHT * ((self.task.score(logits, rows) - clean.metric) / self.gap).square()
        check_numbers(total, "loss")
        return total.mean()

    def _clean(self, group: int) -> _Clean:
        """The group's baseline and clean logits; made afresh each time where all do not fit into memory."""
        if group in self.kept:
            return self.kept[group]
        rows = self.groups[group]
        with torch.no_grad():
            batch = make_batch(self.model, self.task, rows, shared_prefix=self.shared, corrupted=self.shared)
            base = baseline(self.model, self.task, batch, self.setting.replacement)
            logits = self.model.logits(batch.clean)
        clean = _Clean(base, logits, self.task.score(logits, rows))
        if self.keeps:
            self.kept[group] = clean
        return clean

    def _gap(self) -> float:
        """Mean absolute difference of the metric between the clean and the wholly ablated run; the metric's unit."""
        differences = []
        for group in range(len(self.groups)):
            clean = self._clean(group)
            rows = clean.base.batch.rows
            nothing = torch.zeros(self.model.graph.mask.shape, device=clean.metric.device)
            with torch.no_grad():
                logits = self.model.unembed(masked_final(self.model, clean.base, nothing).to(self.model.dtype))
            differences.append((clean.metric - self.task.score(logits, rows)).abs())
        return max(float(torch.cat(differences).mean()), 1e-6)


def _prompts_within(model: Model, task: Task, budget: int) -> int:
    """Prompts a minibatch. Raises `MemoryBudgetError` where not even one fits."""
    graph = model.graph
    vectors = 2 * len(graph.writers) + 2 * len(graph.readers)  # differences and inputs, each with its gradient
    each = max(len(pair.clean) for pair in task.pairs) * (
        model.bytes_per_token(gradients=True) + 4 * model.d_model * vectors
    )
    if each > budget:
        raise MemoryBudgetError(
            f"Learning masks takes about {each / 1e6:,.0f} MB a prompt beside the weights, the budget is "
            f"{budget / 1e6:,.0f} MB. Raise --max-memory to {each / 1e9:.1f}GB, or shorten the prompts."
        )
    return min(PROMPTS, budget // each)


def _parts(rows: list[int], at_most: int) -> list[tuple[int, ...]]:
    """`rows` in as few parts as can be, as even as can be."""
    count = -(-len(rows) // at_most)
    cuts = [len(rows) * i // count for i in range(count + 1)]
    return [tuple(rows[a:b]) for a, b in pairwise(cuts)]
