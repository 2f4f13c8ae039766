"""What every neuron does to the metric, to first order: one number a neuron, from a few passes.

    score(n) = mean over prompts of sum over tokens of (ablated(a_n) - clean(a_n)) < d_n, dm/dx >,

a_n what the neuron writes with (over the divisor of a post-norm), d_n its row of the MLP's output weights (times the
gain of a post-norm), and dm/dx the mean gradient at the stream behind the block over the points of the integration
path. Negative: the neuron helps. It is the sum of the scores of the neuron's edges, and over a layer's neurons the
score of their MLP.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.backward_rules import Rules, rules_of, with_rules
from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.neurons.activity import check_mlps
from circuitome.neurons.factors import Gradients, Pass, batches_of, path_points
from circuitome.results import Shown


@dataclass(frozen=True, eq=False)
class NeuronScores(Shown):
    """One number for every neuron of every layer."""

    values: Float[Tensor, "layer neuron"]
    """Mean change of the metric when the neuron is ablated, in the metric's unit; negative where it helps."""
    unit: str
    """Unit of the metric."""
    method: str
    """How they were made."""

    def __repr__(self) -> str:
        layers, neurons = self.values.shape
        return f"NeuronScores({self.method}, {layers} layers of {neurons} neurons, unit {self.unit})"

    def __getitem__(self, neuron: str) -> float:
        node = Node.parse(neuron)
        return float(self.values[node.layer, node.index])

    def top(self, n: int) -> list[tuple[str, float]]:
        """The `n` neurons with the largest |score| and their scores. Raises `InputError` for more than there are."""
        if not 0 <= n <= self.values.numel():
            raise InputError(f"There are {self.values.numel():,} neurons; {n} were asked for.")
        order = self.values.abs().flatten().sort(descending=True, stable=True).indices[:n].tolist()
        places = [divmod(i, self.values.shape[1]) for i in order]
        return [(str(Node("neuron", *place)), float(self.values[place])) for place in places]


@method
@on_neurons
def scores(setting: Setting, *, steps: int = 5, rules: str | Rules = "plain") -> NeuronScores:
    """The score of every neuron, the gradient averaged over `steps` midpoints between ablated and clean embeddings.

    See the formula of the module; `steps=1` takes the gradient on the clean run (attribution patching). `rules` are
    those of `eap`; with "relp" one step does what takes many without. Costs three forward passes and `steps`
    forward-backwards. Sources: Kramár et al. 2024, arXiv:2403.00745 (AtP); Hanna et al. 2024, arXiv:2403.17806 (the
    path); Jafari et al. 2025, arXiv:2508.21258 (RelP).

    >>> model, task = cm.load("tracr-reverse"), cm.ground_truth.task("tracr-reverse", 16)
    >>> cm.neurons.scores(model, task, ablation="zero").values.shape[0] == model.graph.n_layers
    True

    Raises `InputError` for steps < 1, for mean ablation and for a model without MLPs; `NumericsError` where the metric
    is not finite; `MemoryBudgetError` where not even one prompt fits; as `backward_rules` where rules cannot act.
    """
    check_neurons(setting, steps)
    rules = rules_of(rules)
    total: Tensor | None = None
    for batch in batches_of(setting):
        clean, ablated, points = path_points(setting, batch, steps, rules)
        for point in points:
            part = _scores_at(point, clean, ablated) / steps
            total = part if total is None else total + part
            del point  # before the next one is made
    assert total is not None
    name = "attribution patching" if steps == 1 else f"integrated gradients, {steps} steps"
    return NeuronScores(total.cpu() / len(setting.task), setting.task.unit, with_rules(name, rules))


def _scores_at(point: Gradients, clean: Pass, ablated: Pass) -> Float[Tensor, "layer neuron"]:
    """Sum over prompts and tokens of change times gradient at one point."""
    rows = list[Tensor]()
    for layer, block in enumerate(point.model.blocks):
        along = point.stream[layer] @ block.neuron_weights().T
        rows.append(((ablated.neurons[layer] - clean.neurons[layer]) * along).sum((0, 1)))
    return torch.stack(rows)


def check_neurons(setting: Setting, steps: int) -> None:
    """Raises `InputError` for what the attribution of neurons cannot do."""
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}.")
    if setting.ablation not in ("corrupted", "zero"):
        raise InputError(f"Neurons are ablated by corrupted or zero, not by {setting.ablation}.")
    check_mlps(setting.model)
