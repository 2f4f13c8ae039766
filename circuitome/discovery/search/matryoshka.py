"""Matryoshka attribution: one ranking of edges whose first k are a good circuit, for every k.

Edges have scores s, trained by running circuits of many sizes. For a size k every edge is open by
    m_i = sigmoid((s_i - tau) / T), with the tau for which all m sum to k,
and its reader sees m online + (1 - m) ablated. Behind tau stands implicit differentiation: with p_i = m_i (1 - m_i),
    dL/ds_j = p_j / T (dL/dm_j - sum_i p_i dL/dm_i / sum_i p_i),
so that raising one score lowers all others. Source: Arora et al. 2026, arXiv:2609.25518.
Ours is a start from the ranks of |EAP-IG|, with which some hundred steps do what takes thousands from zero; a loss
with its minimum where the circuit does the task as well as the model, neither less nor more; and sizes in even steps.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.discovery.attribution.edges import eap_ig
from circuitome.discovery.search.mask_objective import PROMPTS, MaskObjective, log_ranks
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.edge_scores import EdgeScores
from circuitome.graph.model_graph import Graph

STEPS = 200
"""Steps of learning; more change little."""
TEMPERATURE = 0.5
"""T: how soft a circuit's border is, in e-folds of rank."""
RATE = 0.1
"""Adam's learning rate; it falls to 0 in the last part of the steps."""
COOLING = 0.3
"""The last part of the steps."""
CLOSED = 0.01
"""Edges less open than this are shut, which spares their heads and MLPs the run."""
SIZES = (20, 10_000)
"""Edges of the smallest and the largest circuit that is trained ..."""
SHARES = (1 / 20, 1 / 2)
"""... in a small graph these shares of its edges."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Sizes step by this share of their range, the most even way to fill it."""
SAVE_EVERY = 10
"""Steps between two checkpoints."""


@method
@on_neurons
def mattr(
    setting: Setting,
    *,
    steps: int = STEPS,
    loss: str = "both",
    start: EdgeScores | None = None,
    prompts: int = PROMPTS,
) -> EdgeScores:
    """Edge scores whose `.top(k)` is trained to do the task as the model does, for every size k at once.

    A score is minus one over the rank that the edge has come to, in [-1, 0] at the start and a little beyond later;
    as everywhere, negative helps. `loss`, averaged over minibatches of `prompts` prompts and over sizes: "kl" (KL(clean
    || circuit), nats), "metric" (squared difference of each prompt's metric from the clean model's, as a share of the
    gap) or "both". With 32 prompts and 120 steps the smallest and the largest circuits come nearer to the model, for
    twice the passes. Learning starts from the ranks of |start|, by default |EAP-IG|; where neurons are nodes give
    `cm.neurons.graph_scores`. The same seed gives the same scores on one machine; the setting's checkpoint keeps the
    state, from which the same call goes on after a stop.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> scores = cm.mattr(model, task, steps=40)
    >>> scores.top(13) == cm.ground_truth.true_circuit(model, task)
    True

    Raises `InputError` unless steps and prompts are at least 1 and `start` is of the model's graph, `UnknownNameError`
    for another loss or ablation, `NumericsError` at NaN, `MemoryBudgetError` where not even one prompt fits, `RunError`
    if the checkpoint belongs to another run.
    Source: Arora et al. 2026, arXiv:2609.25518, section 3; the module's first lines say what is ours.
    """
    if steps < 1 or prompts < 1:
        raise InputError(f"steps and prompts must be at least 1, got {steps} and {prompts}.")
    training = Training(MaskObjective(setting, loss, prompts), steps)
    start = eap_ig(setting) if start is None else start
    if start.graph != setting.model.graph:
        raise InputError(f"start has scores for {start.graph}; {setting.model.name} has {setting.model.graph}.")
    return training.run(log_ranks(start), "learning which edges matter")


@dataclass
class Training:
    """Adam on the scores of all edges."""

    objective: MaskObjective
    """The loss of a partly open circuit on one minibatch after another."""
    steps: int
    """Steps from the start to the end of its cooling."""
    sizes: tuple[int, int] = SIZES
    """The smallest and the largest circuit that is trained."""
    temperatures: tuple[float, float] = (TEMPERATURE, TEMPERATURE)
    """T at the first and at the last step."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """Running means of the gradient and of its square."""

    def run(self, start: Float[Tensor, " edges"], what: str) -> EdgeScores:
        """The scores after all steps, from `start`, or from where the setting's checkpoint stands."""
        setting, loss = self.objective.setting, self.objective.loss
        kept = setting.kept(
            "mattr", setting.seed, loss, self.objective.prompts, self.steps, self.sizes, self.temperatures
        )
        scores, done = start, 0
        self.moments = {"average": torch.zeros_like(start), "square": torch.zeros_like(start)}
        if before := kept.read():
            scores, self.moments = before[0]["scores"], {name: before[0][name] for name in self.moments}
            self.objective.generator.set_state(before[0]["generator"])
            self.objective.order, done = before[1]["order"], before[1]["done"]
        for step in range(done, self.steps):
            scores = self.step(scores, step)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == self.steps:
                state = {"scores": scores, **self.moments, "generator": self.objective.generator.get_state()}
                kept.write(state, {"order": self.objective.order, "done": step + 1})
            setting.progress(what, step + 1, self.steps)
        graph = setting.model.graph
        return EdgeScores(graph, -graph.matrix(scores.exp()), "1 / rank", f"mattr, {self.steps} steps, {loss}")

    def step(self, scores: Float[Tensor, " edges"], step: int) -> Float[Tensor, " edges"]:
        """The scores after one more step of Adam."""
        gradient, number = self.gradient(scores, step), step + 1
        average = self.moments["average"] = self.moments["average"].lerp(gradient, 0.1)
        square = self.moments["square"] = self.moments["square"].lerp(gradient.square(), 0.05)
        unbiased = average / (1 - 0.9**number) / ((square / (1 - 0.95**number)).sqrt() + 1e-8)
        rate = RATE * min(1.0, (self.steps - step) / max(1.0, COOLING * self.steps))
        return scores - rate * unbiased

    def gradient(self, scores: Float[Tensor, " edges"], step: int) -> Float[Tensor, " edges"]:
        """Gradient of the loss of one minibatch with respect to the scores, at this step's size and temperature."""
        graph = self.objective.model.graph
        first, last = self.temperatures
        temperature = first * (last / first) ** (step / self.steps)
        opened = open_masks(scores, self.size(step, graph), temperature)
        leaf = torch.where(opened < CLOSED, 0.0, opened).requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.objective(graph.matrix(leaf), step), leaf)
        return through_tau(gradient, opened, temperature)

    def size(self, step: int, graph: Graph) -> float:
        """Edges open in all at a step: evenly over the logarithm of the range of sizes."""
        low, high = (min(size, graph.n_edges * share) for size, share in zip(self.sizes, SHARES, strict=True))
        return float(low * (high / low) ** ((0.5 + step * GOLDEN) % 1.0))


def open_masks(scores: Float[Tensor, " edges"], size: float, temperature: float) -> Float[Tensor, " edges"]:
    """sigmoid((scores - tau) / temperature), tau such that they sum to `size`."""
    low = float(scores.min()) - 20 * temperature
    high = float(scores.max()) + 20 * temperature
    for _ in range(50):
        tau = (low + high) / 2
        if float(torch.sigmoid((scores - tau) / temperature).sum()) > size:
            low = tau
        else:
            high = tau
    return torch.sigmoid((scores - low) / temperature)


def through_tau(
    gradient: Float[Tensor, " edges"], opened: Float[Tensor, " edges"], temperature: float
) -> Float[Tensor, " edges"]:
    """Gradient with respect to the scores, given the one with respect to the masks that `open_masks` makes of them."""
    p = opened * (1 - opened)
    return p / temperature * (gradient - (p * gradient).sum() / p.sum())
