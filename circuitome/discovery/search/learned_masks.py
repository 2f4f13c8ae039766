"""Circuits by learning: masks on edges (Edge Pruning) or nodes (subnetwork probing), trained by gradient descent.

A mask is a hard-concrete variable (Louizos et al. 2018, arXiv:1712.01312): z = clamp(s (ZETA - GAMMA) + GAMMA, 0, 1),
s = sigmoid((logit(u) + log_alpha) / BETA), u uniform; so z is 0 or 1 with a chance above 0 and yet has a gradient.
    P(z > 0) = sigmoid(log_alpha - BETA ln(-GAMMA / ZETA)),
    P(z = 1) = sigmoid(log_alpha - BETA ln(-(1 - GAMMA) / (1 - ZETA))).
The model is frozen; all that is learned are the log_alpha.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.edges import eap_ig
from circuitome.discovery.search.mask_objective import MaskObjective, log_ranks
from circuitome.engine.checkpoint import Checkpoint
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.edge_scores import EdgeScores

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard-concrete distribution."""
OPEN_SHIFT = -BETA * math.log(-GAMMA / ZETA)
"""P(z > 0) is sigmoid(log_alpha + OPEN_SHIFT), and P(z = 1) sigmoid(log_alpha - OPEN_SHIFT)."""
LARGEST = 12.0
"""|log_alpha| stays below this, so that float32 still tells the chances of two masks apart."""

LEARNING_RATE = 0.15
START = 4
"""Masks expected to be open at first, in units of those open at last."""
STEEPNESS = 4.0
"""The first log_alpha fall by this with every e-fold of the rank by EAP-IG."""
WARM_UP, SETTLE = 0.5, 0.25
"""Shares of the steps: the target falls to its final value in the first, sampled masks are hard in the last."""
JITTER = 0.3
"""Scale of the noise on log_alpha by which the edges of a hard mask are drawn in the last steps."""
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
    objective = MaskObjective(setting, loss)
    _check("edges", edges, graph.n_edges, steps)
    kept = setting.kept("edge-pruning", setting.seed, loss, edges, steps)
    chances = _learn(objective, graph.matrix, STEEPNESS * log_ranks(eap_ig(setting)), START * edges, edges, steps, kept)
    return EdgeScores(graph, -graph.matrix(chances), "chance of being open", f"edge-pruning, {edges} edges, {loss}")


@method
@on_neurons
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
    objective = MaskObjective(setting, loss)
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
    objective: MaskObjective,
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
